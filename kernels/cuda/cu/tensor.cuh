// Products of rows with weights on Hopper's tensor cores: what `tensor_up.cu`, `tensor_down.cu` and `tensor_project.cu` share.
//
// Weights are the M side: 64 of their rows make a wgmma tile, and tokens are its columns, of which there may be any number to 160.
// So few tokens cost little, and an expert's weights are read once however many tokens it has (to 160). Both operands are read in
// blocks of 128 bytes of a row: 128 e4m3 or 64 bf16 inputs. With e4m3 a block's product starts from zero, and is added in f32 times
// the block's scale (a weight's is one each 128 x 128): the tensor core's own sums keep 14 bits. A token's scale is one for all of
// its row and meets the sum (rows of `rows_fast.cu`), or one each 128 and meets the product (what `tensor_up.cu` leaves).
//
// A CTA goes through items, (tile of tokens, block of weight rows, part of the inputs): a fixed stride apart, or (`Chained`) a run
// of blocks that costs as much as every other CTA's, wherever items end. Who has an item's first blocks does them first of all and
// leaves the sums, whoever has the rest does it last of all and begins with them: nobody waits, and the bits are those of one sum.
// Two warpgroups multiply, one thread of a third keeps the copy engine busy, also while results go out; two warps of it bring rows
// from wherever they are (`Gathers`). A token's result has the same bits in any company and at any place. sm_90a only.
#pragma once
#include "tensor_items.cuh"
#include "tensor_sums.cuh"

// `work.item<Chunks, N>(a, memory, ring, entry, group, thread)` does an item's products: N accumulators for each 2 N tokens.
template <class Work, class M, class R, class E>
__device__ __forceinline__ void do_item(const Work &work, const Product &a, M &memory, R &ring, const E &entry, int group, int thread) {
    int count = entry.run.count;
    if (count <= 16)
        work.template item<1, 8>(a, memory, ring, entry, group, thread);
    else if (count <= 32)
        work.template item<1, 16>(a, memory, ring, entry, group, thread);
    else if (count <= 64)
        work.template item<1, 32>(a, memory, ring, entry, group, thread);
    else if (count <= 80)
        work.template item<1, 40>(a, memory, ring, entry, group, thread);
    else if (count <= 96)
        work.template item<1, 48>(a, memory, ring, entry, group, thread);
    else if (count <= 128)
        work.template item<1, 64>(a, memory, ring, entry, group, thread);
    else if (count <= 144)
        work.template item<2, 36>(a, memory, ring, entry, group, thread);
    else
        work.template item<2, 40>(a, memory, ring, entry, group, thread);
}

// Barriers, roles and items of a kernel.
template <bool Fp8, class M, class Work> __device__ __forceinline__ void run_items(const Product &a, u8 *raw, Work work) {
    M &memory = *reinterpret_cast<M *>(raw + ((1024 - (shared_address(raw) & 1023)) & 1023));
    if (threadIdx.x == 0) {
        for (int i = 0; i < M::Stages; i++) {
            barrier_init(shared_address(&memory.full[i]), 1 + (Work::Gathers ? GATHERING : 0));
            barrier_init(shared_address(&memory.empty[i]), 8);
        }
        // Readers of the queue: eight warps, the thread that loads, and the warps that gather.
        for (int i = 0; i < QUEUE; i++) {
            barrier_init(shared_address(&memory.queue_full[i]), 1);
            barrier_init(shared_address(&memory.queue_empty[i]), 9 + (Work::Gathers ? GATHERING / 32 : 0));
        }
        barrier_init_fence();
    }
    if (threadIdx.x == 256)
        for (const TensorMap *map : {&a.w, &a.up, &a.x}) prefetch_map(map);
    __syncthreads();
    start_dependents();
    // One number for a warp, so that descriptors are, too.
    int group = __shfl_sync(~0u, threadIdx.x / 128, 0), thread = threadIdx.x & 127;
    if (group == 2) {
        shrink_registers<56>();
        if (thread == 0)
            load_items<Fp8>(a, memory, work);
        else if (thread >= 32 && thread < 64)
            fetch_items<Fp8>(a, memory, work, thread - 32);
        else if (Work::Gathers && thread >= 64)
            gather_items(a, memory, thread - 64);
    } else {
        grow_registers<224>();
        await_dependencies();
        Ring<M> ring;
        Reader queue;
        for (;;) {
            Run run = queue.take(memory);
            if (run.count == 0) return;
            const auto &entry = memory.queue[queue.at];
            do_item(work, a, memory, ring, entry, group, thread);
            __syncwarp();
            if ((thread & 31) == 0)
                queue.give_back(memory);
            else
                queue.next();
        }
    }
}
