// What one CTA of the MFA decode kernels works on, and how parts of one row become its output.
//
// A row's pages may be cut into parts that different CTAs read. Each leaves an unnormalised sum with its running
// maximum and denominator in `partials`; when all parts of a row have arrived, the CTAs that made them divide the
// row's columns among themselves and add the parts in ascending order. So a result depends on the cut, never on timing.
#pragma once

#define MFA_HEADS 64
#define MFA_DIM 256
#define MFA_PAGE 64
// Floats of one partial: sums in accumulator order `[32 column groups][128 threads][4]`, then maxima, denominators.
#define MFA_PARTIAL (MFA_HEADS * MFA_DIM + 2 * MFA_HEADS)

// Pages `first..first + pages` of the page list belong to `row`; of the last one `tokens` positions are visible.
// `part` of `parts` (1: the row is whole), whose partial is number `slot`. CTA c begins with item c; -1 ends its list.
struct Item {
    int row, first, pages, tokens;
    int part, parts, slot, next;
};

__device__ __forceinline__ Item load_item(const Item *items, int at) {
    const int4 *words = reinterpret_cast<const int4 *>(items + at);
    int4 a = __ldg(words), b = __ldg(words + 1);
    return Item{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
}

// A thread's place in a 64-row accumulator tile: rows `upper` and `upper + 8`, columns `8 j + column`, `+ 1`.
struct Place {
    int upper, column;
    __device__ __forceinline__ explicit Place(int thread)
        : upper((thread >> 5) * 16 + ((thread & 31) >> 2)), column((thread & 3) * 2) {}
};

// Writes column groups `First / 4 ..` of a whole row: `sums` times the rows' factors, as bf16.
template <int First, int Count>
__device__ __forceinline__ void store_row(bf16 *out, int row, Place at, const float (&sums)[128], float upper,
                                          float lower) {
    u32 *to = reinterpret_cast<u32 *>(out + ((size_t)row * MFA_HEADS + at.upper) * MFA_DIM + at.column);
#pragma unroll
    for (int i = First; i < First + Count; i += 4) {
        to[i] = pack_bf16(sums[i] * upper, sums[i + 1] * upper);
        to[i + 8 * MFA_DIM / 2] = pack_bf16(sums[i + 2] * lower, sums[i + 3] * lower);
    }
}

// Writes column groups of a part's sums.
template <int First, int Count>
__device__ __forceinline__ void store_part(float *partials, int slot, int thread, const float (&sums)[128]) {
    float4 *to = reinterpret_cast<float4 *>(partials + (size_t)slot * MFA_PARTIAL) + thread;
#pragma unroll
    for (int i = First; i < First + Count; i += 4)
        __stcg(to + i / 4 * 128, make_float4(sums[i], sums[i + 1], sums[i + 2], sums[i + 3]));
}

__device__ __forceinline__ void store_statistics(float *partials, int slot, int head, float maximum, float denominator) {
    float *to = partials + (size_t)slot * MFA_PARTIAL + MFA_HEADS * MFA_DIM;
    __stcg(to + head, maximum);
    __stcg(to + MFA_HEADS + head, denominator);
}

// After every consumer thread's stores and a barrier among them, by one thread.
__device__ __forceinline__ void announce_part(int *arrivals, int row) {
    __threadfence();
    asm volatile("red.release.gpu.global.add.s32 [%0], 1;" ::"l"(arrivals + 2 * row) : "memory");
}
__device__ __forceinline__ void await_parts(const int *arrivals, int row, int parts) {
    int seen;
    do asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(seen) : "l"(arrivals + 2 * row) : "memory");
    while (seen < parts);
}
// The last CTA to leave a row clears its counters for the next launch.
__device__ __forceinline__ void leave_row(int *arrivals, int row, int parts) {
    if (atomicAdd(arrivals + 2 * row + 1, 1) == parts - 1) {
        arrivals[2 * row] = 0;
        arrivals[2 * row + 1] = 0;
    }
}

// `weights[p][head]`: what part p's sums are multiplied by. Threads 0..63.
__device__ __forceinline__ void part_weights(const float *partials, int base, int parts, int head, float *weights) {
    const float *from = partials + (size_t)base * MFA_PARTIAL + MFA_HEADS * MFA_DIM + head;
    float maximum = negative_infinity(), denominator = 0;
#pragma unroll 8
    for (int p = 0; p < parts; p++) maximum = fmaxf(maximum, __ldcg(from + (size_t)p * MFA_PARTIAL));
#pragma unroll 8
    for (int p = 0; p < parts; p++) {
        float weight = fast_exp2(__ldcg(from + (size_t)p * MFA_PARTIAL) - maximum);
        denominator += weight * __ldcg(from + (size_t)p * MFA_PARTIAL + MFA_HEADS);
        weights[p * MFA_HEADS + head] = weight;
    }
    float scale = 1.0f / denominator;
    for (int p = 0; p < parts; p++) weights[p * MFA_HEADS + head] *= scale;
}

// Adds this part's share of columns over all parts and writes them. `Groups` warpgroups; `weights` is shared memory.
template <int Groups>
__device__ __forceinline__ void combine_row(const Item &item, const float *partials, bf16 *out, int *arrivals,
                                            float *weights, int thread) {
    if (thread == 0) await_parts(arrivals, item.row, item.parts);
    named_barrier<1, Groups * 128>();
    int base = item.slot - item.part;
    if (thread < MFA_HEADS) part_weights(partials, base, item.parts, thread, weights);
    named_barrier<1, Groups * 128>();
    int lane = thread & 127;
    Place at(lane);
    int end = 32 * (item.part + 1) / item.parts;
    const float *upper = weights + at.upper, *lower = upper + 8;
    u32 *to = reinterpret_cast<u32 *>(out + ((size_t)item.row * MFA_HEADS + at.upper) * MFA_DIM + at.column);
    for (int j = 32 * item.part / item.parts + (thread >> 7); j < end; j += Groups) {
        const float4 *from = reinterpret_cast<const float4 *>(partials + (size_t)base * MFA_PARTIAL) + j * 128 + lane;
        float a = 0, b = 0, c = 0, d = 0;
#pragma unroll 8
        for (int p = 0; p < item.parts; p++) {
            float4 part = __ldcg(from + (size_t)p * (MFA_PARTIAL / 4));
            float u = upper[p * MFA_HEADS], l = lower[p * MFA_HEADS];
            a += part.x * u, b += part.y * u, c += part.z * l, d += part.w * l;
        }
        to[j * 4] = pack_bf16(a, b);
        to[j * 4 + 8 * MFA_DIM / 2] = pack_bf16(c, d);
    }
    named_barrier<1, Groups * 128>();
    if (thread == 0) leave_row(arrivals, item.row, item.parts);
}

// Combines every part this CTA made, once its whole list has been read.
template <int Groups>
__device__ __forceinline__ void combine_rows(const Item *items, const float *partials, bf16 *out, int *arrivals,
                                             float *weights, int thread) {
    for (int at = blockIdx.x; at >= 0;) {
        Item item = load_item(items, at);
        if (item.pages > 0 && item.parts > 1) combine_row<Groups>(item, partials, out, arrivals, weights, thread);
        at = item.next;
    }
}
