// What the kernels for chunks (mfa_prefill.cu) share: arguments, shared memory, and how q, K and V come there. sm_90a only.
#pragma once
#include "mfa_work.cuh"

#define STAGE_BYTES 32768 // half a page (K or V) of 16-bit numbers
#define BLOCK_BYTES 8192  // 64 rows of 128 swizzled bytes
#define CONSUMER_WARPS 8

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
    u64 full[5], empty[5], raw[4], q_there, q_full, q_empty[2], combined;
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

// A warpgroup: fp8 pages to f16, which holds e4m3 exactly. A thread has a quarter of every row that is its own: eight of the 256 rows of
// 64 bytes that half a page is here, whether K's 64 rows in four blocks of columns or V's 256.
struct Widener {
    Memory<true> &memory;
    const Prefill &args;
    int thread, slot = 0, tokens = 0; // of the values that are next
    float scale;

    // One thread: half a page to where its numbers will be, as it is.
    __device__ __forceinline__ void ask(const u8 *from, int slot) {
        int stage = slot % memory.Stages;
        u32 raw = shared_address(&memory.raw[stage]);
        barrier_wait(shared_address(&memory.empty[stage]), (slot / memory.Stages & 1) ^ 1);
        barrier_expect(raw, STAGE_BYTES / 2);
        copy_bytes(shared_address(memory.stages[stage]), from, STAGE_BYTES / 2, raw);
    }

    // What came to the next stage, from registers to its place there: the whole of it is read before any of it is overwritten.
    template <bool Values> __device__ __forceinline__ void widen() {
        int stage = slot % memory.Stages, row = (thread & 31) / 4, quarter = thread & 3;
        u8 *to = memory.stages[stage] + thread / 32 * BLOCK_BYTES + row * 128;
        int first = (2 * quarter ^ row) << 4;
        const u8 *from = memory.stages[stage] + (Values ? thread / 32 * 4096 + (thread & 31) * 16 : row * MFA_DIM + thread / 32 * 64 + quarter * 16);
        uint4 narrow[8];
        barrier_wait(shared_address(&memory.raw[stage]), slot / memory.Stages & 1);
#pragma unroll
        for (int i = 0; i < 8; i++) narrow[i] = *reinterpret_cast<const uint4 *>(from + i * (Values ? 512 : 8 * MFA_DIM));
#pragma unroll
        for (int i = 0; i < 8; i++) asm volatile("" : "+r"(narrow[i].x), "+r"(narrow[i].y), "+r"(narrow[i].z), "+r"(narrow[i].w)::"memory");
        named_barrier<6, 128>();
        if (!Values) {
            float *factors = memory.factors[slot / 2 % 4][0];
            factors[thread] = thread < MFA_PAGE ? scale * args.scale_log2 : log2f(scale);
            if (thread >= MFA_PAGE) factors[MFA_PAGE + thread] = 1.0f / scale;
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
            uint4 x = narrow[i], a, b;
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

    // `between`: once the values before are in place.
    template <class Between> __device__ __forceinline__ void page(int page, int visible, Between between) {
        // K's place is free long before V's, which is the one of values that are being multiplied: each is asked for where nobody waits.
        int behind = slot > 0;
        if (thread == 0) ask(args.keys + (size_t)page * (MFA_PAGE * MFA_DIM), slot + behind);
        if (behind) widen<true>();
        tokens = visible;
        scale = __ldcg(args.scales + (size_t)page * 128 + thread);
        // Its probability is zero, which nothing may make NaN.
        if ((thread & 63) >= tokens) scale = 1;
        between();
        widen<false>();
        if (thread == 0) ask(args.values + (size_t)page * (MFA_PAGE * MFA_DIM), slot);
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
    if (widener.slot > 0) widener.widen<true>();
}
