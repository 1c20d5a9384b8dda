// The first product of expert FFNs on tensor cores: h = silu(x Gᵀ) · (x Uᵀ), for rows sorted by expert (`slots.cu`).
//
//   w, up     [experts, outputs, inputs]  e4m3 with f32 scales each 128 x 128, or bf16
//   x         [rows, inputs]              as `rows_fast.cu` quantises it: e4m3, scales [rows]; or bf16
//   row_of    [slots]                     whose row a slot is, from slots.cu, as are `costs`
//   tiles     from slots.cu
//   out       [slots, outputs]            e4m3 with scales [outputs / 128, slots], or bf16; slots of no tile are not written
//
// inputs a multiple of 128, outputs of 128. An item is 128 gates and their 128 ups. See tensor.cuh. sm_90a only.
#include "common.cuh"
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#include "tensor.cuh"

typedef Memory<2, 4, PIECE * PIECE_STRIDE, TILE_TOKENS, 4> UpMemory;

__device__ __forceinline__ float swiglu(float gate, float up) {
    return __fdividef(gate, 1.0f + fast_exp2(-1.4426950408889634f * gate)) * up;
}

// Eight bf16 of a token, 16 lanes a token, as e4m3 with their 128's scale.
__device__ __forceinline__ void store_quantised(const uint4 raw, u8 *to, float *scale_to, int lane, bool is_there) {
    const u32 words[4] = {raw.x, raw.y, raw.z, raw.w};
    float v[8], largest = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) v[2 * i] = __uint_as_float(words[i] << 16), v[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
#pragma unroll
    for (int i = 0; i < 8; i++) largest = fmaxf(largest, fabsf(v[i]));
#pragma unroll
    for (int mask = 1; mask < 16; mask *= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, mask));
    float scale = fmaxf(largest * (1.0f / 448.0f), 1.17549435e-38f), inverse = 1.0f / scale;
    u32 codes[2];
#pragma unroll
    for (int i = 0; i < 2; i++) codes[i] = pack_e4m3(v[4 * i] * inverse, v[4 * i + 1] * inverse, v[4 * i + 2] * inverse, v[4 * i + 3] * inverse);
    if (!is_there) return;
    *reinterpret_cast<uint2 *>(to) = make_uint2(codes[0], codes[1]);
    if (lane % 16 == 0) *scale_to = scale;
}

template <bool Fp8> struct Up {
    static constexpr bool Chained = true, Gathers = true, RowScaled = true;

    __device__ __forceinline__ int row(const Product &a, const Run &run, int box, const TensorMap *&map) const {
        map = box == 0 ? &a.w : &a.up;
        return run.expert * a.outputs + run.row_block * 128;
    }

    __device__ __forceinline__ const float *scales(const Product &a, const Run &run, int map) const {
        return (map ? a.up_scales : a.w_scales) + ((size_t)run.expert * a.row_blocks + run.row_block) * a.blocks;
    }

    template <int Chunks, int N>
    __device__ __forceinline__ void item(const Product &a, UpMemory &memory, Ring<UpMemory> &ring, const Entry<TILE_TOKENS> &entry, int group, int thread) const {
        float sum[2][Chunks][N];
        const float *const scales[2] = {entry.scales[0], entry.scales[1]};
        const Run &run = entry.run;
        take_sums(a, run, sum);
        multiply_run<Fp8, Up>(sum, memory, ring, scales, run.end - run.begin, group * 8192, BOX_BYTES, thread);
        if (run.leaves) return leave_sums(a, sum);
        int warp = thread / 32, lane = thread % 32, token = (group * 128 + thread) / 16, part = thread % 16;
#pragma unroll
        for (int q = 0; q < Chunks * N / 8; q++) {
            int start = q * PIECE;
            if (start >= run.count) continue;
            u32 words[4];
#pragma unroll
            for (int j = 0; j < 2; j++) {
                constexpr int groups = N / 4; // of 8 tokens, in a chunk
                int c = (2 * q + j) / groups, at = (2 * q + j) % groups * 4;
                const float *gate = &sum[0][c][at], *up = &sum[1][c][at];
                float2 x = make_float2(1, 1);
                if (Fp8) x = *reinterpret_cast<const float2 *>(entry.weights + start + j * 8 + 2 * (thread & 3));
                words[2 * j] = pack_bf16(swiglu(gate[0] * x.x, up[0] * x.x), swiglu(gate[1] * x.y, up[1] * x.y));
                words[2 * j + 1] = pack_bf16(swiglu(gate[2] * x.x, up[2] * x.x), swiglu(gate[3] * x.y, up[3] * x.y));
            }
            // Two pieces by turns: whoever writes one knows by the barrier between that nobody reads it any more.
            u8 *piece = memory.staged[q & 1];
            store_turned(turned_place(shared_address(piece), group * 64 + warp * 16, lane), words);
            named_barrier<1, 256>();
            uint4 raw = *reinterpret_cast<const uint4 *>(piece + token * PIECE_STRIDE + part * 16);
            bool is_there = start + token < run.count;
            size_t slot = run.first + start + token, at = slot * a.outputs + run.row_block * 128 + part * 8;
            if (Fp8)
                store_quantised(raw, (u8 *)a.out + at, a.out_scales + (size_t)run.row_block * a.slots + slot, lane, is_there);
            else if (is_there)
                *reinterpret_cast<uint4 *>((bf16 *)a.out + at) = raw;
        }
        // An odd number of pieces: the next item begins with the one that is being read.
        named_barrier<1, 256>();
    }
};

extern "C" __global__ __launch_bounds__(384, 1) void tensor_up_fp8(const __grid_constant__ Product a) {
    extern __shared__ u8 raw[];
    run_items<true, UpMemory>(a, raw, Up<true>());
}
extern "C" __global__ __launch_bounds__(384, 1) void tensor_up_bf16(const __grid_constant__ Product a) {
    extern __shared__ u8 raw[];
    run_items<false, UpMemory>(a, raw, Up<false>());
}
#endif
