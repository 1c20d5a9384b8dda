// Sums of products on tensor cores, as tensor.cuh's kernels make them: one block and a run of blocks, sums that go from one CTA to
// another, and results turned round. sm_90a only.
#pragma once
#include "tensor_items.cuh"

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

template <bool RowScaled, int N>
__device__ __forceinline__ void add_product(float (&sum)[N], const float (&product)[N], const float *x_scales, float w_scale) {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
        float2 scale = make_float2(1, 1);
        if (!RowScaled) scale = *reinterpret_cast<const float2 *>(x_scales + 2 * i);
        float low = RowScaled ? w_scale : scale.x * w_scale, high = RowScaled ? w_scale : scale.y * w_scale;
        sum[i] = fmaf(product[i], low, sum[i]), sum[i + 1] = fmaf(product[i + 1], high, sum[i + 1]);
        sum[i + 2] = fmaf(product[i + 2], low, sum[i + 2]), sum[i + 3] = fmaf(product[i + 3], high, sum[i + 3]);
    }
}

template <int Tiles, int Chunks, int N> __device__ __forceinline__ void clear(float (&sum)[Tiles][Chunks][N]) {
#pragma unroll
    for (int m = 0; m < Tiles; m++)
#pragma unroll
        for (int c = 0; c < Chunks; c++)
#pragma unroll
            for (int i = 0; i < N; i++) sum[m][c][i] = 0;
}

// sum[m][c] += the product of a block of e4m3, times its scales: tile m of the weights is `across` behind the one before.
template <bool RowScaled, int Tiles, int Chunks, int N>
__device__ __forceinline__ void multiply_block(float (&sum)[Tiles][Chunks][N], u64 w, u64 across, u64 x, const float *x_scales,
                                               const float (&w_scales)[Tiles]) {
    constexpr int products = Tiles * Chunks;
    constexpr u64 chunk = 2 * N * 128 / 16;
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
            add_product<RowScaled>(sum[p / Chunks][p % Chunks], product[p % 2], x_scales + p % Chunks * 2 * N, w_scales[p / Chunks]);
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
            add_product<RowScaled>(sum[p / Chunks][p % Chunks], product, x_scales + p % Chunks * 2 * N, w_scales[p / Chunks]);
        }
    }
}

// sum[m][c] +=: 64 weight rows by chunk c of the tokens, over `count` blocks. Tile m of the weights is `first + m * step` bytes into a
// stage; its scales are `scales[m]`, one a block.
template <bool Fp8, class Work, class M, int Tiles, int Chunks, int N>
__device__ __forceinline__ void multiply_run(float (&sum)[Tiles][Chunks][N], M &memory, Ring<M> &ring,
                                             const float *const (&scales)[Tiles], int count, u32 first, u32 step, int thread) {
    constexpr u64 chunk = 2 * N * 128 / 16;
    int before = -1;
    for (int block = 0; block < count; block++, ring.advance()) {
        barrier_wait(shared_address(&memory.full[ring.stage]), ring.phase);
        // Pieces of rows came by ordinary writes.
        if (Work::Gathers) async_proxy_fence();
        u32 base = shared_address(&memory.stages[ring.stage]);
        u64 w = smem_descriptor(base + first, 16, 1024, 1), x = smem_descriptor(base + M::Boxes * BOX_BYTES, 16, 1024, 1);
        u64 across = step / 16;
        if constexpr (Fp8) {
            const float *x_scales = memory.scales[ring.stage] + 2 * (thread & 3);
            float w_scales[Tiles];
#pragma unroll
            for (int m = 0; m < Tiles; m++) w_scales[m] = scales[m][block];
            multiply_block<Work::RowScaled>(sum, w, across, x, x_scales, w_scales);
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

// A CTA's sums on their way to the one that has the rest of an item: `MOST_SUMS` a thread.
#define MOST_SUMS TILE_TOKENS

__device__ __forceinline__ u32 load_acquired(const u32 *from) {
    u32 x;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(x) : "l"(from) : "memory");
    return x;
}

// Zero if not.
__device__ __forceinline__ float load_if(bool has, const float *from) {
    float x;
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %2, 0; mov.f32 %0, 0f00000000; @p ld.global.cg.f32 %0, [%1]; }"
                 : "=&f"(x)
                 : "l"(from), "r"((int)has)
                 : "memory");
    return x;
}

template <int Tiles, int Chunks, int N>
__device__ __forceinline__ void leave_sums(const Product &a, const float (&sum)[Tiles][Chunks][N]) {
    float *to = a.partials + (size_t)blockIdx.x * MOST_SUMS * 256 + threadIdx.x;
#pragma unroll
    for (int i = 0; i < Tiles * Chunks * N; i++) __stcg(to + i * 256, sum[i / N / Chunks][i / N % Chunks][i % N]);
    __threadfence();
    named_barrier<1, 256>();
    if (threadIdx.x == 0) {
        __threadfence();
        atomicExch(&a.counters[blockIdx.x], 1u);
    }
}

template <int Tiles, int Chunks, int N>
__device__ __forceinline__ void take_sums(const Product &a, const Run &run, float (&sum)[Tiles][Chunks][N]) {
    bool has = run.from >= 0;
    if (has) {
        if (threadIdx.x == 0) {
            while (!load_acquired(a.counters + run.from)) {}
            a.counters[run.from] = 0;
        }
        named_barrier<1, 256>();
    }
    const float *from = a.partials + (size_t)max(run.from, 0) * MOST_SUMS * 256 + threadIdx.x;
    // Without a branch, so that ptxas sees one definition.
#pragma unroll
    for (int i = 0; i < Tiles * Chunks * N; i++) sum[i / N / Chunks][i / N % Chunks][i % N] = load_if(has, from + i * 256);
}
