//! The header of one safetensors file: which tensor lies where.
//!
//! The `safetensors` crate defines the entries; they are checked here rather than by its reader, whose errors do not
//! name the tensor, which keeps the last of two tensors of one name, and whose total can overflow.

use std::collections::HashMap;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::Deserialize as _;
use serde_json::Value;

use super::CheckpointError;

/// Bytes of the length field before the header.
const LENGTH_BYTES: usize = 8;

/// Longest header that is read, the limit of the reference implementation.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Most dimensions a tensor may have; no tensor of a language model has more than three.
const MAX_DIMENSIONS: usize = 8;

/// A tensor's type and shape, and where its bytes are in the file.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) start: usize,
    pub(super) end: usize,
}

/// Reads the header of the file whose bytes are `bytes`; touches no byte behind it.
pub(super) fn read_header(bytes: &[u8], file: &Path) -> Result<HashMap<String, Entry>, CheckpointError> {
    let header_bytes = header_bytes(bytes, file)?;
    let data_start = LENGTH_BYTES + header_bytes.len();
    let error = |found: String| CheckpointError::Header {
        file: file.to_path_buf(),
        found,
        expected: "one JSON object of distinct tensors".to_owned(),
    };
    let text = std::str::from_utf8(header_bytes)
        .map_err(|source| error(format!("is not UTF-8 at byte {}", LENGTH_BYTES + source.valid_up_to())))?;
    let root = crate::json::parse_unique(text).map_err(|source| error(format!("is not JSON: {source}")))?;
    let Value::Object(tensors) = root else { return Err(error("is not an object".to_owned())) };

    let mut entries = Vec::with_capacity(tensors.len());
    for (name, value) in tensors {
        if name != "__metadata__" {
            let info = check_entry(&name, &value, file)?;
            entries.push((name, info));
        }
    }
    entries.sort_by_key(|(_, info)| info.data_offsets);
    let mut end = 0;
    let mut map = HashMap::with_capacity(entries.len());
    for (name, info) in entries {
        let (from, to) = info.data_offsets;
        if from != end {
            let found = format!("it begins at byte {from} of the data");
            return Err(entry_error(file, &name, found, format!("{end}, where the tensor before it ends")));
        }
        end = to;
        // `check_entry` keeps offsets below 2^62, so these sums cannot overflow.
        let entry = Entry { dtype: info.dtype, shape: info.shape, start: data_start + from, end: data_start + to };
        map.insert(name, entry);
    }
    let expected = (data_start + end) as u64;
    if expected != bytes.len() as u64 {
        return Err(CheckpointError::Length { file: file.to_path_buf(), found: bytes.len() as u64, expected });
    }
    Ok(map)
}

/// The header's text, after checking its length against the file.
fn header_bytes<'a>(bytes: &'a [u8], file: &Path) -> Result<&'a [u8], CheckpointError> {
    let short =
        |expected: u64| CheckpointError::Length { file: file.to_path_buf(), found: bytes.len() as u64, expected };
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(short(LENGTH_BYTES as u64));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        return Err(CheckpointError::Header {
            file: file.to_path_buf(),
            found: format!("has {length} bytes by its length field"),
            expected: format!("at most {MAX_HEADER_BYTES}"),
        });
    }
    rest.get(..length as usize).ok_or_else(|| short(LENGTH_BYTES as u64 + length))
}

/// One tensor's entry, with sizes that agree among themselves.
fn check_entry(name: &str, value: &Value, file: &Path) -> Result<TensorInfo, CheckpointError> {
    let info = TensorInfo::deserialize(value).map_err(|source| {
        let expected = "a known dtype, a shape and two data_offsets".to_owned();
        entry_error(file, name, source.to_string(), expected)
    })?;
    let (from, to) = info.data_offsets;
    if to < from || to >= 1 << 62 {
        let expected = "offsets in order and below 2^62".to_owned();
        return Err(entry_error(file, name, format!("data_offsets [{from}, {to}]"), expected));
    }
    if info.shape.len() > MAX_DIMENSIONS {
        let found = format!("{} dimensions", info.shape.len());
        return Err(entry_error(file, name, found, format!("at most {MAX_DIMENSIONS}")));
    }
    let values = info.shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size));
    let bits = values.and_then(|values| values.checked_mul(info.dtype.bitsize()));
    if bits.map(|bits| (bits / 8, bits % 8)) != Some((to - from, 0)) {
        let found = format!("{} bytes for {:?} of {}", to - from, info.shape, info.dtype);
        let expected = bits.map_or("a size below 2^64 bits".to_owned(), |bits| format!("{} bytes", bits.div_ceil(8)));
        return Err(entry_error(file, name, found, expected));
    }
    Ok(info)
}

fn entry_error(file: &Path, tensor: &str, found: String, expected: String) -> CheckpointError {
    CheckpointError::HeaderTensor { file: file.to_path_buf(), tensor: tensor.to_owned(), found, expected }
}
