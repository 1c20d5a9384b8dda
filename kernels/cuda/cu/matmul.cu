// Products of rows with a matrix as stored: y = x Wᵀ, and the gated form y = silu(x Gᵀ) · (x Uᵀ) that an FFN begins with.
//
//   x      [·, inputs]   f32          y      [·, outputs]  f32
//   w, up  [experts]     matrices [outputs, inputs] as `weights.cuh` has them; `up` for the gated form alone
//   tiles  [tiles, 3]    expert, first slot, slots (at most 8, or 0); none: 8 consecutive rows each, all of matrix 0
//   members [slots]      place of each slot in the routing, row × top_k + place; with `tiles` alone
//
// An item is one column of one tile. Without tiles x and y have the same rows. With them, `gathers`: x is [rows, inputs], a slot
// takes row member / top_k of it, and y is [slots, outputs]; else x is [slots, inputs] and y [rows × top_k, outputs] by member.
// Any sizes, any architecture; a row has the same bits in any company.
#include "weights.cuh"

typedef struct {
    const float *x;
    float *y;
    const Weights *w, *up;
    const int *tiles, *members;
    int rows, inputs, outputs, top_k, gathers;
} Matmul;

FN int row_of(const Matmul *a, int slot, int is_input) {
    if (!a->tiles) return slot;
    if (a->gathers) return is_input ? a->members[slot] / a->top_k : slot;
    return is_input ? slot : a->members[slot];
}

FN void multiply(const Matmul *a, int item, int is_gated) {
    int column = item % a->outputs, rows[TILE_ROWS];
    Tile tile = tile_of(a->tiles, item / a->outputs, a->rows);
    if (tile.count <= 0) return;
    for (int i = 0; i < TILE_ROWS; i++) rows[i] = row_of(a, tile.first + (i < tile.count ? i : 0), 1);
    float answers[TILE_ROWS], ups[TILE_ROWS];
    Weights w = a->w[tile.expert];
    products(answers, a->x, rows, tile.count, &w, column, a->inputs);
    if (is_gated) {
        Weights up = a->up[tile.expert];
        products(ups, a->x, rows, tile.count, &up, column, a->inputs);
        for (int i = 0; i < TILE_ROWS; i++) answers[i] = product(answers[i] / (1.0f + expf(-answers[i])), ups[i]);
    }
    EACH_LANE {
        for (int i = 0; i < TILE_ROWS; i++)
            if (lane == i && i < tile.count)
                a->y[(size_t)row_of(a, tile.first + i, 0) * a->outputs + column] = answers[i];
    }
}

KERNEL(matmul, Matmul) { multiply(&a, item, 0); }
KERNEL(gated, Matmul) { multiply(&a, item, 1); }
