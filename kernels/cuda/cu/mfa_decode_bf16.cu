// MFA decode attention, bf16 KV: out = softmax(q K^T * scale) V for 64 query heads on one key-value head.
//
//   q      [rows, 64, 256]        bf16, rotated
//   K, V   [pages, 64, 256]       bf16, two pools; pages of a row in any order
//   out    [rows, 64, 256]        bf16
//   work   see mfa_work.cuh       every page of every row in exactly one item
//   pages  [entries]              page numbers, a row's consecutive
//   partials [slots, MFA_PARTIAL_BYTES] scratch; arrivals [1] zero at first, then the kernel's own
//
// Positions at or after a row's context may hold anything, NaN included. Softmax and sums in f32, probabilities in bf16.
// One CTA an SM, all resident at once: at the end they wait for each other.
// Warps 0-3 multiply (M = 64 heads), warp 4 loads KV pages, warp 5 loads q, warp 6 fetches items. sm_90a only.
#include "common.cuh"
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#include "hopper.cuh"
#include "wgmma.cuh"
#include "mfa_work.cuh"

// Stages of half a page (K or V). 132 multiprocessors with 64 KiB in flight saturate memory; more only lengthens its
// queue, and with it every other answer.
#define STAGES 3
#define STAGE_BYTES 32768
#define BLOCK_BYTES 8192 // 64 rows of 128 swizzled bytes
#define STRIP 16         // positions of a box at a row's end

struct Mfa {
    TensorMap q, k, v;           // boxes of a whole page: 64 columns x 64 rows x 4 column blocks
    TensorMap k_strip, v_strip;  // 64 columns x 16 rows x 1
    Work work;
    const int *pages;
    bf16 *out;
    u8 *partials;
    u32 *arrivals;
    float scale_log2; // softmax scale times log2(e)
};

// Shared memory; what swizzled operands need at multiples of 1024 comes first.
struct Memory {
    u8 stages[STAGES][STAGE_BYTES];
    u8 q[2][STAGE_BYTES];
    Queue queue;
    u64 full[STAGES], empty[STAGES], q_full[2], q_empty[2], combined;
};

// Half a page into a stage; of a row's last page only the strips with visible positions.
__device__ __forceinline__ void load_half(u32 to, const TensorMap *whole, const TensorMap *strip, int page, int tokens,
                                          u32 barrier, u64 policy) {
    if (tokens > MFA_PAGE - STRIP) {
        barrier_expect(barrier, STAGE_BYTES);
        copy_box(to, whole, 0, page * MFA_PAGE, 0, barrier, policy);
        return;
    }
    int strips = (tokens + STRIP - 1) / STRIP;
    barrier_expect(barrier, strips * 4 * STRIP * 128);
    for (int block = 0; block < 4; block++)
        for (int s = 0; s < strips; s++)
            copy_box(to + block * BLOCK_BYTES + s * STRIP * 128, strip, 0, page * MFA_PAGE + s * STRIP, block, barrier, policy);
}

// One page into two stages.
__device__ __forceinline__ void load_page(const Mfa &args, Memory &memory, int page, int tokens, int count, u64 policy) {
    for (int half = 0; half < 2; half++) {
        int stage = (2 * count + half) % STAGES, round = (2 * count + half) / STAGES;
        barrier_wait(shared_address(&memory.empty[stage]), (round & 1) ^ 1);
        load_half(shared_address(memory.stages[stage]), half ? &args.v : &args.k, half ? &args.v_strip : &args.k_strip, page,
                  tokens, shared_address(&memory.full[stage]), policy);
    }
}

// One thread: each item's q, into the buffer that the item before is not using.
__device__ void load_queries(const Mfa &args, Memory &memory) {
    for (int count = 0;; count++) {
        Item item = queue_take(memory.queue, count, 0);
        if (item.pages < 0) return;
        u32 full = shared_address(&memory.q_full[count & 1]);
        barrier_wait(shared_address(&memory.q_empty[count & 1]), (count >> 1 & 1) ^ 1);
        barrier_expect(full, STAGE_BYTES);
        copy_box(shared_address(memory.q[count & 1]), &args.q, 0, item.row * MFA_HEADS, 0, full);
    }
}

// S[64, 64] = Q K^T of one page.
__device__ __forceinline__ void multiply_keys(float (&s)[32], u32 q, u32 k) {
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 16; i++) {
        u32 at = (i / 4) * BLOCK_BYTES + (i % 4) * 32;
        wgmma_ss_bf16_n64(s, smem_descriptor(q + at, 16, 1024, 1), smem_descriptor(k + at, 16, 1024, 1), i > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    pin(s);
}

// O[64, 256] += P V of one page.
__device__ __forceinline__ void multiply_values(float (&o)[128], const u32 (&p)[16], u32 v) {
    pin(o);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 4; i++)
        wgmma_rs_bf16_n256(o, p + 4 * i, smem_descriptor(v + i * 2048, BLOCK_BYTES, 1024, 1), true);
    wgmma_commit();
    wgmma_wait<0>();
    pin(o);
}

// Clears value rows from `tokens` on: what lies there must not meet a probability of zero as NaN.
__device__ __forceinline__ void clear_rows(u8 *v, int tokens, int thread) {
    for (int i = thread; i < (MFA_PAGE - tokens) * 32; i += 128) {
        int row = tokens + i / 32, piece = i % 32;
        *reinterpret_cast<uint4 *>(v + (piece / 8) * BLOCK_BYTES + row * 128 + (piece % 8) * 16) = make_uint4(0, 0, 0, 0);
    }
    async_proxy_fence();
    named_barrier<2, 128>();
}

// One page's scores to bf16 probabilities in the layout of an A operand; rescales `o` where a maximum rose.
__device__ __forceinline__ void soften(float (&s)[32], u32 (&p)[16], float (&o)[128], Softmax &upper, Softmax &lower,
                                       float scale_log2) {
    float a = probabilities<0, false>(s, upper, scale_log2, nullptr), b = probabilities<2, false>(s, lower, scale_log2, nullptr);
    if (__any_sync(~0u, a != 1.0f || b != 1.0f)) {
#pragma unroll
        for (int i = 0; i < 128; i += 4) o[i] *= a, o[i + 1] *= a, o[i + 2] *= b, o[i + 3] *= b;
    }
#pragma unroll
    for (int i = 0; i < 16; i++) p[i] = pack_bf16(s[2 * i], s[2 * i + 1]);
}

__device__ __forceinline__ void hide(float (&s)[32], int column, int tokens) {
#pragma unroll
    for (int j = 0; j < 32; j += 4) {
        if (2 * j + column >= tokens) s[j] = s[j + 2] = negative_infinity();
        if (2 * j + column + 1 >= tokens) s[j + 1] = s[j + 3] = negative_infinity();
    }
}

// The row goes out, or this part of it.
__device__ __forceinline__ void finish(const Mfa &args, const Item &item, const float (&o)[128], Softmax upper,
                                       Softmax lower, int thread) {
#pragma unroll
    for (int mask = 1; mask < 4; mask *= 2) {
        upper.denominator += __shfl_xor_sync(~0u, upper.denominator, mask);
        lower.denominator += __shfl_xor_sync(~0u, lower.denominator, mask);
    }
    if (item.parts == 1) {
        store_row<0, 128>(args.out, item.row, thread, o, 1.0f / upper.denominator, 1.0f / lower.denominator);
        return;
    }
    store_half<0>(args.partials, item.slot, thread, o, upper.maximum, upper.denominator, lower.maximum, lower.denominator);
    store_half<64>(args.partials, item.slot, thread, o, upper.maximum, upper.denominator, lower.maximum, lower.denominator);
}

__device__ void attend(const Mfa &args, Memory &memory, int thread) {
    Place at(thread);
    bool elected = (thread & 31) == 0;
    int slot = 0;
    float o[128];
    for (int count = 0;; count++) {
        Item item = queue_take(memory.queue, count, thread & 31);
        if (item.pages < 0) break;
        Softmax upper = {negative_infinity(), 0}, lower = upper;
#pragma unroll
        for (int i = 0; i < 128; i++) o[i] = 0;
        barrier_wait(shared_address(&memory.q_full[count & 1]), count >> 1 & 1);
        for (int page = 0; page < item.pages; page++, slot += 2) {
            float s[32];
            u32 p[16];
            int tokens = page == item.pages - 1 ? item.tokens : MFA_PAGE;
            int stage = slot % STAGES;
            barrier_wait(shared_address(&memory.full[stage]), slot / STAGES & 1);
            multiply_keys(s, shared_address(memory.q[count & 1]), shared_address(memory.stages[stage]));
            if (elected) barrier_arrive(shared_address(&memory.empty[stage]));
            if (elected && page == item.pages - 1) barrier_arrive(shared_address(&memory.q_empty[count & 1]));
            if (tokens < MFA_PAGE) hide(s, at.column, tokens);
            soften(s, p, o, upper, lower, args.scale_log2);
            stage = (slot + 1) % STAGES;
            barrier_wait(shared_address(&memory.full[stage]), (slot + 1) / STAGES & 1);
            if (tokens < MFA_PAGE) clear_rows(memory.stages[stage], tokens, thread);
            multiply_values(o, p, shared_address(memory.stages[stage]));
            if (elected) barrier_arrive(shared_address(&memory.empty[stage]));
        }
        finish(args, item, o, upper, lower, thread);
    }
    add_share<1>(args.work, args.partials, args.out, args.arrivals, memory.stages[0], STAGES * STAGE_BYTES,
                 shared_address(&memory.combined), thread);
}

extern "C" __global__ __launch_bounds__(224, 1) void mfa_decode_bf16(const __grid_constant__ Mfa args) {
    extern __shared__ u8 raw[];
    Memory &memory = *reinterpret_cast<Memory *>(raw + ((1024 - (shared_address(raw) & 1023)) & 1023));
    if (threadIdx.x == 128)
        for (const TensorMap *map : {&args.q, &args.k, &args.v, &args.k_strip, &args.v_strip}) prefetch_map(map);
    int lane = threadIdx.x & 31, word = threadIdx.x >= 192 ? args.work.item_word(blockIdx.x, lane) : 0;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) barrier_init(shared_address(&memory.full[i]), 1), barrier_init(shared_address(&memory.empty[i]), 4);
        queue_init(memory.queue, 5, 1);
        for (int i = 0; i < 2; i++) barrier_init(shared_address(&memory.q_full[i]), 1), barrier_init(shared_address(&memory.q_empty[i]), 4);
        barrier_init(shared_address(&memory.combined), 1);
        barrier_init_fence();
    }
    __syncthreads();
    // What is read above was written by copies; all else may be the kernel's before.
    start_dependents();
    await_dependencies();
    if (threadIdx.x < 128)
        attend(args, memory, threadIdx.x);
    else if (threadIdx.x < 160)
        walk_pages(args.pages, memory.queue, lane, [&, policy = kv_policy(args.work)](int page, int tokens, int count) {
            if (lane == 0) load_page(args, memory, page, tokens, count, policy);
        });
    else if (threadIdx.x == 160)
        load_queries(args, memory);
    else if (threadIdx.x >= 192)
        fetch_items(args.work, memory.queue, word, lane);
}
#endif
