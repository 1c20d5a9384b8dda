// Rows to e4m3 with a scale each 128 elements, as fp8 checkpoints define it and `group_product.cu` takes them.
//
//   narrow_groups  x [rows, width] f32, or bf16 if `is_narrow` -> codes [rows, width] e4m3, scales [width / 128, slots].
//                  With `weight` rows are normed before: x / sqrt(mean(x²) + eps) · weight, which also goes to `normed` [rows, width]
//                  f32 if there is one. With `up` [rows, width] f32 they are silu(x) · up.
//
// A scale is its elements' largest magnitude / 448. A CTA is a row or, without a norm, a part of it, as many as the grid is high; a warp
// takes 128 elements at a time; any width that is a multiple of 128.
// sm_90a only.
#include "common.cuh"
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#include "hopper.cuh"

#define THREADS 256
#define WARPS (THREADS / 32)

struct NarrowGroups {
    const float *x, *up, *weight;
    float *normed;
    u8 *codes;
    float *scales;
    int rows, width, slots;
    float eps;
    int is_narrow;
};

__device__ __forceinline__ float4 four_of(const NarrowGroups &a, size_t at) {
    if (!a.is_narrow) return *reinterpret_cast<const float4 *>(a.x + at);
    uint2 two = *reinterpret_cast<const uint2 *>(reinterpret_cast<const bf16 *>(a.x) + at);
    return make_float4(__uint_as_float(two.x << 16), __uint_as_float(two.x & 0xffff0000u), __uint_as_float(two.y << 16),
                       __uint_as_float(two.y & 0xffff0000u));
}

__device__ __forceinline__ float gated(float gate, float up) { return gate / (1.0f + expf(-gate)) * up; }

// 1 / sqrt(mean(x²) + eps), for all threads.
__device__ __forceinline__ float norm_factor(const NarrowGroups &a, size_t row) {
    __shared__ float kept[WARPS];
    float square = 0;
    for (int at = threadIdx.x * 4; at < a.width; at += THREADS * 4) {
        float4 v = four_of(a, row + at);
        square += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    }
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) square += __shfl_xor_sync(~0u, square, mask);
    if (threadIdx.x % 32 == 0) kept[threadIdx.x / 32] = square;
    __syncthreads();
    float all = 0;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) all += kept[warp];
    return 1.0f / sqrtf(all / a.width + a.eps);
}

extern "C" __global__ __launch_bounds__(THREADS) void narrow_groups(const __grid_constant__ NarrowGroups a) {
    start_dependents();
    await_dependencies();
    size_t row = (size_t)blockIdx.x * a.width;
    float factor = a.weight ? norm_factor(a, row) : 1.0f;
    int lane = threadIdx.x % 32;
    for (int group = blockIdx.y * WARPS + threadIdx.x / 32; group < a.width / 128; group += WARPS * gridDim.y) {
        int at = group * 128 + lane * 4;
        float4 v = four_of(a, row + at);
        if (a.weight) {
            float4 w = __ldg(reinterpret_cast<const float4 *>(a.weight + at));
            v.x *= factor * w.x, v.y *= factor * w.y, v.z *= factor * w.z, v.w *= factor * w.w;
            if (a.normed) *reinterpret_cast<float4 *>(a.normed + row + at) = v;
        }
        if (a.up) {
            float4 up = *reinterpret_cast<const float4 *>(a.up + row + at);
            v = make_float4(gated(v.x, up.x), gated(v.y, up.y), gated(v.z, up.z), gated(v.w, up.w));
        }
        float largest = fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
#pragma unroll
        for (int mask = 16; mask > 0; mask /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, mask));
        // Divided, not multiplied by an inverse: next to a tie the two round differently.
        float scale = fmaxf(largest / 448.0f, 1.17549435e-38f);
        *reinterpret_cast<u32 *>(a.codes + row + at) = pack_e4m3(v.x / scale, v.y / scale, v.z / scale, v.w / scale);
        if (lane == 0) a.scales[(size_t)group * a.slots + blockIdx.x] = scale;
    }
}
#endif
