// Rows to what tensor.cuh multiplies, and back: norm and quantise in one reading, and the sum of the experts' answers.
//
//   narrow_*  x [·, width] f32, or bf16 if `is_narrow`, -> codes [slots, width] e4m3 with scales [width / 128, slots], or bf16 without scales. Row i goes to slot
//             i, or with `slot_of` to its slots there that are none of -1 and, if `shares`, to slot head[1] + i. With `weight` rows are
//             normed before: x / sqrt(mean(x²) + eps) · weight, which also goes to `normed` [rows, width] f32 if there is one.
//   sum_slots answers [slots, width] bf16 -> y [rows, width] f32: a row's answers in f32, by ascending slot (so by expert), the
//             shared expert's last.
//
// A CTA is a row. width a multiple of 128 (narrow) or 8 (sum), at most 16384; top_k at most 8. A scale is the largest magnitude / 448. sm_90a only.
#include "common.cuh"
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#include "hopper.cuh"

#define THREADS 256
#define MOST_TOP_K 8

struct Narrow {
    const float *x, *weight;
    float *normed;
    u8 *codes;
    float *scales;
    const int *slot_of, *head;
    int rows, width, slots, top_k, shares;
    float eps;
    int is_narrow;
};

// Where a row goes or comes from, -1 for nowhere: at most top_k + 1 slots; how many entries.
__device__ __forceinline__ int read_places(int (&slots)[MOST_TOP_K + 1], const int *slot_of, const int *head, int top_k, int shares) {
    int i = threadIdx.x, row = blockIdx.x, count = slot_of ? top_k + (shares ? 1 : 0) : 1;
    if (i < count) slots[i] = !slot_of ? row : i < top_k ? __ldcg(slot_of + (size_t)row * top_k + i) : __ldcg(head + 1) + row;
    __syncthreads();
    return count;
}

// The sum over the CTA, for all of its threads.
__device__ __forceinline__ float sum_of_all(float x) {
    __shared__ float sums[THREADS / 32];
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) x += __shfl_xor_sync(~0u, x, mask);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
    __syncthreads();
    x = 0;
#pragma unroll
    for (int warp = 0; warp < THREADS / 32; warp++) x += sums[warp];
    return x;
}

// `Rounds` of 4096 elements: a thread has 16 consecutive ones, eight threads 128, which are a scale's.
template <bool Fp8, int Rounds> __device__ __forceinline__ void narrow(const Narrow &a, const int *slots, int count) {
    size_t row = (size_t)blockIdx.x * a.width;
    float v[Rounds][16];
#pragma unroll
    for (int r = 0; r < Rounds; r++) {
        int at = (threadIdx.x + r * THREADS) * 16;
        if (a.is_narrow) {
            const u32 *words = reinterpret_cast<const u32 *>(reinterpret_cast<const bf16 *>(a.x) + row + at);
#pragma unroll
            for (int i = 0; i < 8; i += 4) {
                uint4 four = at < a.width ? __ldg(reinterpret_cast<const uint4 *>(words + i)) : make_uint4(0, 0, 0, 0);
                const u32 of[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
                for (int j = 0; j < 4; j++)
                    v[r][2 * (i + j)] = __uint_as_float(of[j] << 16), v[r][2 * (i + j) + 1] = __uint_as_float(of[j] & 0xffff0000u);
            }
            continue;
        }
#pragma unroll
        for (int i = 0; i < 16; i += 4)
            *reinterpret_cast<float4 *>(v[r] + i) = at < a.width ? __ldg(reinterpret_cast<const float4 *>(a.x + row + at + i)) : make_float4(0, 0, 0, 0);
    }
    if (a.weight) {
        float square = 0;
#pragma unroll
        for (int r = 0; r < Rounds; r++)
#pragma unroll
            for (int i = 0; i < 16; i++) square += v[r][i] * v[r][i];
        float factor = rsqrtf(sum_of_all(square) / a.width + a.eps);
#pragma unroll
        for (int r = 0; r < Rounds; r++) {
            int at = (threadIdx.x + r * THREADS) * 16;
            if (at >= a.width) continue;
#pragma unroll
            for (int i = 0; i < 16; i += 4) {
                float4 w = __ldg(reinterpret_cast<const float4 *>(a.weight + at + i));
                v[r][i] *= factor * w.x, v[r][i + 1] *= factor * w.y, v[r][i + 2] *= factor * w.z, v[r][i + 3] *= factor * w.w;
                if (a.normed) *reinterpret_cast<float4 *>(a.normed + row + at + i) = *reinterpret_cast<float4 *>(v[r] + i);
            }
        }
    }
#pragma unroll
    for (int r = 0; r < Rounds; r++) {
        int at = (threadIdx.x + r * THREADS) * 16;
        if (Fp8) {
            float largest = 0;
#pragma unroll
            for (int i = 0; i < 16; i++) largest = fmaxf(largest, fabsf(v[r][i]));
#pragma unroll
            for (int mask = 4; mask > 0; mask /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, mask));
            if (at >= a.width) continue;
            float scale = fmaxf(largest * (1.0f / 448.0f), 1.17549435e-38f), inverse = 1.0f / scale;
            u32 words[4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                words[i] = pack_e4m3(v[r][4 * i] * inverse, v[r][4 * i + 1] * inverse, v[r][4 * i + 2] * inverse, v[r][4 * i + 3] * inverse);
            for (int i = 0; i < count; i++) {
                if (slots[i] < 0) continue;
                *reinterpret_cast<uint4 *>(a.codes + (size_t)slots[i] * a.width + at) = make_uint4(words[0], words[1], words[2], words[3]);
                if (threadIdx.x % 8 == 0) a.scales[(size_t)(at / 128) * a.slots + slots[i]] = scale;
            }
        } else if (at < a.width) {
            u32 words[8];
#pragma unroll
            for (int i = 0; i < 8; i++) words[i] = pack_bf16(v[r][2 * i], v[r][2 * i + 1]);
            for (int i = 0; i < count; i++) {
                if (slots[i] < 0) continue;
                uint4 *to = reinterpret_cast<uint4 *>(a.codes + ((size_t)slots[i] * a.width + at) * 2);
                to[0] = make_uint4(words[0], words[1], words[2], words[3]), to[1] = make_uint4(words[4], words[5], words[6], words[7]);
            }
        }
    }
}

template <bool Fp8> __device__ __forceinline__ void narrow_any(const Narrow &a) {
    start_dependents();
    await_dependencies();
    __shared__ int slots[MOST_TOP_K + 1];
    int count = read_places(slots, a.slot_of, a.head, a.top_k, a.shares);
    if (a.width <= 4096)
        narrow<Fp8, 1>(a, slots, count);
    else if (a.width <= 8192)
        narrow<Fp8, 2>(a, slots, count);
    else
        narrow<Fp8, 4>(a, slots, count);
}

extern "C" __global__ __launch_bounds__(THREADS) void narrow_fp8(const __grid_constant__ Narrow a) { narrow_any<true>(a); }
extern "C" __global__ __launch_bounds__(THREADS) void narrow_bf16(const __grid_constant__ Narrow a) { narrow_any<false>(a); }

struct Sum {
    const bf16 *answers;
    float *y;
    const int *slot_of, *head;
    int rows, width, top_k, shares;
};

extern "C" __global__ __launch_bounds__(THREADS) void sum_slots(const __grid_constant__ Sum a) {
    start_dependents();
    await_dependencies();
    __shared__ int slots[MOST_TOP_K + 1];
    int count = read_places(slots, a.slot_of, a.head, a.top_k, a.shares);
    if (threadIdx.x == 0)
        for (int i = 1; i < a.top_k; i++)
            for (int j = i; j > 0 && slots[j - 1] > slots[j]; j--) {
                int other = slots[j];
                slots[j] = slots[j - 1], slots[j - 1] = other;
            }
    __syncthreads();
    float4 *y = reinterpret_cast<float4 *>(a.y + (size_t)blockIdx.x * a.width);
    for (int at = threadIdx.x; at * 8 < a.width; at += THREADS) {
        float sum[8] = {};
#pragma unroll 4
        for (int i = 0; i < count; i++) {
            uint4 raw = make_uint4(0, 0, 0, 0);
            if (slots[i] >= 0) raw = __ldcs(reinterpret_cast<const uint4 *>(a.answers + (size_t)slots[i] * a.width) + at);
            const u32 words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
            for (int j = 0; j < 4; j++)
                sum[2 * j] += __uint_as_float(words[j] << 16), sum[2 * j + 1] += __uint_as_float(words[j] & 0xffff0000u);
        }
        y[2 * at] = make_float4(sum[0], sum[1], sum[2], sum[3]);
        y[2 * at + 1] = make_float4(sum[4], sum[5], sum[6], sum[7]);
    }
}
#endif
