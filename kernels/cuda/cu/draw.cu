// Weights that are made from a seed, where they will be read: the same bits as `rally_stages::checkpoint::RandomWeights` has.
//
//   draw         values [rows, stride] as stored, of a part of a matrix with `whole` columns that begins at (first_row, first_col); zero
//                from a row's columns to the stride
//   draw_scales  scales [ceil(rows/128), ceil(cols/128)] of that part
//
// An item of `draw` is 1024 elements of a row, one of `draw_scales` 32 scales. A number is a function of (stream, position in the whole
// matrix): SplitMix64's finaliser, 24 bits of it, exact in f32.
#include "warp.cuh"

typedef struct {
    u8 *values;
    float *scales;
    u64 stream, scale_stream;
    int whole, first_row, first_col, rows, cols, stride, dtype;
    float bound, scale;
} Draw;

#define DRAWN 1024

FN u64 mixed(u64 x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

// Of [-1, 1), in steps of 2^-23.
FN float uniform(u64 stream, u64 position) {
    u32 bits = (u32)(mixed(stream + position * 0x9e3779b97f4a7c15ull) >> 40);
    return product((float)bits, 1.0f / 8388608.0f) - 1.0f;
}

KERNEL(draw, Draw) {
    int chunks = (a.stride + DRAWN - 1) / DRAWN, row = item / chunks, first = item % chunks * DRAWN;
    int end = first + DRAWN < a.stride ? first + DRAWN : a.stride;
    u64 position = (u64)(a.first_row + row) * (u64)a.whole + (u64)a.first_col;
    size_t at = (size_t)row * a.stride;
    EACH_LANE {
        // Rows begin at whole sixteen bytes, and so do strides: four elements are one store.
        for (int k = first + lane * 4; k < end; k += 4 * LANES) {
            u32 drawn[4];
            for (int j = 0; j < 4; j++) {
                float x = k + j < a.cols ? product(a.bound, uniform(a.stream, position + (u64)(k + j))) : 0;
                drawn[j] = a.dtype == STORED_F32 ? as_bits(x) : a.dtype == STORED_BF16 ? to_bf16(x) : to_e4m3(x);
            }
            if (a.dtype == STORED_F32) {
                for (int j = 0; j < 4; j++) ((u32 *)a.values)[at + k + j] = drawn[j];
            } else if (a.dtype == STORED_BF16) {
                u64 low = drawn[0] | drawn[1] << 16, high = drawn[2] | drawn[3] << 16;
                *(u64 *)((u16 *)a.values + at + k) = low | high << 32;
            } else {
                *(u32 *)(a.values + at + k) = drawn[0] | drawn[1] << 8 | drawn[2] << 16 | drawn[3] << 24;
            }
        }
    }
}

KERNEL(draw_scales, Draw) {
    int across = (a.cols + SCALE_GROUP - 1) / SCALE_GROUP, tiles = (a.rows + SCALE_GROUP - 1) / SCALE_GROUP * across;
    u64 all_across = (u64)((a.whole + SCALE_GROUP - 1) / SCALE_GROUP);
    EACH_LANE {
        int tile = item * LANES + lane;
        if (tile < tiles) {
            u64 row = (u64)(a.first_row / SCALE_GROUP + tile / across);
            u64 col = (u64)(a.first_col / SCALE_GROUP + tile % across);
            float wide = product(0.25f, uniform(a.scale_stream, row * all_across + col));
            a.scales[tile] = product(a.scale, 1.0f + wide);
        }
    }
}
