// What plain kernels are written in: one warp an item, and no shared memory, so that the same text is a kernel for NVRTC and a
// C function that computes the same with the lanes of a warp one after another (`src/stand_in.rs` compiles it so).
//
//   KERNEL(name, Arguments) { … }   the work on item `item` of a launch, with the launch's arguments in `a`
//   LANES_OF(T, name, n)            n values of type T for each lane; AT(name[i]) is this lane's, inside EACH_LANE
//   EACH_LANE { … }                 done by every lane, whose number is `lane`; what follows sees nothing of it but arrays
//   lanes_sum, lanes_max, lanes_vote  of name[i], over the lanes, the same answer for all of them; lane_value: one lane's
//
// A sum over lanes is a tree: i with i + 16, + 8, + 4, + 2, + 1. Multiply-adds are written as such, and nothing else is fused.
#pragma once

#define LANES 32

#ifdef __CUDACC__
#include "common.cuh"

#define FN static __device__ __forceinline__
#define LANES_OF(T, name, n) T name[n]
#define AT(value) (value)
#define EACH_LANE for (int lane = threadIdx.x % LANES, once = lane + 1; once; once = 0)
#define KERNEL(name, Arguments)                                                                                          \
    FN void name##_item(const Arguments &a, int item);                                                                   \
    extern "C" __global__ __launch_bounds__(128) void name(const Arguments a, int items) {                               \
        int item = blockIdx.x * 4 + threadIdx.x / LANES;                                                                 \
        if (item < items) name##_item(a, item);                                                                          \
    }                                                                                                                    \
    FN void name##_item(const Arguments &a, int item)

FN float lanes_sum(float x) {
    for (int mask = 16; mask > 0; mask /= 2) x = __fadd_rn(x, __shfl_xor_sync(~0u, x, mask));
    return x;
}
FN float lanes_max(float x) {
    for (int mask = 16; mask > 0; mask /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, mask));
    return x;
}
FN float lane_value(float x, int lane) { return __shfl_sync(~0u, x, lane); }
FN u32 lanes_vote(int x) { return __ballot_sync(~0u, x); }
FN int ones(u32 x) { return __popc(x); }
// Rounded before anything is added to it.
FN float product(float x, float y) { return __fmul_rn(x, y); }
FN float as_float(u32 bits) { return __uint_as_float(bits); }
FN u32 as_bits(float x) { return __float_as_uint(x); }
#else
#include <math.h>
#include <stddef.h>
#include <string.h>

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define FN static inline __attribute__((always_inline))
#define LANES_OF(T, name, n) T name[n][LANES]
#define AT(value) (value[lane])
#define EACH_LANE for (int lane = 0; lane < LANES; lane++)
#define KERNEL(name, Arguments)                                                                                          \
    FN void name##_item(const Arguments a, int item);                                                                    \
    void name(const Arguments *a, int items) {                                                                           \
        for (int item = 0; item < items; item++) name##_item(*a, item);                                                  \
    }                                                                                                                    \
    FN void name##_item(const Arguments a, int item)

FN float lanes_sum(const float *x) {
    float sum[16];
    for (int i = 0; i < 16; i++) sum[i] = x[i] + x[i + 16];
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; i++) sum[i] += sum[i + half];
    return sum[0];
}
FN float lanes_max(const float *x) {
    float most = x[0];
    for (int i = 1; i < LANES; i++) most = fmaxf(most, x[i]);
    return most;
}
FN float lane_value(const float *x, int lane) { return x[lane]; }
FN u32 lanes_vote(const int *x) {
    u32 votes = 0;
    for (int i = 0; i < LANES; i++) votes |= (u32)(x[i] != 0) << i;
    return votes;
}
FN int ones(u32 x) { return __builtin_popcount(x); }
// The compiler is told to fuse nothing.
FN float product(float x, float y) { return x * y; }
FN float as_float(u32 bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
FN u32 as_bits(float x) {
    u32 bits;
    memcpy(&bits, &x, 4);
    return bits;
}
#endif

// How numbers are stored: weights, KV and wires.
#define STORED_F32 0
#define STORED_BF16 1
#define STORED_FP8 2
// Rows and columns of a tile of fp8 weights with one scale, and channels of an fp8 wire.
#define SCALE_GROUP 128
// Rows of activations that share a warp's look at the weights.
#define TILE_ROWS 8
// Elements of a head that one lane holds: 512 / 32.
#define WIDE 16

FN float from_bf16(u16 x) { return as_float((u32)x << 16); }

FN u16 to_bf16(float x) {
    u32 bits = as_bits(x);
    if ((bits & 0x7fffffff) > 0x7f800000) return (u16)((bits >> 16) | 0x40);
    return (u16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// e4m3 without infinities: its bits are a small f32's, 2^120 too small; 0x7f and 0xff are NaN.
FN float from_e4m3(u8 x) {
    float magnitude = product(as_float((u32)(x & 127) << 20), 1.329227995784916e36f);
    if ((x & 127) == 127) magnitude = as_float(0x7fffffff);
    return x & 128 ? -magnitude : magnitude;
}

// To nearest, ties to even; beyond 448 the largest; infinities and NaN are NaN.
FN u8 to_e4m3(float x) {
    u32 bits = as_bits(x), magnitude = bits & 0x7fffffff, code;
    if (magnitude >= 0x7f800000)
        code = 127;
    else if (magnitude >= 0x3c800000) {
        code = ((magnitude + 0x7ffff + ((magnitude >> 20) & 1)) >> 20) - (120 << 3);
        if (code > 126) code = 126;
    } else
        code = as_bits(as_float(magnitude) * 512.0f + 8388608.0f) & 255;
    return (u8)(code | ((bits >> 24) & 128));
}

// Element `at` of numbers as stored, scales left out.
FN float stored(const void *numbers, size_t at, const int dtype) {
    if (dtype == STORED_F32) return ((const float *)numbers)[at];
    if (dtype == STORED_BF16) return from_bf16(((const u16 *)numbers)[at]);
    return from_e4m3(((const u8 *)numbers)[at]);
}

// The largest finite magnitude so far and `x`'s.
FN float larger_magnitude(float so_far, float x) {
    float magnitude = as_float(as_bits(x) & 0x7fffffff);
    return magnitude < as_float(0x7f800000) && magnitude > so_far ? magnitude : so_far;
}

// The scale of numbers whose largest magnitude this is.
FN float e4m3_scale(float largest) {
    float scale = largest / 448.0f, smallest = as_float(0x00800000);
    return scale > smallest ? scale : smallest;
}

// The place of the lowest expert above `last`, or -1.
FN int next_place(const int *ids, int top_k, int last) {
    int best = -1;
    for (int i = 0; i < top_k; i++)
        if (ids[i] > last && (best < 0 || ids[i] < ids[best])) best = i;
    return best;
}
