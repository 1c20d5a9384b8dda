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
// Positions at or after the last token's context may hold anything, NaN included. Softmax and sums in f32, probabilities in bf16.
// Two warpgroups multiply, one token each (M = 64 heads); scores of a page are made while the page before is added. e4m3 becomes
// bf16, which holds it exactly, on its way into shared memory, by a warpgroup of its own; scales are multiplied into scores and
// probabilities. One CTA an SM, all resident at once. sm_90a only.
#include "common.cuh"
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#include "hopper.cuh"
#include "wgmma.cuh"
#include "mfa_work.cuh"

#define STAGE_BYTES 32768 // half a page (K or V) in bf16
#define BLOCK_BYTES 8192  // 64 rows of 128 swizzled bytes
#define CONSUMER_WARPS 8
#define LOWEST -1e30f // below every score: a maximum of no scores is not an infinity, which would leave NaN

struct Prefill {
    TensorMap q, k, v; // boxes of 64 columns x 64 rows x 4 column blocks; k and v of bf16 pools
    const u8 *keys, *values; // fp8 pools
    const float *scales;
    Work work;
    const int *pages;
    bf16 *out;
    u8 *partials;
    u32 *arrivals;
    float scale_log2; // softmax scale times log2(e)
};

// Shared memory; what swizzled operands need at multiples of 1024 comes first. K and V of a page are two stages.
template <bool Fp8> struct Memory {
    static constexpr int Stages = Fp8 ? 4 : 5;
    u8 stages[Stages][STAGE_BYTES];
    u8 q[2][STAGE_BYTES];
    // By page: log2(e) x softmax scale x K's scale; log2 of V's; its reciprocal. A page's are last read before K of the next but two is
    // asked for.
    float factors[Fp8 ? 4 : 1][Fp8 ? 3 : 1][64];
    Queue queue;
    u64 full[5], empty[5], q_there, q_full, q_empty[2], combined;
};
static_assert(sizeof(Memory<false>) + 1024 <= 227 * 1024 && sizeof(Memory<true>) + 1024 <= 227 * 1024, "fits a block's shared memory");

// One page into two stages.
__device__ __forceinline__ void load_page(const Prefill &args, Memory<false> &memory, int page, int count) {
    for (int half = 0; half < 2; half++) {
        int stage = (2 * count + half) % memory.Stages, round = (2 * count + half) / memory.Stages;
        u32 full = shared_address(&memory.full[stage]);
        barrier_wait(shared_address(&memory.empty[stage]), (round & 1) ^ 1);
        barrier_expect(full, STAGE_BYTES);
        copy_box(shared_address(memory.stages[stage]), half ? &args.v : &args.k, 0, page * MFA_PAGE, 0, full);
    }
}

// One thread: an item's q, as soon as the scores of the one before are made.
template <bool Fp8> __device__ __forceinline__ void load_queries(const Prefill &args, Memory<Fp8> &memory, int row, int count) {
    u32 full = shared_address(Fp8 ? &memory.q_there : &memory.q_full);
    int rows = 1 + (row & 1);
    for (int i = 0; i < rows; i++) barrier_wait(shared_address(&memory.q_empty[i]), (count & 1) ^ 1);
    barrier_expect(full, rows * STAGE_BYTES);
    for (int i = 0; i < rows; i++)
        copy_box(shared_address(memory.q[i]), &args.q, 0, ((row >> 1) + i) * MFA_HEADS, 0, full);
}

// Two e4m3 as f16.
__device__ __forceinline__ u32 widen_pair(u32 pair) {
    u32 wide;
    asm("{ .reg .b16 low, high; mov.b32 {low, high}, %1; cvt.rn.f16x2.e4m3x2 %0, low; }" : "=r"(wide) : "r"(pair));
    return wide;
}
__device__ __forceinline__ u32 low_pair(u32 word) { return widen_pair(word); }
__device__ __forceinline__ u32 high_pair(u32 word) { return widen_pair(word >> 16); }

// Keeps a pair of value positions that are seen.
__device__ __forceinline__ u32 seen(u32 pair, int position, int tokens) {
    return position + 1 < tokens ? pair : position < tokens ? pair & 0xffff : 0;
}

// A warpgroup: fp8 pages to bf16. A thread has a quarter of every row that is its own: eight of the 256 rows of 64 bytes that half a
// page is here, whether K's 64 rows in four blocks of columns or V's 256.
struct Widener {
    Memory<true> &memory;
    const Prefill &args;
    int thread, slot = 0, tokens = 0; // of the values that wait in `ahead`
    uint4 ahead[8];
    float scale;

    __device__ __forceinline__ const u8 *keys(int page) const {
        return args.keys + (size_t)page * (MFA_PAGE * MFA_DIM) + (thread & 31) / 4 * MFA_DIM + thread / 32 * 64 + (thread & 3) * 16;
    }
    __device__ __forceinline__ const u8 *values(int page) const {
        return args.values + (size_t)page * (MFA_PAGE * MFA_DIM) + thread / 32 * 4096 + (thread & 31) * 16;
    }

    // What is ahead goes to the next stage, and `from` is asked for in its place, its rows `stride` bytes apart.
    template <bool Values> __device__ __forceinline__ void widen(const u8 *from, int stride) {
        int stage = slot % memory.Stages, row = (thread & 31) / 4, quarter = thread & 3;
        u8 *to = memory.stages[stage] + thread / 32 * BLOCK_BYTES + row * 128;
        int first = (2 * quarter ^ row) << 4;
        barrier_wait(shared_address(&memory.empty[stage]), (slot / memory.Stages & 1) ^ 1);
        if (!Values) {
            float *factors = memory.factors[slot / 2 % 4][0];
            factors[thread] = thread < MFA_PAGE ? scale * args.scale_log2 : log2f(scale);
            if (thread >= MFA_PAGE) factors[MFA_PAGE + thread] = 1.0f / scale;
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
            uint4 x = ahead[i], a, b;
            if (from) ahead[i] = __ldg(reinterpret_cast<const uint4 *>(from + i * stride));
            if (Values) {
                // The order of V's positions: a word has 2 b, 2 b + 1 and the same of the next eight.
                a = make_uint4(low_pair(x.x), low_pair(x.y), low_pair(x.z), low_pair(x.w));
                b = make_uint4(high_pair(x.x), high_pair(x.y), high_pair(x.z), high_pair(x.w));
                if (tokens < MFA_PAGE) {
                    int at = quarter * 16;
                    a = make_uint4(seen(a.x, at, tokens), seen(a.y, at + 2, tokens), seen(a.z, at + 4, tokens), seen(a.w, at + 6, tokens));
                    b = make_uint4(seen(b.x, at + 8, tokens), seen(b.y, at + 10, tokens), seen(b.z, at + 12, tokens), seen(b.w, at + 14, tokens));
                }
            } else {
                a = make_uint4(low_pair(x.x), high_pair(x.x), low_pair(x.y), high_pair(x.y));
                b = make_uint4(low_pair(x.z), high_pair(x.z), low_pair(x.w), high_pair(x.w));
            }
            *reinterpret_cast<uint4 *>(to + i * 1024 + first) = a;
            *reinterpret_cast<uint4 *>(to + i * 1024 + (first ^ 16)) = b;
        }
        async_proxy_fence();
        __syncwarp();
        if ((thread & 31) == 0) barrier_arrive(shared_address(&memory.full[stage]));
        slot++;
    }

    // `between`: once the values before are on their way.
    template <class Between> __device__ __forceinline__ void page(int page, int visible, Between between) {
        if (slot > 0) {
            widen<true>(keys(page), 8 * MFA_DIM);
        } else {
#pragma unroll
            for (int i = 0; i < 8; i++) ahead[i] = __ldg(reinterpret_cast<const uint4 *>(keys(page) + i * 8 * MFA_DIM));
        }
        tokens = visible;
        scale = __ldg(args.scales + (size_t)page * 128 + thread);
        // Its probability is zero, which nothing may make NaN.
        if ((thread & 63) >= tokens) scale = 1;
        between();
        widen<false>(values(page), 512);
    }
};

// Two bf16 as f16, exactly if they are between 2^-14 and 65,504.
__device__ __forceinline__ u32 half_pair(u32 pair) { return pack_f16(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)); }

// The same warpgroup: q where it lies, of `rows` tokens.
__device__ __forceinline__ void narrow_queries(Memory<true> &memory, int rows, int count, int thread) {
    barrier_wait(shared_address(&memory.q_there), count & 1);
    uint4 *q = reinterpret_cast<uint4 *>(memory.q[0]) + thread;
#pragma unroll 4
    for (int i = 0; i < rows * 16; i++) {
        uint4 x = q[i * 128];
        q[i * 128] = make_uint4(half_pair(x.x), half_pair(x.y), half_pair(x.z), half_pair(x.w));
    }
    async_proxy_fence();
    __syncwarp();
    if ((thread & 31) == 0) barrier_arrive(shared_address(&memory.q_full));
}

// The same warpgroup: items to the others, q, and pages. `word`: of item blockIdx.x.
__device__ void widen_pages(const Prefill &args, Memory<true> &memory, int word, int thread) {
    Widener widener = {memory, args, thread};
    int lane = thread & 31;
    for (int count = 0;; count++) {
        Item item = {__shfl_sync(~0u, word, 0), __shfl_sync(~0u, word, 1), __shfl_sync(~0u, word, 2), __shfl_sync(~0u, word, 3)};
        int next = __shfl_sync(~0u, word, 7), head = __shfl_sync(~0u, word, 8 + lane % MFA_HEAD_PAGES);
        if (item.pages == 0) word = -1;
        if (thread < 32) queue_push(memory.queue, count, word, lane);
        if (item.pages <= 0) break;
        word = next < 0 ? -1 : args.work.item_word(next, lane);
        bool first = true;
        walk_item(args.pages, item, head, lane, 0, [&](int page, int tokens, int) {
            widener.page(page, tokens, [&] {
                if (first && thread == 0) load_queries(args, memory, item.row, count);
            });
            if (first) narrow_queries(memory, 1 + (item.row & 1), count, thread);
            first = false;
        });
    }
    if (widener.slot > 0) widener.widen<true>(nullptr, 0);
}

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

struct Softmax {
    float maximum, denominator; // the denominator of this thread's columns alone
};

// One row's scores, times `scale_log2` (elements `Half`, `Half + 1` of every group), to probabilities; returns the old sums' factor.
// `inverse`: what probabilities are multiplied by in the denominator, every other element's the next; or none.
template <int Half, bool Scaled>
__device__ __forceinline__ float probabilities(float (&s)[32], Softmax &row, float scale_log2, const float *inverse) {
    float top = s[Half];
#pragma unroll
    for (int j = 0; j < 32; j += 4) top = fmaxf(top, fmaxf(s[j + Half], s[j + Half + 1]));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
    float maximum = fmaxf(row.maximum, top * scale_log2);
    float factor = fast_exp2(row.maximum - maximum), sum = 0;
#pragma unroll
    for (int j = 0; j < 32; j += 4) {
        s[j + Half] = fast_exp2(fmaf(s[j + Half], scale_log2, -maximum));
        s[j + Half + 1] = fast_exp2(fmaf(s[j + Half + 1], scale_log2, -maximum));
        if (Scaled) {
            float2 by = *reinterpret_cast<const float2 *>(inverse + 2 * j);
            sum = fmaf(s[j + Half], by.x, sum), sum = fmaf(s[j + Half + 1], by.y, sum);
        } else {
            sum += s[j + Half] + s[j + Half + 1];
        }
    }
    row.maximum = maximum;
    row.denominator = row.denominator * factor + sum;
    return factor;
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
    // By both warpgroups, or by one for both.
    __device__ __forceinline__ void release(int slot, int step) const {
        if ((thread & 31) == 0) barrier_arrive(shared_address(&memory.empty[slot % memory.Stages]), step);
    }
    __device__ __forceinline__ void release_q(int which) const {
        if ((thread & 31) == 0) barrier_arrive(shared_address(&memory.q_empty[which]), 1);
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

    // Pages whose first K is in `slot`, every `step`th; of the last one the first `seen` positions count, and `tokens` are there.
    __device__ __forceinline__ void attend(u32 q, int slot, int pages, int step, int tokens, int seen, bool paired) {
        await(slot);
        multiply_keys<Fp8>(s, q, stage(slot));
        wgmma_wait<0>();
        pin(s);
        release(slot, step);
        soften(slot, pages == 1 ? seen : MFA_PAGE);
        pack();
        for (int left = pages - 1; left > 0; left--) {
            int next = slot + 2 * step;
            await(next);
            if (paired) named_barrier(4 + group, 256);
            multiply_keys<Fp8>(s, q, stage(next));
            await(slot + 1);
            multiply_values<Fp8>(o, p, stage(slot + 1));
            if (paired) asm volatile("bar.arrive %0, 256;" ::"r"(5 - group) : "memory");
            wgmma_wait<1>();
            pin(s);
            release(next, step);
            soften(next, left == 1 ? seen : MFA_PAGE);
            wgmma_wait<0>();
            pin(o);
            release(slot + 1, step);
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
        release(slot + 1, step);
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
        attend(q, slot, item.pages, 1, item.tokens, item.tokens - hidden, true);
        release_q(1);
        add_denominators();
        emit<0>(item, (item.row >> 1) + group, item.slot + group * item.parts);
        emit<64>(item, (item.row >> 1) + group, item.slot + group * item.parts);
    }

    // One token by the first warpgroup.
    __device__ __forceinline__ void lone_token(const Item &item, int slot) {
        if (group == 0) {
            begin();
            attend(__shfl_sync(~0u, shared_address(memory.q[0]), 0), slot, item.pages, 1, item.tokens, item.tokens, false);
            add_denominators();
            emit<0>(item, item.row >> 1, item.slot);
            emit<64>(item, item.row >> 1, item.slot);
        } else {
            release_q(0);
            for (int i = slot; i < slot + 2 * item.pages; i++) await(i), release(i, 1);
        }
        release_q(1);
    }
};

template <bool Fp8> __device__ __forceinline__ void attend(const Prefill &args, Memory<Fp8> &memory, int group, int thread) {
    Token<Fp8> token = {memory, args, group, thread};
    int slot = 0;
    if (group == 1) asm volatile("bar.arrive 4, 256;" ::: "memory");
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
        queue_init(memory.queue, CONSUMER_WARPS + (Fp8 ? 0 : 2));
        barrier_init(shared_address(&memory.q_there), 1);
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
                Item item = queue_take(memory.queue, count, 0, 1);
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
