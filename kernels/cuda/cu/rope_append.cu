// Rotary position embedding of q and k, and every row's k and v into its page.
//
//   q          [rows, heads, head_dim]  f32, rotated in place;  k, v [rows, head_dim] f32
//   table      [positions, head_dim]    f32: cosines of a position's pairs, then sines; element j pairs with j + head_dim / 2
//   positions  [rows];  first [rows]: where in `pages` a row's begin;  pages: page numbers
//   keys, values [pages, page_tokens, head_dim] f32, bf16 or e4m3;  scales [pages, 2, page_tokens] f32 for e4m3: K's, then V's
//
// `is_turned`: values of e4m3 are [pages, head_dim, 64] in the order of mfa_decode_fp8.cu, whose pages have 64 positions.
//
// An item is a head of q, or the key, or the value of a row: rows × (heads + 2). head_dim even, at most 512. An e4m3 row's scale is
// its largest finite magnitude / 448.
#include "warp.cuh"

typedef struct {
    float *q;
    const float *k, *v, *table;
    const int *positions, *first, *pages;
    void *keys, *values;
    float *scales;
    int heads, head_dim, page_tokens, dtype, is_turned;
} Append;

// Where mfa_decode_fp8.cu has a position's value in a row of 64.
FN int turned_place(int position) {
    int rest = position % 16;
    return position - rest + 4 * (rest % 8 / 2) + 2 * (rest / 8) + rest % 2;
}

// Element j * 32 + lane of the head, rotated.
FN float rotated(const float *head, const float *table, int head_dim, int element) {
    int half = head_dim / 2, pair = element < half ? element : element - half;
    float low = head[pair], high = head[pair + half], cosine = table[pair], sine = table[pair + half];
    if (element < half) return product(low, cosine) - product(high, sine);
    return product(high, cosine) + product(low, sine);
}

KERNEL(rope_append, Append) {
    int row = item / (a.heads + 2), part = item % (a.heads + 2), d = a.head_dim, position = a.positions[row];
    int is_query = part < a.heads, is_value = part == a.heads + 1;
    const float *table = a.table + (size_t)position * d;
    float *query = a.q + ((size_t)row * a.heads + part) * d;
    const float *from = is_query ? query : (is_value ? a.v : a.k) + (size_t)row * d;
    LANES_OF(float, x, WIDE);
    LANES_OF(float, largest, 1);
    EACH_LANE {
        AT(largest[0]) = 0;
        for (int j = 0; j < WIDE; j++) {
            int element = j * LANES + lane;
            AT(x[j]) = element >= d ? 0 : is_value ? from[element] : rotated(from, table, d, element);
            AT(largest[0]) = larger_magnitude(AT(largest[0]), AT(x[j]));
        }
    }
    // Every lane has read both of its pairs before any writes: a query is rotated in place.
    float scale = e4m3_scale(lanes_max(largest[0]));
    int page = a.pages[a.first[row] + position / a.page_tokens], offset = position % a.page_tokens;
    size_t at = ((size_t)page * a.page_tokens + offset) * d;
    void *pool = is_value ? a.values : a.keys;
    EACH_LANE {
        for (int j = 0; j < WIDE; j++) {
            int element = j * LANES + lane;
            if (element >= d) continue;
            if (is_query)
                query[element] = AT(x[j]);
            else if (a.dtype == STORED_F32)
                ((float *)pool)[at + element] = AT(x[j]);
            else if (a.dtype == STORED_BF16)
                ((u16 *)pool)[at + element] = to_bf16(AT(x[j]));
            else if (is_value && a.is_turned)
                ((u8 *)pool)[((size_t)page * d + element) * a.page_tokens + turned_place(offset)] = to_e4m3(AT(x[j]) / scale);
            else
                ((u8 *)pool)[at + element] = to_e4m3(AT(x[j]) / scale);
        }
        if (lane == 0 && !is_query && a.dtype == STORED_FP8)
            a.scales[((size_t)page * 2 + is_value) * a.page_tokens + offset] = scale;
    }
}
