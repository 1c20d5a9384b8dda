// What measuring needs: random data made on the device, and the ceiling of reading memory.
#include "common.cuh"

__device__ __forceinline__ u32 scramble(u64 x) {
    x = (x ^ (x >> 31)) * 0x7fb5d329728ea185ull;
    x = (x ^ (x >> 27)) * 0x81dadef4bc2dd44dull;
    return (u32)(x >> 32);
}

// About normal, mean 0, variance 1: four bytes' sum, centred (variance of one: (256^2 - 1) / 12).
__device__ __forceinline__ float bell(u32 bits) {
    int sum = (bits & 255) + (bits >> 8 & 255) + (bits >> 16 & 255) + (bits >> 24);
    return (sum - 510) * (1.0f / 147.8f);
}

extern "C" __global__ void fill_bf16(bf16 *to, u64 count, u64 seed) {
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < count; i += (u64)gridDim.x * blockDim.x)
        to[i] = narrow_bf16(bell(scramble(i + (seed << 40))));
}

// e4m3 numbers of about normal data scaled to use the format's range (standard deviation 64).
extern "C" __global__ void fill_e4m3(u8 *to, u64 count, u64 seed) {
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < count; i += (u64)gridDim.x * blockDim.x) {
        float x = bell(scramble(i + (seed << 40))) * 64.0f, a = fabsf(x);
        // Rounded down to three bits below the leading one; below 2^-6 to multiples of 2^-9.
        u32 bits = a < 0.015625f ? (u32)(a * 512.0f) : (__float_as_uint(a) - (120u << 23)) >> 20;
        to[i] = (u8)(bits | (x < 0 ? 128 : 0));
    }
}

// Scales between 1/96 and 1/48: what turns such e4m3 numbers into data of about variance 1.
extern "C" __global__ void fill_scales(float *to, u64 count, u64 seed) {
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < count; i += (u64)gridDim.x * blockDim.x)
        to[i] = (1.0f + (scramble(i + (seed << 40)) >> 8) * (1.0f / 16777216.0f)) / 96.0f;
}

// Volatile, so that all loads of a batch are in flight before the first is used.
__device__ __forceinline__ uint4 read_once(const uint4 *from) {
    uint4 x;
    asm volatile("ld.global.cs.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "l"(from));
    return x;
}

// Reads `count` 16-byte words once; what it adds up keeps the loads alive.
template <int Unroll> __device__ __forceinline__ void read_all(const uint4 *from, u64 count, u32 *to) {
    u32 sum = 0;
    u64 step = (u64)gridDim.x * blockDim.x, i = blockIdx.x * (u64)blockDim.x + threadIdx.x;
    for (; i + (Unroll - 1) * step < count; i += Unroll * step) {
        uint4 words[Unroll];
#pragma unroll
        for (int j = 0; j < Unroll; j++) words[j] = read_once(from + i + j * step);
#pragma unroll
        for (int j = 0; j < Unroll; j++) sum += words[j].x ^ words[j].y ^ words[j].z ^ words[j].w;
    }
    for (; i < count; i += step) {
        uint4 word = read_once(from + i);
        sum += word.x ^ word.y ^ word.z ^ word.w;
    }
    if (sum == 0x12345679) *to = sum;
}
extern "C" __global__ __launch_bounds__(512) void read_4(const uint4 *from, u64 count, u32 *to) { read_all<4>(from, count, to); }
extern "C" __global__ __launch_bounds__(512) void read_8(const uint4 *from, u64 count, u32 *to) { read_all<8>(from, count, to); }

// Which multiprocessors blocks run on: each adds one to its own of `to`, and stays for `ns` so that all blocks are spread.
extern "C" __global__ void note_places(u32 *to, u64 ns) {
    u32 place;
    asm("mov.u32 %0, %%smid;" : "=r"(place));
    if (threadIdx.x == 0) atomicAdd(to + place, 1);
    u64 start, now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
    do asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    while (now - start < ns);
}
