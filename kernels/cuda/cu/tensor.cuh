// Products of rows with weights on Hopper's tensor cores: what `tensor_up.cu`, `tensor_down.cu` and `tensor_project.cu` share.
//
// Weights are the M side: 64 of their rows make a wgmma tile, and tokens are its columns, of which there may be any number to 160.
// So few tokens cost little, and an expert's weights are read once however many tokens it has (to 160). Both operands are read in
// blocks of 128 bytes of a row: 128 e4m3 or 64 bf16 inputs. With e4m3 a block's product starts from zero, and is added in f32 times
// the block's scales (a weight's is one each 128 x 128, a token's one each 128): the tensor core's own sums keep 14 bits.
//
// A CTA goes through items, (tile of tokens, block of weight rows, part of the inputs), a fixed stride apart. Two warpgroups
// multiply, one thread of a third keeps the copy engine busy, also while results go out. A token's result has the same bits in any
// company and at any place. sm_90a only.
#pragma once
#include "hopper.cuh"
#include "wgmma.cuh"

#define TILE_TOKENS 160
#define TOKEN_BOX 32      // tokens that come with one copy
#define BOX_BYTES 16384   // 128 rows of weights
#define PIECE 16          // tokens whose results are turned round together
#define PIECE_STRIDE 272  // 128 bf16 and what keeps banks apart
#define EVICT_FIRST 0x12F0000000000000ull
#define EVICT_NORMAL 0x1000000000000000ull

struct Product {
    TensorMap w, up, x;        // boxes of 128 bytes x 128 rows of weights; of 32 tokens
    const float *w_scales, *up_scales; // [matrices, outputs / 128, blocks]
    const float *x_scales;     // [blocks, slots]
    const int4 *tiles;         // expert, first slot, slots, tiles of the expert; none: `tiles_here` of `step` rows each
    const int *tile_count;     // with `tiles`
    const float *slot_weights; // [slots], of the second product
    void *out;
    float *out_scales;         // [outputs / 128, slots], of the first
    float *partials;           // [items, 256 threads x accumulators], with `splits`
    u32 *counters;             // [tiles x row blocks], zero
    int rows, first, step, tiles_here; // without `tiles`: slots `first` to `first + rows`
    int slots, outputs, blocks, row_blocks, splits, adds;
};

// What an item is.
struct Run {
    int expert, first, count, tiles, row_block, begin, end, split, group;
};

__device__ __forceinline__ int items_of(const Product &a) {
    int tiles = a.tiles ? __ldcg(a.tile_count) : a.tiles_here;
    return tiles * a.row_blocks * a.splits;
}

__device__ __forceinline__ Run run_of(const Product &a, int item) {
    Run run;
    run.group = item / a.splits, run.split = item % a.splits;
    run.begin = run.split * a.blocks / a.splits, run.end = (run.split + 1) * a.blocks / a.splits;
    if (a.tiles) {
        int4 tile = __ldcg(a.tiles + run.group / a.row_blocks);
        run.row_block = run.group % a.row_blocks;
        run.expert = tile.x, run.first = tile.y, run.count = tile.z, run.tiles = tile.w;
    } else {
        // Tiles of the same weights one after another.
        int tile = run.group % a.tiles_here;
        run.row_block = run.group / a.tiles_here;
        run.expert = 0, run.first = a.first + tile * a.step, run.count = min(a.step, a.rows - tile * a.step), run.tiles = a.tiles_here;
    }
    return run;
}

#define QUEUE 3         // items fetched ahead
#define MOST_BLOCKS 128 // with scales

// An item and what is small of it, fetched by a warp of its own: memory under load answers in microseconds.
template <int Weights> struct __align__(16) Entry {
    float scales[2][MOST_BLOCKS], weights[Weights];
    Run run;
};

template <int Boxes_, int Stages_, int Staged, int Weights_> struct Memory {
    static constexpr int Boxes = Boxes_, Stages = Stages_, Weights = Weights_;
    struct {
        u8 w[Boxes][BOX_BYTES];
        u8 x[TILE_TOKENS * 128];
    } stages[Stages];
    float scales[Stages][TILE_TOKENS];
    u8 staged[2][Staged];
    u64 full[Stages], empty[Stages], queue_full[QUEUE], queue_empty[QUEUE];
    Entry<Weights_> queue[QUEUE];
    int is_last;
};

template <class M> struct Ring {
    int stage = 0;
    u32 phase = 0;
    __device__ __forceinline__ void advance() {
        if (++stage == M::Stages) stage = 0, phase ^= 1;
    }
};

// One warp: items into the queue, `work.scales(a, run, i)` the scales of each block of its weights; no count ends them.
template <bool Fp8, class M, class Work> __device__ void fetch_items(const Product &a, M &memory, const Work &work, int lane) {
    if (a.tiles) await_dependencies();
    for (int item = blockIdx.x, items = items_of(a), at = 0, parity = 1;; item += gridDim.x) {
        Run run = {};
        float scales[2][MOST_BLOCKS / 32], weights[M::Weights / 32];
        if (item < items) {
            run = run_of(a, item);
            if (Fp8) {
#pragma unroll
                for (int i = 0; i < 2; i++)
#pragma unroll
                    for (int j = 0; j < MOST_BLOCKS / 32; j++) {
                        const float *from = work.scales(a, run, i);
                        int block = run.begin + j * 32 + lane;
                        scales[i][j] = from && block < run.end ? __ldg(from + block) : 0;
                    }
            }
            if (a.slot_weights) {
#pragma unroll
                for (int j = 0; j < M::Weights / 32; j++)
                    weights[j] = j * 32 + lane < run.count ? __ldcg(a.slot_weights + run.first + j * 32 + lane) : 0;
            }
        }
        barrier_wait(shared_address(&memory.queue_empty[at]), parity);
        auto &entry = memory.queue[at];
        if (lane == 0) entry.run = run;
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int j = 0; j < MOST_BLOCKS / 32; j++) entry.scales[i][j * 32 + lane] = scales[i][j];
#pragma unroll
        for (int j = 0; j < M::Weights / 32; j++) entry.weights[j * 32 + lane] = weights[j];
        __syncwarp();
        if (lane == 0) barrier_arrive(shared_address(&memory.queue_full[at]));
        if (item >= items) return;
        if (++at == QUEUE) at = 0, parity ^= 1;
    }
}

// A reader's place in the queue.
struct Reader {
    int at = 0;
    u32 parity = 0;
    template <class M> __device__ __forceinline__ Run take(M &memory) const {
        barrier_wait(shared_address(&memory.queue_full[at]), parity);
        return memory.queue[at].run;
    }
    template <class M> __device__ __forceinline__ void give_back(M &memory) {
        barrier_arrive(shared_address(&memory.queue_empty[at]));
        next();
    }
    __device__ __forceinline__ void next() {
        if (++at == QUEUE) at = 0, parity ^= 1;
    }
};

// A block's weights into a stage, and what the stage waits for; `row(run, box, map)`: which row of which map a box begins at.
template <bool Fp8, class M, class Row>
__device__ __forceinline__ void load_weights(const Product &a, M &memory, int stage, const Run &run, int block, u64 policy, Row row) {
    int boxes = (run.count + TOKEN_BOX - 1) / TOKEN_BOX, scale_bytes = Fp8 ? (run.count + 3) / 4 * 16 : 0;
    u32 full = shared_address(&memory.full[stage]);
    barrier_expect(full, M::Boxes * BOX_BYTES + boxes * TOKEN_BOX * 128 + scale_bytes);
    for (int box = 0; box < M::Boxes; box++) {
        const TensorMap *map;
        int at = row(run, box, map);
        copy_box(shared_address(memory.stages[stage].w[box]), map, 0, at, block, full, policy);
    }
}

template <bool Fp8, class M>
__device__ __forceinline__ void load_tokens(const Product &a, M &memory, int stage, const Run &run, int block) {
    u32 full = shared_address(&memory.full[stage]);
    for (int box = 0; box * TOKEN_BOX < run.count; box++)
        copy_box(shared_address(memory.stages[stage].x + box * TOKEN_BOX * 128), &a.x, 0, run.first + box * TOKEN_BOX, block, full);
    if (Fp8)
        copy_bytes(shared_address(memory.scales[stage]), a.x_scales + (size_t)block * a.slots + run.first, (run.count + 3) / 4 * 16, full);
}

// One thread: every item's blocks into the ring. Weights of the first blocks are asked for before the kernel before is done, where
// the host says what the first item is.
template <bool Fp8, class M, class Row> __device__ void load_items(const Product &a, M &memory, Row row) {
    Ring<M> ring;
    int ahead = 0;
    if (!a.tiles && blockIdx.x < items_of(a)) {
        Run run = run_of(a, blockIdx.x);
        ahead = min(M::Stages, run.end - run.begin);
        for (int i = 0; i < ahead; i++)
            load_weights<Fp8>(a, memory, i, run, run.begin + i, run.tiles == 1 ? EVICT_FIRST : EVICT_NORMAL, row);
    }
    await_dependencies();
    Reader queue;
    for (;;) {
        Run run = queue.take(memory);
        if (run.count == 0) return;
        queue.give_back(memory);
        u64 policy = run.tiles == 1 ? EVICT_FIRST : EVICT_NORMAL;
        for (int block = run.begin; block < run.end; block++, ring.advance()) {
            if (ahead > 0) {
                ahead--;
            } else {
                barrier_wait(shared_address(&memory.empty[ring.stage]), ring.phase ^ 1);
                load_weights<Fp8>(a, memory, ring.stage, run, block, policy, row);
            }
            load_tokens<Fp8>(a, memory, ring.stage, run, block);
        }
    }
}

template <bool Fp8, int N> __device__ __forceinline__ void start_product(float (&d)[N], u64 w, u64 x, bool accumulate) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (Fp8)
            multiply_e4m3(d, w + 2 * i, x + 2 * i, accumulate || i > 0);
        else
            multiply_bf16(d, w + 2 * i, x + 2 * i, accumulate || i > 0);
    }
}

template <class M> __device__ __forceinline__ void release(M &memory, int stage, int thread) {
    __syncwarp();
    if ((thread & 31) == 0) barrier_arrive(shared_address(&memory.empty[stage]));
}

template <int N>
__device__ __forceinline__ void add_product(float (&sum)[N], const float (&product)[N], const float *x_scales, float w_scale) {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
        float2 scale = *reinterpret_cast<const float2 *>(x_scales + 2 * i);
        float low = scale.x * w_scale, high = scale.y * w_scale;
        sum[i] = fmaf(product[i], low, sum[i]), sum[i + 1] = fmaf(product[i + 1], high, sum[i + 1]);
        sum[i + 2] = fmaf(product[i + 2], low, sum[i + 2]), sum[i + 3] = fmaf(product[i + 3], high, sum[i + 3]);
    }
}

// sum[m][c]: 64 weight rows by chunk c of the tokens, over `count` blocks. Tile m of the weights is `first + m * step` bytes into a
// stage; its scales are `scales[m]`, one a block.
template <bool Fp8, class M, int Tiles, int Chunks, int N>
__device__ __forceinline__ void multiply_run(float (&sum)[Tiles][Chunks][N], M &memory, Ring<M> &ring,
                                             const float *const (&scales)[Tiles], int count, u32 first, u32 step, int thread) {
    constexpr int products = Tiles * Chunks;
    constexpr u64 chunk = 2 * N * 128 / 16;
#pragma unroll
    for (int m = 0; m < Tiles; m++)
#pragma unroll
        for (int c = 0; c < Chunks; c++)
#pragma unroll
            for (int i = 0; i < N; i++) sum[m][c][i] = 0;
    int before = -1;
    for (int block = 0; block < count; block++, ring.advance()) {
        barrier_wait(shared_address(&memory.full[ring.stage]), ring.phase);
        u32 base = shared_address(&memory.stages[ring.stage]);
        u64 w = smem_descriptor(base + first, 16, 1024, 1), x = smem_descriptor(base + M::Boxes * BOX_BYTES, 16, 1024, 1);
        u64 across = step / 16;
        if constexpr (Fp8) {
            const float *x_scales = memory.scales[ring.stage] + 2 * (thread & 3);
            if constexpr (N <= 32) {
                // A product is added while the next is multiplied.
                float product[2][N];
                pin(product[0]);
                wgmma_fence();
                start_product<true>(product[0], w, x, false);
                wgmma_commit();
#pragma unroll
                for (int p = 0; p < products; p++) {
                    if (p + 1 < products) {
                        pin(product[(p + 1) % 2]);
                        wgmma_fence();
                        start_product<true>(product[(p + 1) % 2], w + (p + 1) / Chunks * across, x + (p + 1) % Chunks * chunk, false);
                        wgmma_commit();
                        wgmma_wait<1>();
                    } else {
                        wgmma_wait<0>();
                    }
                    pin(product[p % 2]);
                    add_product(sum[p / Chunks][p % Chunks], product[p % 2], x_scales + p % Chunks * 2 * N, scales[p / Chunks][block]);
                }
            } else {
                // For two there are too few registers, and ptxas would wait after every instruction: the other warpgroup multiplies
                // while this one adds.
                float product[N];
#pragma unroll
                for (int p = 0; p < products; p++) {
                    pin(product);
                    wgmma_fence();
                    start_product<true>(product, w + p / Chunks * across, x + p % Chunks * chunk, false);
                    wgmma_commit();
                    wgmma_wait<0>();
                    pin(product);
                    add_product(sum[p / Chunks][p % Chunks], product, x_scales + p % Chunks * 2 * N, scales[p / Chunks][block]);
                }
            }
            release(memory, ring.stage, thread);
        } else {
#pragma unroll
            for (int m = 0; m < Tiles; m++)
#pragma unroll
                for (int c = 0; c < Chunks; c++) pin(sum[m][c]);
            wgmma_fence();
#pragma unroll
            for (int m = 0; m < Tiles; m++)
#pragma unroll
                for (int c = 0; c < Chunks; c++) start_product<false>(sum[m][c], w + m * across, x + c * chunk, true);
            wgmma_commit();
            wgmma_wait<1>();
            if (before >= 0) release(memory, before, thread);
            before = ring.stage;
        }
    }
    if constexpr (!Fp8) {
        wgmma_wait<0>();
#pragma unroll
        for (int m = 0; m < Tiles; m++)
#pragma unroll
            for (int c = 0; c < Chunks; c++) pin(sum[m][c]);
        release(memory, before, thread);
    }
}

// Four 8 x 8 tiles of bf16 pairs to shared memory, turned round: lane l of every 8 names the place of column l % 8 of tile l / 8.
__device__ __forceinline__ void store_turned(u32 to, const u32 (&words)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(words[0]), "r"(words[1]),
                 "r"(words[2]), "r"(words[3])
                 : "memory");
}

// Where in a piece, whose tokens are PIECE_STRIDE bytes apart, a lane's part of `store_turned` goes: 16 weight rows from `row` on.
__device__ __forceinline__ u32 turned_place(u32 piece, int row, int lane) {
    int tile = lane / 8;
    return piece + (tile / 2 * 8 + lane % 8) * PIECE_STRIDE + (row + tile % 2 * 8) * 2;
}

// Barriers, roles and items of a kernel. `work.item<Chunks, N>(a, memory, ring, entry, run, group, thread)` does an item's products.
template <bool Fp8, class M, class Work> __device__ __forceinline__ void run_items(const Product &a, u8 *raw, Work work) {
    M &memory = *reinterpret_cast<M *>(raw + ((1024 - (shared_address(raw) & 1023)) & 1023));
    if (threadIdx.x == 0) {
        for (int i = 0; i < M::Stages; i++) barrier_init(shared_address(&memory.full[i]), 1), barrier_init(shared_address(&memory.empty[i]), 8);
        // Readers of the queue: eight warps, and the thread that loads.
        for (int i = 0; i < QUEUE; i++) barrier_init(shared_address(&memory.queue_full[i]), 1), barrier_init(shared_address(&memory.queue_empty[i]), 9);
        barrier_init_fence();
    }
    if (threadIdx.x == 256)
        for (const TensorMap *map : {&a.w, &a.up, &a.x}) prefetch_map(map);
    __syncthreads();
    start_dependents();
    int group = threadIdx.x / 128, thread = threadIdx.x & 127;
    if (group == 2) {
        shrink_registers<40>();
        if (thread == 0)
            load_items<Fp8>(a, memory, [&](const Run &run, int box, const TensorMap *&map) { return work.row(a, run, box, map); });
        else if (thread >= 32 && thread < 64)
            fetch_items<Fp8>(a, memory, work, thread - 32);
    } else {
        grow_registers<232>();
        await_dependencies();
        Ring<M> ring;
        Reader queue;
        for (;;) {
            Run run = queue.take(memory);
            if (run.count == 0) return;
            const auto &entry = memory.queue[queue.at];
            if (run.count <= 16)
                work.template item<1, 8>(a, memory, ring, entry, run, group, thread);
            else if (run.count <= 32)
                work.template item<1, 16>(a, memory, ring, entry, run, group, thread);
            else if (run.count <= 64)
                work.template item<1, 32>(a, memory, ring, entry, run, group, thread);
            else if (run.count <= 80)
                work.template item<1, 40>(a, memory, ring, entry, run, group, thread);
            else if (run.count <= 128)
                work.template item<1, 64>(a, memory, ring, entry, run, group, thread);
            else
                work.template item<2, 40>(a, memory, ring, entry, run, group, thread);
            __syncwarp();
            if ((thread & 31) == 0)
                queue.give_back(memory);
            else
                queue.next();
        }
    }
}
