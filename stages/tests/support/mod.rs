//! Tiny checkpoints written by hand, so that they can be broken in every way.

use std::fs;
use std::path::Path;

/// One tensor of a file: name, dtype, shape, bytes.
#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    pub dtype: &'static str,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Tensor {
    pub fn new(name: &str, dtype: &'static str, shape: &[usize], bytes: Vec<u8>) -> Self {
        Self { name: name.to_owned(), dtype, shape: shape.to_vec(), bytes }
    }

    pub fn f32(name: &str, shape: &[usize], values: &[f32]) -> Self {
        Self::new(name, "F32", shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    pub fn bf16(name: &str, shape: &[usize], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes()).collect();
        Self::new(name, "BF16", shape, bytes)
    }

    pub fn f16(name: &str, shape: &[usize], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|value| half::f16::from_f32(*value).to_le_bytes()).collect();
        Self::new(name, "F16", shape, bytes)
    }

    /// fp8 codes that all differ from NaN.
    pub fn fp8(name: &str, shape: &[usize]) -> Self {
        let count = shape.iter().product();
        Self::new(name, "F8_E4M3", shape, (0..count).map(|index: usize| (index * 7 % 127) as u8).collect())
    }
}

/// The header of a file with these tensors, one after the other.
pub fn header(tensors: &[Tensor]) -> String {
    let mut start = 0;
    let entries = tensors.iter().map(|tensor| {
        let end = start + tensor.bytes.len();
        let entry = format!(
            "\"{}\":{{\"dtype\":\"{}\",\"shape\":{:?},\"data_offsets\":[{start},{end}]}}",
            tensor.name, tensor.dtype, tensor.shape
        );
        start = end;
        entry
    });
    format!("{{\"__metadata__\":{{\"format\":\"pt\"}},{}}}", entries.collect::<Vec<_>>().join(","))
}

/// A file with this header and the tensors' bytes.
pub fn file_with_header(header: &str, tensors: &[Tensor]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    tensors.iter().for_each(|tensor| bytes.extend_from_slice(&tensor.bytes));
    bytes
}

pub fn file(tensors: &[Tensor]) -> Vec<u8> {
    file_with_header(&header(tensors), tensors)
}

/// Writes `model.safetensors`.
pub fn write_single(dir: &Path, tensors: &[Tensor]) {
    fs::write(dir.join("model.safetensors"), file(tensors)).unwrap();
}

/// Writes one file a shard, and an index.
pub fn write_shards(dir: &Path, shards: &[&[Tensor]]) {
    let mut pairs = Vec::new();
    for (number, tensors) in shards.iter().enumerate() {
        let name = format!("model-{number}.safetensors");
        fs::write(dir.join(&name), file(tensors)).unwrap();
        pairs.extend(tensors.iter().map(|tensor| format!("\"{}\":\"{name}\"", tensor.name)));
    }
    write_index(dir, &format!("{{\"weight_map\":{{{}}}}}", pairs.join(",")));
}

pub fn write_index(dir: &Path, text: &str) {
    fs::write(dir.join("model.safetensors.index.json"), text).unwrap();
}
