// Products of rows in e4m3 with a scale each 128 inputs with one fp8 matrix: y = x Wᵀ, or y += x Wᵀ, summed in f32.
//
//   w  [outputs, inputs]  e4m3, f32 scales [ceil(outputs / 128), inputs / 128]
//   x  [slots, inputs]    e4m3, f32 scales [inputs / 128, slots]: what `group_rows.cu` writes
//   y  [rows, outputs]    f32
//
// The tensor cores' own sums of e4m3 keep 14 bits, so both sides are widened to f16 on the way to registers, which is exact, as are
// their products; a block of 128 inputs is summed from zero, and added in f32 times its two scales. Threads of a quad take 32
// consecutive inputs each, of rows and of weights alike: a sum does not care what its terms are called.
//
// A CTA is 128 outputs, a tile of tokens, and one of `splits` parts of the inputs, whose sums the last one to end adds in order: the
// split follows from the matrix, so a token's bits depend on nothing else. inputs a multiple of 128, any number of outputs. sm_90a only.
#include "common.cuh"
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#include "hopper.cuh"

#define THREADS 256
#define STAGES 5
#define MOST_TOKENS 128

struct GroupProduct {
    const u8 *w, *x;
    const float *w_scales, *x_scales;
    float *y, *partials;
    u32 *counters;
    int rows, inputs, outputs, slots, splits, adds;
};

struct Stage {
    u8 w[128 * 128];
    u8 x[MOST_TOKENS * 128];
    float scales[MOST_TOKENS];
};
static_assert(sizeof(Stage) == 33280, "as the host asks for");

__device__ __forceinline__ void copy_16(u32 to, const void *from) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
__device__ __forceinline__ void copy_4(u32 to, const void *from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
}
__device__ __forceinline__ void end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int Left> __device__ __forceinline__ void wait_groups() { asm volatile("cp.async.wait_group %0;" ::"n"(Left) : "memory"); }

// Where 16 bytes of a row lie: turned, so that a warp's reads meet no bank twice.
__device__ __forceinline__ u32 place(int row, int piece) { return row * 128 + ((piece ^ (row & 7)) * 16); }

__device__ __forceinline__ uint4 read_16(const u8 *from, int row, int piece) { return *reinterpret_cast<const uint4 *>(from + place(row, piece)); }

// Four e4m3 as two pairs of f16.
__device__ __forceinline__ uint2 widen_four(u32 codes) {
    uint2 pairs;
    asm("{ .reg .b16 low, high; mov.b32 {low, high}, %2; cvt.rn.f16x2.e4m3x2 %0, low; cvt.rn.f16x2.e4m3x2 %1, high; }"
        : "=r"(pairs.x), "=r"(pairs.y)
        : "r"(codes));
    return pairs;
}

__device__ __forceinline__ void multiply(float (&d)[4], const u32 (&a)[4], uint2 b) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y));
}

// Tiles of 8 tokens of a warp: two warps side by side have the CTA's 16 Tiles tokens, four below each other its 128 outputs.
template <int Tiles> struct Work {
    static constexpr int Tokens = 16 * Tiles;
    const GroupProduct &a;
    Stage *stages;
    int first_output, first_token, count, begin, end;

    __device__ __forceinline__ void fetch_weights(int block) const {
        Stage &stage = stages[(block - begin) % STAGES];
#pragma unroll
        for (int i = 0; i < 1024 / THREADS; i++) {
            int at = threadIdx.x + i * THREADS, row = at / 8, piece = at % 8;
            const u8 *from = a.w + (size_t)min(first_output + row, a.outputs - 1) * a.inputs + block * 128 + piece * 16;
            copy_16(shared_address(stage.w) + place(row, piece), from);
        }
    }

    __device__ __forceinline__ void fetch_rows(int block) const {
        Stage &stage = stages[(block - begin) % STAGES];
        for (int at = threadIdx.x; at < Tokens * 8; at += THREADS) {
            int row = at / 8, piece = at % 8;
            const u8 *from = a.x + (size_t)(first_token + min(row, count - 1)) * a.inputs + block * 128 + piece * 16;
            copy_16(shared_address(stage.x) + place(row, piece), from);
        }
        if (threadIdx.x < Tokens) {
            int row = first_token + min((int)threadIdx.x, count - 1);
            copy_4(shared_address(&stage.scales[threadIdx.x]), a.x_scales + (size_t)block * a.slots + row);
        }
    }

    // The products of a block, from zero.
    __device__ __forceinline__ void multiply_block(float (&product)[2][Tiles][4], const Stage &stage) const {
        int warp = threadIdx.x / 32, lane = threadIdx.x % 32, quad = lane / 4, part = lane % 4;
        int output = warp % 4 * 32 + quad, token = warp / 4 * 8 * Tiles + quad;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            u32 w[2][4][4];
#pragma unroll
            for (int m = 0; m < 2; m++) {
                uint4 upper = read_16(stage.w, output + m * 16, part * 2 + half), lower = read_16(stage.w, output + m * 16 + 8, part * 2 + half);
                const u32 rows[2][4] = {{upper.x, upper.y, upper.z, upper.w}, {lower.x, lower.y, lower.z, lower.w}};
#pragma unroll
                for (int step = 0; step < 4; step++) {
                    uint2 first = widen_four(rows[0][step]), second = widen_four(rows[1][step]);
                    w[m][step][0] = first.x, w[m][step][1] = second.x, w[m][step][2] = first.y, w[m][step][3] = second.y;
                }
            }
#pragma unroll
            for (int n = 0; n < Tiles; n++) {
                uint4 raw = read_16(stage.x, token + n * 8, part * 2 + half);
                const u32 codes[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
                for (int step = 0; step < 4; step++) {
                    uint2 x = widen_four(codes[step]);
#pragma unroll
                    for (int m = 0; m < 2; m++) multiply(product[m][n], w[m][step], x);
                }
            }
        }
    }

    __device__ __forceinline__ void sum(float (&sums)[2][Tiles][4]) const {
        int warp = threadIdx.x / 32, token = warp / 4 * 8 * Tiles + threadIdx.x % 4 * 2;
        const float *w_scales = a.w_scales + (size_t)blockIdx.x / a.splits * (a.inputs / 128);
        for (int block = begin; block < end; block++) {
            wait_groups<STAGES - 2>();
            __syncthreads();
            // The stage that everybody has left.
            if (block + STAGES - 1 < end) fetch_weights(block + STAGES - 1), fetch_rows(block + STAGES - 1);
            end_group();
            const Stage &stage = stages[(block - begin) % STAGES];
            float product[2][Tiles][4] = {}, w_scale = __ldg(w_scales + block);
            multiply_block(product, stage);
#pragma unroll
            for (int n = 0; n < Tiles; n++) {
                float2 x = *reinterpret_cast<const float2 *>(stage.scales + token + n * 8);
                float low = x.x * w_scale, high = x.y * w_scale;
#pragma unroll
                for (int m = 0; m < 2; m++) {
                    sums[m][n][0] = fmaf(product[m][n][0], low, sums[m][n][0]), sums[m][n][1] = fmaf(product[m][n][1], high, sums[m][n][1]);
                    sums[m][n][2] = fmaf(product[m][n][2], low, sums[m][n][2]), sums[m][n][3] = fmaf(product[m][n][3], high, sums[m][n][3]);
                }
            }
        }
    }

    // Leaves a part; whoever comes last takes all of them, and is told.
    __device__ __forceinline__ bool join(float (&sums)[2][Tiles][4]) const {
        __shared__ bool is_last;
        int item = blockIdx.y * (gridDim.x / a.splits) + blockIdx.x / a.splits;
        float *parts = a.partials + (size_t)item * a.splits * 128 * Tokens + threadIdx.x;
        float *own = parts + (size_t)(blockIdx.x % a.splits) * 128 * Tokens;
#pragma unroll
        for (int i = 0; i < 8 * Tiles; i++) __stcg(own + i * THREADS, sums[i / 4 / Tiles][i / 4 % Tiles][i % 4]);
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) {
            is_last = atomicAdd(a.counters + item, 1u) == (u32)a.splits - 1;
            if (is_last) a.counters[item] = 0;
            __threadfence();
        }
        __syncthreads();
        if (!is_last) return false;
#pragma unroll
        for (int i = 0; i < 8 * Tiles; i++) sums[i / 4 / Tiles][i / 4 % Tiles][i % 4] = __ldcg(parts + i * THREADS);
#pragma unroll 1
        for (int split = 1; split < a.splits; split++) {
            parts += 128 * Tokens;
#pragma unroll
            for (int i = 0; i < 8 * Tiles; i++) sums[i / 4 / Tiles][i / 4 % Tiles][i % 4] += __ldcg(parts + i * THREADS);
        }
        return true;
    }

    __device__ __forceinline__ void run() const {
        int warp = threadIdx.x / 32, lane = threadIdx.x % 32, blocks = end - begin;
#pragma unroll
        for (int i = 0; i < STAGES - 1; i++)
            if (i < blocks) fetch_weights(begin + i);
        // Weights are nobody's work: rows are that of the kernel before.
        await_dependencies();
#pragma unroll
        for (int i = 0; i < STAGES - 1; i++) {
            if (i < blocks) fetch_rows(begin + i);
            end_group();
        }
        float sums[2][Tiles][4] = {};
        sum(sums);
        if (a.splits > 1 && !join(sums)) return;
        int output = first_output + warp % 4 * 32 + lane / 4, token = warp / 4 * 8 * Tiles + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < 8 * Tiles; i++) {
            int m = i / 4 / Tiles, n = i / 4 % Tiles, r = i % 4, at = output + m * 16 + r / 2 * 8, of = token + n * 8 + r % 2;
            if (of >= count || at >= a.outputs) continue;
            float *to = a.y + (size_t)(first_token + of) * a.outputs + at;
            *to = a.adds ? __fadd_rn(*to, sums[m][n][r]) : sums[m][n][r];
        }
    }
};

// `Tiles` is what the most tokens of a CTA need.
template <int Tiles> __device__ __forceinline__ void product_of(const GroupProduct &a, u8 *raw) {
    start_dependents();
    int split = blockIdx.x % a.splits, blocks = a.inputs / 128, first = blockIdx.y * 16 * Tiles;
    Stage *stages = reinterpret_cast<Stage *>(raw);
    Work<Tiles> work{a, stages, (int)(blockIdx.x / a.splits) * 128, first, min(a.rows - first, 16 * Tiles), blocks * split / a.splits,
                     blocks * (split + 1) / a.splits};
    work.run();
}

#define PRODUCT(tokens, tiles)                                                                                                      \
    extern "C" __global__ __launch_bounds__(THREADS, 1) void group_product_##tokens(const __grid_constant__ GroupProduct a) {       \
        extern __shared__ __align__(128) u8 raw[];                                                                                  \
        product_of<tiles>(a, raw);                                                                                                  \
    }
PRODUCT(16, 1)
PRODUCT(32, 2)
PRODUCT(64, 4)
PRODUCT(128, 8)
#endif
