// wgmma wrappers: one warpgroup multiplies a 64-row A tile by a B tile in shared memory; sm_90a only.
//
// Owns the instructions' text and nothing about layouts: descriptors come from the caller (`smem_descriptor`).
// Naming: wgmma_<A>_<types>_n<N>; A is `ss` (shared memory) or `rs` (registers). `accumulate` false starts from zero.
#pragma once

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int Pending> __device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}

// Descriptor of a swizzled operand tile. `swizzle`: 1 = 128 B, 2 = 64 B, 3 = 32 B. Offsets in bytes; `leading` is
// the distance between 64-element blocks of an MN-major operand and unused for a K-major one.
__device__ __forceinline__ u64 smem_descriptor(u32 address, u32 leading, u32 stride, u64 swizzle) {
    return (u64)((address & 0x3FFFF) >> 4) | ((u64)(leading >> 4) << 16) | ((u64)(stride >> 4) << 32) | (swizzle << 62);
}

// Keeps the compiler from moving accumulator reads above the wait, or writes below the fence.
template <int N> __device__ __forceinline__ void pin(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}

#define RALLY_F4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define RALLY_F16(d, i) RALLY_F4(d, i), RALLY_F4(d, i + 4), RALLY_F4(d, i + 8), RALLY_F4(d, i + 12)
#define RALLY_F32(d, i) RALLY_F16(d, i), RALLY_F16(d, i + 16)
#define RALLY_F64(d, i) RALLY_F32(d, i), RALLY_F32(d, i + 32)
#define RALLY_F128(d, i) RALLY_F64(d, i), RALLY_F64(d, i + 64)

// D[64, 64] (+)= A[64, 16] B[64, 16]^T, A and B K-major in shared memory.
#define RALLY_WGMMA_SS(NAME, OF) \
    __device__ __forceinline__ void NAME(float (&d)[32], u64 a, u64 b, bool accumulate) { \
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %34, 0;\n" \
                     "wgmma.mma_async.sync.aligned.m64n64k16.f32." OF "." OF " {" \
                     "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
                     "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31" \
                     "}, %32, %33, p, 1, 1, 0, 0; }\n" \
                     : RALLY_F32(d, 0) \
                     : "l"(a), "l"(b), "r"((int)accumulate)); \
    }
RALLY_WGMMA_SS(wgmma_ss_bf16_n64, "bf16")
RALLY_WGMMA_SS(wgmma_ss_f16_n64, "f16")

// D[64, 256] (+)= A[64, 16] B, A in registers, B [16, 256], MN-major in bf16 and K-major in f16, in shared memory.
#define RALLY_WGMMA_RS(NAME, OF, B_IS_MN_MAJOR) \
    __device__ __forceinline__ void NAME(float (&d)[128], const u32 *a, u64 b, bool accumulate) { \
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %133, 0;\n" \
                     "wgmma.mma_async.sync.aligned.m64n256k16.f32." OF "." OF " {" \
                     "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
                     "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, " \
                     "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, " \
                     "%62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, " \
                     "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, " \
                     "%102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, " \
                     "%119, %120, %121, %122, %123, %124, %125, %126, %127" \
                     "}, {%128, %129, %130, %131}, %132, p, 1, 1, " B_IS_MN_MAJOR "; }\n" \
                     : RALLY_F128(d, 0) \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate)); \
    }
RALLY_WGMMA_RS(wgmma_rs_bf16_n256, "bf16", "1")
RALLY_WGMMA_RS(wgmma_rs_f16_n256, "f16", "0")

// D[64, 64] (+)= A[64, 32] B[64, 32]^T, A and B K-major in shared memory.
__device__ __forceinline__ void wgmma_ss_e4m3_n64(float (&d)[32], u64 a, u64 b, bool accumulate) {
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %34, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "
                 "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
                 "}, %32, %33, p, 1, 1; }\n"
                 : RALLY_F32(d, 0)
                 : "l"(a), "l"(b), "r"((int)accumulate));
}

// D[64, 64] (+)= A[64, 32] B, A in registers, B [64, 32]^T, K-major, in shared memory.
__device__ __forceinline__ void wgmma_rs_e4m3_n64(float (&d)[32], const u32 *a, u64 b, bool accumulate) {
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %37, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "
                 "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
                 "}, {%32, %33, %34, %35}, %36, p, 1, 1; }\n"
                 : RALLY_F32(d, 0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate));
}

// The same for other numbers of B's rows, 2 x the accumulators of a thread: both operands K-major in shared memory, 32 bytes of
// every row. `multiply` of e4m3 or bf16, by how many accumulators there are.
#define RALLY_MULTIPLY(registers, width, list, a, b, flag, ...)                                                           \
    __device__ __forceinline__ void multiply_e4m3(float (&d)[registers], u64 from, u64 by, bool accumulate) {            \
        asm volatile("{ .reg .pred p; setp.ne.b32 p, " flag ", 0;\n"                                                     \
                     "wgmma.mma_async.sync.aligned.m64n" width "k32.f32.e4m3.e4m3 {" list "}, " a ", " b ", p, 1, 1; }\n" \
                     : __VA_ARGS__                                                                                       \
                     : "l"(from), "l"(by), "r"((int)accumulate));                                                        \
    }                                                                                                                    \
    __device__ __forceinline__ void multiply_bf16(float (&d)[registers], u64 from, u64 by, bool accumulate) {            \
        asm volatile("{ .reg .pred p; setp.ne.b32 p, " flag ", 0;\n"                                                     \
                     "wgmma.mma_async.sync.aligned.m64n" width "k16.f32.bf16.bf16 {" list "}, " a ", " b                 \
                     ", p, 1, 1, 0, 0; }\n"                                                                              \
                     : __VA_ARGS__                                                                                       \
                     : "l"(from), "l"(by), "r"((int)accumulate));                                                        \
    }
RALLY_MULTIPLY(8, "16",
               "%0, %1, %2, %3, %4, %5, %6, %7",
               "%8", "%9", "%10", RALLY_F4(d, 0), RALLY_F4(d, 4))
RALLY_MULTIPLY(16, "32",
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15",
               "%16", "%17", "%18", RALLY_F16(d, 0))
RALLY_MULTIPLY(32, "64",
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "
               "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31",
               "%32", "%33", "%34", RALLY_F32(d, 0))
RALLY_MULTIPLY(36, "72",
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "
               "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35",
               "%36", "%37", "%38", RALLY_F32(d, 0), RALLY_F4(d, 32))
RALLY_MULTIPLY(40, "80",
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "
               "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39",
               "%40", "%41", "%42", RALLY_F32(d, 0), RALLY_F4(d, 32), RALLY_F4(d, 36))
RALLY_MULTIPLY(48, "96",
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "
               "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, "
               "%38, %39, %40, %41, %42, %43, %44, %45, %46, %47",
               "%48", "%49", "%50", RALLY_F32(d, 0), RALLY_F16(d, 32))
RALLY_MULTIPLY(64, "128",
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "
               "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "
               "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, "
               "%60, %61, %62, %63",
               "%64", "%65", "%66", RALLY_F64(d, 0))
