// Row by row: embedding, norms, x += y, rows cut into slices and their parts added.
//
//   embed     out [rows, width] f32: row `ids[i]` of `table`, a matrix as `weights.cuh` has it
//   rms_norm  out [rows, width] = x / sqrt(mean(x²) + eps) · weight; x is [·, width], of which row `ids[i]` is taken (row i
//             without ids); out may be x where there are no ids
//   add       out [rows, width] += x
//   slice_columns  out: the columns of slice s of x [rows, width] from element most · (columns before it) on, row by row; the first
//             slices have one column more where they are uneven
//   add_slices     out [rows, width] += x_0 + x_1 + …, of which x_s begins at element s · most · width
//
// An item is a row, and where columns do not depend on each other 512 columns of one. The sum of squares: lane i adds values i, i + 32, …, then the lanes as a tree.
#include "weights.cuh"

typedef struct {
    const float *x, *weight;
    float *out;
    const int *ids;
    const Weights *table;
    int width;
    float eps;
} Rows;

#define COLUMNS 512
// Values that a lane asks for before it uses any: memory answers all of them at once.
#define AHEAD 8

// What an item has of a row of `width` values.
typedef struct {
    int row, first, end;
} Columns;

FN Columns columns_of(int item, int width) {
    Columns c;
    int chunks = (width + COLUMNS - 1) / COLUMNS;
    c.row = item / chunks, c.first = item % chunks * COLUMNS;
    c.end = c.first + COLUMNS < width ? c.first + COLUMNS : width;
    return c;
}

KERNEL(embed, Rows) {
    Weights table = a.table[0];
    Columns c = columns_of(item, a.width);
    int row = a.ids[c.row];
    EACH_LANE {
        for (int k = c.first + lane * 4; k < c.end; k += 4 * LANES) {
            float v[4];
            four_weights(v, &table, row, a.width, k);
            for (int j = 0; j < 4; j++)
                if (k + j < c.end) a.out[(size_t)c.row * a.width + k + j] = v[j];
        }
    }
}

KERNEL(rms_norm, Rows) {
    const float *x = a.x + (size_t)(a.ids ? a.ids[item] : item) * a.width;
    LANES_OF(float, sum, 1);
    EACH_LANE {
        AT(sum[0]) = 0;
        for (int first = lane; first < a.width; first += AHEAD * LANES) {
            float v[AHEAD];
            for (int i = 0, k = first; i < AHEAD; i++, k += LANES) v[i] = k < a.width ? x[k] : 0;
            for (int i = 0; i < AHEAD; i++) AT(sum[0]) = fmaf(v[i], v[i], AT(sum[0]));
        }
    }
    float factor = 1.0f / sqrtf(lanes_sum(sum[0]) / (float)a.width + a.eps);
    EACH_LANE {
        for (int first = lane; first < a.width; first += AHEAD * LANES) {
            float v[AHEAD];
            for (int i = 0, k = first; i < AHEAD; i++, k += LANES)
                v[i] = k < a.width ? product(product(x[k], factor), a.weight[k]) : 0;
            for (int i = 0, k = first; i < AHEAD; i++, k += LANES)
                if (k < a.width) a.out[(size_t)item * a.width + k] = v[i];
        }
    }
}

KERNEL(add, Rows) {
    Columns c = columns_of(item, a.width);
    size_t row = (size_t)c.row * a.width;
    EACH_LANE {
        for (int k = c.first + lane; k < c.end; k += LANES) a.out[row + k] += a.x[row + k];
    }
}

typedef struct {
    const float *x;
    float *out;
    int width, slices, most;
} Slices;

KERNEL(slice_columns, Slices) {
    Columns c = columns_of(item, a.width);
    int base = a.width / a.slices, more = a.width % a.slices, wide = more * (base + 1);
    EACH_LANE {
        for (int k = c.first + lane; k < c.end; k += LANES) {
            int slice = k < wide ? k / (base + 1) : more + (k - wide) / base;
            int start = slice * base + (slice < more ? slice : more), columns = base + (slice < more);
            a.out[(size_t)a.most * start + (size_t)c.row * columns + k - start] = a.x[(size_t)c.row * a.width + k];
        }
    }
}

KERNEL(add_slices, Slices) {
    Columns c = columns_of(item, a.width);
    EACH_LANE {
        for (int k = c.first + lane; k < c.end; k += LANES) {
            const float *x = a.x + (size_t)c.row * a.width + k;
            float sum = x[0];
            for (int slice = 1; slice < a.slices; slice++) sum += x[(size_t)slice * a.most * a.width];
            a.out[(size_t)c.row * a.width + k] += sum;
        }
    }
}
