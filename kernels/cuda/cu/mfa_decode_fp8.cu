// MFA decode attention, fp8 KV: out = softmax(q K^T * scale) V for 64 query heads on one key-value head.
//
//   q       [rows, 64, 256]   bf16, rotated
//   K       [pages, 64, 256]  e4m3
//   V       [pages, 256, 64]  e4m3, a page transposed, its positions in the order of an A operand's bytes: in every 16,
//                             position 8 a + 2 b + c (a, c < 2, b < 4) is stored at 4 b + 2 a + c
//   scales  [pages, 2, 64]    f32 > 0: one a position for K, then one for V
//   out     [rows, 64, 256]   bf16
//   work, pages, partials, arrivals: as mfa_decode_bf16.cu
//
// fp8 products without fp8's error: q and the probabilities are each split into an e4m3 number and the e4m3 of what it
// leaves (8 bits of significand), so both products take e4m3 operands at twice bf16's rate, and cost what bf16's would.
// The tensor core's own sums keep about 14 bits, too few for a long context: each page's product starts from zero and
// is added in f32. V's scales ride in the exponent: p v_scale = 2^(s + log2 v_scale), whose maximum is what is tracked.
// Positions at or after a row's context may hold anything in K, V and scales.
// Two consumer warpgroups take even and odd pages and merge at an item's end. sm_90a only.
#include "common.cuh"
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#include "hopper.cuh"
#include "wgmma.cuh"
#include "mfa_work.cuh"

// K's halves of pages are in even stages, V's in odd ones. A multiple of 4, so that within an item a stage is always one
// warpgroup's: one that skips a round of a barrier would take an earlier round of equal parity for its own.
#define STAGES 8
#define STAGE_BYTES 16384
static_assert(STAGES % 4 == 0, "a stage belongs to one warpgroup");
#define BLOCK_BYTES 8192 // 64 rows of 128 swizzled bytes
#define STRIP 16
#define RING 6           // pages whose scales are ready; even, for the same reason
#define LIFT 8.0f        // probabilities are held times 2^8, so that small ones stay above e4m3's floor

struct Mfa {
    TensorMap k;       // box of a whole page: 128 columns x 64 rows x 2 column blocks
    TensorMap k_strip; // 128 columns x 16 rows x 1
    TensorMap v;       // box of a whole page: 64 positions x 256 rows
    const bf16 *q;
    const float *scales;
    Work work;
    const int *pages;
    bf16 *out;
    u8 *partials;
    u32 *arrivals;
    float scale_log2;
};

// Per page of the ring and position: log2(e) * softmax scale * K's scale; log2 of V's; the reciprocal of V's.
struct Factors {
    float key[64], value_log2[64], value_inverse[64];
};

// Shared memory; what swizzled operands need at multiples of 1024 comes first. Where q is while an item is read, its
// warpgroups' sums are exchanged when it is over.
struct Memory {
    u8 stages[STAGES][STAGE_BYTES];
    union {
        struct {
            u8 q_high[2 * BLOCK_BYTES], q_low[2 * BLOCK_BYTES];
        };
        float4 exchange[16 * 128];
    };
    bf16 q[MFA_HEADS * MFA_DIM]; // the next item's
    float scales[STAGES / 2][128];
    Factors factors[RING];
    float q_scale[64];
    float statistics[2][2][64];
    Queue queue;
    u64 full[STAGES], empty[STAGES], factors_full[RING], factors_empty[RING], q_full, q_empty, combined;
};

// A page's keys and scales; of a row's last page only the strips with visible positions.
__device__ __forceinline__ void load_keys(const Mfa &args, Memory &memory, int page, int tokens, int stage, u64 policy) {
    u32 to = shared_address(memory.stages[stage]), full = shared_address(&memory.full[stage]);
    bool whole = tokens > MFA_PAGE - STRIP;
    int strips = (tokens + STRIP - 1) / STRIP;
    barrier_expect(full, (whole ? STAGE_BYTES : strips * 2 * STRIP * 128) + 512);
    copy_bytes(shared_address(memory.scales[stage / 2]), args.scales + (size_t)page * 128, 512, full);
    if (whole) {
        copy_box(to, &args.k, 0, page * MFA_PAGE, 0, full, policy);
        return;
    }
    for (int block = 0; block < 2; block++)
        for (int s = 0; s < strips; s++)
            copy_box(to + block * BLOCK_BYTES + s * STRIP * 128, &args.k_strip, 0, page * MFA_PAGE + s * STRIP, block, full,
                     policy);
}

// One page into two stages.
__device__ __forceinline__ void load_page(const Mfa &args, Memory &memory, int page, int tokens, int count, u64 policy) {
    int stage = 2 * count % STAGES;
    u32 parity = (2 * count / STAGES & 1) ^ 1, full = shared_address(&memory.full[stage + 1]);
    barrier_wait(shared_address(&memory.empty[stage]), parity);
    load_keys(args, memory, page, tokens, stage, policy);
    barrier_wait(shared_address(&memory.empty[stage + 1]), parity);
    barrier_expect(full, STAGE_BYTES);
    copy_box(shared_address(memory.stages[stage + 1]), &args.v, 0, page * MFA_DIM, 0, full, policy);
}

// One thread: the next item's q, as soon as the one before is split.
__device__ void load_queries(const Mfa &args, Memory &memory) {
    u32 full = shared_address(&memory.q_full);
    for (int count = 0;; count++) {
        Item item = queue_take(memory.queue, count, 0);
        if (item.pages < 0) return;
        barrier_wait(shared_address(&memory.q_empty), (count & 1) ^ 1);
        barrier_expect(full, sizeof(memory.q));
        copy_bytes(shared_address(memory.q), args.q + (size_t)item.row * MFA_HEADS * MFA_DIM, sizeof(memory.q), full);
    }
}

// One warp: scales that have come, in the form that the softmax wants them.
__device__ void prepare_scales(const Mfa &args, Memory &memory, int lane) {
    int slot = 0;
    for (int count = 0;; count++) {
        Item item = queue_take(memory.queue, count, lane);
        if (item.pages < 0) return;
        for (int i = 0; i < item.pages; i++, slot++) {
            int stage = 2 * slot % STAGES;
            barrier_wait(shared_address(&memory.full[stage]), 2 * slot / STAGES & 1);
            const float2 *from = reinterpret_cast<const float2 *>(memory.scales[stage / 2]) + lane;
            float2 key = from[0], value = from[32];
            __syncwarp();
            if (lane == 0) barrier_arrive(shared_address(&memory.empty[stage]));
            barrier_wait(shared_address(&memory.factors_empty[slot % RING]), (slot / RING & 1) ^ 1);
            Factors &to = memory.factors[slot % RING];
            reinterpret_cast<float2 *>(to.key)[lane] = make_float2(key.x * args.scale_log2, key.y * args.scale_log2);
            reinterpret_cast<float2 *>(to.value_log2)[lane] = make_float2(log2f(value.x), log2f(value.y));
            reinterpret_cast<float2 *>(to.value_inverse)[lane] = make_float2(1.0f / value.x, 1.0f / value.y);
            __syncwarp();
            if (lane == 0) barrier_arrive(shared_address(&memory.factors_full[slot % RING]));
        }
    }
}

// Two floats as e4m3 (in the low half), and what they leave as e4m3 (in the high half).
__device__ __forceinline__ u32 split_pair(float low, float high) {
    u32 packed;
    asm("{ .reg .b16 big, small; .reg .b32 both, back, rest;\n"
        "cvt.rn.f16x2.f32 both, %2, %1;\n"
        "cvt.rn.satfinite.e4m3x2.f16x2 big, both;\n"
        "cvt.rn.f16x2.e4m3x2 back, big;\n"
        "sub.rn.f16x2 rest, both, back;\n"
        "cvt.rn.satfinite.e4m3x2.f16x2 small, rest;\n"
        "mov.b32 %0, {big, small}; }"
        : "=r"(packed)
        : "f"(low), "f"(high));
    return packed;
}

// Eight heads of q to shared memory, split; each head times a power of two that brings its largest near 256.
__device__ __forceinline__ void split_queries(Memory &memory, int count, int warp, int lane) {
    const uint4 *from = reinterpret_cast<const uint4 *>(memory.q + warp * 8 * MFA_DIM) + lane;
    barrier_wait(shared_address(&memory.q_full), count & 1);
#pragma unroll 2
    for (int i = 0; i < 8; i++) {
        uint4 raw = from[i * (MFA_DIM / 8)];
        const u32 words[4] = {raw.x, raw.y, raw.z, raw.w};
        float x[8], largest = 1e-30f;
#pragma unroll
        for (int j = 0; j < 4; j++) x[2 * j] = __uint_as_float(words[j] << 16), x[2 * j + 1] = __uint_as_float(words[j] & 0xffff0000u);
#pragma unroll
        for (int j = 0; j < 8; j++) largest = fmaxf(largest, fabsf(x[j]));
#pragma unroll
        for (int mask = 1; mask < 32; mask *= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, mask));
        // Exponent of the largest to 2^7: it lies in 128..256, below e4m3's 448.
        int exponent = ((__float_as_int(largest) >> 23) & 255) - 127 - 7;
        float lift = __int_as_float((127 - exponent) << 23);
        u32 pairs[4];
#pragma unroll
        for (int j = 0; j < 4; j++) pairs[j] = split_pair(x[2 * j] * lift, x[2 * j + 1] * lift);
        int head = warp * 8 + i, chunk = lane / 2;
        int at = (chunk / 8) * BLOCK_BYTES + head * 128 + (((chunk & 7) ^ (head & 7)) << 4) + (lane & 1) * 8;
        *reinterpret_cast<uint2 *>(memory.q_high + at) = make_uint2(__byte_perm(pairs[0], pairs[1], 0x5410), __byte_perm(pairs[2], pairs[3], 0x5410));
        *reinterpret_cast<uint2 *>(memory.q_low + at) = make_uint2(__byte_perm(pairs[0], pairs[1], 0x7632), __byte_perm(pairs[2], pairs[3], 0x7632));
        if (lane == 0) memory.q_scale[head] = __int_as_float((127 + exponent) << 23);
    }
    async_proxy_fence();
    named_barrier<1, 256>();
    if (lane == 0) barrier_arrive(shared_address(&memory.q_empty));
}

// S[64, 64] = (q_low + q_high) K^T of one page; the small products first, while the sums they are cut to are small.
__device__ __forceinline__ void multiply_keys(float (&s)[32], u32 high, u32 low, u32 k) {
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 16; i++) {
        u32 at = (i % 8 / 4) * BLOCK_BYTES + (i % 4) * 32;
        wgmma_ss_e4m3_n64(s, smem_descriptor((i < 8 ? low : high) + at, 16, 1024, 1), smem_descriptor(k + at, 16, 1024, 1), i > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    pin(s);
}

// 64 of V's columns: product = (p_low + p_high) V, started, not awaited.
__device__ __forceinline__ void multiply_values(float (&product)[32], const u32 (&p)[16], u32 v, int chunk) {
    pin(product);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 4; i++)
        wgmma_rs_e4m3_n64(product, p + 8 * (1 - i / 2) + 4 * (i % 2), smem_descriptor(v + chunk * 4096 + (i % 2) * 32, 16, 512, 2), i > 0);
    wgmma_commit();
}

template <int First> __device__ __forceinline__ void add_product(float (&o)[128], float (&product)[32], float a, float b) {
    pin(product);
#pragma unroll
    for (int i = 0; i < 32; i += 4) {
        o[First + i] = fmaf(o[First + i], a, product[i]);
        o[First + i + 1] = fmaf(o[First + i + 1], a, product[i + 1]);
        o[First + i + 2] = fmaf(o[First + i + 2], b, product[i + 2]);
        o[First + i + 3] = fmaf(o[First + i + 3], b, product[i + 3]);
    }
}

// O = factors * O + P V of one page, a quarter of the columns being added while the next is multiplied.
__device__ __forceinline__ void add_values(float (&o)[128], const u32 (&p)[16], u32 v, float a, float b) {
    float even[32], odd[32];
    multiply_values(even, p, v, 0);
    multiply_values(odd, p, v, 1);
    wgmma_wait<1>();
    add_product<0>(o, even, a, b);
    multiply_values(even, p, v, 2);
    wgmma_wait<1>();
    add_product<32>(o, odd, a, b);
    multiply_values(odd, p, v, 3);
    wgmma_wait<1>();
    add_product<64>(o, even, a, b);
    wgmma_wait<0>();
    add_product<96>(o, odd, a, b);
}

// Clears value positions from `tokens` on.
__device__ __forceinline__ void clear_positions(u8 *v, int tokens, int thread, int group) {
    for (int row = thread; row < MFA_DIM; row += 128)
        for (int word = tokens / 16 * 4; word < 16; word++) {
            u32 keep = 0;
            for (int byte = 0; byte < 4; byte++) {
                int position = word / 4 * 16 + 8 * (byte / 2) + 2 * (word % 4) + byte % 2;
                if (position < tokens) keep |= 255u << (8 * byte);
            }
            u32 *at = reinterpret_cast<u32 *>(v + row * 64 + (((word / 4) ^ (row / 2 & 3)) << 4) + word % 4 * 4);
            *at &= keep;
        }
    async_proxy_fence();
    named_barrier(2 + group, 128);
}

// One row's scores (elements `Half`, `Half + 1` of every group) to lifted probabilities times V's scales.
template <int Half>
__device__ __forceinline__ float probabilities(float (&s)[32], Softmax &row, const Factors &factors, float q_scale,
                                               int column, int tokens) {
    float top = negative_infinity();
#pragma unroll
    for (int j = 0; j < 32; j += 4) {
        float2 key = *reinterpret_cast<const float2 *>(factors.key + 2 * j + column);
        float2 value = *reinterpret_cast<const float2 *>(factors.value_log2 + 2 * j + column);
        s[j + Half] = 2 * j + column < tokens ? fmaf(s[j + Half] * q_scale, key.x, value.x) : negative_infinity();
        s[j + Half + 1] = 2 * j + column + 1 < tokens ? fmaf(s[j + Half + 1] * q_scale, key.y, value.y) : negative_infinity();
        top = fmaxf(top, fmaxf(s[j + Half], s[j + Half + 1]));
    }
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
    float maximum = fmaxf(row.maximum, top);
    float factor = fast_exp2(row.maximum - maximum), sum = 0, shift = LIFT - maximum;
#pragma unroll
    for (int j = 0; j < 32; j += 4) {
        float2 inverse = *reinterpret_cast<const float2 *>(factors.value_inverse + 2 * j + column);
        s[j + Half] = fast_exp2(s[j + Half] + shift);
        s[j + Half + 1] = fast_exp2(s[j + Half + 1] + shift);
        if (2 * j + column < tokens) sum = fmaf(s[j + Half], inverse.x, sum);
        if (2 * j + column + 1 < tokens) sum = fmaf(s[j + Half + 1], inverse.y, sum);
    }
    row.maximum = maximum;
    row.denominator = row.denominator * factor + sum;
    return factor;
}

// Probabilities as A operands: p[0..8] the large parts, p[8..16] what they leave.
__device__ __forceinline__ void split_probabilities(const float (&s)[32], u32 (&p)[16]) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
        // Register i % 4 of step i / 4: rows by i & 1, the upper 16 positions by i & 2.
        int j = (i / 4) * 16 + (i & 2) * 4 + (i & 1) * 2;
        u32 a = split_pair(s[j], s[j + 1]), b = split_pair(s[j + 4], s[j + 5]);
        p[i] = __byte_perm(a, b, 0x5410);
        p[8 + i] = __byte_perm(a, b, 0x7632);
    }
}

// The other warpgroup's sums of 128 columns are added to this one's, in `exchange`'s place.
template <int First> __device__ __forceinline__ void give(float4 *exchange, const float (&o)[128], int thread, float a, float b) {
#pragma unroll
    for (int i = 0; i < 64; i += 4)
        exchange[i / 4 * 128 + thread] = make_float4(o[First + i] * a, o[First + i + 1] * a, o[First + i + 2] * b, o[First + i + 3] * b);
}
template <int First> __device__ __forceinline__ void take(const float4 *exchange, float (&o)[128], int thread, float a, float b) {
#pragma unroll
    for (int i = 0; i < 64; i += 4) {
        float4 other = exchange[i / 4 * 128 + thread];
        o[First + i] = fmaf(o[First + i], a, other.x), o[First + i + 1] = fmaf(o[First + i + 1], a, other.y);
        o[First + i + 2] = fmaf(o[First + i + 2], b, other.z), o[First + i + 3] = fmaf(o[First + i + 3], b, other.w);
    }
}

// Merges a row's statistics over both warpgroups; returns what this one's sums are multiplied by.
__device__ __forceinline__ float merge(const Memory &memory, int group, int head, Softmax &row) {
    float other_maximum = memory.statistics[group ^ 1][0][head], other = memory.statistics[group ^ 1][1][head];
    float maximum = fmaxf(row.maximum, other_maximum);
    float factor = fast_exp2(row.maximum - maximum);
    row.denominator = row.denominator * factor + other * fast_exp2(other_maximum - maximum);
    row.maximum = maximum;
    return factor;
}

template <int First>
__device__ __forceinline__ void emit(const Mfa &args, const Item &item, const float (&o)[128], Softmax upper, Softmax lower, int thread) {
    if (item.parts == 1)
        store_row<First, 64>(args.out, item.row, thread, o, 1.0f / upper.denominator, 1.0f / lower.denominator);
    else
        store_half<First>(args.partials, item.slot, thread, o, upper.maximum, upper.denominator, lower.maximum, lower.denominator);
}

// Joins both warpgroups' sums, each ending with the first or second 128 columns, and writes them.
__device__ __forceinline__ void finish(const Mfa &args, Memory &memory, const Item &item, float (&o)[128], Softmax upper,
                                       Softmax lower, int group, int thread) {
    Place at(thread);
#pragma unroll
    for (int mask = 1; mask < 4; mask *= 2) {
        upper.denominator += __shfl_xor_sync(~0u, upper.denominator, mask);
        lower.denominator += __shfl_xor_sync(~0u, lower.denominator, mask);
    }
    if ((thread & 3) == 0) {
        memory.statistics[group][0][at.upper] = upper.maximum, memory.statistics[group][1][at.upper] = upper.denominator;
        memory.statistics[group][0][at.upper + 8] = lower.maximum, memory.statistics[group][1][at.upper + 8] = lower.denominator;
    }
    named_barrier<1, 256>();
    float a = merge(memory, group, at.upper, upper), b = merge(memory, group, at.upper + 8, lower);
    if (group == 1) give<0>(memory.exchange, o, thread, a, b);
    named_barrier<1, 256>();
    if (group == 0) take<0>(memory.exchange, o, thread, a, b), give<64>(memory.exchange, o, thread, a, b);
    named_barrier<1, 256>();
    if (group == 0) {
        emit<0>(args, item, o, upper, lower, thread);
    } else {
        take<64>(memory.exchange, o, thread, a, b);
        emit<64>(args, item, o, upper, lower, thread);
    }
    // The exchange's place is the next q's.
    named_barrier<1, 256>();
}

__device__ void attend(const Mfa &args, Memory &memory, int group, int thread) {
    Place at(thread);
    bool elected = (thread & 31) == 0;
    int done = 0; // pages of the items before, both warpgroups' together
    float o[128];
    for (int count = 0;; count++) {
        Item item = queue_take(memory.queue, count, thread & 31);
        if (item.pages < 0) break;
        Softmax upper = {negative_infinity(), 0}, lower = upper;
#pragma unroll
        for (int i = 0; i < 128; i++) o[i] = 0;
        split_queries(memory, count, group * 4 + thread / 32, thread & 31);
        float q_upper = memory.q_scale[at.upper], q_lower = memory.q_scale[at.upper + 8];
        for (int page = group; page < item.pages; page += 2) {
            float s[32];
            u32 p[16];
            int tokens = page == item.pages - 1 ? item.tokens : MFA_PAGE;
            int slot = 2 * (done + page), stage = slot % STAGES, ring = (done + page) % RING;
            barrier_wait(shared_address(&memory.full[stage]), slot / STAGES & 1);
            multiply_keys(s, shared_address(memory.q_high), shared_address(memory.q_low), shared_address(memory.stages[stage]));
            if (elected) barrier_arrive(shared_address(&memory.empty[stage]));
            barrier_wait(shared_address(&memory.factors_full[ring]), (done + page) / RING & 1);
            float a = probabilities<0>(s, upper, memory.factors[ring], q_upper, at.column, tokens);
            float b = probabilities<2>(s, lower, memory.factors[ring], q_lower, at.column, tokens);
            __syncwarp();
            if (elected) barrier_arrive(shared_address(&memory.factors_empty[ring]));
            split_probabilities(s, p);
            stage = (slot + 1) % STAGES;
            barrier_wait(shared_address(&memory.full[stage]), (slot + 1) / STAGES & 1);
            if (tokens < MFA_PAGE) clear_positions(memory.stages[stage], tokens, thread, group);
            add_values(o, p, shared_address(memory.stages[stage]), a, b);
            if (elected) barrier_arrive(shared_address(&memory.empty[stage]));
        }
        finish(args, memory, item, o, upper, lower, group, thread);
        done += item.pages;
    }
    add_share<2>(args.work, args.partials, args.out, args.arrivals, memory.stages[0], STAGES * STAGE_BYTES,
                 shared_address(&memory.combined), group * 128 + thread);
}

extern "C" __global__ __launch_bounds__(384, 1) void mfa_decode_fp8(const __grid_constant__ Mfa args) {
    extern __shared__ u8 raw[];
    Memory &memory = *reinterpret_cast<Memory *>(raw + ((1024 - (shared_address(raw) & 1023)) & 1023));
    if (threadIdx.x == 256)
        for (const TensorMap *map : {&args.k, &args.k_strip, &args.v}) prefetch_map(map);
    int lane = threadIdx.x & 31, word = threadIdx.x >= 352 ? args.work.item_word(blockIdx.x, lane) : 0;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) barrier_init(shared_address(&memory.full[i]), 1), barrier_init(shared_address(&memory.empty[i]), i % 2 ? 4 : 5);
        for (int i = 0; i < RING; i++)
            barrier_init(shared_address(&memory.factors_full[i]), 1), barrier_init(shared_address(&memory.factors_empty[i]), 4);
        queue_init(memory.queue, 10, 1);
        barrier_init(shared_address(&memory.q_full), 1);
        barrier_init(shared_address(&memory.q_empty), 8);
        barrier_init(shared_address(&memory.combined), 1);
        barrier_init_fence();
    }
    __syncthreads();
    // What is read above was written by copies; all else may be the kernel's before.
    start_dependents();
    await_dependencies();
    int group = threadIdx.x / 128;
    if (group < 2) {
        grow_registers<224>();
        attend(args, memory, group, threadIdx.x & 127);
    } else {
        shrink_registers<56>();
        if (threadIdx.x < 288)
            walk_pages(args.pages, memory.queue, lane, [&, policy = kv_policy(args.work)](int page, int tokens, int count) {
                if (lane == 0) load_page(args, memory, page, tokens, count, policy);
            });
        else if (threadIdx.x < 320)
            prepare_scales(args, memory, lane);
        else if (threadIdx.x == 320)
            load_queries(args, memory);
        else if (threadIdx.x >= 352)
            fetch_items(args.work, memory.queue, word, lane);
    }
}
#endif
