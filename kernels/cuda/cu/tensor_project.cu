// Products of rows with one matrix on tensor cores: y = x Wᵀ, or y += x Wᵀ.
//
//   w    [outputs, inputs]  e4m3 with f32 scales each 128 x 128, or bf16
//   x    [slots, inputs]    e4m3 with scales [slots], or bf16; row i is slot i
//   out  [rows, outputs]    f32
//
// inputs a multiple of 128, any number of outputs. An item is 128 outputs and one of `splits` parts of the inputs, whose
// sums the last one to end adds in order: the split follows from the matrix, so a row's bits depend on nothing else. See tensor.cuh.
// sm_90a only.
#include "common.cuh"
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#include "tensor.cuh"

typedef Memory<1, 6, 16, 4, 4> ProjectMemory;

// Accumulators of a thread at most, which is what parts are apart: tiles of one launch may differ in size.
#define MOST_PART (TILE_TOKENS / 2)

__device__ __forceinline__ float *part_of(const Product &a, const Run &run, int split) {
    return a.partials + ((size_t)run.group * a.splits + split) * MOST_PART * 256 + threadIdx.x;
}

// Leaves a part for whoever comes last, which is who gets true.
template <int Chunks, int N> __device__ __forceinline__ bool leave_part(const Product &a, ProjectMemory &memory, const Run &run, const float (&sum)[Chunks][N]) {
    int id = threadIdx.x;
    float *part = part_of(a, run, run.split);
#pragma unroll
    for (int i = 0; i < Chunks * N; i++) __stcg(part + i * 256, sum[i / N][i % N]);
    __threadfence();
    named_barrier<1, 256>();
    if (id == 0) {
        u32 before = atomicAdd(&a.counters[run.group], 1u);
        memory.is_last = before == (u32)a.splits - 1;
        if (memory.is_last) a.counters[run.group] = 0;
        __threadfence();
    }
    named_barrier<1, 256>();
    bool is_last = memory.is_last;
    // Read before anybody's next item writes it.
    named_barrier<1, 256>();
    return is_last;
}

template <int N> __device__ __forceinline__ void add_parts(const Product &a, const Run &run, float (&sum)[N], int from) {
    const float *part = part_of(a, run, 0) + from * 256;
#pragma unroll
    for (int i = 0; i < N; i++) sum[i] = __ldcg(part + i * 256);
    pin(sum);
#pragma unroll 1
    for (int split = 1; split < a.splits; split++) {
        part += MOST_PART * 256;
#pragma unroll
        for (int i = 0; i < N; i++) sum[i] += __ldcg(part + i * 256);
    }
    pin(sum);
}

template <bool Fp8> struct Project {
    static constexpr bool Chained = false, Gathers = false, RowScaled = true;

    __device__ __forceinline__ int row(const Product &a, const Run &run, int box, const TensorMap *&map) const {
        map = &a.w;
        return run.row_block * 128;
    }

    __device__ __forceinline__ const float *scales(const Product &a, const Run &run, int map) const {
        return map ? nullptr : a.w_scales + (size_t)run.row_block * a.blocks;
    }

    template <int Chunks, int N>
    __device__ __forceinline__ void item(const Product &a, ProjectMemory &memory, Ring<ProjectMemory> &ring, const Entry<4> &entry, int group, int thread) const {
        float sum[1][Chunks][N];
        const float *const scales[1] = {entry.scales[0]};
        const Run &run = entry.run;
        clear(sum);
        multiply_run<Fp8, Project>(sum, memory, ring, scales, run.end - run.begin, group * 8192, 0, thread);
        if (a.splits > 1) {
            if (!leave_part(a, memory, run, sum[0])) return;
            // A few sums at a time: all of them and their parts would not fit in registers.
#pragma unroll
            for (int c = 0; c < Chunks; c++) add_parts(a, run, sum[0][c], c * N);
        }
        int upper = run.row_block * 128 + group * 64 + thread / 32 * 16 + thread % 32 / 4;
#pragma unroll
        for (int c = 0; c < Chunks; c++)
#pragma unroll
            for (int i = 0; i < N; i++) {
                int token = c * 2 * N + i / 4 * 8 + 2 * (thread & 3) + (i & 1), at = upper + (i & 2) * 4;
                if (token >= run.count || at >= a.outputs) continue;
                float *to = (float *)a.out + (size_t)(run.first - a.first + token) * a.outputs + at;
                float y = Fp8 ? sum[0][c][i] * entry.weights[token] : sum[0][c][i];
                *to = a.adds ? __fadd_rn(*to, y) : y;
            }
    }
};

extern "C" __global__ __launch_bounds__(384, 1) void tensor_project_fp8(const __grid_constant__ Product a) {
    extern __shared__ u8 raw[];
    run_items<true, ProjectMemory>(a, raw, Project<true>());
}
extern "C" __global__ __launch_bounds__(384, 1) void tensor_project_bf16(const __grid_constant__ Product a) {
    extern __shared__ u8 raw[];
    run_items<false, ProjectMemory>(a, raw, Project<false>());
}
#endif
