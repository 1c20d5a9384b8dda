// What every kernel includes: integer names and conversions. No toolkit headers, so that a machine with a driver and
// NVRTC, and nothing else, can compile every kernel.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef u16 bf16; // storage; arithmetic is f32

__device__ __forceinline__ float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float negative_infinity() { return __int_as_float(0xff800000); }

// Two floats as bf16, `low` in the low half.
__device__ __forceinline__ u32 pack_bf16(float low, float high) {
    u32 packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

__device__ __forceinline__ u32 pack_f16(float low, float high) {
    u32 packed;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}
__device__ __forceinline__ float2 unpack_f16(u32 packed) {
    float2 x;
    asm("{ .reg .b16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high; }"
        : "=f"(x.x), "=f"(x.y)
        : "r"(packed));
    return x;
}

__device__ __forceinline__ float widen_bf16(bf16 x) { return __uint_as_float((u32)x << 16); }
__device__ __forceinline__ bf16 narrow_bf16(float x) { return (bf16)pack_bf16(x, 0.0f); }

// e4m3 (no infinities; 0x7f and 0xff are NaN): its bits are a small f32's, 2^120 too small.
__device__ __forceinline__ float widen_e4m3(u8 x) {
    float magnitude = __uint_as_float((u32)(x & 127) << 20) * 1.329227995784916e36f;
    if ((x & 127) == 127) magnitude = __uint_as_float(0x7fffffff);
    return x & 128 ? -magnitude : magnitude;
}
