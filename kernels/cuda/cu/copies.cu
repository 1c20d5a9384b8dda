// Experts that several devices hold: which of them computes a row, and the sum of what all of them answered.
//
//   ids, weights [rows, top_k];  first [experts + 1], holders: devices that hold an expert, ascending, from first[expert] on
//   homes   [experts]            the device whose part of y an expert belongs to
//   here    [rows × top_k]       an expert's id where `own` computes it, `experts` elsewhere
//   takers  [rows × top_k]       who computes it
//   answers [devices]            addresses of what each has answered: [rows × top_k, hidden] f32 by place in the routing, or of
//   slots   [devices] or none    addresses of the slot of each place, [slots, hidden] bf16, weighted (`slots.cu`, `tensor_down.cu`)
//   shared  [rows, hidden] or none, or the first of the shared expert's slots behind `head`  ->  y [rows, hidden]
//
// share_copies: an item is an expert; of its rows in order the holders take one each in turn, so that a row's taker depends on the rows
// before it alone, and all devices find the same. sum_copies: an item is a row: from zero, weight × answer, rounded, in ascending id of
// the experts at home here, then the shared expert's: the bits of one device that holds them all.
#include "warp.cuh"

typedef struct {
    const int *ids, *first, *holders, *homes;
    int *here, *takers;
    const float *weights;
    const u64 *answers, *slots;
    const float *shared;
    const int *head;
    float *y;
    int rows, top_k, experts, own, hidden;
} Copies;

KERNEL(share_copies, Copies) {
    const int *holders = a.holders + a.first[item];
    int count = a.first[item + 1] - a.first[item], before = 0;
    LANES_OF(int, is_mine, 1);
    for (int start = 0; start < a.rows * a.top_k; start += LANES) {
        EACH_LANE { AT(is_mine[0]) = start + lane < a.rows * a.top_k && a.ids[start + lane] == item; }
        u32 votes = lanes_vote(is_mine[0]);
        EACH_LANE {
            if (AT(is_mine[0])) {
                int taker = holders[(before + ones(votes & ((1u << lane) - 1))) % count];
                a.takers[start + lane] = taker;
                a.here[start + lane] = taker == a.own ? item : a.experts;
            }
        }
        before += ones(votes);
    }
}

// What its taker has answered to a place in the routing, with its weight; a slot has it already, and there is none where rows pad.
FN float answer(const Copies *a, size_t at, int k) {
    int device = a->takers[at];
    if (!a->slots) return product(a->weights[at], ((const float *)(size_t)a->answers[device])[at * a->hidden + k]);
    int slot = ((const int *)(size_t)a->slots[device])[at];
    return slot < 0 ? 0.0f : from_bf16(((const u16 *)(size_t)a->answers[device])[(size_t)slot * a->hidden + k]);
}

KERNEL(sum_copies, Copies) {
    const int *ids = a.ids + (size_t)item * a.top_k;
    float *y = a.y + (size_t)item * a.hidden;
    EACH_LANE {
        for (int k = lane; k < a.hidden; k += LANES) {
            float sum = 0;
            for (int place = next_place(ids, a.top_k, -1); place >= 0; place = next_place(ids, a.top_k, ids[place]))
                if (a.homes[ids[place]] == a.own) sum += answer(&a, (size_t)item * a.top_k + place, k);
            if (a.shared) sum += a.shared[(size_t)item * a.hidden + k];
            if (a.head) sum += from_bf16(((const u16 *)(size_t)a.answers[a.own])[(size_t)(a.head[1] + item) * a.hidden + k]);
            y[k] = sum;
        }
    }
}
