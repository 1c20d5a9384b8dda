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
// An item is a row, with slices 512 columns of one. The sum of squares: lane i adds values i, i + 32, …, then the lanes as a tree.
#include "weights.cuh"

typedef struct {
    const float *x, *weight;
    float *out;
    const int *ids;
    const Weights *table;
    int width;
    float eps;
} Rows;

KERNEL(embed, Rows) {
    Weights table = a.table[0];
    int row = a.ids[item];
    EACH_LANE {
        for (int k = lane * 4; k < a.width; k += 4 * LANES) {
            float v[4];
            four_weights(v, &table, row, a.width, k);
            for (int j = 0; j < 4; j++)
                if (k + j < a.width) a.out[(size_t)item * a.width + k + j] = v[j];
        }
    }
}

KERNEL(rms_norm, Rows) {
    const float *x = a.x + (size_t)(a.ids ? a.ids[item] : item) * a.width;
    LANES_OF(float, sum, 1);
    EACH_LANE {
        AT(sum[0]) = 0;
        for (int k = lane; k < a.width; k += LANES) AT(sum[0]) = fmaf(x[k], x[k], AT(sum[0]));
    }
    float factor = 1.0f / sqrtf(lanes_sum(sum[0]) / (float)a.width + a.eps);
    EACH_LANE {
        for (int k = lane; k < a.width; k += LANES)
            a.out[(size_t)item * a.width + k] = product(product(x[k], factor), a.weight[k]);
    }
}

KERNEL(add, Rows) {
    EACH_LANE {
        for (int k = lane; k < a.width; k += LANES) a.out[(size_t)item * a.width + k] += a.x[(size_t)item * a.width + k];
    }
}

#define COLUMNS 512

typedef struct {
    const float *x;
    float *out;
    int width, slices, most;
} Slices;

KERNEL(slice_columns, Slices) {
    int chunks = (a.width + COLUMNS - 1) / COLUMNS, row = item / chunks, first = item % chunks * COLUMNS;
    int end = first + COLUMNS < a.width ? first + COLUMNS : a.width;
    int base = a.width / a.slices, more = a.width % a.slices, wide = more * (base + 1);
    EACH_LANE {
        for (int k = first + lane; k < end; k += LANES) {
            int slice = k < wide ? k / (base + 1) : more + (k - wide) / base;
            int start = slice * base + (slice < more ? slice : more), columns = base + (slice < more);
            a.out[(size_t)a.most * start + (size_t)row * columns + k - start] = a.x[(size_t)row * a.width + k];
        }
    }
}

KERNEL(add_slices, Slices) {
    int chunks = (a.width + COLUMNS - 1) / COLUMNS, row = item / chunks, first = item % chunks * COLUMNS;
    int end = first + COLUMNS < a.width ? first + COLUMNS : a.width;
    EACH_LANE {
        for (int k = first + lane; k < end; k += LANES) {
            const float *x = a.x + (size_t)row * a.width + k;
            float sum = x[0];
            for (int slice = 1; slice < a.slices; slice++) sum += x[(size_t)slice * a.most * a.width];
            a.out[(size_t)row * a.width + k] += sum;
        }
    }
}
