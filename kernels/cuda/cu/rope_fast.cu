// Rotary position embedding of q and k for the fast attention, and every row's k and v into its pages.
//
//   q          [rows, 64, 256] f32 -> rotated [rows, 64, 256] bf16;  k, v [rows, 256] f32
//   table      [positions, 256] f32: cosines of a position's pairs, then sines; element j pairs with j + 128
//   positions  [rows];  first [rows]: where in `pages` a row's begin;  pages: page numbers
//   keys, values, scales  as mfa_decode_bf16.cu or, with `is_fp8`, mfa_decode_fp8.cu has them
//
// A warp is a head of q, or the key, or the value of a row. The same bits as rope_append.cu and a conversion. sm_90a only.
#include "common.cuh"
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#include "append.cuh"

extern "C" __global__ __launch_bounds__(256) void rope_append_fast(const __grid_constant__ Append a) {
    start_dependents();
    await_dependencies();
    int item = blockIdx.x * 8 + threadIdx.x / 32;
    if (item < a.rows * PARTS) append_part(a, item / PARTS, item % PARTS, threadIdx.x & 31);
}
#endif
