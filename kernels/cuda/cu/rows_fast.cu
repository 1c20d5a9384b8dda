// Rows to what tensor.cuh multiplies, and back: norm and quantise in one reading, and the sum of the experts' answers.
//
//   narrow_*  x [rows, width] f32, or bf16 if `is_narrow` -> codes [rows, width] e4m3 with a scale each row, or bf16 without scales.
//             With `weight` rows are normed before: x / sqrt(mean(x²) + eps) · weight, which also goes to `normed` [rows, width] f32
//             if there is one.
//   sum_slots answers [slots, width] bf16 -> y [rows, width] f32: a row's answers in f32, by ascending slot (so by expert), the
//             shared expert's last.
//
// A scale is the row's largest magnitude / 448: e4m3 keeps its precision over a range of 28,000, so smaller groups would gain nothing.
// A CTA is a row. width a multiple of 128 (narrow) or 8 (sum), at most 16384; top_k at most 8. sm_90a only.
#include "common.cuh"
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#include "hopper.cuh"

#define THREADS 256
#define SUM_THREADS 128
#define MOST_TOP_K 8

struct Narrow {
    const float *x, *weight;
    float *normed;
    u8 *codes;
    float *scales;
    int rows, width;
    float eps;
    int is_narrow;
};

// Of all threads of the CTA, for all of them; `which`: a place of its own for each use.
template <bool Largest> __device__ __forceinline__ float over_all(float x, int which) {
    __shared__ float kept[2][THREADS / 32];
    float *of_warp = kept[which];
    auto join = [](float x, float y) { return Largest ? fmaxf(x, y) : x + y; };
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) x = join(x, __shfl_xor_sync(~0u, x, mask));
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
    __syncthreads();
    x = of_warp[0];
#pragma unroll
    for (int warp = 1; warp < THREADS / 32; warp++) x = join(x, of_warp[warp]);
    return x;
}

// `Rounds` of 1024 elements, four a thread.
template <bool Fp8, int Rounds> __device__ __forceinline__ void narrow(const Narrow &a) {
    size_t row = (size_t)blockIdx.x * a.width;
    float4 v[Rounds];
#pragma unroll
    for (int r = 0; r < Rounds; r++) {
        int at = (threadIdx.x + r * THREADS) * 4;
        v[r] = make_float4(0, 0, 0, 0);
        if (at >= a.width) continue;
        if (a.is_narrow) {
            uint2 two = __ldcs(reinterpret_cast<const uint2 *>(reinterpret_cast<const bf16 *>(a.x) + row + at));
            v[r] = make_float4(__uint_as_float(two.x << 16), __uint_as_float(two.x & 0xffff0000u), __uint_as_float(two.y << 16),
                               __uint_as_float(two.y & 0xffff0000u));
        } else {
            v[r] = __ldcs(reinterpret_cast<const float4 *>(a.x + row + at));
        }
    }
    if (a.weight) {
        float square = 0;
#pragma unroll
        for (int r = 0; r < Rounds; r++) square += v[r].x * v[r].x + v[r].y * v[r].y + v[r].z * v[r].z + v[r].w * v[r].w;
        float factor = rsqrtf(over_all<false>(square, 0) / a.width + a.eps);
#pragma unroll
        for (int r = 0; r < Rounds; r++) {
            int at = (threadIdx.x + r * THREADS) * 4;
            if (at >= a.width) continue;
            float4 w = __ldg(reinterpret_cast<const float4 *>(a.weight + at));
            v[r].x *= factor * w.x, v[r].y *= factor * w.y, v[r].z *= factor * w.z, v[r].w *= factor * w.w;
            if (a.normed) *reinterpret_cast<float4 *>(a.normed + row + at) = v[r];
        }
    }
    float inverse = 1;
    if (Fp8) {
        float largest = 0;
#pragma unroll
        for (int r = 0; r < Rounds; r++) largest = fmaxf(fmaxf(largest, fmaxf(fabsf(v[r].x), fabsf(v[r].y))), fmaxf(fabsf(v[r].z), fabsf(v[r].w)));
        float scale = fmaxf(over_all<true>(largest, 1) * (1.0f / 448.0f), 1.17549435e-38f);
        inverse = 1.0f / scale;
        if (threadIdx.x == 0) a.scales[blockIdx.x] = scale;
    }
#pragma unroll
    for (int r = 0; r < Rounds; r++) {
        int at = (threadIdx.x + r * THREADS) * 4;
        if (at >= a.width) continue;
        if (Fp8)
            *reinterpret_cast<u32 *>(a.codes + row + at) = pack_e4m3(v[r].x * inverse, v[r].y * inverse, v[r].z * inverse, v[r].w * inverse);
        else
            *reinterpret_cast<uint2 *>(a.codes + (row + at) * 2) = make_uint2(pack_bf16(v[r].x, v[r].y), pack_bf16(v[r].z, v[r].w));
    }
}

template <bool Fp8> __device__ __forceinline__ void narrow_any(const Narrow &a) {
    start_dependents();
    await_dependencies();
    if (a.width <= 2048)
        narrow<Fp8, 2>(a);
    else if (a.width <= 4096)
        narrow<Fp8, 4>(a);
    else if (a.width <= 7168)
        narrow<Fp8, 7>(a);
    else
        narrow<Fp8, 16>(a);
}

extern "C" __global__ __launch_bounds__(THREADS) void narrow_fp8(const __grid_constant__ Narrow a) { narrow_any<true>(a); }
extern "C" __global__ __launch_bounds__(THREADS) void narrow_bf16(const __grid_constant__ Narrow a) { narrow_any<false>(a); }

struct Sum {
    const bf16 *answers;
    float *y;
    const int *slot_of, *head;
    int rows, width, top_k, shares;
};

// `Most` places of a row, -1 for none, ascending, the shared expert's behind them.
template <int Most> __device__ __forceinline__ void sum_row(const Sum &a) {
    int slots[Most + 1], row = blockIdx.x;
#pragma unroll
    for (int i = 0; i < Most; i++) slots[i] = i < a.top_k ? __ldcg(a.slot_of + (size_t)row * a.top_k + i) : -1;
    slots[Most] = a.shares ? __ldcg(a.head + 1) + row : -1;
#pragma unroll
    for (int i = 1; i < Most; i++)
#pragma unroll
        for (int j = i; j > 0; j--) {
            int low = min(slots[j - 1], slots[j]), high = max(slots[j - 1], slots[j]);
            slots[j - 1] = low, slots[j] = high;
        }
    float4 *y = reinterpret_cast<float4 *>(a.y + (size_t)row * a.width);
#pragma unroll 2
    for (int at = threadIdx.x; at * 8 < a.width; at += SUM_THREADS) {
        uint4 raw[Most + 1];
#pragma unroll
        for (int i = 0; i <= Most; i++) {
            raw[i] = make_uint4(0, 0, 0, 0);
            if (slots[i] >= 0) raw[i] = __ldcs(reinterpret_cast<const uint4 *>(a.answers + (size_t)slots[i] * a.width) + at);
        }
        float sum[8] = {};
#pragma unroll
        for (int i = 0; i <= Most; i++) {
            const u32 words[4] = {raw[i].x, raw[i].y, raw[i].z, raw[i].w};
#pragma unroll
            for (int j = 0; j < 4; j++)
                sum[2 * j] += __uint_as_float(words[j] << 16), sum[2 * j + 1] += __uint_as_float(words[j] & 0xffff0000u);
        }
        __stcs(y + 2 * at, make_float4(sum[0], sum[1], sum[2], sum[3]));
        __stcs(y + 2 * at + 1, make_float4(sum[4], sum[5], sum[6], sum[7]));
    }
}

extern "C" __global__ __launch_bounds__(SUM_THREADS) void sum_slots(const __grid_constant__ Sum a) {
    start_dependents();
    await_dependencies();
    if (a.top_k <= 3)
        sum_row<3>(a);
    else
        sum_row<MOST_TOP_K>(a);
}
#endif
