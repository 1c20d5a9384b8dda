// Rope of a row's heads, and its key and value into their pages: what `rope_fast.cu` and, of keys and values alone, `rows_fast.cu` do.
// A warp is a head of q, or the key, or the value of a row. sm_90a only.
#pragma once
#include "hopper.cuh"

#define HEADS 64
#define PARTS (HEADS + 2)
#define DIM 256
#define PAGE 64

struct Append {
    const float *q, *k, *v, *table;
    const int *positions, *first, *pages;
    bf16 *rotated;
    u8 *keys, *values;
    float *scales;
    int rows, is_fp8;
};

// Four elements and the four that pair with them.
struct Pairs {
    float low[4], high[4];
};

// `Fixed`: no kernel of the step writes it, so that it may be read before the kernel before is done.
template <bool Fixed> __device__ __forceinline__ void read_four(float (&to)[4], const float *from) {
    auto at = reinterpret_cast<const float4 *>(from);
    float4 x = Fixed ? __ldg(at) : __ldcg(at);
    to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
}

__device__ __forceinline__ void rotate(Pairs &x, const float *table) {
    float cosine[4], sine[4];
    read_four<true>(cosine, table), read_four<true>(sine, table + DIM / 2);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float low = x.low[i], high = x.high[i];
        x.low[i] = __fsub_rn(__fmul_rn(low, cosine[i]), __fmul_rn(high, sine[i]));
        x.high[i] = __fadd_rn(__fmul_rn(high, cosine[i]), __fmul_rn(low, sine[i]));
    }
}

__device__ __forceinline__ void write_bf16(bf16 *to, const Pairs &x) {
    *reinterpret_cast<uint2 *>(to) = make_uint2(pack_bf16(x.low[0], x.low[1]), pack_bf16(x.low[2], x.low[3]));
    *reinterpret_cast<uint2 *>(to + DIM / 2) = make_uint2(pack_bf16(x.high[0], x.high[1]), pack_bf16(x.high[2], x.high[3]));
}

// Of the warp's 256 elements: the largest finite magnitude / 448.
__device__ __forceinline__ float scale_of(const Pairs &x) {
    float largest = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float a = fabsf(x.low[i]), b = fabsf(x.high[i]);
        if (a < __int_as_float(0x7f800000)) largest = fmaxf(largest, a);
        if (b < __int_as_float(0x7f800000)) largest = fmaxf(largest, b);
    }
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, mask));
    return fmaxf(largest / 448.0f, 1.17549435e-38f);
}

// Part `part` of `row`: a head, or HEADS for the key, HEADS + 1 for the value. All of a warp.
__device__ __forceinline__ void append_part(const Append &a, int row, int part, int lane) {
    int at = lane * 4, position = __ldg(a.positions + row);
    bool is_query = part < HEADS, is_value = part == HEADS + 1;
    const float *from = is_query ? a.q + ((size_t)row * HEADS + part) * DIM : (is_value ? a.v : a.k) + (size_t)row * DIM;
    Pairs x;
    read_four<false>(x.low, from + at), read_four<false>(x.high, from + DIM / 2 + at);
    if (!is_value) rotate(x, a.table + (size_t)position * DIM + at);
    if (is_query) {
        write_bf16(a.rotated + ((size_t)row * HEADS + part) * DIM + at, x);
        return;
    }
    int page = __ldg(a.pages + __ldg(a.first + row) + position / PAGE), offset = position % PAGE;
    u8 *pool = is_value ? a.values : a.keys;
    size_t place = ((size_t)page * PAGE + offset) * DIM + at;
    if (!a.is_fp8) {
        write_bf16(reinterpret_cast<bf16 *>(pool) + place, x);
        return;
    }
    float scale = scale_of(x);
#pragma unroll
    for (int i = 0; i < 4; i++) x.low[i] = x.low[i] / scale, x.high[i] = x.high[i] / scale;
    u32 low = pack_e4m3(x.low[0], x.low[1], x.low[2], x.low[3]), high = pack_e4m3(x.high[0], x.high[1], x.high[2], x.high[3]);
    if (lane == 0) a.scales[((size_t)page * 2 + is_value) * PAGE + offset] = scale;
    if (!is_value) {
        *reinterpret_cast<u32 *>(pool + place) = low, *reinterpret_cast<u32 *>(pool + place + DIM / 2) = high;
        return;
    }
    // Where mfa_decode_fp8.cu has a position in a row of 64.
    int rest = offset % 16, turned = offset - rest + 4 * (rest % 8 / 2) + 2 * (rest / 8) + rest % 2;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        pool[((size_t)page * DIM + at + i) * PAGE + turned] = (u8)(low >> (8 * i));
        pool[((size_t)page * DIM + DIM / 2 + at + i) * PAGE + turned] = (u8)(high >> (8 * i));
    }
}
