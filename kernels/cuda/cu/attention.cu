// MFA attention over pages, prefill and decode alike: out = softmax(q K^T * scale) V for any number of heads on one key-value head.
//
//   q, out     [rows, heads, head_dim]  f32
//   keys, values [pages, page_tokens, head_dim] f32, bf16 or e4m3;  scales [pages, 2, page_tokens] f32 for e4m3: K's, then V's
//   positions  [rows]: a row sees positions 0 to its own;  first [rows]: where in `pages` a row's begin;  pages: page numbers
//
// An item is one head of one row. head_dim at most 512, any page size, any architecture. Tiles of 32 positions in order, f32 with a
// running maximum; every sum's order depends on position alone, so a row has the same bits in any batch and any chunk.
// Positions after a row's own may hold anything.
#include "warp.cuh"

typedef struct {
    const float *q;
    float *out;
    const void *keys, *values;
    const float *scales;
    const int *positions, *first, *pages;
    int heads, head_dim, page_tokens, dtype;
    float scale;
} Attention;

FN size_t place(const Attention *a, const int *pages, int position) {
    return (size_t)pages[position / a->page_tokens] * a->page_tokens + position % a->page_tokens;
}

FN float scale_of(const Attention *a, size_t at, int is_value) {
    if (a->dtype != STORED_FP8) return 1.0f;
    return a->scales[((at / a->page_tokens) * 2 + is_value) * a->page_tokens + at % a->page_tokens];
}

FN void attend(const Attention *a, int item, const int dtype) {
    int row = item / a->heads, d = a->head_dim, context = a->positions[row] + 1;
    const int *pages = a->pages + a->first[row];
    LANES_OF(float, q, WIDE);
    LANES_OF(float, sum, WIDE);
    LANES_OF(float, score, 1);
    LANES_OF(float, part, 1);
    float maximum = as_float(0xff800000), denominator = 0;
    EACH_LANE {
        for (int j = 0; j < WIDE; j++) {
            AT(q[j]) = j * LANES + lane < d ? a->q[(size_t)item * d + j * LANES + lane] : 0;
            AT(sum[j]) = 0;
        }
    }
    for (int start = 0; start < context; start += LANES) {
        int count = context - start < LANES ? context - start : LANES;
        EACH_LANE { AT(score[0]) = as_float(0xff800000); }
        for (int i = 0; i < count; i++) {
            size_t at = place(a, pages, start + i);
            EACH_LANE {
                AT(part[0]) = 0;
                for (int j = 0; j < WIDE; j++)
                    if (j * LANES + lane < d)
                        AT(part[0]) = fmaf(AT(q[j]), stored(a->keys, at * d + j * LANES + lane, dtype), AT(part[0]));
            }
            float whole = product(product(lanes_sum(part[0]), scale_of(a, at, 0)), a->scale);
            EACH_LANE {
                if (lane == i) AT(score[0]) = whole;
            }
        }
        float most = fmaxf(maximum, lanes_max(score[0])), factor = expf(maximum - most);
        EACH_LANE { AT(score[0]) = expf(AT(score[0]) - most); }
        maximum = most;
        denominator = fmaf(denominator, factor, lanes_sum(score[0]));
        EACH_LANE {
            for (int j = 0; j < WIDE; j++) AT(sum[j]) = product(AT(sum[j]), factor);
        }
        for (int i = 0; i < count; i++) {
            size_t at = place(a, pages, start + i);
            float weight = product(lane_value(score[0], i), scale_of(a, at, 1));
            EACH_LANE {
                for (int j = 0; j < WIDE; j++)
                    if (j * LANES + lane < d)
                        AT(sum[j]) = fmaf(weight, stored(a->values, at * d + j * LANES + lane, dtype), AT(sum[j]));
            }
        }
    }
    EACH_LANE {
        for (int j = 0; j < WIDE; j++)
            if (j * LANES + lane < d) a->out[(size_t)item * d + j * LANES + lane] = AT(sum[j]) / denominator;
    }
}

KERNEL(attention_f32, Attention) { attend(&a, item, STORED_F32); }
KERNEL(attention_bf16, Attention) { attend(&a, item, STORED_BF16); }
KERNEL(attention_fp8, Attention) { attend(&a, item, STORED_FP8); }
