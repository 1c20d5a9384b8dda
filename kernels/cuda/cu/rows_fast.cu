// Rows to what tensor.cuh multiplies, and back: norm and quantise in one reading, and the sum of the experts' answers.
//
//   narrow_*  x [rows, width] f32 or bf16 -> codes [rows, width] e4m3 with a scale each row, or bf16 without scales.
//             With `weight` rows of f32 are normed before: x / sqrt(mean(x²) + eps) · weight, which also goes to `normed` [rows, width] f32
//             if there is one.
//   narrow_append_*  the same, and keys and values of the rows into their pages (append.cuh)
//   sum_slots answers [slots, width] bf16 -> y [rows, width] f32: a row's answers in f32, by ascending slot (so by expert), the
//             shared expert's last.
//
// A scale is the row's largest magnitude / 448: e4m3 keeps its precision over a range of 28,000, so smaller groups would gain nothing.
// A CTA is a row. width a multiple of 128 (narrow) or 8 (sum), at most 16384; top_k at most 8. sm_90a only.
#include "common.cuh"
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#include "append.cuh"

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

// Four elements as they are read.
template <bool IsNarrow> struct Four;
template <> struct Four<false> {
    float4 raw;
    __device__ __forceinline__ void read(const void *x, size_t at) { raw = __ldcg(reinterpret_cast<const float4 *>(reinterpret_cast<const float *>(x) + at)); }
    __device__ __forceinline__ float4 get() const { return raw; }
    __device__ __forceinline__ void set(float4 v) { raw = v; }
};
template <> struct Four<true> {
    uint2 raw;
    __device__ __forceinline__ void read(const void *x, size_t at) { raw = __ldcg(reinterpret_cast<const uint2 *>(reinterpret_cast<const bf16 *>(x) + at)); }
    __device__ __forceinline__ float4 get() const {
        return make_float4(__uint_as_float(raw.x << 16), __uint_as_float(raw.x & 0xffff0000u), __uint_as_float(raw.y << 16),
                           __uint_as_float(raw.y & 0xffff0000u));
    }
    __device__ __forceinline__ void set(float4) {}
};

// `Rounds` of 1024 elements, four a thread. Few registers: the product that takes the rows is to be resident beside, and to have asked
// for its weights.
template <bool Fp8, bool IsNarrow, int Rounds> __device__ __forceinline__ void narrow(const Narrow &a) {
    start_dependents();
    size_t row = (size_t)blockIdx.x * a.width;
    Four<IsNarrow> v[Rounds];
    // Else the first reader of the weights waits for memory once more.
    if (!IsNarrow && a.weight && blockIdx.x == 0 && threadIdx.x * 32 < a.width)
        asm volatile("prefetch.global.L2 [%0];" ::"l"(a.weight + threadIdx.x * 32));
    await_dependencies();
#pragma unroll
    for (int r = 0; r < Rounds; r++) {
        int at = (threadIdx.x + r * THREADS) * 4;
        v[r] = {};
        if (at < a.width) v[r].read(a.x, row + at);
    }
    if (!IsNarrow && a.weight) {
        float square = 0;
#pragma unroll
        for (int r = 0; r < Rounds; r++) {
            float4 x = v[r].get();
            square += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
        }
        float factor = rsqrtf(over_all<false>(square, 0) / a.width + a.eps);
#pragma unroll
        for (int r = 0; r < Rounds; r++) {
            int at = (threadIdx.x + r * THREADS) * 4;
            if (at >= a.width) continue;
            float4 w = __ldg(reinterpret_cast<const float4 *>(a.weight + at)), x = v[r].get();
            x.x *= factor * w.x, x.y *= factor * w.y, x.z *= factor * w.z, x.w *= factor * w.w;
            v[r].set(x);
            if (a.normed) *reinterpret_cast<float4 *>(a.normed + row + at) = x;
        }
    }
    float inverse = 1;
    if (Fp8) {
        float largest = 0;
#pragma unroll
        for (int r = 0; r < Rounds; r++) {
            float4 x = v[r].get();
            largest = fmaxf(fmaxf(largest, fmaxf(fabsf(x.x), fabsf(x.y))), fmaxf(fabsf(x.z), fabsf(x.w)));
        }
        float scale = fmaxf(over_all<true>(largest, 1) * (1.0f / 448.0f), 1.17549435e-38f);
        inverse = 1.0f / scale;
        if (threadIdx.x == 0) a.scales[blockIdx.x] = scale;
    }
#pragma unroll
    for (int r = 0; r < Rounds; r++) {
        int at = (threadIdx.x + r * THREADS) * 4;
        if (at >= a.width) continue;
        float4 x = v[r].get();
        if (Fp8)
            *reinterpret_cast<u32 *>(a.codes + row + at) = pack_e4m3(x.x * inverse, x.y * inverse, x.z * inverse, x.w * inverse);
        else
            *reinterpret_cast<uint2 *>(a.codes + (row + at) * 2) = make_uint2(pack_bf16(x.x, x.y), pack_bf16(x.z, x.w));
    }
}

// Behind the rows, eight warps a CTA: the keys and values of the same rows into their pages, which nobody waits for before attention.
struct NarrowAppend {
    Narrow narrow;
    Append append;
};

template <bool Fp8> __device__ __forceinline__ void narrow_append(const NarrowAppend &a) {
    int behind = blockIdx.x - a.narrow.rows;
    if (behind < 0) {
        narrow<Fp8, false, 2>(a.narrow);
        return;
    }
    start_dependents();
    await_dependencies();
    int item = behind * (THREADS / 32) + threadIdx.x / 32;
    if (item < a.append.rows * 2) append_part(a.append, item / 2, HEADS + item % 2, threadIdx.x & 31);
}

extern "C" __global__ __launch_bounds__(THREADS) void narrow_append_fp8(const __grid_constant__ NarrowAppend a) { narrow_append<true>(a); }
extern "C" __global__ __launch_bounds__(THREADS) void narrow_append_bf16(const __grid_constant__ NarrowAppend a) { narrow_append<false>(a); }

// By format, by that of x, and by 1024 elements of the widest row.
#define NARROW(format, fp8, from, is_narrow, rounds)                                                                     \
    extern "C" __global__ __launch_bounds__(THREADS, is_narrow ? 4 : 2) void narrow_##format##_##from##_##rounds(const __grid_constant__ Narrow a) { \
        narrow<fp8, is_narrow, rounds>(a);                                                                               \
    }
NARROW(fp8, true, f32, false, 2)
NARROW(fp8, true, f32, false, 7)
NARROW(fp8, true, f32, false, 16)
NARROW(fp8, true, bf16, true, 2)
NARROW(fp8, true, bf16, true, 7)
NARROW(fp8, true, bf16, true, 16)
NARROW(bf16, false, f32, false, 2)
NARROW(bf16, false, f32, false, 7)
NARROW(bf16, false, f32, false, 16)
NARROW(bf16, false, bf16, true, 2)
NARROW(bf16, false, bf16, true, 7)
NARROW(bf16, false, bf16, true, 16)

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
