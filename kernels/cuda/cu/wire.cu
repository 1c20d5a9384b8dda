// Rows as they cross an edge, and back: f32, bf16, or e4m3 with a scale each 128 channels.
//
//   rows [rows, width] f32;  bytes: rows one after another: `width` numbers, then for e4m3 ceil(width / 128) scales of 4 bytes
//
// An item is a group of 128 channels of a row. The same bits as `rally_kernels::wire` has.
#include "warp.cuh"

typedef struct {
    float *rows;
    u8 *bytes;
    int width, dtype;
} Wire;

FN size_t record_bytes(int width, int dtype) {
    if (dtype == STORED_F32) return (size_t)width * 4;
    if (dtype == STORED_BF16) return (size_t)width * 2;
    return (size_t)width + (size_t)((width + SCALE_GROUP - 1) / SCALE_GROUP) * 4;
}

// Records of an odd width are aligned to nothing.
FN void put_bytes(u8 *to, u32 bits, int count) {
    for (int i = 0; i < count; i++) to[i] = (u8)(bits >> (8 * i));
}
FN u32 get_bytes(const u8 *from, int count) {
    u32 bits = 0;
    for (int i = 0; i < count; i++) bits |= (u32)from[i] << (8 * i);
    return bits;
}

KERNEL(encode_wire, Wire) {
    int groups = (a.width + SCALE_GROUP - 1) / SCALE_GROUP, row = item / groups, group = item % groups;
    int end = a.width < (group + 1) * SCALE_GROUP ? a.width : (group + 1) * SCALE_GROUP;
    const float *from = a.rows + (size_t)row * a.width;
    u8 *to = a.bytes + row * record_bytes(a.width, a.dtype);
    LANES_OF(float, largest, 1);
    EACH_LANE {
        AT(largest[0]) = 0;
        for (int k = group * SCALE_GROUP + lane; k < end; k += LANES)
            AT(largest[0]) = larger_magnitude(AT(largest[0]), from[k]);
    }
    float scale = e4m3_scale(lanes_max(largest[0]));
    EACH_LANE {
        for (int k = group * SCALE_GROUP + lane; k < end; k += LANES) {
            if (a.dtype == STORED_F32)
                put_bytes(to + (size_t)k * 4, as_bits(from[k]), 4);
            else if (a.dtype == STORED_BF16)
                put_bytes(to + (size_t)k * 2, to_bf16(from[k]), 2);
            else
                to[k] = to_e4m3(from[k] / scale);
        }
        if (lane == 0 && a.dtype == STORED_FP8) put_bytes(to + a.width + group * 4, as_bits(scale), 4);
    }
}

KERNEL(decode_wire, Wire) {
    int groups = (a.width + SCALE_GROUP - 1) / SCALE_GROUP, row = item / groups, group = item % groups;
    int end = a.width < (group + 1) * SCALE_GROUP ? a.width : (group + 1) * SCALE_GROUP;
    float *to = a.rows + (size_t)row * a.width;
    const u8 *from = a.bytes + row * record_bytes(a.width, a.dtype);
    float scale = a.dtype == STORED_FP8 ? as_float(get_bytes(from + a.width + group * 4, 4)) : 1;
    EACH_LANE {
        for (int k = group * SCALE_GROUP + lane; k < end; k += LANES) {
            if (a.dtype == STORED_F32)
                to[k] = as_float(get_bytes(from + (size_t)k * 4, 4));
            else if (a.dtype == STORED_BF16)
                to[k] = from_bf16((u16)get_bytes(from + (size_t)k * 2, 2));
            else
                to[k] = product(from_e4m3(from[k]), scale);
        }
    }
}

// Up to three runs of bytes, of this card's memory or another's that it can read, to as many places: in pieces, all of whose loads are
// on their way before the first is stored.
typedef struct {
    const u8 *from[3];
    u8 *to[3];
    u64 bytes[3];
} Take;

#define PIECE 2048
#define PIECE_WORDS (PIECE / 8 / LANES)

KERNEL(take_parts, Take) {
    u64 piece = item;
    int part = 0;
    for (; part < 2 && piece >= (a.bytes[part] + PIECE - 1) / PIECE; part++) piece -= (a.bytes[part] + PIECE - 1) / PIECE;
    const u8 *from = a.from[part] + piece * PIECE;
    u8 *to = a.to[part] + piece * PIECE;
    u64 left = a.bytes[part] - piece * PIECE;
    int count = left < PIECE ? (int)left : PIECE;
    // Rows of an odd width are aligned to nothing.
    int words = (((size_t)from | (size_t)to) & 7) == 0 ? count / 8 : 0;
    LANES_OF(u64, held, PIECE_WORDS);
    EACH_LANE {
        for (int i = 0; i < PIECE_WORDS; i++)
            if (lane + i * LANES < words) AT(held[i]) = ((const u64 *)from)[lane + i * LANES];
    }
    EACH_LANE {
        for (int i = 0; i < PIECE_WORDS; i++)
            if (lane + i * LANES < words) ((u64 *)to)[lane + i * LANES] = AT(held[i]);
    }
    EACH_LANE {
        for (int k = words * 8 + lane; k < count; k += LANES) to[k] = from[k];
    }
}
