//! Bytes of tensors in the format a checkpoint stores them in.

use crate::model::{FP8_TILE, ModelShape, WeightFormat};
use crate::spec::WireDtype;

/// Bytes of a projection of `rows` × `columns`: in fp8 one byte a value and one f32 scale per 128×128 tile.
pub fn projection_bytes(format: WeightFormat, rows: usize, columns: usize) -> u64 {
    let (rows, columns) = (rows as u64, columns as u64);
    let tile = FP8_TILE as u64;
    match format {
        WeightFormat::F32 => 4 * rows * columns,
        WeightFormat::Bf16 => 2 * rows * columns,
        WeightFormat::Fp8Block => rows * columns + 4 * rows.div_ceil(tile) * columns.div_ceil(tile),
    }
}

/// Bytes of `values` of a tensor that is never quantised: embeddings, norms, routers.
pub fn plain_bytes(format: WeightFormat, values: usize) -> u64 {
    match format {
        WeightFormat::F32 => 4 * values as u64,
        WeightFormat::Bf16 | WeightFormat::Fp8Block => 2 * values as u64,
    }
}

/// Bytes of a SwiGLU of inner `width`: gate, up and down.
pub fn swiglu_bytes(shape: &ModelShape, width: usize) -> u64 {
    2 * projection_bytes(shape.weight_format, width, shape.hidden)
        + projection_bytes(shape.weight_format, shape.hidden, width)
}

/// Bytes of one row of `width` values on a wire: in fp8 one byte a value and one f32 scale per 128 channels.
pub fn wire_row_bytes(dtype: WireDtype, width: usize) -> u64 {
    let width = width as u64;
    match dtype {
        WireDtype::F32 => 4 * width,
        WireDtype::Bf16 => 2 * width,
        WireDtype::Fp8E4m3 => width + 4 * width.div_ceil(FP8_TILE as u64),
    }
}

/// Bytes of one token of one tensor in the KV cache: in fp8 one byte a value and one f32 scale.
pub fn kv_row_bytes(dtype: WireDtype, width: usize) -> u64 {
    let width = width as u64;
    match dtype {
        WireDtype::F32 => 4 * width,
        WireDtype::Bf16 => 2 * width,
        WireDtype::Fp8E4m3 => width + 4,
    }
}

/// Bytes of a row's routing on a wire: an id and an f32 weight for each chosen expert.
pub fn routing_row_bytes(shape: &ModelShape) -> u64 {
    8 * shape.top_k as u64
}
