// The second product of expert FFNs on tensor cores: answers = weight · (h Dᵀ), by slot.
//
//   w            [experts, outputs, inputs]  e4m3 with f32 scales each 128 x 128, or bf16
//   x            [slots, inputs]             e4m3 with scales [inputs / 128, slots], or bf16: what tensor_up.cu writes
//   slot_weights [slots]                     of the routing; 1 for the shared expert
//   out          [slots, outputs]            bf16; slots of no tile are not written
//
// inputs a multiple of 128, outputs of 256. An item is 256 outputs. See tensor.cuh. sm_90a only.
#include "common.cuh"
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#include "tensor.cuh"

typedef Memory<2, 4, PIECE * PIECE_STRIDE, 4, TILE_TOKENS> DownMemory;

// The warpgroup's own barrier.
__device__ __forceinline__ void wait_for_group(int group) {
    if (group == 0)
        named_barrier<2, 128>();
    else
        named_barrier<3, 128>();
}

template <bool Fp8> struct Down {
    static constexpr bool Chained = false, Gathers = false, RowScaled = false;

    __device__ __forceinline__ int row(const Product &a, const Run &run, int box, const TensorMap *&map) const {
        map = &a.w;
        return run.expert * a.outputs + run.row_block * 256 + box * 128;
    }

    __device__ __forceinline__ const float *scales(const Product &a, const Run &run, int group) const {
        return a.w_scales + (((size_t)run.expert * a.row_blocks + run.row_block) * 2 + group) * a.blocks;
    }

    template <int Chunks, int N>
    __device__ __forceinline__ void item(const Product &a, DownMemory &memory, Ring<DownMemory> &ring, const Entry<4> &entry, int group, int thread) const {
        float sum[2][Chunks][N];
        const float *const scales[2] = {entry.scales[group], entry.scales[group]};
        const Run &run = entry.run;
        clear(sum);
        multiply_run<Fp8, Down>(sum, memory, ring, scales, a.blocks, group * BOX_BYTES, 8192, thread);
        int warp = thread / 32, lane = thread % 32, part = thread % 16;
        u8 *piece = memory.staged[group];
        bf16 *out = (bf16 *)a.out + (size_t)run.first * a.outputs + run.row_block * 256 + group * 128 + part * 8;
        const float *weights = entry.weights + 2 * (thread & 3);
#pragma unroll
        for (int q = 0; q < Chunks * N / 8; q++) {
            int start = q * PIECE;
            if (start >= run.count) continue;
            float2 of[2] = {*(const float2 *)(weights + start), *(const float2 *)(weights + start + 8)};
#pragma unroll
            for (int m = 0; m < 2; m++) {
                u32 words[4];
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    constexpr int groups = N / 4; // of 8 tokens, in a chunk
                    const float *from = &sum[m][(2 * q + j) / groups][(2 * q + j) % groups * 4];
                    words[2 * j] = pack_bf16(from[0] * of[j].x, from[1] * of[j].y);
                    words[2 * j + 1] = pack_bf16(from[2] * of[j].x, from[3] * of[j].y);
                }
                store_turned(turned_place(shared_address(piece), m * 64 + warp * 16, lane), words);
            }
            wait_for_group(group);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                int token = i * 8 + thread / 16;
                if (start + token < run.count)
                    *reinterpret_cast<uint4 *>(out + (size_t)(start + token) * a.outputs) =
                        *reinterpret_cast<const uint4 *>(piece + token * PIECE_STRIDE + part * 16);
            }
            wait_for_group(group);
        }
    }
};

extern "C" __global__ __launch_bounds__(384, 1) void tensor_down_fp8(const __grid_constant__ Product a) {
    extern __shared__ u8 raw[];
    run_items<true, DownMemory>(a, raw, Down<true>());
}
extern "C" __global__ __launch_bounds__(384, 1) void tensor_down_bf16(const __grid_constant__ Product a) {
    extern __shared__ u8 raw[];
    run_items<false, DownMemory>(a, raw, Down<false>());
}
#endif
