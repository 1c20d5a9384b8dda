//! Broken checkpoints: a typed error that names file, tensor, what is there and what should be; never a panic.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use rally_graph::model::WeightFormat;
use rally_stages::checkpoint::{Checkpoint, CheckpointError, Part, RandomWeights, WeightSource};
use support::{Tensor, file, file_with_header, header, write_index, write_shards, write_single};
use tempfile::tempdir;

const A: &str = "model.layers.0.mlp.up_proj.weight";
const MOE: &str = "model.layers.1.moe.up_proj.weight";
const NORM: &str = "model.norm.weight";

/// A sound checkpoint: a matrix, fp8 experts with scales, a vector.
fn sound() -> Vec<Tensor> {
    vec![
        Tensor::bf16(A, &[2, 3], &[1.0; 6]),
        Tensor::fp8(MOE, &[2, 130, 128]),
        Tensor::f32(&format!("{MOE}_scale_inv"), &[2, 2, 1], &[1.0; 4]),
        Tensor::bf16(NORM, &[3], &[1.0; 3]),
    ]
}

/// Opens a folder and reads all that the sound checkpoint has.
fn read_all(dir: &Path) -> Result<(), CheckpointError> {
    let checkpoint = Checkpoint::open(dir)?;
    checkpoint.matrix(A, 2, 3, Part::all(2, 3))?;
    for expert in 0..2 {
        checkpoint.expert_matrix(MOE, expert, 2, 130, 128, Part::all(130, 128))?;
    }
    checkpoint.vector(NORM, 3)?;
    Ok(())
}

/// A case: what is written into an empty folder, and what the error must say.
struct Case {
    name: &'static str,
    write: Box<dyn Fn(&Path)>,
    says: Vec<&'static str>,
}

fn case(name: &'static str, write: impl Fn(&Path) + 'static, says: &[&'static str]) -> Case {
    Case { name, write: Box::new(write), says: says.to_vec() }
}

/// The sound checkpoint after a change to one of its tensors.
fn changed(name: &'static str, index: usize, change: fn(&mut Tensor), says: &[&'static str]) -> Case {
    let write = move |dir: &Path| {
        let mut tensors = sound();
        change(&mut tensors[index]);
        write_single(dir, &tensors);
    };
    case(name, write, says)
}

/// The sound checkpoint after a change to its header's text.
fn header_changed(name: &'static str, from: &'static str, to: &'static str, says: &[&'static str]) -> Case {
    let write = move |dir: &Path| {
        let text = header(&sound());
        assert!(text.contains(from), "{name}: {from} is not in {text}");
        fs::write(dir.join("model.safetensors"), file_with_header(&text.replacen(from, to, 1), &sound())).unwrap();
    };
    case(name, write, says)
}

fn bytes(name: &'static str, make: fn(Vec<u8>) -> Vec<u8>, says: &[&'static str]) -> Case {
    case(name, move |dir| fs::write(dir.join("model.safetensors"), make(file(&sound()))).unwrap(), says)
}

fn index(name: &'static str, text: &'static str, says: &[&'static str]) -> Case {
    let write = move |dir: &Path| {
        fs::write(dir.join("model-0.safetensors"), file(&sound())).unwrap();
        write_index(dir, text);
    };
    case(name, write, says)
}

fn file_cases() -> Vec<Case> {
    const FILE: &str = "model.safetensors:";
    vec![
        case("nothing there", |_| {}, &["neither model.safetensors nor model.safetensors.index.json"]),
        case("a folder", |dir| fs::create_dir(dir.join("model.safetensors")).unwrap(), &[FILE, "not a regular file"]),
        bytes("empty", |_| Vec::new(), &[FILE, "has 0 bytes; expected 8"]),
        bytes("five bytes", |bytes| bytes[..5].to_vec(), &[FILE, "has 5 bytes; expected 8"]),
        bytes("cut in the header", |bytes| bytes[..60].to_vec(), &[FILE, "has 60 bytes; expected"]),
        bytes("cut in the data", |bytes| bytes[..bytes.len() - 1].to_vec(), &[FILE, "truncated"]),
        bytes("bytes behind the data", |bytes| [bytes, vec![0]].concat(), &[FILE, "bytes; expected"]),
        bytes("huge header", |bytes| [vec![255; 8], bytes].concat(), &[FILE, "header has 18446744073709551615 bytes"]),
        bytes(
            "header of 99 MB",
            |bytes| [99_000_000_u64.to_le_bytes().to_vec(), bytes].concat(),
            &["expected 99000008"],
        ),
        bytes(
            "not text",
            |mut bytes| {
                bytes[20] = 0xff;
                bytes
            },
            &[FILE, "header is not UTF-8 at byte 20"],
        ),
        bytes("a web page", |_| b"<!DOCTYPE html><html></html>".to_vec(), &[FILE, "header has"]),
        bytes("a list", |_| b"\x02\0\0\0\0\0\0\0[]".to_vec(), &[FILE, "header is not an object"]),
    ]
}

fn header_cases() -> Vec<Case> {
    vec![
        header_changed("broken JSON", "{\"dtype\"", "{dtype\"", &["model.safetensors:", "header is not JSON"]),
        header_changed("unknown dtype", "\"BF16\"", "\"BF17\"", &[A, "BF17"]),
        header_changed("text as shape", "[2, 3]", "\"23\"", &[A, "expected a known dtype, a shape"]),
        header_changed("negative shape", "[2, 3]", "[2, -3]", &[A, "-3"]),
        header_changed("shape too large", "[2, 3]", "[2, 4]", &[A, "12 bytes for [2, 4] of BF16", "expected 16 bytes"]),
        header_changed("shape overflows", "[2, 3]", "[4294967296, 4294967296, 2]", &[A, "a size below 2^64 bits"]),
        header_changed(
            "many dimensions",
            "[2, 3]",
            "[2, 3, 1, 1, 1, 1, 1, 1, 1]",
            &[A, "9 dimensions; expected at most 8"],
        ),
        header_changed("no offsets", "\"data_offsets\":[0,12]", "\"offsets\":[0,12]", &[A, "data_offsets"]),
        header_changed("offsets backwards", "[0,12]", "[12,0]", &[A, "data_offsets [12, 0]"]),
        header_changed("offsets overlap", "[12,33292]", "[11,33291]", &[MOE, "begins at byte 11", "expected 12"]),
        header_changed("a gap", "[12,33292]", "[13,33293]", &[MOE, "begins at byte 13", "expected 12"]),
        header_changed(
            "offsets near 2^64",
            "[12,33292]",
            "[18446744073709518335,18446744073709551615]",
            &[MOE, "2^62"],
        ),
        header_changed(
            "one name twice",
            "\"model.norm.weight\"",
            "\"model.layers.0.mlp.up_proj.weight\"",
            &["the key `model.layers.0.mlp.up_proj.weight` appears twice"],
        ),
    ]
}

fn tensor_cases() -> Vec<Case> {
    vec![
        changed(
            "missing",
            0,
            |tensor| tensor.name = "model.other".into(),
            &[A, "has no tensor", "language_model.model.layers.0"],
        ),
        changed("wrong shape", 0, |tensor| tensor.shape = vec![3, 2], &[A, "shape [3, 2]; expected [2, 3]"]),
        changed("one dimension", 0, |tensor| tensor.shape = vec![6], &[A, "shape [6]; expected [2, 3]"]),
        changed("wrong vector", 3, |tensor| tensor.shape = vec![3, 1], &[NORM, "shape [3, 1]; expected [3]"]),
        changed(
            "whole numbers",
            0,
            |tensor| tensor.dtype = "I16",
            &[A, "[2, 3] has type I16; expected BF16, F16, F32"],
        ),
        changed(
            "fp8 vector",
            3,
            |tensor| *tensor = Tensor::fp8(NORM, &[3]),
            &[NORM, "F8_E4M3; expected BF16, F16 or F32"],
        ),
        changed("other fp8", 1, |tensor| tensor.dtype = "F8_E5M2", &[MOE, "F8_E5M2"]),
        changed(
            "NaN",
            0,
            |tensor| *tensor = Tensor::bf16(A, &[2, 3], &[0.0, 0.0, 0.0, 0.0, f32::NAN, 0.0]),
            &[A, "[2, 3] holds NaN at [1, 1]"],
        ),
        changed(
            "infinity",
            3,
            |tensor| *tensor = Tensor::f32(NORM, &[3], &[0.0, 0.0, f32::NEG_INFINITY]),
            &[NORM, "holds -inf at [2]"],
        ),
        changed(
            "half infinity",
            0,
            |tensor| *tensor = Tensor::f16(A, &[2, 3], &[f32::INFINITY; 6]),
            &[A, "inf at [0, 0]"],
        ),
        changed("fp8 NaN", 1, |tensor| tensor.bytes[130 * 128 + 129] = 0xff, &[MOE, "holds NaN at [1, 1, 1]"]),
        changed("no scales", 2, |tensor| tensor.name = "model.other".into(), &[MOE, "_scale_inv"]),
        changed(
            "short scales",
            2,
            |tensor| *tensor = Tensor::f32(&tensor.name, &[2, 1, 2], &[1.0; 4]),
            &["_scale_inv", "shape [2, 1, 2]; expected [2, 2, 1]"],
        ),
        changed(
            "bf16 scales",
            2,
            |tensor| *tensor = Tensor::bf16(&tensor.name, &[2, 2, 1], &[1.0; 4]),
            &["_scale_inv", "BF16; expected F32"],
        ),
        changed(
            "NaN scale",
            2,
            |tensor| *tensor = Tensor::f32(&tensor.name, &[2, 2, 1], &[1.0, 1.0, 1.0, f32::NAN]),
            &["_scale_inv", "holds NaN at [1, 1, 0]"],
        ),
        changed(
            "scales without fp8",
            1,
            |tensor| *tensor = Tensor::bf16(MOE, &[2, 130, 128], &[1.0; 33280]),
            &[MOE, "BF16 but there is also", "expected F8_E4M3 or no scales"],
        ),
        changed(
            "too few experts",
            1,
            |tensor| tensor.shape = vec![1, 260, 128],
            &[MOE, "[1, 260, 128]; expected [2, 130, 128]"],
        ),
        case(
            "two spellings",
            |dir| {
                let twin = Tensor::bf16("language_model.model.norm.weight", &[3], &[2.0; 3]);
                write_single(dir, &[sound(), vec![twin]].concat());
            },
            &["both `model.norm.weight` and `language_model.model.norm.weight`"],
        ),
        case(
            "stacked and one by one",
            |dir| {
                let twin = Tensor::bf16("model.layers.1.moe.experts.0.up_proj.weight", &[1], &[2.0]);
                write_single(dir, &[sound(), vec![twin]].concat());
            },
            &["both", MOE, "experts.0.up_proj.weight"],
        ),
        case(
            "an expert is missing",
            |dir| {
                let one = Tensor::bf16("model.layers.1.moe.experts.0.up_proj.weight", &[130, 128], &[1.0; 130 * 128]);
                write_single(dir, &[sound()[..1].to_vec(), vec![one]].concat());
            },
            &[MOE, "has no tensor", "experts.1.up_proj.weight"],
        ),
    ]
}

fn index_cases() -> Vec<Case> {
    const INDEX: &str = "model.safetensors.index.json";
    vec![
        index("broken index", "{\"weight_map\": {", &["index.json:1:16: not valid JSON"]),
        index("a list", "[]", &[INDEX, "`weight_map` is missing; expected an object"]),
        index("no map", "{\"weight_map\": 3}", &[INDEX, "`weight_map` is not an object"]),
        index("a number as file", "{\"weight_map\": {\"model.a\": 3}}", &[INDEX, "`weight_map.model.a` is 3"]),
        index(
            "out of the folder",
            "{\"weight_map\": {\"model.a\": \"../x\"}}",
            &[INDEX, "expected the name of a file beside"],
        ),
        index(
            "absolute",
            "{\"weight_map\": {\"model.a\": \"/etc/passwd\"}}",
            &[INDEX, "expected the name of a file beside"],
        ),
        index(
            "one name twice",
            "{\"weight_map\": {\"a\": \"x\", \"a\": \"y\"}}",
            &[INDEX, "the key `a` appears twice"],
        ),
        index(
            "missing shard",
            "{\"weight_map\": {\"model.norm.weight\": \"model-7.safetensors\"}}",
            &[INDEX, "says that `model.norm.weight` is in model-7.safetensors"],
        ),
        index(
            "not in its shard",
            "{\"weight_map\": {\"language_model.model.layers.0.mlp.up_proj.weight\": \"model-0.safetensors\"}}",
            &["model-0.safetensors: has no tensor `language_model.model.layers.0.mlp.up_proj.weight`", INDEX],
        ),
        index(
            "not in the index",
            "{\"weight_map\": {\"model.norm.weight\": \"model-0.safetensors\"}}",
            &[INDEX, A, "has no tensor"],
        ),
        case(
            "not text",
            |dir| fs::write(dir.join(INDEX), b"{\"a\": \"\xff\"}").unwrap(),
            &[INDEX, "not UTF-8 at byte 7"],
        ),
        case(
            "a broken shard",
            |dir| {
                write_shards(dir, &[&sound()]);
                fs::write(dir.join("model-0.safetensors"), b"short").unwrap();
            },
            &["model-0.safetensors: has 5 bytes; expected 8"],
        ),
    ]
}

#[test]
fn a_sound_checkpoint_is_read() {
    let dir = tempdir().unwrap();
    write_single(dir.path(), &sound());
    read_all(dir.path()).unwrap();
    let dir = tempdir().unwrap();
    let tensors = sound();
    write_shards(dir.path(), &[&tensors[..2], &tensors[2..]]);
    read_all(dir.path()).unwrap();
}

#[test]
fn broken_checkpoints_name_the_place() {
    let cases = [file_cases(), header_cases(), tensor_cases(), index_cases()].into_iter().flatten();
    for Case { name, write, says } in cases {
        let dir = tempdir().unwrap();
        write(dir.path());
        let shown = read_all(dir.path()).expect_err(name).to_string();
        assert!(shown.starts_with(&dir.path().display().to_string()), "{name}: {shown}");
        for words in says {
            assert!(shown.contains(words), "{name}: {shown}\nexpected: {words}");
        }
    }
}

#[test]
fn impossible_parts_are_refused() {
    let dir = tempdir().unwrap();
    write_single(dir.path(), &sound());
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let random = RandomWeights::new(1, WeightFormat::Fp8Block);
    let sources: [&dyn WeightSource; 2] = [&checkpoint, &random];
    for source in sources {
        for part in [Part::rows(0..3, 3), Part::rows(1..1, 3), Part::cols(2, 2..4)] {
            let shown = source.matrix(A, 2, 3, part).expect_err("a part outside").to_string();
            assert!(shown.contains(A) && shown.contains("expected a part that is not empty and inside"), "{shown}");
        }
        let shown = source.expert_matrix(MOE, 2, 2, 130, 128, Part::all(130, 128)).expect_err("no such expert");
        assert!(shown.to_string().contains("of expert 2"), "{shown}");
        for part in [Part::rows(0..64, 128), Part::rows(127..130, 128), Part::cols(130, 64..128)] {
            let shown = source.expert_matrix(MOE, 0, 2, 130, 128, part).expect_err("a cut tile").to_string();
            assert!(shown.contains("expected cuts at multiples of 128"), "{shown}");
        }
    }
}

#[test]
fn only_seeds_describe_random_weights() {
    for text in ["random", "random:", "random:x", "random:-1", "random:+1", "random:18446744073709551616", "seed:1"] {
        let shown = RandomWeights::parse(text, WeightFormat::F32).expect_err(text).to_string();
        assert!(shown.contains(text) && shown.contains("a seed"), "{shown}");
    }
}

#[cfg(unix)]
#[test]
fn a_dangling_link_is_named() {
    let dir = tempdir().unwrap();
    std::os::unix::fs::symlink("nowhere", dir.path().join("model.safetensors")).unwrap();
    let shown = read_all(dir.path()).unwrap_err().to_string();
    assert!(shown.contains("model.safetensors: cannot be read"), "{shown}");
}

/// Reads everything under the shapes that a damaged header happens to give, too.
fn read_damaged(bytes: &[u8]) {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
    if let Err(error) = read_all(dir.path()) {
        assert!(error.to_string().starts_with(&dir.path().display().to_string()), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn arbitrary_files_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        read_damaged(&bytes);
    }

    #[test]
    fn arbitrary_headers_never_panic(text in "[\\[\\]{}:,\"0-9a-zA-Z_ ]{0,120}") {
        read_damaged(&file_with_header(&text, &sound()));
    }

    #[test]
    fn damaged_headers_never_panic(changes in proptest::collection::vec((0_usize..600, any::<u8>()), 1..6)) {
        let mut bytes = file(&sound());
        for (position, byte) in changes {
            bytes[position] = byte;
        }
        read_damaged(&bytes);
    }

    #[test]
    fn other_numbers_in_the_header_never_panic(number in any::<u64>(), at in any::<prop::sample::Index>()) {
        let text = header(&sound());
        let starts: Vec<usize> = text.match_indices(['[', ',']).map(|(start, _)| start + 1)
            .filter(|start| text[*start..].trim_start().starts_with(|digit: char| digit.is_ascii_digit())).collect();
        let start = starts[at.index(starts.len())];
        let end = start + text[start..].find([',', ']']).unwrap();
        read_damaged(&file_with_header(&format!("{}{number}{}", &text[..start], &text[end..]), &sound()));
    }

    #[test]
    fn damaged_indexes_never_panic(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let dir = tempdir().unwrap();
        write_shards(dir.path(), &[&sound()]);
        let path = dir.path().join("model.safetensors.index.json");
        let mut bytes = fs::read(&path).unwrap();
        for (index, byte) in changes {
            let position = index.index(bytes.len());
            bytes[position] = byte;
        }
        fs::write(&path, bytes).unwrap();
        let _ = read_all(dir.path());
    }
}
