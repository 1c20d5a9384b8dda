// What racecheck makes of data that one warp hands to another through shared memory, by the barrier that orders it.
//
//   nvcc -gencode=arch=compute_90a,code=sm_90a -lineinfo -o mbarrier mbarrier.cu
//   for way in 0 1 2 3 4; do compute-sanitizer --tool racecheck ./mbarrier $way; done
//
// Warp 0 writes a slot of 32 words, warp 1 reads it, 2000 times over two slots, as items go through the attention kernels' queue.
// Every way but the last is free of races by construction: each write of a slot is ordered behind the last reads of it and before the
// next ones. The program checks what was read, so it also says whether the order held.
#include <cstdio>
#include <cstdlib>

#define ROUNDS 2000

__device__ unsigned address(const void *pointer) { return (unsigned)__cvta_generic_to_shared(pointer); }
__device__ void init(unsigned long long *barrier, unsigned arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address(barrier)), "r"(arrivals) : "memory");
}
__device__ void arrive(unsigned long long *barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address(barrier)) : "memory");
}
__device__ void wait(unsigned long long *barrier, unsigned parity) {
    asm volatile("{ .reg .pred done;\n"
                 "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@done bra ready;\n"
                 "bra again;\n"
                 "ready: }\n" ::"r"(address(barrier)),
                 "r"(parity)
                 : "memory");
}

enum Way {
    ONE_LANE,   // an mbarrier, on which one lane arrives for its warp after __syncwarp: the kernels' own way
    ALL_LANES,  // an mbarrier, on which every lane arrives
    NAMED,      // bar.sync of both warps in a block of three, as the fp8 kernel's warpgroups do
    WHOLE_BLOCK, // __syncthreads
    NOTHING,    // a race, which has to be found
};

template <int Order> __global__ void hand_over(unsigned *wrong) {
    __shared__ unsigned slots[2][32];
    __shared__ unsigned long long full[2], empty[2];
    int warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    if (threadIdx.x == 0)
        for (int i = 0; i < 2; i++) init(&full[i], Order == ALL_LANES ? 32 : 1), init(&empty[i], Order == ALL_LANES ? 32 : 1);
    __syncthreads();
    if (warp == 2 && Order != WHOLE_BLOCK) return;
    for (unsigned round = 0; round < ROUNDS; round++) {
        unsigned at = round % 2, parity = round / 2 & 1;
        if (Order == ONE_LANE || Order == ALL_LANES) {
            if (warp == 0) {
                wait(&empty[at], parity ^ 1);
                slots[at][lane] = round * 32 + lane;
                if (Order == ONE_LANE) __syncwarp();
                if (Order == ALL_LANES || lane == 0) arrive(&full[at]);
            } else {
                wait(&full[at], parity);
                if (slots[at][31 - lane] != round * 32 + 31 - lane) atomicAdd(wrong, 1u);
                if (Order == ONE_LANE) __syncwarp();
                if (Order == ALL_LANES || lane == 0) arrive(&empty[at]);
            }
            continue;
        }
        if (warp == 0) slots[at][lane] = round * 32 + lane;
        if (Order == NAMED) asm volatile("bar.sync 1, 64;" ::: "memory");
        if (Order == WHOLE_BLOCK) __syncthreads();
        if (warp == 1 && slots[at][31 - lane] != round * 32 + 31 - lane) atomicAdd(wrong, 1u);
        if (Order == NAMED) asm volatile("bar.sync 1, 64;" ::: "memory");
        if (Order == WHOLE_BLOCK) __syncthreads();
    }
}

int main(int count, char **arguments) {
    int way = count > 1 ? atoi(arguments[1]) : 0;
    unsigned *wrong, seen = 0;
    cudaMalloc(&wrong, 4);
    cudaMemset(wrong, 0, 4);
    switch (way) {
    case ONE_LANE: hand_over<ONE_LANE><<<1, 96>>>(wrong); break;
    case ALL_LANES: hand_over<ALL_LANES><<<1, 96>>>(wrong); break;
    case NAMED: hand_over<NAMED><<<1, 96>>>(wrong); break;
    case WHOLE_BLOCK: hand_over<WHOLE_BLOCK><<<1, 96>>>(wrong); break;
    default: hand_over<NOTHING><<<1, 96>>>(wrong);
    }
    cudaMemcpy(&seen, wrong, 4, cudaMemcpyDeviceToHost);
    printf("way %d: %s, %u wrong words\n", way, cudaGetErrorString(cudaGetLastError()), seen);
    return 0;
}
