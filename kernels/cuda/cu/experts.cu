// Which rows go to which expert, and the sum of what comes back. No count leaves the device.
//
//   ids, weights [rows, top_k];  local [experts]: index among those held here, or -1
//   counts  [held]           rows of each held expert
//   tiles   [tiles, 3]       local index, first slot, slots: at most 8 of one expert; unused ones have no slots
//   members [rows × top_k]   place in the routing of each slot: expert by expert, in row order
//   answers [rows × top_k, hidden]  of each place;  shared [rows, hidden] or none  ->  y [rows, hidden]
//
// count_experts, place_experts: an item is a held expert; their launches follow each other. place_experts needs
// rows × top_k / 8 + held tiles. sum_experts: an item is a row: from zero, weight × answer, rounded, in ascending id of the held
// experts; then the shared expert's.
#include "warp.cuh"

typedef struct {
    const int *ids, *local;
    int *counts, *tiles, *members;
    const float *weights, *answers, *shared;
    float *y;
    int rows, top_k, held, most_tiles, hidden;
} Experts;

FN int tiles_for(int count) { return (count + TILE_ROWS - 1) / TILE_ROWS; }

KERNEL(count_experts, Experts) {
    int count = 0;
    LANES_OF(int, is_mine, 1);
    for (int start = 0; start < a.rows * a.top_k; start += LANES) {
        EACH_LANE { AT(is_mine[0]) = start + lane < a.rows * a.top_k && a.local[a.ids[start + lane]] == item; }
        count += ones(lanes_vote(is_mine[0]));
    }
    EACH_LANE {
        if (lane == 0) a.counts[item] = count;
    }
}

KERNEL(place_experts, Experts) {
    int slot = 0, tile = 0, count = a.counts[item];
    for (int before = 0; before < item; before++) slot += a.counts[before], tile += tiles_for(a.counts[before]);
    EACH_LANE {
        for (int i = lane; i < tiles_for(count); i += LANES) {
            int left = count - i * TILE_ROWS, *entry = a.tiles + (size_t)(tile + i) * 3;
            entry[0] = item, entry[1] = slot + i * TILE_ROWS, entry[2] = left < TILE_ROWS ? left : TILE_ROWS;
        }
        // The last one marks what is left over.
        if (item == a.held - 1)
            for (int i = tile + tiles_for(count) + lane; i < a.most_tiles; i += LANES) a.tiles[(size_t)i * 3 + 2] = 0;
    }
    LANES_OF(int, is_mine, 1);
    for (int start = 0; start < a.rows * a.top_k; start += LANES) {
        EACH_LANE { AT(is_mine[0]) = start + lane < a.rows * a.top_k && a.local[a.ids[start + lane]] == item; }
        u32 votes = lanes_vote(is_mine[0]);
        EACH_LANE {
            if (AT(is_mine[0])) a.members[slot + ones(votes & ((1u << lane) - 1))] = start + lane;
        }
        slot += ones(votes);
    }
}

KERNEL(sum_experts, Experts) {
    const int *ids = a.ids + (size_t)item * a.top_k;
    float *y = a.y + (size_t)item * a.hidden;
    EACH_LANE {
        for (int k = lane; k < a.hidden; k += LANES) {
            float sum = 0;
            for (int place = next_place(ids, a.top_k, -1); place >= 0; place = next_place(ids, a.top_k, ids[place])) {
                if (a.local[ids[place]] < 0) continue;
                size_t at = (size_t)item * a.top_k + place;
                sum += product(a.weights[at], a.answers[at * a.hidden + k]);
            }
            if (a.shared) sum += a.shared[(size_t)item * a.hidden + k];
            y[k] = sum;
        }
    }
}
