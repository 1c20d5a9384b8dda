// Router logits to experts and weights: softmax over all experts in f32, the `top_k` largest as they are.
//
//   logits [rows, experts] f32  ->  ids [rows, top_k] i32, best first, ties to the lower id;  weights [rows, top_k] f32
//
// `renormalises`: divided by the sum of the chosen ones. An item is a row. NaN ranks below every number.
#include "warp.cuh"

typedef struct {
    const float *logits;
    int *ids;
    float *weights;
    int experts, top_k, renormalises;
} Route;

FN float rank_of(const float *logits, int expert) {
    return logits[expert] == logits[expert] ? logits[expert] : as_float(0xff800000);
}

KERNEL(route, Route) {
    const float *logits = a.logits + (size_t)item * a.experts;
    int *ids = a.ids + (size_t)item * a.top_k;
    float *weights = a.weights + (size_t)item * a.top_k;
    EACH_LANE {
        if (lane != 0) continue;
        int filled = 0;
        for (int expert = 0; expert < a.experts; expert++) {
            int place = filled;
            while (place > 0 && rank_of(logits, expert) > rank_of(logits, ids[place - 1])) place--;
            if (place == a.top_k) continue;
            if (filled < a.top_k) filled++;
            for (int i = filled - 1; i > place; i--) ids[i] = ids[i - 1];
            ids[place] = expert;
        }
        float largest = logits[ids[0]], total = 0, chosen = 0;
        for (int expert = 0; expert < a.experts; expert++) total += expf(logits[expert] - largest);
        for (int i = 0; i < a.top_k; i++) {
            weights[i] = expf(logits[ids[i]] - largest) / total;
            chosen += weights[i];
        }
        if (a.renormalises)
            for (int i = 0; i < a.top_k; i++) weights[i] /= chosen;
    }
}
