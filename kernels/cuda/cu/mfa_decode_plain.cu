// MFA decode attention, plain path: out = softmax(q K^T * scale) V for any number of heads on one key-value head.
//
//   q        [rows, heads, head_dim]              f32 (f32 KV) or bf16 (bf16 and fp8 KV)
//   K, V     [pages, page_tokens, head_dim]       f32, bf16 or e4m3; rows of positions as they are
//   scales   [pages, 2, page_tokens]              f32, fp8 alone: one a position for K, then one for V
//   out      [rows, heads, head_dim]              q's type
//   contexts [rows]  visible positions, at least 1;  first [rows]  where in `pages` a row's begin
//
// head_dim at most 512, any page size, any architecture. f32 arithmetic. One CTA a row and head, four warps taking tiles
// of 32 positions in turn; every sum's order depends on position alone, so a row has the same bits in any batch.
// Positions at or after a row's context may hold anything.
#include "common.cuh"

#define WARPS 4
#define WIDE 16 // elements of a row that one lane holds: 512 / 32

struct Plain {
    const void *q, *k, *v;
    const float *scales;
    void *out;
    const int *contexts, *first, *pages;
    int heads, head_dim, page_tokens;
    float scale_log2;
};

template <class T> __device__ __forceinline__ float widen(T x);
template <> __device__ __forceinline__ float widen<float>(float x) { return x; }
template <> __device__ __forceinline__ float widen<bf16>(bf16 x) { return widen_bf16(x); }
template <> __device__ __forceinline__ float widen<u8>(u8 x) { return widen_e4m3(x); }

__device__ __forceinline__ void put(float *to, float x) { *to = x; }
__device__ __forceinline__ void put(bf16 *to, float x) { *to = narrow_bf16(x); }

__device__ __forceinline__ float warp_sum(float x) {
    for (int mask = 16; mask > 0; mask /= 2) x += __shfl_xor_sync(~0u, x, mask);
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
    for (int mask = 16; mask > 0; mask /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, mask));
    return x;
}

// One warp's positions so far, for one head.
struct Sums {
    float maximum, denominator, value[WIDE];
};

// The tile of up to 32 positions from `position` on: lane i ends with the score of position i.
template <class Kv>
__device__ __forceinline__ float tile_scores(const Plain &args, const float (&q)[WIDE], const int *pages, int position,
                                             int count, int lane) {
    float score = 0;
    for (int i = 0; i < count; i++) {
        int page = pages[(position + i) / args.page_tokens], offset = (position + i) % args.page_tokens;
        const Kv *row = (const Kv *)args.k + ((size_t)page * args.page_tokens + offset) * args.head_dim;
        float sum = 0;
#pragma unroll
        for (int j = 0; j < WIDE; j++)
            if (j * 32 + lane < args.head_dim) sum = fmaf(q[j], widen<Kv>(row[j * 32 + lane]), sum);
        sum = warp_sum(sum) * args.scale_log2;
        if (args.scales) sum *= args.scales[(size_t)page * 2 * args.page_tokens + offset];
        if (i == lane) score = sum;
    }
    return lane < count ? score : negative_infinity();
}

template <class Kv>
__device__ __forceinline__ void tile_values(const Plain &args, Sums &sums, const int *pages, int position, int count,
                                            float score, int lane) {
    float maximum = fmaxf(sums.maximum, warp_max(score));
    float factor = fast_exp2(sums.maximum - maximum), probability = fast_exp2(score - maximum);
    sums.maximum = maximum;
    sums.denominator = sums.denominator * factor + warp_sum(probability);
#pragma unroll
    for (int j = 0; j < WIDE; j++) sums.value[j] *= factor;
    for (int i = 0; i < count; i++) {
        int page = pages[(position + i) / args.page_tokens], offset = (position + i) % args.page_tokens;
        const Kv *row = (const Kv *)args.v + ((size_t)page * args.page_tokens + offset) * args.head_dim;
        float p = __shfl_sync(~0u, probability, i);
        if (args.scales) p *= args.scales[((size_t)page * 2 + 1) * args.page_tokens + offset];
#pragma unroll
        for (int j = 0; j < WIDE; j++)
            if (j * 32 + lane < args.head_dim) sums.value[j] = fmaf(p, widen<Kv>(row[j * 32 + lane]), sums.value[j]);
    }
}

// Warps in ascending order; every thread takes part in writing the head's row.
template <class Io> __device__ __forceinline__ void write_row(const Plain &args, const Sums &sums, Io *out) {
    __shared__ float values[WARPS][512], maxima[WARPS], denominators[WARPS];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int j = 0; j < WIDE; j++) values[warp][j * 32 + lane] = sums.value[j];
    if (lane == 0) maxima[warp] = sums.maximum, denominators[warp] = sums.denominator;
    __syncthreads();
    float maximum = negative_infinity(), denominator = 0;
    for (int w = 0; w < WARPS; w++) maximum = fmaxf(maximum, maxima[w]);
    for (int w = 0; w < WARPS; w++) denominator += denominators[w] * fast_exp2(maxima[w] - maximum);
    for (int i = threadIdx.x; i < args.head_dim; i += 32 * WARPS) {
        float sum = 0;
        for (int w = 0; w < WARPS; w++) sum += values[w][i] * fast_exp2(maxima[w] - maximum);
        put(out + i, sum / denominator);
    }
}

template <class Kv, class Io> __device__ __forceinline__ void attend(const Plain &args) {
    int head = blockIdx.x, row = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    size_t at = ((size_t)row * args.heads + head) * args.head_dim;
    const int *pages = args.pages + args.first[row];
    int context = args.contexts[row];
    float q[WIDE];
    Sums sums = {negative_infinity(), 0, {}};
#pragma unroll
    for (int j = 0; j < WIDE; j++)
        q[j] = j * 32 + lane < args.head_dim ? widen<Io>(((const Io *)args.q)[at + j * 32 + lane]) : 0;
    for (int position = warp * 32; position < context; position += 32 * WARPS) {
        int count = min(32, context - position);
        float score = tile_scores<Kv>(args, q, pages, position, count, lane);
        tile_values<Kv>(args, sums, pages, position, count, score, lane);
    }
    write_row<Io>(args, sums, (Io *)args.out + at);
}

extern "C" __global__ __launch_bounds__(128) void mfa_plain_f32(const Plain args) { attend<float, float>(args); }
extern "C" __global__ __launch_bounds__(128) void mfa_plain_bf16(const Plain args) { attend<bf16, bf16>(args); }
extern "C" __global__ __launch_bounds__(128) void mfa_plain_fp8(const Plain args) { attend<u8, bf16>(args); }
