// Rows sorted by expert for tensor.cuh, without a count leaving the device: a slot for every row and expert held here, then one for
// every row if there is a shared expert, which counts as one more expert behind those held.
//
//   ids, weights [rows, top_k];  local [experts]: index among those held here, or -1
//   slot_of      [rows, top_k]   slot, or -1: experts in order, each beginning at a multiple of 8, rows in order
//   slot_weights [slots]         the routing's, 1 for the shared expert's
//   tiles        [most, 4]       expert, first slot, slots (at most 160, if an expert has several, at most 128 and about equal), tiles of the expert: the shared
//                                expert's first, since they are the longest
//   head         [2]             tiles; first slot of the shared expert
//
// A CTA is an expert held, and one more for the shared expert and for what belongs to none. At most 512 held. sm_90a only.
#include "common.cuh"
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#include "hopper.cuh"

#define TILE_TOKENS 160
#define MOST_HELD 512
#define THREADS 256

struct Slots {
    const int *ids, *local;
    const float *weights;
    int *slot_of;
    float *slot_weights;
    int4 *tiles;
    int *head;
    int rows, top_k, held, shares;
};

// Tiles of 128 go at a higher rate than those of 160; one of 160 saves reading an expert twice.
__device__ __forceinline__ int tiles_for(int count) { return count <= TILE_TOKENS ? count > 0 : (count + 127) / 128; }
__device__ __forceinline__ int aligned(int count) { return (count + 7) / 8 * 8; }

__device__ __forceinline__ void write_tiles(int4 *to, int expert, int first, int count) {
    int tiles = tiles_for(count), step = tiles ? aligned((count + tiles - 1) / tiles) : 0;
    for (int i = threadIdx.x; i < tiles; i += THREADS) to[i] = make_int4(expert, first + i * step, min(step, count - i * step), tiles);
}

extern "C" __global__ __launch_bounds__(THREADS) void place_slots(const __grid_constant__ Slots a) {
    __shared__ int counts[MOST_HELD], before_warp[THREADS / 32], first, tile;
    int expert = blockIdx.x, places = a.rows * a.top_k, thread = threadIdx.x;
    start_dependents();
    await_dependencies();
    for (int i = thread; i < a.held; i += THREADS) counts[i] = 0;
    if (thread == 0) first = 0, tile = a.shares ? tiles_for(a.rows) : 0;
    __syncthreads();
    for (int i = thread; i < places; i += THREADS) {
        int held = a.local[a.ids[i]];
        if (held >= 0) atomicAdd(&counts[held], 1);
    }
    __syncthreads();
    for (int i = thread; i < expert; i += THREADS) atomicAdd(&first, aligned(counts[i])), atomicAdd(&tile, tiles_for(counts[i]));
    __syncthreads();
    // Each thread places the rows of a run of its own, behind those of the threads before.
    int run = (places + THREADS - 1) / THREADS, begin = min(thread * run, places), end = min(begin + run, places);
    if (expert == a.held) {
        if (thread == 0) a.head[0] = tile, a.head[1] = first;
        for (int i = thread; i < places; i += THREADS)
            if (a.local[a.ids[i]] < 0) a.slot_of[i] = -1;
        if (!a.shares) return;
        write_tiles(a.tiles, expert, first, a.rows);
        for (int i = thread; i < a.rows; i += THREADS) a.slot_weights[first + i] = 1.0f;
        return;
    }
    write_tiles(a.tiles + tile, expert, first, counts[expert]);
    int mine = 0;
    for (int i = begin; i < end; i++) mine += a.local[a.ids[i]] == expert;
    int sum = mine, lane = thread & 31;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        int other = __shfl_up_sync(~0u, sum, step);
        if (lane >= step) sum += other;
    }
    if (lane == 31) before_warp[thread / 32] = sum;
    __syncthreads();
    int slot = first + sum - mine;
    for (int warp = 0; warp < thread / 32; warp++) slot += before_warp[warp];
    for (int i = begin; i < end; i++)
        if (a.local[a.ids[i]] == expert) a.slot_of[i] = slot, a.slot_weights[slot] = a.weights[i], slot++;
}
#endif
