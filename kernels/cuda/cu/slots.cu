// Rows sorted by expert for tensor.cuh, without a count leaving the device: a slot for every row and expert held here, then one for
// every row if there is a shared expert, which counts as one more expert behind those held.
//
//   ids, weights [rows, top_k];  local [experts]: index among those held here, or -1
//   slot_of      [rows, top_k]   slot, or -1: experts in order, each beginning at a multiple of 8, rows in order
//   slot_weights [slots]         the routing's, 1 for the shared expert's
//   row_of       [slots]         the row; slots of no row are not written
//   tiles        [most, 4]       expert, first slot, slots (at most 160, if an expert has several, at most 128 and about equal), tiles of
//                                the expert: in the order of experts, with the shared expert's spread evenly among them, so that memory
//                                is read at an even rate
//   costs        [most + 1]      what products with the tiles before each take together, of the first `tiles`, then of all
//   head         [2]             tiles; first slot of the shared expert
//
// A CTA is an expert held, and one more for the shared expert and for what belongs to none. At most 512 held. sm_90a only.
#include "common.cuh"
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#include "hopper.cuh"

#define TILE_TOKENS 160
#define MOST_HELD 512
#define THREADS 512
#define WARPS (THREADS / 32)
#define PLACES_KEPT 12288

struct Slots {
    const int *ids, *local;
    const float *weights;
    int *slot_of;
    float *slot_weights;
    int *row_of;
    int4 *tiles;
    int *costs, *head;
    int rows, top_k, held, shares;
};

// Tiles of 128 go at a higher rate than those of 160; one of 160 saves reading an expert twice.
__device__ __forceinline__ int tiles_for(int count) { return count <= TILE_TOKENS ? count > 0 : (count + 127) / 128; }
__device__ __forceinline__ int aligned(int count) { return (count + 7) / 8 * 8; }
__device__ __forceinline__ int step_for(int count, int tiles) { return tiles ? aligned((count + tiles - 1) / tiles) : 0; }
// What a block of a product with so many tokens takes: half of it for 64 weight rows by 128 tokens is weights on their way.
__device__ __forceinline__ int cost_of(int tokens) { return 64 + aligned(tokens); }

// An expert's slots, tiles and costs; of the tiles that come before others', the sums.
struct Sizes {
    int slots, tiles, costs;
};

__device__ __forceinline__ Sizes sizes_of(int count) {
    int tiles = tiles_for(count), step = step_for(count, tiles);
    return {aligned(count), tiles, tiles ? (tiles - 1) * cost_of(step) + cost_of(count - (tiles - 1) * step) : 0};
}

// The first `tiles` of an expert's.
__device__ __forceinline__ int cost_of_first(int tiles, int count) {
    Sizes all = sizes_of(count);
    return tiles == all.tiles ? all.costs : tiles * cost_of(step_for(count, all.tiles));
}

// How many of the `shared` tiles come before those of expert `expert`: tile j comes before expert j * held / shared.
__device__ __forceinline__ int shared_before(int expert, int held, int shared) {
    return shared ? min(shared, ((expert + 1) * shared + held - 1) / held) : 0;
}

__device__ __forceinline__ void write_tile(const Slots &a, int at, int cost, int expert, int first, int count, int i) {
    int tiles = tiles_for(count), step = step_for(count, tiles);
    a.tiles[at] = make_int4(expert, first + i * step, min(step, count - i * step), tiles);
    a.costs[at] = cost;
}

// Of each thread, what the threads before it have, and of all the sum.
__device__ __forceinline__ Sizes before_thread(Sizes mine, Sizes &all) {
    __shared__ Sizes of_warp[WARPS];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    Sizes sum = mine;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        int slots = __shfl_up_sync(~0u, sum.slots, step), tiles = __shfl_up_sync(~0u, sum.tiles, step), costs = __shfl_up_sync(~0u, sum.costs, step);
        if (lane >= step) sum.slots += slots, sum.tiles += tiles, sum.costs += costs;
    }
    if (lane == 31) of_warp[warp] = sum;
    __syncthreads();
    all = {};
    Sizes before = {sum.slots - mine.slots, sum.tiles - mine.tiles, sum.costs - mine.costs};
#pragma unroll
    for (int i = 0; i < WARPS; i++) {
        Sizes of = of_warp[i];
        if (i < warp) before.slots += of.slots, before.tiles += of.tiles, before.costs += of.costs;
        all.slots += of.slots, all.tiles += of.tiles, all.costs += of.costs;
    }
    return before;
}

extern "C" __global__ __launch_bounds__(THREADS) void place_slots(const __grid_constant__ Slots a) {
    __shared__ int counts[MOST_HELD], sums[WARPS];
    __shared__ Sizes before[MOST_HELD];
    __shared__ short kept[PLACES_KEPT]; // index among the held ones of each place
    int expert = blockIdx.x, places = a.rows * a.top_k, thread = threadIdx.x;
    start_dependents();
    await_dependencies();
    counts[thread] = 0;
    __syncthreads();
#pragma unroll 8
    for (int i = thread; i < places; i += THREADS) {
        int held = a.local[__ldcg(a.ids + i)];
        if (i < PLACES_KEPT) kept[i] = (short)held;
        if (held >= 0) atomicAdd(&counts[held], 1);
    }
    __syncthreads();
    auto held_of = [&](int i) { return i < PLACES_KEPT ? kept[i] : a.local[a.ids[i]]; };
    int shared = a.shares ? tiles_for(a.rows) : 0;
    Sizes all;
    before[thread] = before_thread(sizes_of(thread < a.held ? counts[thread] : 0), all);
    __syncthreads();
    if (expert == a.held) {
        if (thread == 0) {
            a.head[0] = all.tiles + shared, a.head[1] = all.slots;
            a.costs[all.tiles + shared] = all.costs + cost_of_first(shared, a.shares ? a.rows : 0);
        }
        for (int i = thread; i < places; i += THREADS)
            if (held_of(i) < 0) a.slot_of[i] = -1;
        if (!a.shares) return;
        for (int i = thread; i < shared; i += THREADS) {
            int next = i * a.held / shared;
            Sizes routed = a.held ? before[next] : Sizes{0, 0, 0};
            write_tile(a, i + routed.tiles, cost_of_first(i, a.rows) + routed.costs, expert, all.slots, a.rows, i);
        }
        for (int i = thread; i < a.rows; i += THREADS) a.slot_weights[all.slots + i] = 1.0f, a.row_of[all.slots + i] = i;
        return;
    }
    int count = counts[expert], between = shared_before(expert, a.held, shared), step = step_for(count, tiles_for(count));
    Sizes here = before[expert];
    for (int i = thread; i < tiles_for(count); i += THREADS)
        write_tile(a, here.tiles + between + i, here.costs + cost_of_first(between, a.rows) + i * cost_of(step), expert, here.slots, count, i);
    // Each thread places the rows of a run of its own, behind those of the threads before.
    int run = (places + THREADS - 1) / THREADS, begin = min(thread * run, places), end = min(begin + run, places);
    int mine = 0;
    for (int i = begin; i < end; i++) mine += held_of(i) == expert;
    int sum = mine, lane = thread & 31;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        int other = __shfl_up_sync(~0u, sum, step);
        if (lane >= step) sum += other;
    }
    if (lane == 31) sums[thread / 32] = sum;
    __syncthreads();
    int slot = here.slots + sum - mine;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) slot += warp < thread / 32 ? sums[warp] : 0;
    for (int i = begin; mine > 0 && i < end; i++) {
        if (held_of(i) != expert) continue;
        a.slot_of[i] = slot, a.slot_weights[slot] = a.weights[i], a.row_of[slot] = i / a.top_k;
        slot++;
    }
}
#endif
