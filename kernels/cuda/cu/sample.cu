// Tokens from logits: the largest, or one drawn after the filters temperature, min-p, top-k, top-p, in this order.
//
//   logits  [rows, vocab] f32
//   choices [rows]          how each row is chosen; `uniform` is the row's random number in [0, 1)
//   digests [rows, chunks]  of each 1024 logits: the largest, its id (the lowest of equals), the first that is not finite or -1
//   chosen  [rows, 2]       token, and the first logit that is not finite or -1; if there is one the token means nothing
//   odds    [rows, 21] f32, likely [rows, 20]  log probability of the chosen token, then those of the `reported` most likely ones,
//                           best first, ties to the lower id (-1 where there are no more); rows with -1 report nothing
//
// digest_logits: an item is a chunk of a row. choose_tokens, report_odds: an item is a row; their launches follow. Probabilities are
// f64, relative to the best token's. What top-k and top-p keep ends at a rank, which is found four bits at a time, and of the logits
// equal to that one top-p keeps as many as it needs, lower ids first.
#include "warp.cuh"

#define CHUNK 1024
#define REPORTED 20

typedef struct {
    double uniform;
    float temperature, top_p, min_p;
    int top_k, reported, unused;
} Choice;

typedef struct {
    float largest;
    int best, broken;
} Digest;

typedef struct {
    const float *logits;
    const Choice *choices;
    Digest *digests;
    int *chosen;
    float *odds;
    int *likely;
    int vocab;
} Sample;

FN int chunks_of(int vocab) { return (vocab + CHUNK - 1) / CHUNK; }

// The larger logit, the lower id of equals (-1: none yet); and the first broken one.
FN Digest better(Digest a, Digest b) {
    Digest best = a;
    if (a.best < 0 || (b.best >= 0 && (b.largest > a.largest || (b.largest == a.largest && b.best < a.best)))) best = b;
    best.broken = a.broken < 0 || (b.broken >= 0 && b.broken < a.broken) ? b.broken : a.broken;
    return best;
}

#ifdef __CUDACC__
FN Digest lanes_best(Digest x) {
    for (int mask = 16; mask > 0; mask /= 2) {
        Digest other = {__shfl_xor_sync(~0u, x.largest, mask), __shfl_xor_sync(~0u, x.best, mask),
                        __shfl_xor_sync(~0u, x.broken, mask)};
        x = better(x, other);
    }
    return x;
}
FN double lanes_total(double x) {
    for (int mask = 16; mask > 0; mask /= 2) x += __shfl_xor_sync(~0u, x, mask);
    return x;
}
FN double lane_total(double x, int lane) { return __shfl_sync(~0u, x, lane); }
#else
FN Digest lanes_best(const Digest *x) {
    Digest best = x[0];
    for (int i = 1; i < LANES; i++) best = better(best, x[i]);
    return best;
}
FN double lanes_total(const double *x) {
    double sum[16];
    for (int i = 0; i < 16; i++) sum[i] = x[i] + x[i + 16];
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; i++) sum[i] += sum[i + half];
    return sum[0];
}
FN double lane_total(const double *x, int lane) { return x[lane]; }
#endif

// Ascends with the logit; both zeros alike.
FN u32 rank_of(float logit) {
    u32 bits = as_bits(logit + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// A row, and which of its tokens are still in the choice: those of rank `least` and above, of that rank itself the first `equals`.
typedef struct {
    const float *logits;
    int vocab, best, equals;
    u32 least;
    float largest;
    Choice how;
} Row;

FN double odds_of(const Row *row, int token) {
    return exp(((double)row->logits[token] - (double)row->largest) / (double)row->how.temperature);
}

// Of a token of rank `least` or above: its odds, or 0 if min-p takes it out. The best token always stays.
FN double kept_odds(const Row *row, int token) {
    double odds = odds_of(row, token);
    return token == row->best || odds >= (double)row->how.min_p ? odds : 0.0;
}

// The rank down to which tokens, most likely first, reach `goal` together, each counting 1 or its odds; and what those above that
// rank come to. 0 if all together do not reach it.
FN u32 rank_reaching(const Row *row, int by_odds, double goal, double *above) {
    u32 prefix = 0;
    *above = 0.0;
    for (int shift = 28; shift >= 0; shift -= 4) {
        LANES_OF(double, bins, 16);
        for (int i = 0; i < 16; i++) EACH_LANE { AT(bins[i]) = 0.0; }
        for (int start = 0; start < row->vocab; start += LANES) {
            EACH_LANE {
                int token = start + lane;
                u32 rank = token < row->vocab ? rank_of(row->logits[token]) : 0;
                if (token < row->vocab && rank >= row->least && (shift == 28 || (rank ^ prefix) >> (shift + 4) == 0))
                    AT(bins[(rank >> shift) & 15]) += by_odds ? kept_odds(row, token) : 1.0;
            }
        }
        // Sums in another order may come out short by a rounding: then the last that has anything is meant.
        int found = -1, last = -1;
        double before = *above, before_last = *above;
        for (int digit = 15; digit >= 0; digit--) {
            double sum = lanes_total(bins[digit]);
            if (found >= 0 || sum <= 0.0) continue;
            last = digit, before_last = before;
            if (before + sum >= goal) found = digit;
            else before += sum;
        }
        if (found < 0 && shift == 28) return 0;
        prefix |= (u32)(found < 0 ? last : found) << shift;
        *above = before_last;
    }
    return prefix;
}

// The odds of tokens start … start + 31, 0 for those that are out. `equals` counts tokens of the least rank before them.
#define WEIGH(row, start, weights, equals)                                                                               \
    do {                                                                                                                 \
        LANES_OF(int, is_equal, 1);                                                                                      \
        EACH_LANE {                                                                                                      \
            int token = (start) + lane;                                                                                  \
            AT(is_equal[0]) = token < (row)->vocab && rank_of((row)->logits[token]) == (row)->least;                     \
        }                                                                                                                \
        u32 votes = lanes_vote(is_equal[0]);                                                                             \
        EACH_LANE {                                                                                                      \
            int token = (start) + lane, at = (equals) + ones(votes & ((1u << lane) - 1));                                \
            int in = token < (row)->vocab && rank_of((row)->logits[token]) >= (row)->least;                              \
            if (in && AT(is_equal[0])) in = at < (row)->equals;                                                          \
            AT((weights)[0]) = in ? kept_odds((row), token) : 0.0;                                                       \
        }                                                                                                                \
        (equals) += ones(votes);                                                                                         \
    } while (0)

FN double total_of(const Row *row) {
    LANES_OF(double, sum, 1);
    LANES_OF(double, weights, 1);
    EACH_LANE { AT(sum[0]) = 0.0; }
    int equals = 0;
    for (int start = 0; start < row->vocab; start += LANES) {
        WEIGH(row, start, weights, equals);
        EACH_LANE { AT(sum[0]) += AT(weights[0]); }
    }
    return lanes_total(sum[0]);
}

FN int draw(Row *row) {
    double above;
    if (row->how.top_k > 0 && row->how.top_k < row->vocab) row->least = rank_reaching(row, 0, row->how.top_k, &above);
    double total = total_of(row);
    if (row->how.top_p < 1.0f) {
        double goal = (double)row->how.top_p * total;
        u32 least = rank_reaching(row, 1, goal, &above);
        if (least > 0) {
            row->least = least;
            LANES_OF(double, odds, 1);
            EACH_LANE { AT(odds[0]) = 0.0; }
            for (int start = 0; start < row->vocab; start += LANES) {
                EACH_LANE {
                    int token = start + lane;
                    if (token < row->vocab && rank_of(row->logits[token]) == least) AT(odds[0]) = odds_of(row, token);
                }
            }
            // Several lanes may have found one: all of them the same.
            LANES_OF(float, narrow, 1);
            EACH_LANE { AT(narrow[0]) = AT(odds[0]) > 0.0 ? 1.0f : 0.0f; }
            double each = lanes_total(odds[0]) / (double)lanes_sum(narrow[0]);
            double wanted = ceil((goal - above) / each);
            row->equals = wanted < 1.0 ? 1 : wanted < (double)row->vocab ? (int)wanted : row->vocab;
            total = total_of(row);
        }
    }
    double left = row->how.uniform * total;
    LANES_OF(double, weights, 1);
    int equals = 0;
    for (int start = 0; start < row->vocab; start += LANES) {
        WEIGH(row, start, weights, equals);
        double group = lanes_total(weights[0]);
        if (left - group >= 0.0) {
            left -= group;
            continue;
        }
        int last = row->best;
        for (int lane = 0; lane < LANES; lane++) {
            double odds = lane_total(weights[0], lane);
            if (odds <= 0.0) continue;
            last = start + lane;
            left -= odds;
            if (left < 0.0) break;
        }
        return last;
    }
    // Rounding may leave a crumb: the best token is as good an owner as any.
    return row->best;
}

KERNEL(digest_logits, Sample) {
    int chunks = chunks_of(a.vocab), row = item / chunks, chunk = item % chunks;
    int end = a.vocab < (chunk + 1) * CHUNK ? a.vocab : (chunk + 1) * CHUNK;
    const float *logits = a.logits + (size_t)row * a.vocab;
    LANES_OF(Digest, found, 1);
    EACH_LANE {
        Digest best = {0.0f, -1, -1};
        for (int token = chunk * CHUNK + lane; token < end; token += LANES) {
            float logit = logits[token];
            if ((as_bits(logit) & 0x7f800000) == 0x7f800000) {
                if (best.broken < 0) best.broken = token;
            } else if (best.best < 0 || logit > best.largest)
                best.largest = logit, best.best = token;
        }
        AT(found[0]) = best;
    }
    Digest best = lanes_best(found[0]);
    EACH_LANE {
        if (lane == 0) a.digests[item] = best;
    }
}

FN Digest digest_of(const Sample *a, int row) {
    int chunks = chunks_of(a->vocab);
    LANES_OF(Digest, found, 1);
    EACH_LANE {
        Digest best = {0.0f, -1, -1};
        for (int chunk = lane; chunk < chunks; chunk += LANES) best = better(best, a->digests[(size_t)row * chunks + chunk]);
        AT(found[0]) = best;
    }
    return lanes_best(found[0]);
}

KERNEL(choose_tokens, Sample) {
    Digest best = digest_of(&a, item);
    int token = best.best;
    Choice how = a.choices[item];
    if (best.broken < 0 && how.temperature > 0.0f) {
        Row row;
        row.logits = a.logits + (size_t)item * a.vocab;
        row.vocab = a.vocab, row.best = best.best, row.equals = a.vocab, row.least = 0, row.largest = best.largest, row.how = how;
        token = draw(&row);
    }
    EACH_LANE {
        if (lane == 0) a.chosen[item * 2] = token, a.chosen[item * 2 + 1] = best.broken;
    }
}

KERNEL(report_odds, Sample) {
    int reported = a.choices[item].reported;
    if (reported < 0 || a.chosen[item * 2 + 1] >= 0) return;
    const float *logits = a.logits + (size_t)item * a.vocab;
    float *odds = a.odds + (size_t)item * (REPORTED + 1);
    int *likely = a.likely + (size_t)item * REPORTED;
    float largest = digest_of(&a, item).largest;
    LANES_OF(double, sum, 1);
    EACH_LANE {
        AT(sum[0]) = 0.0;
        for (int token = lane; token < a.vocab; token += LANES)
            AT(sum[0]) += exp((double)logits[token] - (double)largest);
    }
    double total = (double)largest + log(lanes_total(sum[0]));
    EACH_LANE {
        if (lane == 0) odds[0] = (float)((double)logits[a.chosen[item * 2]] - total);
    }
    u32 rank = ~0u;
    int before = -1;
    for (int place = 0; place < reported; place++) {
        LANES_OF(Digest, found, 1);
        EACH_LANE {
            Digest best = {0.0f, -1, -1};
            for (int token = lane; token < a.vocab; token += LANES) {
                u32 other = rank_of(logits[token]);
                Digest next = {logits[token], token, -1};
                if (other < rank || (other == rank && token > before)) best = better(best, next);
            }
            AT(found[0]) = best;
        }
        Digest best = lanes_best(found[0]);
        EACH_LANE {
            if (lane == 0) likely[place] = best.best, odds[place + 1] = (float)((double)best.largest - total);
        }
        if (best.best < 0) break;
        rank = rank_of(best.largest), before = best.best;
    }
}
