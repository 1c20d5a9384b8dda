// What CTAs of the MFA decode kernels work on, and how parts of one row become its output.
//
// The host gives every CTA a list of items, runs of one row's pages (`src/split.rs`). A row cut into parts leaves each
// part's sums in `partials`; when every CTA is done, they divide the cut rows' columns among themselves and add parts in
// ascending order. So a result depends on the cut, never on timing.
//
// `work`: cuts, whether KV is evicted from L2 first, 6 x 0; 2 (ctas + 1) words padded to a multiple of 8, where each CTA's share of adding begins (cut, column
// group); ctas cuts of 4 words; items of 16 words, item c the first of CTA c.
#pragma once

#define MFA_HEADS 64
#define MFA_DIM 256
#define MFA_PAGE 64
// A partial: sums in f16 `[16 column groups][128 threads][8]`, each half of the columns of a head times a power of two;
// then for each half 64 maxima and 64 denominators in f32 that the same power is in.
#define MFA_GROUP_BYTES 2048
#define MFA_SUMS_BYTES (16 * MFA_GROUP_BYTES)
#define MFA_PARTIAL_BYTES (MFA_SUMS_BYTES + 1024)
#define MFA_QUEUE 2 // items fetched ahead

struct Softmax {
    float maximum, denominator; // the denominator of this thread's columns alone
};

// One row's scores, times `scale_log2` (elements `Half`, `Half + 1` of every group), to probabilities; returns the old sums' factor.
// `inverse`: what probabilities are multiplied by in the denominator, every other element's the next; or none.
template <int Half, bool Scaled>
__device__ __forceinline__ float probabilities(float (&s)[32], Softmax &row, float scale_log2, const float *inverse) {
    float top = s[Half];
#pragma unroll
    for (int j = 0; j < 32; j += 4) top = fmaxf(top, fmaxf(s[j + Half], s[j + Half + 1]));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
    float maximum = fmaxf(row.maximum, top * scale_log2);
    float factor = fast_exp2(row.maximum - maximum), sum = 0;
#pragma unroll
    for (int j = 0; j < 32; j += 4) {
        s[j + Half] = fast_exp2(fmaf(s[j + Half], scale_log2, -maximum));
        s[j + Half + 1] = fast_exp2(fmaf(s[j + Half + 1], scale_log2, -maximum));
        if (Scaled) {
            float2 by = *reinterpret_cast<const float2 *>(inverse + 2 * j);
            sum = fmaf(s[j + Half], by.x, sum), sum = fmaf(s[j + Half + 1], by.y, sum);
        } else {
            sum += s[j + Half] + s[j + Half + 1];
        }
    }
    row.maximum = maximum;
    row.denominator = row.denominator * factor + sum;
    return factor;
}

// Pages `first..first + pages` of the page list belong to `row`; of the last one `tokens` positions are visible.
// `part` of `parts` (1: the row is whole), whose partial is number `slot`. `next` of its CTA, or -1. No pages: no
// work; fewer: the end. Its first page numbers come with it, so that a CTA's first load waits for one answer of memory.
#define MFA_HEAD_PAGES 8
struct Item {
    int row, first, pages, tokens;
    int part, parts, slot, next;
};
#define MFA_ITEM_WORDS 16
struct Cut {
    int row, slot, parts, more; // `more` rows behind it are cut alike, their parts behind its own
};

struct Work {
    const int *words;
    __device__ __forceinline__ int cuts() const { return __ldg(words); }
    __device__ __forceinline__ const int *cut_words() const { return words + 8 + (2 * (gridDim.x + 1) + 7) / 8 * 8; }
    __device__ __forceinline__ int2 share(int cta) const { return __ldg(reinterpret_cast<const int2 *>(words + 8) + cta); }
    __device__ __forceinline__ Cut cut(int at) const {
        int4 w = __ldg(reinterpret_cast<const int4 *>(cut_words()) + at);
        return Cut{w.x, w.y, w.z, w.w};
    }
    // Word `lane` of an item.
    __device__ __forceinline__ int item_word(int at, int lane) const {
        return __ldg(cut_words() + 4 * gridDim.x + at * MFA_ITEM_WORDS + lane % MFA_ITEM_WORDS);
    }
};

// How long KV, which is read once a step, stays in L2: evicted first, or like everything else.
__device__ __forceinline__ u64 kv_policy(const Work &work) {
    return __ldg(work.words + 1) ? 0x12F0000000000000ull : 0x1000000000000000ull;
}

// Items on their way from the fetching warp to everyone else in the CTA.
struct Queue {
    struct {
        Item item;
        int head[MFA_HEAD_PAGES];
    } entries[MFA_QUEUE];
    u64 full[MFA_QUEUE], empty[MFA_QUEUE];
};

// Every lane arrives for itself: racecheck does not see what one lane's arrival says of others (`racecheck/mbarrier.cu`), and items
// are few. `warps` and `lanes` that are alone take every item.
__device__ __forceinline__ void queue_init(Queue &queue, int warps, int lanes) {
    for (int i = 0; i < MFA_QUEUE; i++) {
        barrier_init(shared_address(&queue.full[i]), 32);
        barrier_init(shared_address(&queue.empty[i]), 32 * warps + lanes);
    }
}
__device__ __forceinline__ void queue_push(Queue &queue, int count, int word, int lane) {
    int at = count % MFA_QUEUE;
    barrier_wait(shared_address(&queue.empty[at]), (count / MFA_QUEUE & 1) ^ 1);
    if (lane < MFA_ITEM_WORDS) reinterpret_cast<int *>(&queue.entries[at])[lane] = word;
    barrier_arrive(shared_address(&queue.full[at]));
}
// By whole warps, or by one lane. `head`: page number `lane % 8`.
__device__ __forceinline__ Item queue_take(Queue &queue, int count, int lane, int &head) {
    int at = count % MFA_QUEUE;
    barrier_wait(shared_address(&queue.full[at]), count / MFA_QUEUE & 1);
    Item item = queue.entries[at].item;
    head = queue.entries[at].head[lane % MFA_HEAD_PAGES];
    barrier_arrive(shared_address(&queue.empty[at]));
    return item;
}

__device__ __forceinline__ Item queue_take(Queue &queue, int count, int lane) {
    int head;
    return queue_take(queue, count, lane, head);
}

// By one warp: this CTA's items into the queue. `word` is item blockIdx.x's. Memory under load answers in several us, which
// nobody else waits for.
__device__ __forceinline__ void fetch_items(const Work &work, Queue &queue, int word, int lane) {
    for (int count = 0;; count++) {
        int pages = __shfl_sync(~0u, word, 2), next = __shfl_sync(~0u, word, 7);
        if (pages == 0) next = -1, word = -1;
        queue_push(queue, count, word, lane);
        if (word == -1 && pages <= 0) return;
        word = next < 0 ? -1 : work.item_word(next, lane);
    }
}

// By one warp: an item's pages in order, `load(page, tokens, count)` by all lanes. `head`: page number `lane % 8` of the item.
template <class Load>
__device__ __forceinline__ void walk_item(const int *pages, const Item &item, int head, int lane, int count, Load load) {
    const int *rest = pages + item.first + MFA_HEAD_PAGES + lane;
    int left = item.pages - MFA_HEAD_PAGES - lane, numbers = head, ahead = left > 0 ? __ldg(rest) : 0;
    for (int i = 0, at = 0; i < item.pages; i++, at++) {
        if (at == 32 || i == MFA_HEAD_PAGES) {
            // A batch of 32 is asked for while the one before is used.
            at = 0, rest += 32, left -= 32;
            numbers = ahead, ahead = left > 0 ? __ldg(rest) : 0;
        }
        int page = __shfl_sync(~0u, numbers, at);
        load(page, i == item.pages - 1 ? item.tokens : MFA_PAGE, count + i);
    }
}

// By one warp: every page of this CTA's items in order.
template <class Load> __device__ __forceinline__ void walk_pages(const int *pages, Queue &queue, int lane, Load load) {
    int count = 0;
    for (int items = 0;; items++) {
        int head;
        Item item = queue_take(queue, items, lane, head);
        if (item.pages < 0) return;
        walk_item(pages, item, head, lane, count, load);
        count += item.pages;
    }
}

// A thread's place in a 64-row accumulator tile: rows `upper` and `upper + 8`, columns `8 j + column`, `+ 1`.
struct Place {
    int upper, column;
    __device__ __forceinline__ explicit Place(int thread)
        : upper((thread >> 5) * 16 + ((thread & 31) >> 2)), column((thread & 3) * 2) {}
};

// Among four neighbouring lanes: word i of lane t becomes word t of lane i.
__device__ __forceinline__ uint4 transpose_words(u32 a, u32 b, u32 c, u32 d, int lane) {
    bool odd = lane & 1, high = lane & 2;
    u32 x = __shfl_xor_sync(~0u, odd ? a : b, 1), y = __shfl_xor_sync(~0u, odd ? c : d, 1);
    if (odd) a = x, c = y; else b = x, d = y;
    x = __shfl_xor_sync(~0u, high ? a : c, 2), y = __shfl_xor_sync(~0u, high ? b : d, 2);
    if (high) a = x, b = y; else c = x, d = y;
    return make_uint4(a, b, c, d);
}

// Writes columns of a whole row: `sums` times the rows' factors, as bf16, 64 bytes of a row at once.
template <int First, int Count>
__device__ __forceinline__ void store_row(bf16 *out, int row, int thread, const float (&sums)[128], float upper, float lower) {
    bf16 *to = out + ((size_t)row * MFA_HEADS + Place(thread).upper) * MFA_DIM + (thread & 3) * 8;
#pragma unroll
    for (int i = First; i < First + Count; i += 16) {
        u32 words[2][4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            words[0][j] = pack_bf16(sums[i + 4 * j] * upper, sums[i + 4 * j + 1] * upper);
            words[1][j] = pack_bf16(sums[i + 4 * j + 2] * lower, sums[i + 4 * j + 3] * lower);
        }
        *reinterpret_cast<uint4 *>(to + 2 * i) = transpose_words(words[0][0], words[0][1], words[0][2], words[0][3], thread);
        *reinterpret_cast<uint4 *>(to + 2 * i + 8 * MFA_DIM) = transpose_words(words[1][0], words[1][1], words[1][2], words[1][3], thread);
    }
}

// The exponent of the largest of one row's values in half of the columns.
template <int First> __device__ __forceinline__ int half_exponent(const float (&sums)[128]) {
    float top = 0;
#pragma unroll
    for (int i = First; i < First / 4 * 4 + 64; i += 4) top = fmaxf(top, fmaxf(fabsf(sums[i]), fabsf(sums[i + 1])));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
    return min(max((__float_as_int(top) >> 23) - 127, -100), 100);
}
__device__ __forceinline__ float power_of_two(int exponent) { return __int_as_float((127 + exponent) << 23); }

// Writes half of the columns of a part; `First` is 0 or 64. Maxima and denominators are of the rows `at` names.
template <int First>
__device__ __forceinline__ void store_half(u8 *partials, int slot, int thread, const float (&sums)[128], float upper_maximum,
                                           float upper_denominator, float lower_maximum, float lower_denominator) {
    u8 *to = partials + (size_t)slot * MFA_PARTIAL_BYTES;
    int upper = half_exponent<First>(sums), lower = half_exponent<First + 2>(sums);
    float a = power_of_two(-upper), b = power_of_two(-lower);
#pragma unroll
    for (int i = First; i < First + 64; i += 8) {
        uint4 words = make_uint4(pack_f16(sums[i] * a, sums[i + 1] * a), pack_f16(sums[i + 2] * b, sums[i + 3] * b),
                                 pack_f16(sums[i + 4] * a, sums[i + 5] * a), pack_f16(sums[i + 6] * b, sums[i + 7] * b));
        __stcg(reinterpret_cast<uint4 *>(to + i / 8 * MFA_GROUP_BYTES) + thread, words);
    }
    if ((thread & 3) == 0) {
        float *statistics = reinterpret_cast<float *>(to + MFA_SUMS_BYTES) + First * 2 + Place(thread).upper;
        __stcg(statistics, upper_maximum + upper);
        __stcg(statistics + 8, lower_maximum + lower);
        __stcg(statistics + 64, upper_denominator * a);
        __stcg(statistics + 72, lower_denominator * b);
    }
}

// A thread's eight sums of a column group, over parts so far.
struct Added {
    float top_a, top_b, total_a, total_b, sum[8];
};

__device__ __forceinline__ void add_words(Added &to, uint4 words, float a, float b) {
    float2 x = unpack_f16(words.x), y = unpack_f16(words.y), z = unpack_f16(words.z), w = unpack_f16(words.w);
    to.sum[0] = fmaf(x.x, a, to.sum[0]), to.sum[1] = fmaf(x.y, a, to.sum[1]);
    to.sum[2] = fmaf(y.x, b, to.sum[2]), to.sum[3] = fmaf(y.y, b, to.sum[3]);
    to.sum[4] = fmaf(z.x, a, to.sum[4]), to.sum[5] = fmaf(z.y, a, to.sum[5]);
    to.sum[6] = fmaf(w.x, b, to.sum[6]), to.sum[7] = fmaf(w.y, b, to.sum[7]);
}

// Adds `parts` parts in shared memory: statistics of 1024 bytes each, then sums `stride` bytes apart.
__device__ __forceinline__ void add_group(Added &to, const u8 *statistics, const u8 *sums, int stride, int parts, int group,
                                          int thread) {
    const float *mine = reinterpret_cast<const float *>(statistics) + (group >> 3) * 128 + Place(thread).upper;
    float top_a = to.top_a, top_b = to.top_b;
    for (int p = 0; p < parts; p++) top_a = fmaxf(top_a, mine[p * 256]), top_b = fmaxf(top_b, mine[p * 256 + 8]);
    float a = fast_exp2(to.top_a - top_a), b = fast_exp2(to.top_b - top_b);
    to.top_a = top_a, to.top_b = top_b, to.total_a *= a, to.total_b *= b;
#pragma unroll
    for (int i = 0; i < 8; i++) to.sum[i] *= i & 2 ? b : a;
#pragma unroll 2
    for (int p = 0; p < parts; p++) {
        const float *from = mine + p * 256;
        uint4 words = *(reinterpret_cast<const uint4 *>(sums + p * stride) + thread);
        a = fast_exp2(from[0] - top_a), b = fast_exp2(from[8] - top_b);
        to.total_a = fmaf(from[64], a, to.total_a), to.total_b = fmaf(from[72], b, to.total_b);
        add_words(to, words, a, b);
    }
}

__device__ __forceinline__ void store_group(const Added &from, bf16 *out, int row, int group, int thread) {
    Place at(thread);
    float a = 1.0f / from.total_a, b = 1.0f / from.total_b;
    u32 *to = reinterpret_cast<u32 *>(out + ((size_t)row * MFA_HEADS + at.upper) * MFA_DIM + at.column) + group * 8;
    to[0] = pack_bf16(from.sum[0] * a, from.sum[1] * a), to[4] = pack_bf16(from.sum[4] * a, from.sum[5] * a);
    to += 8 * MFA_DIM / 2;
    to[0] = pack_bf16(from.sum[2] * b, from.sum[3] * b), to[4] = pack_bf16(from.sum[6] * b, from.sum[7] * b);
}

// What adding parts needs: `bytes` of shared memory, a barrier of one arrival that has completed `round` times.
struct Bench {
    u8 *memory;
    int bytes;
    u32 barrier;
    int round;
};

// The usual case, a few parts that are all in shared memory: one half's weights are worked out once for all its groups.
#define MFA_FEW 8
template <int Groups>
__device__ __forceinline__ void add_few(const u8 *statistics, const u8 *sums, int stride, int parts, int from, int to, bf16 *out,
                                        int row, int thread) {
    int lane = thread & 127, half = from >> 3;
    const float *mine = reinterpret_cast<const float *>(statistics) + half * 128 + Place(lane).upper;
    float a[MFA_FEW], b[MFA_FEW];
    Added added = {negative_infinity(), negative_infinity()};
#pragma unroll
    for (int p = 0; p < MFA_FEW; p++) {
        a[p] = p < parts ? mine[p * 256] : negative_infinity(), b[p] = p < parts ? mine[p * 256 + 8] : negative_infinity();
        added.top_a = fmaxf(added.top_a, a[p]), added.top_b = fmaxf(added.top_b, b[p]);
    }
#pragma unroll
    for (int p = 0; p < MFA_FEW; p++) {
        a[p] = fast_exp2(a[p] - added.top_a), b[p] = fast_exp2(b[p] - added.top_b);
        if (p < parts) added.total_a = fmaf(mine[p * 256 + 64], a[p], added.total_a);
        if (p < parts) added.total_b = fmaf(mine[p * 256 + 72], b[p], added.total_b);
    }
#pragma unroll 2
    for (int group = from + (thread >> 7); group < to; group += Groups) {
        const u8 *at = sums + (group - from) * MFA_GROUP_BYTES;
#pragma unroll
        for (int i = 0; i < 8; i++) added.sum[i] = 0;
#pragma unroll
        for (int p = 0; p < MFA_FEW; p++)
            if (p < parts) add_words(added, *(reinterpret_cast<const uint4 *>(at + p * stride) + lane), a[p], b[p]);
        store_group(added, out, row, group, lane);
    }
}

// Parts `first..first + count` of a cut row, column groups `from..from + groups` of each, to shared memory; for all threads.
__device__ __forceinline__ void fetch_parts(Bench &bench, const u8 *partials, const Cut &cut, int first, int count, int from,
                                            int groups, int thread) {
    int slice = groups * MFA_GROUP_BYTES;
    u32 to = shared_address(bench.memory);
    if (thread < 32) {
        asm volatile("fence.proxy.async;" ::: "memory");
        if (thread == 0) barrier_expect(bench.barrier, count * (slice + 1024));
        __syncwarp();
        for (int p = thread; p < count; p += 32) {
            const u8 *part = partials + (size_t)(cut.slot + first + p) * MFA_PARTIAL_BYTES;
            copy_bytes(to + p * 1024, part + MFA_SUMS_BYTES, 1024, bench.barrier);
            copy_bytes(to + count * 1024 + p * slice, part + from * MFA_GROUP_BYTES, slice, bench.barrier);
        }
    }
    barrier_wait(bench.barrier, bench.round & 1);
    bench.round++;
}

// Column groups `from..to` of one cut row, by `Groups` warpgroups.
template <int Groups>
__device__ __forceinline__ void add_parts(const Cut &cut, int from, int to, const u8 *partials, bf16 *out, Bench &bench, int thread) {
    int lane = thread & 127, groups = to - from;
    // As many column groups at once as fit with all parts; if not one does, one group and parts by turns.
    int room = bench.bytes / cut.parts, at_once = min(groups, max(1, (room - 1024) / MFA_GROUP_BYTES));
    int parts = min(cut.parts, bench.bytes / (MFA_GROUP_BYTES + 1024));
    for (int base = from; base < to; base += at_once) {
        int count = min(at_once, to - base), mine = base + (thread >> 7);
        Added added = {negative_infinity(), negative_infinity()};
        for (int first = 0; first < cut.parts; first += parts) {
            int now = min(parts, cut.parts - first);
            fetch_parts(bench, partials, cut, first, now, base, count, thread);
            if (cut.parts <= MFA_FEW) {
                const u8 *sums = bench.memory + now * 1024;
                int middle = min(max(base, 8), base + count), stride = count * MFA_GROUP_BYTES;
                if (base < middle) add_few<Groups>(bench.memory, sums, stride, now, base, middle, out, cut.row, thread);
                if (middle < base + count)
                    add_few<Groups>(bench.memory, sums + (middle - base) * MFA_GROUP_BYTES, stride, now, middle, base + count, out,
                                    cut.row, thread);
                named_barrier<1, Groups * 128>();
                continue;
            }
            for (int group = mine; group < base + count; group += Groups) {
                if (first == 0) added = {negative_infinity(), negative_infinity()};
                add_group(added, bench.memory, bench.memory + now * 1024 + (group - base) * MFA_GROUP_BYTES,
                          count * MFA_GROUP_BYTES, now, group, lane);
                if (first + now == cut.parts) store_group(added, out, cut.row, group, lane);
            }
            named_barrier<1, Groups * 128>();
        }
    }
}

// After a CTA's last item: tells the others, waits for them, adds its share of the cut rows.
template <int Groups>
__device__ __forceinline__ void add_share(const Work &work, const u8 *partials, bf16 *out, u32 *arrivals, u8 *memory, int bytes,
                                          u32 barrier, int thread) {
    int2 begin = work.share(blockIdx.x), end = work.share(blockIdx.x + 1);
    bool idle = begin.x == end.x && begin.y == end.y;
    int cuts = work.cuts();
    Cut cut = work.cut(min(begin.x, max(cuts - 1, 0)));
    named_barrier<1, Groups * 128>();
    if (thread == 0) {
        __threadfence();
        // A launch adds 2^31 in all, and so turns the highest bit once its last CTA is there: for ever, and whatever the grid.
        u32 before = atomicAdd(arrivals, blockIdx.x == 0 ? 0x80000000u - (gridDim.x - 1) : 1u);
        u32 seen = before;
        while (!idle && !((seen ^ before) & 0x80000000u))
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(arrivals) : "memory");
    }
    if (idle) return;
    named_barrier<1, Groups * 128>();
    Bench bench = {memory, bytes, barrier, 0};
    for (int at = begin.x; at < cuts && (at < end.x || (at == end.x && end.y > 0)); at++) {
        int from = at == begin.x ? begin.y : 0, to = at == end.x ? end.y : 16;
        for (int i = 0; i <= cut.more; i++)
            add_parts<Groups>({cut.row + i, cut.slot + i * cut.parts, cut.parts, 0}, from, to, partials, out, bench, thread);
        if (at + 1 < cuts) cut = work.cut(at + 1);
    }
}
