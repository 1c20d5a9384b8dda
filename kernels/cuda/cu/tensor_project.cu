// Products of rows with one matrix or several on tensor cores: y = x Wᵀ, or y += x Wᵀ.
//
//   w    [outputs, inputs]  e4m3 with f32 scales each 128 x 128, or bf16; each matrix
//   x    [rows, inputs]     e4m3 with scales [rows], or bf16
//   out  [rows, outputs]    f32; of each matrix
//
// inputs a multiple of 128, any number of outputs. Weights are the M side of wgmma: a CTA has 128 of their rows, to T tokens and one of
// `splits` parts of the inputs. A cluster is all parts of `sharing` such tiles: every block of the tokens' rows is read out of L2 by
// one of them for all, and parts are added through the cluster's shared memory, in their order. The split follows from the matrix, so
// a row's bits depend on nothing else.
//
// One CTA fits on a multiprocessor beside CTAs of `rows_fast.cu`: weights are asked for before the kernel before is done, up to what
// shared memory holds, so that memory is busy while rows are normed and narrowed. With e4m3 a block's product starts from zero and is
// added in f32 times the block's scale: the tensor core's own sums keep 14 bits. sm_90a only.
#include "common.cuh"
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#include "hopper.cuh"
#include "wgmma.cuh"

#define TILE_ROWS 128   // of weights
#define BLOCK_BYTES 128 // of a row at once
#define WEIGHT_BOX 64   // rows of weights that come with one copy, and that a warpgroup has
#define TOKEN_BOX 32    // tokens that do
#define MOST_BLOCKS 128 // with scales, of a part
#define MOST_TOKENS 256
#define MULTIPLYING 256 // threads
#define DIM 256         // of a head
#define SUM_STRIDE 132  // what keeps banks apart
#define EVICT_FIRST 0x12F0000000000000ull
#define EVICT_NORMAL 0x1000000000000000ull

#define MATRICES 3

struct __align__(128) Matrix {
    TensorMap w;         // boxes of 128 bytes x 64 rows
    const float *scales; // [outputs / 128, blocks]
    float *out;
    int outputs;
    int first;           // tile
    int is_even;         // 16 bytes of `out` at a time
};

struct Project {
    Matrix of[MATRICES];
    TensorMap x;           // boxes of 128 bytes x 32 tokens
    const float *x_scales; // [rows]
    int rows, step, tiles; // tiles of `step` tokens
    int matrices, blocks, splits, sharing, adds;
    // Of the first matrix, if `rotated`: outputs are heads of 256, which leave in bf16, rotated; a tile is 64 of a head's outputs and
    // the 64 that pair with them.
    const float *table; // [positions, 256]: cosines, then sines
    const int *positions;
    bf16 *rotated;      // [rows, outputs]
};

template <int T> struct Memory {
    static constexpr int WStages = T <= 32 ? 10 : T == 64 ? 9 : T == 128 ? 7 : 5, XStages = T <= 32 ? 10 : T == 64 ? 8 : T == 128 ? 6 : 4;
    // Warps for weights and for rows are two, or four where registers go from them to the others.
    static constexpr int Threads = MULTIPLYING + (T <= 128 ? 64 : 128);
    u8 w[WStages][TILE_ROWS * BLOCK_BYTES];
    u8 x[XStages][(T < TOKEN_BOX ? TOKEN_BOX : T) * BLOCK_BYTES];
    float w_scales[2][MOST_BLOCKS], x_scales[MOST_TOKENS]; // of half a tile each
    u64 w_full[WStages], w_empty[WStages], x_full[XStages], x_empty[XStages];
};

__device__ __forceinline__ u32 cluster_rank() {
    u32 rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
// All threads of the cluster; `Tells`: writes to shared memory before it are seen behind it.
template <bool Tells> __device__ __forceinline__ void cluster_barrier() {
    if (Tells)
        asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    else
        asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// The same place in the shared memory of another CTA of the cluster.
__device__ __forceinline__ u32 place_in(u32 address, u32 rank) {
    u32 there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
    return there;
}
// Says that the copy engine may write where this thread's warp has read; of a wider scope, ptxas would wait for all of its memory.
__device__ __forceinline__ void arrive_there(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ float4 read_there(u32 address) {
    float4 x;
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w) : "r"(address) : "memory");
    return x;
}
// A box to the same place in each CTA of the cluster that `mask` names, and to its barrier.
__device__ __forceinline__ void copy_box_to(u32 to, const TensorMap *map, int x, int y, int z, u32 barrier, u16 mask) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
                 "[%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(to),
                 "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z), "h"(mask)
                 : "memory");
}

// What a CTA does.
struct Part {
    const Matrix *of;
    int part, member, tile; // of the inputs; of those that share rows; of weights
    int first, count;       // tokens
    int begin, blocks;      // of the inputs
};

__device__ __forceinline__ Part part_of(const Project &a) {
    Part p;
    int rank = cluster_rank(), group = blockIdx.x / (a.splits * a.sharing);
    p.part = rank % a.splits, p.member = rank / a.splits;
    p.tile = group / a.tiles * a.sharing + p.member;
    int of = 0;
    while (of + 1 < a.matrices && p.tile >= a.of[of + 1].first) of++;
    p.of = &a.of[of], p.tile -= p.of->first;
    p.first = group % a.tiles * a.step, p.count = min(a.step, a.rows - p.first);
    p.begin = p.part * a.blocks / a.splits, p.blocks = (p.part + 1) * a.blocks / a.splits - p.begin;
    return p;
}

// Where the first or second half of a tile begins.
__device__ __forceinline__ int row_of(const Project &a, const Part &p, int half) {
    if (!a.rotated) return p.tile * TILE_ROWS + half * WEIGHT_BOX;
    return p.tile / 2 * DIM + half * (DIM / 2) + p.tile % 2 * WEIGHT_BOX;
}

template <class M> __device__ __forceinline__ void load_weights(const Project &a, M &memory, const Part &p, int block, int stage) {
    u32 full = shared_address(&memory.w_full[stage]);
    barrier_expect(full, sizeof memory.w[0]);
    for (int half = 0; half < 2; half++)
        copy_box(shared_address(memory.w[stage] + half * WEIGHT_BOX * BLOCK_BYTES), &p.of->w, 0, row_of(a, p, half), p.begin + block, full,
                 a.tiles == 1 ? EVICT_FIRST : EVICT_NORMAL);
}

// One thread: weights behind the first, which were asked for before all else.
template <class M> __device__ __forceinline__ void load_all_weights(const Project &a, M &memory, const Part &p) {
    int stage = 0;
    u32 parity = 0;
    for (int block = M::WStages; block < p.blocks; block++) {
        barrier_wait(shared_address(&memory.w_empty[stage]), parity);
        load_weights(a, memory, p, block, stage);
        if (++stage == M::WStages) stage = 0, parity ^= 1;
    }
}

// One thread: rows. Blocks go round the members, each of whom waits until all have left the place of his.
template <class M> __device__ __forceinline__ void load_all_rows(const Project &a, M &memory, const Part &p) {
    int boxes = (p.count + TOKEN_BOX - 1) / TOKEN_BOX, stage = 0, turn = 0;
    u32 round = 0, parities = 0;
    u16 mask = 0;
    for (int i = 0; i < a.sharing; i++) mask |= (u16)(1u << (p.part + i * a.splits));
    await_dependencies();
    for (int block = 0; block < p.blocks; block++) {
        u32 full = shared_address(&memory.x_full[stage]);
        if (round > 0) barrier_wait(full, (round - 1) & 1);
        barrier_expect(full, boxes * TOKEN_BOX * BLOCK_BYTES);
        if (turn == p.member) {
            if (round > 0) {
                barrier_wait(shared_address(&memory.x_empty[stage]), parities >> stage & 1);
                parities ^= 1u << stage;
            }
            for (int box = 0; box < boxes; box++) {
                u32 to = shared_address(memory.x[stage] + box * TOKEN_BOX * BLOCK_BYTES);
                int row = p.first + box * TOKEN_BOX;
                if (a.sharing == 1)
                    copy_box(to, &a.x, 0, row, p.begin + block, full);
                else
                    copy_box_to(to, &a.x, 0, row, p.begin + block, full, mask);
            }
        }
        if (++turn == a.sharing) turn = 0;
        if (++stage == M::XStages) stage = 0, round++;
    }
}

template <bool Fp8, int N> __device__ __forceinline__ void start_product(float (&d)[N], u64 w, u64 x, bool accumulate) {
    pin(d);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (Fp8)
            multiply_e4m3(d, w + 2 * i, x + 2 * i, accumulate || i > 0);
        else
            multiply_bf16(d, w + 2 * i, x + 2 * i, accumulate || i > 0);
    }
    wgmma_commit();
}

template <int N> __device__ __forceinline__ void add_product(float (&sum)[N], const float (&product)[N], float scale) {
#pragma unroll
    for (int i = 0; i < N; i++) sum[i] = fmaf(product[i], scale, sum[i]);
}

// Two warpgroups, each with half a tile: products of all blocks.
template <bool Fp8, class M, int Chunks, int N>
__device__ __forceinline__ void multiply_all(const Project &a, M &memory, const Part &p, float (&sum)[Chunks][N]) {
    constexpr u64 chunk = 2 * N * BLOCK_BYTES / 16;
    int half = threadIdx.x / 128;
    const float *w_scales = memory.w_scales[half];
    int w_stage = 0, x_stage = 0, lane = threadIdx.x & 31, turn = M::XStages % a.sharing;
    u32 w_parity = 0, x_parity = 0;
    for (int block = 0; block < p.blocks; block++) {
        barrier_wait(shared_address(&memory.w_full[w_stage]), w_parity);
        barrier_wait(shared_address(&memory.x_full[x_stage]), x_parity);
        u64 w = smem_descriptor(shared_address(memory.w[w_stage] + half * WEIGHT_BOX * BLOCK_BYTES), 16, 1024, 1);
        u64 x = smem_descriptor(shared_address(memory.x[x_stage]), 16, 1024, 1);
        float product[N];
        if constexpr (Fp8) {
#pragma unroll
            for (int c = 0; c < Chunks; c++) {
                start_product<true>(product, w, x + c * chunk, false);
                wgmma_wait<0>();
                pin(product);
                if (c + 1 < Chunks) add_product(sum[c], product, w_scales[block]);
            }
        } else {
#pragma unroll
            for (int c = 0; c < Chunks; c++) start_product<false>(sum[c], w, x + c * chunk, true);
            wgmma_wait<0>();
#pragma unroll
            for (int c = 0; c < Chunks; c++) pin(sum[c]);
        }
        __syncwarp();
        if (lane == 0) {
            barrier_arrive(shared_address(&memory.w_empty[w_stage]));
            // To whoever loads what comes here next.
            if (block + M::XStages < p.blocks) {
                u32 empty = shared_address(&memory.x_empty[x_stage]);
                if (a.sharing == 1)
                    barrier_arrive(empty);
                else
                    arrive_there(place_in(empty, p.part + turn * a.splits));
            }
        }
        if (Fp8) add_product(sum[Chunks - 1], product, w_scales[block]);
        if (++turn == a.sharing) turn = 0;
        if (++w_stage == M::WStages) w_stage = 0, w_parity ^= 1;
        if (++x_stage == M::XStages) x_stage = 0, x_parity ^= 1;
    }
}

__device__ __forceinline__ void write(const Project &a, float *to, float y) { *to = a.adds ? __fadd_rn(*to, y) : y; }

#define AT_ONCE 4 // pieces of four outputs that a thread asks for

// Four outputs of a token each: the sums of all parts, at `places` in each one's shared memory, in their order.
template <int N> __device__ __forceinline__ void sum_parts(const Project &a, const Part &p, float4 (&y)[N], const u32 (&places)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) y[i] = read_there(place_in(places[i], p.member * a.splits));
    for (int part = 1; part < a.splits; part++) {
        float4 more[N];
#pragma unroll
        for (int i = 0; i < N; i++) more[i] = read_there(place_in(places[i], part + p.member * a.splits));
#pragma unroll
        for (int i = 0; i < N; i++) y[i].x += more[i].x, y[i].y += more[i].y, y[i].z += more[i].z, y[i].w += more[i].w;
    }
}

__device__ __forceinline__ void scale(float4 &y, float by) { y.x *= by, y.y *= by, y.z *= by, y.w *= by; }

// Threads that multiply: tokens `from` to `end`; `sums` [T, SUM_STRIDE].
__device__ __forceinline__ void write_sums(const Project &a, const Part &p, u32 sums, const float *x_scales, int from, int end) {
    constexpr int quads = TILE_ROWS / 4;
    int outputs = p.of->outputs, is_even = p.of->is_even, last = end * quads - 1;
    for (int first = from * quads + threadIdx.x; first <= last; first += AT_ONCE * MULTIPLYING) {
        float4 y[AT_ONCE], before[AT_ONCE];
        u32 places[AT_ONCE];
        float *to[AT_ONCE];
        bool is_there[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            int piece = min(first + i * MULTIPLYING, last), token = piece / quads, row = piece % quads * 4, at = p.tile * TILE_ROWS + row;
            places[i] = sums + (token * SUM_STRIDE + row) * 4;
            to[i] = p.of->out + (size_t)(p.first + token) * outputs + at;
            is_there[i] = first + i * MULTIPLYING <= last && at < outputs;
            before[i] = make_float4(0, 0, 0, 0);
            if (a.adds && is_even && is_there[i]) before[i] = *reinterpret_cast<const float4 *>(to[i]);
        }
        sum_parts(a, p, y, places);
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            if (!is_there[i]) continue;
            int piece = first + i * MULTIPLYING, at = p.tile * TILE_ROWS + piece % quads * 4;
            scale(y[i], x_scales[piece / quads]);
            if (is_even) {
                if (a.adds) {
                    y[i].x = __fadd_rn(before[i].x, y[i].x), y[i].y = __fadd_rn(before[i].y, y[i].y);
                    y[i].z = __fadd_rn(before[i].z, y[i].z), y[i].w = __fadd_rn(before[i].w, y[i].w);
                }
                *reinterpret_cast<float4 *>(to[i]) = y[i];
            } else {
                write(a, to[i], y[i].x);
                if (at + 1 < outputs) write(a, to[i] + 1, y[i].y);
                if (at + 2 < outputs) write(a, to[i] + 2, y[i].z);
                if (at + 3 < outputs) write(a, to[i] + 3, y[i].w);
            }
        }
    }
}

// The same of heads: the bits of rope_append.cu and a conversion.
__device__ __forceinline__ void write_rotated(const Project &a, const Part &p, u32 sums, const float *x_scales, int from, int end) {
    constexpr int quads = WEIGHT_BOX / 4;
    for (int i = from * quads + threadIdx.x; i < end * quads; i += MULTIPLYING) {
        int token = i / quads, row = i % quads * 4, at = row_of(a, p, 0) + row;
        if (at >= p.of->outputs) continue;
        const float *angles = a.table + (size_t)__ldg(a.positions + p.first + token) * DIM + at % DIM;
        float4 cosine = __ldg(reinterpret_cast<const float4 *>(angles)), sine = __ldg(reinterpret_cast<const float4 *>(angles + DIM / 2)), y[2];
        u32 place = sums + (token * SUM_STRIDE + row) * 4;
        const u32 places[2] = {place, place + WEIGHT_BOX * 4};
        sum_parts(a, p, y, places);
        float4 &low = y[0], &high = y[1];
        scale(low, x_scales[token]), scale(high, x_scales[token]);
        auto first = [](float x, float y, float cosine, float sine) { return __fsub_rn(__fmul_rn(x, cosine), __fmul_rn(y, sine)); };
        auto second = [](float x, float y, float cosine, float sine) { return __fadd_rn(__fmul_rn(y, cosine), __fmul_rn(x, sine)); };
        bf16 *to = a.rotated + (size_t)(p.first + token) * p.of->outputs + at;
        *reinterpret_cast<uint2 *>(to) =
            make_uint2(pack_bf16(first(low.x, high.x, cosine.x, sine.x), first(low.y, high.y, cosine.y, sine.y)),
                       pack_bf16(first(low.z, high.z, cosine.z, sine.z), first(low.w, high.w, cosine.w, sine.w)));
        *reinterpret_cast<uint2 *>(to + DIM / 2) =
            make_uint2(pack_bf16(second(low.x, high.x, cosine.x, sine.x), second(low.y, high.y, cosine.y, sine.y)),
                       pack_bf16(second(low.z, high.z, cosine.z, sine.z), second(low.w, high.w, cosine.w, sine.w)));
    }
}

template <bool Fp8, int T, int Chunks> __device__ __forceinline__ void project(const Project &a, u8 *raw) {
    typedef Memory<T> M;
    M &memory = *reinterpret_cast<M *>(raw + ((1024 - (shared_address(raw) & 1023)) & 1023));
    int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x & 31;
    const Part p = part_of(a);
    // Asked for before the weights, which memory would have them wait behind. Blocks are fewer than threads of a warpgroup.
    float w_scale = 0;
    if (Fp8 && warp < 8 && threadIdx.x % 128 < p.blocks)
        w_scale = __ldg(p.of->scales + (size_t)(min(row_of(a, p, threadIdx.x / 128), p.of->outputs - 1) / 128) * a.blocks + p.begin + threadIdx.x % 128);
    if (warp == 8 && lane == 0) {
        for (int i = 0; i < M::WStages; i++) {
            barrier_init(shared_address(&memory.w_full[i]), 1);
            barrier_init(shared_address(&memory.w_empty[i]), MULTIPLYING / 32);
        }
        barrier_init_fence();
        async_proxy_fence();
        for (int block = 0; block < min(M::WStages, p.blocks); block++) load_weights(a, memory, p, block, block);
    } else if (warp == 9 && lane == 0) {
        prefetch_map(&a.x);
        for (int i = 0; i < M::XStages; i++) {
            barrier_init(shared_address(&memory.x_full[i]), 1);
            barrier_init(shared_address(&memory.x_empty[i]), MULTIPLYING / 32 * a.sharing);
        }
        barrier_init_fence();
        async_proxy_fence();
    }
    __syncwarp();
    cluster_barrier<false>();
    start_dependents();
    if (warp >= 8) {
        if (M::Threads == 384) shrink_registers<40>();
        if (warp == 8 && lane == 0) load_all_weights(a, memory, p);
        if (warp == 9 && lane == 0) load_all_rows(a, memory, p);
        __syncwarp();
        await_dependencies();
        if (a.splits > 1) cluster_barrier<false>();
    } else {
        if (M::Threads == 384) grow_registers<216>();
        int thread = threadIdx.x, half = thread / 128;
        await_dependencies();
        float x_scale = Fp8 && thread < p.count ? __ldcg(a.x_scales + p.first + thread) : 1.0f;
        memory.w_scales[half][thread % 128] = w_scale;
        memory.x_scales[thread] = x_scale;
        named_barrier<1, MULTIPLYING>();
        constexpr int n = T / 2 / Chunks;
        float sum[Chunks][n];
#pragma unroll
        for (int i = 0; i < Chunks * n; i++) sum[i / n][i % n] = 0;
        multiply_all<Fp8>(a, memory, p, sum);
        // Nothing reads the rings any more, or writes them.
        named_barrier<1, MULTIPLYING>();
        float *sums = reinterpret_cast<float *>(&memory) + warp * 16 + lane / 4;
#pragma unroll
        for (int i = 0; i < Chunks * n; i++) {
            int token = i / n * 2 * n + i % n / 4 * 8 + 2 * (lane & 3) + (i & 1);
            sums[token * SUM_STRIDE + (i & 2) * 4] = sum[i / n][i % n];
        }
        if (a.splits > 1)
            cluster_barrier<true>();
        else
            named_barrier<1, MULTIPLYING>();
        int from = p.part * T / a.splits, end = min((p.part + 1) * T / a.splits, p.count);
        if (a.rotated)
            write_rotated(a, p, shared_address(&memory), memory.x_scales, from, end);
        else
            write_sums(a, p, shared_address(&memory), memory.x_scales, from, end);
    }
    __syncwarp();
    // Until all have read what is here, and nobody arrives here any more.
    cluster_barrier<false>();
}

#define KERNEL(name, fp8, tokens, chunks)                                                                                \
    extern "C" __global__ __launch_bounds__(Memory<tokens>::Threads, 1) void name(const __grid_constant__ Project a) {   \
        extern __shared__ u8 raw[];                                                                                      \
        project<fp8, tokens, chunks>(a, raw);                                                                            \
    }
KERNEL(tensor_project_fp8_16, true, 16, 1)
KERNEL(tensor_project_fp8_32, true, 32, 1)
KERNEL(tensor_project_fp8_64, true, 64, 1)
KERNEL(tensor_project_fp8_128, true, 128, 1)
KERNEL(tensor_project_fp8_256, true, 256, 2)
KERNEL(tensor_project_bf16_16, false, 16, 1)
KERNEL(tensor_project_bf16_32, false, 32, 1)
KERNEL(tensor_project_bf16_64, false, 64, 1)
KERNEL(tensor_project_bf16_128, false, 128, 1)
KERNEL(tensor_project_bf16_256, false, 256, 2)
#endif
