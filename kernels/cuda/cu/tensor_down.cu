// The second product of expert FFNs on tensor cores: answers = weight · (h Dᵀ), by slot.
//
//   w            [experts, outputs, inputs]  e4m3 with f32 scales each 128 x 128, or bf16
//   x            [slots, inputs]             e4m3 with scales [slots], or bf16: what tensor_up.cu writes, narrowed
//   slot_weights [slots]                     of the routing; 1 for the shared expert
//   out          [slots, outputs]            bf16; slots of no tile are not written
//
// inputs a multiple of 128, outputs of 256. An item is 256 outputs. See tensor.cuh. sm_90a only.
#include "common.cuh"
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#include "tensor.cuh"

typedef Memory<2, 4, 4096, 4> DownMemory;

__device__ __forceinline__ uint4 load_shared(u32 from) {
    uint4 x;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "r"(from) : "memory");
    return x;
}

template <bool Fp8> struct Down {
    static constexpr bool Chained = false, Gathers = false, Weighted = true;

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
        // Each warp turns its own 16 outputs of 16 tokens at a time, which are whole sectors of 32 bytes, in two places by turns: one
        // is packed while the other is on its way. Lane l of every 8 names the place of token l % 8, or 8 behind it, and of half of
        // the outputs; halves change sides every 4 tokens, for the banks.
        int lane = thread % 32, warp = thread / 32, token = lane / 16 * 8 + lane % 8, mine = lane / 2, left = run.count - mine;
        u32 piece = shared_address(memory.staged[0]) + (group * 4 + warp) * 1024;
        u32 to = piece + token * 32 + ((lane / 8 ^ token / 4) & 1) * 16, from = piece + mine * 32 + ((lane ^ mine / 4) & 1) * 16;
        size_t pitch = (size_t)PIECE * a.outputs;
        bf16 *out = (bf16 *)a.out + (size_t)(run.first + mine) * a.outputs + run.row_block * 256 + group * 128 + warp * 16 + (lane & 1) * 8;
        const float *weights = entry.weights + 2 * (thread & 3);
        uint4 before;
#pragma unroll
        for (int i = 0; i < Chunks * N / 4; i++) {
            constexpr int groups = N / 4; // of 8 tokens, in a chunk
            int q = i / 2, m = i % 2;
            u32 words[4];
#pragma unroll
            for (int j = 0; j < 2; j++) {
                float2 of = *reinterpret_cast<const float2 *>(weights + q * PIECE + j * 8);
                const float *y = &sum[m][(2 * q + j) / groups][(2 * q + j) % groups * 4];
                words[2 * j] = pack_bf16(y[0] * of.x, y[1] * of.y), words[2 * j + 1] = pack_bf16(y[2] * of.x, y[3] * of.y);
            }
            store_turned(to + m * 512, words);
            __syncwarp();
            uint4 here = load_shared(from + m * 512);
            if (m == 1) {
                if (q * PIECE < left) {
                    uint4 *at = reinterpret_cast<uint4 *>(out);
                    at[0] = before, at[8] = here;
                }
                out += pitch;
            }
            before = here;
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
