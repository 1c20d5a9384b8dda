// A matrix of weights as stored, and rows of activations times one of its rows: what every product of the plain kernels is.
//
// Sums: lane i of a warp takes inputs 4i … 4i + 3 of each 128 with fused multiply-adds from zero, then the lanes as a tree. So a
// row's result depends on that row alone. A weight is widened exactly, and an fp8 one multiplied by its scale and rounded, before.
#pragma once
#include "warp.cuh"

// `stride` elements from one row to the next, a multiple of 16 bytes and zero beyond the inputs; one scale each 128 × 128.
typedef struct {
    const void *values;
    const float *scales;
    int stride, dtype;
} Weights;

// Which rows a tile has: those of one expert, or simply the next ones.
typedef struct {
    int expert, first, count;
} Tile;

FN Tile tile_of(const int *tiles, int tile, int rows) {
    Tile t;
    if (tiles) {
        t.expert = tiles[tile * 3], t.first = tiles[tile * 3 + 1], t.count = tiles[tile * 3 + 2];
    } else {
        int left = rows - tile * TILE_ROWS;
        t.expert = 0, t.first = tile * TILE_ROWS, t.count = left < TILE_ROWS ? left : TILE_ROWS;
    }
    return t;
}

// Four weights of a row from input `k`, a multiple of 4.
FN void four_weights(float *v, const Weights *w, int row, int inputs, int k) {
    size_t at = (size_t)row * w->stride + k;
    if (w->dtype == STORED_F32) {
        for (int j = 0; j < 4; j++) v[j] = ((const float *)w->values)[at + j];
    } else if (w->dtype == STORED_BF16) {
        u64 four = *(const u64 *)((const u16 *)w->values + at);
        for (int j = 0; j < 4; j++) v[j] = from_bf16((u16)(four >> (16 * j)));
    } else {
        u32 four = *(const u32 *)((const u8 *)w->values + at);
        int groups = (inputs + SCALE_GROUP - 1) / SCALE_GROUP;
        float scale = w->scales[(size_t)(row / SCALE_GROUP) * groups + k / SCALE_GROUP];
        for (int j = 0; j < 4; j++) v[j] = product(from_e4m3((u8)(four >> (8 * j))), scale);
    }
}

// Rows of a tile of `count` that are worked on: a card does them all, the first one again where there are fewer, since a number that is
// known beforehand keeps everything in registers.
#ifdef __CUDACC__
#define ASKED(count) TILE_ROWS
#else
#define ASKED(count) (count)
#endif

// The first `most` of four values of a row that is `inputs` long.
FN void four_values(float *v, const float *from, int most, int inputs) {
#ifdef __CUDACC__
    // Then rows begin at whole sixteen bytes, as buffers do.
    if (inputs % 4 == 0) {
        float4 four = *(const float4 *)from;
        v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
        return;
    }
#endif
    for (int j = 0; j < 4; j++) v[j] = j < most ? from[j] : 0;
}

// answers[i] = x[rows[i]] · w[row], for `count` rows of `inputs` values.
FN void products(float *answers, const float *x, const int *rows, int count, const Weights *w, int row, int inputs) {
    LANES_OF(float, sum, TILE_ROWS);
    for (int i = 0; i < TILE_ROWS; i++) EACH_LANE { AT(sum[i]) = 0; }
#ifdef __CUDACC__
#pragma unroll 2
#endif
    for (int start = 0; start < inputs; start += 4 * LANES) {
        EACH_LANE {
            int k = start + lane * 4, most = inputs - k < 4 ? inputs - k : 4;
            if (k < inputs) {
                float v[4], from[TILE_ROWS][4];
                // All rows are asked for before any is used.
                for (int i = 0; i < TILE_ROWS && i < ASKED(count); i++)
                    four_values(from[i], x + (size_t)rows[i] * inputs + k, most, inputs);
                four_weights(v, w, row, inputs, k);
                for (int i = 0; i < TILE_ROWS && i < ASKED(count); i++)
                    for (int j = 0; j < 4; j++)
                        if (j < most) AT(sum[i]) = fmaf(v[j], from[i][j], AT(sum[i]));
            }
        }
    }
    for (int i = 0; i < TILE_ROWS; i++) answers[i] = lanes_sum(sum[i]);
}
