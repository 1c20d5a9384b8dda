// MFA attention of several tokens of a sequence: as mfa_decode_*.cu, with each page read once for two tokens.
//
//   q       [rows, 64, 256]       bf16, rotated
//   K, V    pools as mfa_decode_bf16.cu and mfa_decode_fp8.cu have them
//   scales  [pages, 2, 64]        f32 of fp8 pools: one a position for K, then one for V
//   out     [rows, 64, 256]       bf16
//   work    see mfa_work.cuh      an item's row is 2 x row, + 1 if the row after it is the sequence's next token: it sees one position
//                                 more, to which `tokens` belongs. Its partials follow its neighbour's: slot + parts
//   pages, partials, arrivals     as mfa_decode_bf16.cu
//
// Positions at or after the last token's context may hold anything, NaN included. Softmax and sums in f32, probabilities in bf16 or f16.
// Two warpgroups multiply, one token each (M = 64 heads); scores of a page are made while the page before is added. Of fp8 pages K, V
// and the probabilities are f16, and q as well (below 65,504), which holds e4m3 exactly; V's scales ride in the exponent, as in
// mfa_decode_fp8.cu. One CTA an SM, all resident at once. sm_90a only.
#include "common.cuh"
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#include "hopper.cuh"
#include "wgmma.cuh"
#include "mfa_chunk.cuh"

#define LOWEST -1e30f // below every score: a maximum of no scores is not an infinity, which would leave NaN

// S[64, 64] = Q K^T of one page, started, not awaited.
template <bool Fp8> __device__ __forceinline__ void multiply_keys(float (&s)[32], u32 q, u32 k) {
    pin(s);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 16; i++) {
        u32 at = (i / 4) * BLOCK_BYTES + (i % 4) * 32;
        u64 from = smem_descriptor(q + at, 16, 1024, 1), by = smem_descriptor(k + at, 16, 1024, 1);
        if (Fp8)
            wgmma_ss_f16_n64(s, from, by, i > 0);
        else
            wgmma_ss_bf16_n64(s, from, by, i > 0);
    }
    wgmma_commit();
}

// O[64, 256] += P V of one page, started, not awaited.
template <bool Fp8> __device__ __forceinline__ void multiply_values(float (&o)[128], const u32 (&p)[16], u32 v) {
    pin(o);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (Fp8)
            wgmma_rs_f16_n256(o, p + 4 * i, smem_descriptor(v + i * 32, 16, 1024, 1), true);
        else
            wgmma_rs_bf16_n256(o, p + 4 * i, smem_descriptor(v + i * 2048, BLOCK_BYTES, 1024, 1), true);
    }
    wgmma_commit();
}

// Clears value rows from `tokens` on, each warpgroup for itself: what lies there must not meet a probability of zero as NaN.
__device__ __forceinline__ void clear_rows(u8 *v, int tokens, int thread, int group) {
    for (int i = thread; i < (MFA_PAGE - tokens) * 32; i += 128) {
        int row = tokens + i / 32, piece = i % 32;
        *reinterpret_cast<uint4 *>(v + (piece / 8) * BLOCK_BYTES + row * 128 + (piece % 8) * 16) = make_uint4(0, 0, 0, 0);
    }
    async_proxy_fence();
    named_barrier(2 + group, 128);
}

// Scores of fp8 keys to logarithms of what their values are weighted by.
__device__ __forceinline__ void scale_columns(float (&s)[32], const float *keys, const float *values) {
#pragma unroll
    for (int j = 0; j < 32; j += 4) {
        float2 key = *reinterpret_cast<const float2 *>(keys + 2 * j), value = *reinterpret_cast<const float2 *>(values + 2 * j);
        s[j] = fmaf(s[j], key.x, value.x), s[j + 1] = fmaf(s[j + 1], key.y, value.y);
        s[j + 2] = fmaf(s[j + 2], key.x, value.x), s[j + 3] = fmaf(s[j + 3], key.y, value.y);
    }
}

__device__ __forceinline__ void hide(float (&s)[32], int column, int tokens) {
#pragma unroll
    for (int j = 0; j < 32; j += 4) {
        if (2 * j + column >= tokens) s[j] = s[j + 2] = negative_infinity();
        if (2 * j + column + 1 >= tokens) s[j + 1] = s[j + 3] = negative_infinity();
    }
}

// A warpgroup's part of an item: one token.
template <bool Fp8> struct Token {
    Memory<Fp8> &memory;
    const Prefill &args;
    int group, thread;
    float s[32], o[128];
    u32 p[16];
    Softmax upper, lower;
    float a, b; // what the sums so far are multiplied by

    __device__ __forceinline__ u32 stage(int slot) const {
        return __shfl_sync(~0u, shared_address(memory.stages[slot % memory.Stages]), 0);
    }
    __device__ __forceinline__ void await(int slot) const {
        barrier_wait(shared_address(&memory.full[slot % memory.Stages]), slot / memory.Stages & 1);
    }
    __device__ __forceinline__ void release(int slot) const {
        __syncwarp();
        if ((thread & 31) == 0) barrier_arrive(shared_address(&memory.empty[slot % memory.Stages]));
    }
    __device__ __forceinline__ void release_q(int which) const {
        __syncwarp();
        if ((thread & 31) == 0) barrier_arrive(shared_address(&memory.q_empty[which]));
    }

    // Scores of K's slot to probabilities, the first `tokens` of them.
    __device__ __forceinline__ void soften(int slot, int tokens) {
        const float *factors = memory.factors[Fp8 ? slot / 2 % 4 : 0][0];
        int column = (thread & 3) * 2;
        if (Fp8) scale_columns(s, factors + column, factors + MFA_PAGE + column);
        if (tokens < MFA_PAGE) hide(s, column, tokens);
        float scale_log2 = Fp8 ? 1.0f : args.scale_log2;
        a = probabilities<0, Fp8>(s, upper, scale_log2, factors + 2 * MFA_PAGE + column);
        b = probabilities<2, Fp8>(s, lower, scale_log2, factors + 2 * MFA_PAGE + column);
    }
    __device__ __forceinline__ void pack() {
#pragma unroll
        for (int i = 0; i < 16; i++) p[i] = Fp8 ? pack_f16(s[2 * i], s[2 * i + 1]) : pack_bf16(s[2 * i], s[2 * i + 1]);
    }
    __device__ __forceinline__ void rescale() {
        if (__any_sync(~0u, a != 1.0f || b != 1.0f)) {
#pragma unroll
            for (int i = 0; i < 128; i += 4) o[i] *= a, o[i + 1] *= a, o[i + 2] *= b, o[i + 3] *= b;
        }
    }

    // Pages whose first K is in `slot`; of the last one the first `seen` positions count, and `tokens` are there. Two warpgroups that are
    // paired issue products by turns, so that one softens while the other multiplies.
    __device__ __forceinline__ void attend(u32 q, int slot, int pages, int tokens, int seen, bool paired) {
        await(slot);
        multiply_keys<Fp8>(s, q, stage(slot));
        wgmma_wait<0>();
        pin(s);
        release(slot);
        soften(slot, pages == 1 ? seen : MFA_PAGE);
        pack();
        for (int left = pages - 1; left > 0; left--) {
            int next = slot + 2;
            await(next);
            if (paired) named_barrier(4 + group, 256);
            multiply_keys<Fp8>(s, q, stage(next));
            await(slot + 1);
            multiply_values<Fp8>(o, p, stage(slot + 1));
            if (paired) named_arrive(5 - group, 256);
            wgmma_wait<1>();
            pin(s);
            release(next);
            soften(next, left == 1 ? seen : MFA_PAGE);
            wgmma_wait<0>();
            pin(o);
            release(slot + 1);
            rescale();
            pack();
            slot = next;
        }
        release_q(0);
        await(slot + 1);
        if (!Fp8 && tokens < MFA_PAGE) clear_rows(memory.stages[(slot + 1) % memory.Stages], tokens, thread, group);
        multiply_values<Fp8>(o, p, stage(slot + 1));
        wgmma_wait<0>();
        pin(o);
        release(slot + 1);
    }

    __device__ __forceinline__ void begin() {
        upper = lower = {LOWEST, 0};
#pragma unroll
        for (int i = 0; i < 128; i++) o[i] = 0;
    }
    __device__ __forceinline__ void add_denominators() {
#pragma unroll
        for (int mask = 1; mask < 4; mask *= 2) {
            upper.denominator += __shfl_xor_sync(~0u, upper.denominator, mask);
            lower.denominator += __shfl_xor_sync(~0u, lower.denominator, mask);
        }
    }

    // Half of the columns, a whole row's or a part's.
    template <int First> __device__ __forceinline__ void emit(const Item &item, int row, int slot) {
        if (item.parts == 1)
            store_row<First, 64>(args.out, row, thread, o, 1.0f / upper.denominator, 1.0f / lower.denominator);
        else
            store_half<First>(args.partials, slot, thread, o, upper.maximum, upper.denominator, lower.maximum, lower.denominator);
    }

    // One of two tokens.
    __device__ __forceinline__ void token(const Item &item, int slot) {
        // The first sees all but the second's own position, which is the last part's last.
        int hidden = item.part + 1 == item.parts ? 1 - group : 0;
        u32 q = __shfl_sync(~0u, shared_address(memory.q[group]), 0);
        begin();
        attend(q, slot, item.pages, item.tokens, item.tokens - hidden, true);
        release_q(1);
        add_denominators();
        emit<0>(item, (item.row >> 1) + group, item.slot + group * item.parts);
        emit<64>(item, (item.row >> 1) + group, item.slot + group * item.parts);
    }

    // One token by the first warpgroup.
    __device__ __forceinline__ void lone_token(const Item &item, int slot) {
        if (group == 0) {
            begin();
            attend(__shfl_sync(~0u, shared_address(memory.q[0]), 0), slot, item.pages, item.tokens, item.tokens, false);
            add_denominators();
            emit<0>(item, item.row >> 1, item.slot);
            emit<64>(item, item.row >> 1, item.slot);
        } else {
            release_q(0);
            for (int i = slot; i < slot + 2 * item.pages; i++) await(i), release(i);
        }
        release_q(1);
    }
};

template <bool Fp8> __device__ __forceinline__ void attend(const Prefill &args, Memory<Fp8> &memory, int group, int thread) {
    Token<Fp8> token = {memory, args, group, thread};
    int slot = 0;
    if (group == 1) named_arrive(4, 256);
    for (int count = 0;; count++) {
        Item item = queue_take(memory.queue, count, thread & 31);
        if (item.pages < 0) break;
        barrier_wait(shared_address(&memory.q_full), count & 1);
        if (item.row & 1)
            token.token(item, slot);
        else
            token.lone_token(item, slot);
        slot += 2 * item.pages;
    }
    add_share<2>(args.work, args.partials, args.out, args.arrivals, memory.stages[0], memory.Stages * STAGE_BYTES,
                 shared_address(&memory.combined), group * 128 + thread);
}

template <bool Fp8> __device__ __forceinline__ Memory<Fp8> &begin(const Prefill &args, u8 *raw) {
    Memory<Fp8> &memory = *reinterpret_cast<Memory<Fp8> *>(raw + ((1024 - (shared_address(raw) & 1023)) & 1023));
    if (threadIdx.x == 0) {
        for (int i = 0; i < memory.Stages; i++) {
            barrier_init(shared_address(&memory.full[i]), Fp8 ? 4 : 1);
            barrier_init(shared_address(&memory.empty[i]), CONSUMER_WARPS);
        }
        queue_init(memory.queue, CONSUMER_WARPS + (Fp8 ? 0 : 1), Fp8 ? 0 : 1);
        barrier_init(shared_address(&memory.q_there), 1);
        for (int i = 0; i < 4; i++) barrier_init(shared_address(&memory.raw[i]), 1);
        barrier_init(shared_address(&memory.q_full), Fp8 ? 4 : 1);
        for (int i = 0; i < 2; i++) barrier_init(shared_address(&memory.q_empty[i]), CONSUMER_WARPS);
        barrier_init(shared_address(&memory.combined), 1);
        barrier_init_fence();
    }
    __syncthreads();
    // What is read until here was written by copies; all else may be the kernel's before.
    start_dependents();
    await_dependencies();
    return memory;
}

// Warps 0-7 multiply; of the others one loads KV pages, one q, one items.
extern "C" __global__ __launch_bounds__(384, 1) void mfa_prefill_bf16(const __grid_constant__ Prefill args) {
    extern __shared__ u8 raw[];
    int lane = threadIdx.x & 31, group = __shfl_sync(~0u, threadIdx.x / 128, 0);
    int word = threadIdx.x >= 320 ? args.work.item_word(blockIdx.x, lane) : 0;
    Memory<false> &memory = begin<false>(args, raw);
    if (group < 2) {
        grow_registers<232>();
        attend<false>(args, memory, group, threadIdx.x & 127);
    } else {
        shrink_registers<40>();
        if (threadIdx.x < 288)
            walk_pages(args.pages, memory.queue, lane, [&](int page, int tokens, int count) {
                if (lane == 0) load_page(args, memory, page, count);
            });
        else if (threadIdx.x == 288)
            for (int count = 0;; count++) {
                Item item = queue_take(memory.queue, count, 0);
                if (item.pages < 0) break;
                load_queries(args, memory, item.row, count);
            }
        else if (threadIdx.x >= 320 && threadIdx.x < 352)
            fetch_items(args.work, memory.queue, word, lane);
    }
}

// Warps 0-7 multiply, 8-11 do all else.
extern "C" __global__ __launch_bounds__(384, 1) void mfa_prefill_fp8(const __grid_constant__ Prefill args) {
    extern __shared__ u8 raw[];
    int lane = threadIdx.x & 31, group = __shfl_sync(~0u, threadIdx.x / 128, 0);
    int word = threadIdx.x >= 256 ? args.work.item_word(blockIdx.x, lane) : 0;
    Memory<true> &memory = begin<true>(args, raw);
    if (group < 2) {
        grow_registers<208>();
        attend<true>(args, memory, group, threadIdx.x & 127);
    } else {
        shrink_registers<88>();
        widen_pages(args, memory, word, threadIdx.x & 127);
    }
}
#endif
