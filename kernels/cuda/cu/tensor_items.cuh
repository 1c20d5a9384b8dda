// What the products of tensor.cuh go through: arguments, shared memory, the items of a CTA, and how weights and rows get there.
// sm_90a only.
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
    const float *x_scales;     // [rows], or [blocks, slots]
    const int4 *tiles;         // expert, first slot, slots, tiles of the expert; none: `tiles_here` of `step` rows each
    const int *tile_count;     // with `tiles`
    const int *costs;          // [tiles + 1], of `Chained`: what all tiles before take together
    const int *row_of;         // [slots], of `Gathers`, which takes rows at `x_rows`, `pitch` bytes apart
    const u8 *x_rows;
    const float *slot_weights; // [slots], of the second product
    void *out;
    float *out_scales;         // [outputs / 128, slots], of the first
    float *partials;           // [items or CTAs, 256 threads x accumulators], with `splits` or of `Chained`
    u32 *counters;             // [tiles x row blocks or CTAs], zero
    int rows, first, step, tiles_here; // without `tiles`: slots `first` to `first + rows`
    int slots, outputs, blocks, row_blocks, splits, adds, pitch;
};

// What an item is.
struct Run {
    int expert, first, count, tiles, row_block, begin, end, split, group;
    int from;   // whose sums it begins with, or -1
    int leaves; // its sums to whoever has the rest
};

__device__ __forceinline__ int items_of(const Product &a) {
    int tiles = a.tiles ? __ldcg(a.tile_count) : a.tiles_here;
    return tiles * a.row_blocks * a.splits;
}

__device__ __forceinline__ Run run_of(const Product &a, int item) {
    Run run;
    run.group = item / a.splits, run.split = item % a.splits, run.from = -1, run.leaves = 0;
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
template <int Rows> struct __align__(16) Entry {
    float scales[2][MOST_BLOCKS], weights[TILE_TOKENS]; // of blocks; of tokens
    u32 rows[Rows];                                     // where tokens are, in bytes
    Run run;
};

// `Rows`: of an entry, with `Gathers`; `Scales`: of a stage, where a token has one each block.
template <int Boxes_, int Stages_, int Staged, int Rows_, int Scales> struct Memory {
    static constexpr int Boxes = Boxes_, Stages = Stages_, Rows = Rows_;
    struct {
        u8 w[Boxes][BOX_BYTES];
        u8 x[TILE_TOKENS * 128];
    } stages[Stages];
    float scales[Stages][Scales];
    u8 staged[2][Staged];
    u64 full[Stages], empty[Stages], queue_full[QUEUE], queue_empty[QUEUE];
    Entry<Rows_> queue[QUEUE];
    int is_last;
};

template <class M> struct Ring {
    int stage = 0;
    u32 phase = 0;
    __device__ __forceinline__ void advance() {
        if (++stage == M::Stages) stage = 0, phase ^= 1;
    }
};

// Where the run of `cta` begins, in blocks of all items one after another; a run ends where the next begins. `lane`: all 32 call it.
// No part of an item is shorter than EDGE blocks: its sums must be worth their way.
#define EDGE 4
__device__ __forceinline__ int chain_begin(const Product &a, int tiles, int cta, int lane) {
    int items = tiles * a.row_blocks, ctas = gridDim.x;
    if (items <= ctas || cta >= ctas) return min(cta < ctas ? cta : items, items) * a.blocks;
    long long blocks = (long long)a.row_blocks * a.blocks, at = __ldcg(a.costs + tiles) * blocks * cta / ctas;
    int tile = -1;
    for (int i = 0; i < tiles; i += 32)
        tile += __popc(__ballot_sync(~0u, i + lane < tiles && __ldcg(a.costs + i + lane) * blocks <= at));
    int before = __ldcg(a.costs + tile), cost = __ldcg(a.costs + tile + 1) - before;
    int block = (int)((at - before * blocks) / cost), rest = block % a.blocks;
    int moved = rest < EDGE ? 0 : rest > a.blocks - EDGE ? a.blocks : rest;
    return tile * (int)blocks + block - rest + moved;
}

// The items of a CTA, one after another.
template <bool Chained> struct Items {
    int at, end, tiles;
    __device__ __forceinline__ Items(const Product &a, int lane) {
        if (Chained) {
            tiles = __ldcg(a.tile_count);
            at = chain_begin(a, tiles, blockIdx.x, lane), end = chain_begin(a, tiles, blockIdx.x + 1, lane);
        } else {
            at = blockIdx.x, end = items_of(a);
        }
    }
    __device__ __forceinline__ bool next(const Product &a, Run &run, int lane) {
        run = {};
        if (at >= end) return false;
        if (!Chained) {
            run = run_of(a, at), at += gridDim.x;
            return true;
        }
        // From the last to the first.
        int item = (end - 1) / a.blocks, begin = max(at, item * a.blocks);
        int4 tile = __ldcg(a.tiles + item / a.row_blocks);
        run.expert = tile.x, run.first = tile.y, run.count = tile.z, run.tiles = tile.w;
        run.row_block = item % a.row_blocks, run.group = item, run.split = item / a.row_blocks, run.begin = begin - item * a.blocks, run.end = end - item * a.blocks;
        run.from = -1, run.leaves = run.end < a.blocks, end = begin;
        if (run.begin > 0) {
            run.from = blockIdx.x - 1;
            while (run.from > 0 && chain_begin(a, tiles, run.from, lane) == begin) run.from--;
        }
        return true;
    }
};

// One warp: items into the queue, `work.scales(a, run, i)` the scales of each block of its weights; no count ends them.
template <bool Fp8, class M, class Work> __device__ void fetch_items(const Product &a, M &memory, const Work &work, int lane) {
    constexpr int most = MOST_BLOCKS / 32, tokens = TILE_TOKENS / 32;
    if (a.tiles) await_dependencies();
    Items<Work::Chained> items(a, lane);
    for (int at = 0, parity = 1;;) {
        Run run;
        float scales[2][most], weights[tokens];
        u32 rows[tokens];
        bool is_there = items.next(a, run, lane);
        if (is_there) {
            if (Fp8) {
#pragma unroll
                for (int i = 0; i < 2; i++)
#pragma unroll
                    for (int j = 0; j < most; j++) {
                        const float *from = work.scales(a, run, i);
                        int block = run.begin + j * 32 + lane;
                        scales[i][j] = from && block < run.end ? __ldg(from + block) : 0;
                    }
            }
            if (Work::RowScaled) await_dependencies();
#pragma unroll
            for (int j = 0; j < tokens; j++) {
                int token = j * 32 + lane, row = run.first + token;
                bool has = token < run.count;
                if (Work::Gathers) row = has ? __ldcg(a.row_of + row) : 0;
                const float *from = Work::RowScaled ? a.x_scales : a.slot_weights;
                weights[j] = has && from && (Fp8 || !Work::RowScaled) ? __ldcg(from + row) : 1.0f;
                rows[j] = row * (u32)a.pitch;
            }
        }
        barrier_wait(shared_address(&memory.queue_empty[at]), parity);
        auto &entry = memory.queue[at];
        if (lane == 0) entry.run = run;
        if (is_there) {
#pragma unroll
            for (int i = 0; i < 2; i++)
#pragma unroll
                for (int j = 0; j < most; j++) entry.scales[i][j * 32 + lane] = scales[i][j];
#pragma unroll
            for (int j = 0; j < tokens; j++) {
                entry.weights[j * 32 + lane] = weights[j];
                if (Work::Gathers) entry.rows[j * 32 + lane] = rows[j];
            }
        }
        __syncwarp();
        if (lane == 0) barrier_arrive(shared_address(&memory.queue_full[at]));
        if (!is_there) return;
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

// A block's weights into a stage, and what the stage waits for; `work.row(a, run, box, map)`: which row of which map a box begins at.
template <bool Fp8, class M, class Work>
__device__ __forceinline__ void load_weights(const Product &a, M &memory, int stage, const Run &run, int block, u64 policy, const Work &work) {
    int boxes = Work::Gathers ? 0 : (run.count + TOKEN_BOX - 1) / TOKEN_BOX;
    int scale_bytes = Fp8 && !Work::RowScaled ? (run.count + 3) / 4 * 16 : 0;
    u32 full = shared_address(&memory.full[stage]);
    barrier_expect(full, M::Boxes * BOX_BYTES + boxes * TOKEN_BOX * 128 + scale_bytes);
    for (int box = 0; box < M::Boxes; box++) {
        const TensorMap *map;
        int at = work.row(a, run, box, map);
        copy_box(shared_address(memory.stages[stage].w[box]), map, 0, at, block, full, policy);
    }
}

template <bool Fp8, class Work, class M>
__device__ __forceinline__ void load_tokens(const Product &a, M &memory, int stage, const Run &run, int block) {
    if (Work::Gathers) return;
    u32 full = shared_address(&memory.full[stage]);
    for (int box = 0; box * TOKEN_BOX < run.count; box++)
        copy_box(shared_address(memory.stages[stage].x + box * TOKEN_BOX * 128), &a.x, 0, run.first + box * TOKEN_BOX, block, full);
    if (Fp8 && !Work::RowScaled)
        copy_bytes(shared_address(memory.scales[stage]), a.x_scales + (size_t)block * a.slots + run.first, (run.count + 3) / 4 * 16, full);
}

// One thread: every item's blocks into the ring. Weights of the first blocks are asked for before the kernel before is done, where
// the host says what the first item is.
template <bool Fp8, class M, class Work> __device__ void load_items(const Product &a, M &memory, const Work &work) {
    Ring<M> ring;
    int ahead = 0;
    if (!a.tiles && blockIdx.x < items_of(a)) {
        Run run = run_of(a, blockIdx.x);
        ahead = min(M::Stages, run.end - run.begin);
        for (int i = 0; i < ahead; i++)
            load_weights<Fp8>(a, memory, i, run, run.begin + i, run.tiles == 1 ? EVICT_FIRST : EVICT_NORMAL, work);
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
                load_weights<Fp8>(a, memory, ring.stage, run, block, policy, work);
            }
            load_tokens<Fp8, Work>(a, memory, ring.stage, run, block);
        }
    }
}

#define GATHERING 64 // threads

// Two warps: every item's rows into the ring, 16 bytes a copy, laid out as the copy engine would.
template <class M> __device__ void gather_items(const Product &a, M &memory, int thread) {
    Ring<M> ring;
    Reader queue;
    constexpr int most = TILE_TOKENS / 8;
    int piece = thread % 8, first = thread / 8;
    u32 within = first * 128 + (piece ^ first) * 16;
    u64 rows = reinterpret_cast<u64>(a.x_rows) + piece * 16;
    await_dependencies();
    for (;;) {
        Run run = queue.take(memory);
        if (run.count == 0) return;
        // In registers of their own: a copy keeps its address for as long as it waits.
        u32 at[most];
        int count = (run.count - first + 7) / 8;
#pragma unroll
        for (int i = 0; i < most; i++) at[i] = memory.queue[queue.at].rows[first + i * 8];
        __syncwarp();
        if (thread % 32 == 0)
            queue.give_back(memory);
        else
            queue.next();
        for (int block = run.begin; block < run.end; block++, ring.advance()) {
            u32 to = shared_address(memory.stages[ring.stage].x) + within;
            u64 from = rows + (u64)block * 128;
            barrier_wait(shared_address(&memory.empty[ring.stage]), ring.phase ^ 1);
#pragma unroll
            for (int i = 0; i < most; i += 5) {
                u64 sources[5];
#pragma unroll
                for (int j = 0; j < 5; j++) sources[j] = from + at[i + j];
#pragma unroll
                for (int j = 0; j < 5; j++) copy_piece_if(i + j < count, to + (i + j) * 1024, sources[j]);
            }
            arrive_with_pieces(shared_address(&memory.full[ring.stage]));
        }
    }
}
