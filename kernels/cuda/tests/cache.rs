//! Compiled kernels on disk: found again, never half, never stale, never fatal.

use rally_cuda::CudaError;
use rally_cuda::cache::{CubinCache, Fingerprint};
use rally_cuda::compile::{cached, key};
use rally_cuda::source::{MEASURE, MFA_DECODE_PLAIN, Source};
use std::cell::Cell;
use std::fs;

/// Compiles by counting; the result names what it was compiled for.
fn compile_with(cache: &CubinCache, source: &Source, arch: &str, version: (i32, i32), runs: &Cell<u32>) -> Vec<u8> {
    let compile = || {
        runs.set(runs.get() + 1);
        Ok(format!("{} {arch} {version:?}", source.file).into_bytes())
    };
    cached(source, arch, version, Some(cache), compile).expect("this compiler never fails")
}

#[test]
fn a_kernel_is_compiled_once_for_each_key() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cache = CubinCache::in_folder(folder.path().join("not/yet/there"));
    let runs = Cell::new(0);
    let mut other = MEASURE;
    other.text = "changed";
    let cases = [
        (MEASURE, "sm_80", (13, 0)),
        (MEASURE, "sm_90a", (13, 0)),
        (MEASURE, "sm_90a", (12, 8)),
        (other, "sm_80", (13, 0)),
    ];
    for round in 0..2 {
        for (at, (source, arch, version)) in cases.iter().enumerate() {
            let cubin = compile_with(&cache, source, arch, *version, &runs);
            assert_eq!(cubin, format!("{} {arch} {version:?}", source.file).into_bytes());
            assert_eq!(runs.get(), if round == 0 { at as u32 + 1 } else { 4 });
        }
    }
}

#[test]
fn a_damaged_entry_is_compiled_again_and_mended() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cache = CubinCache::in_folder(folder.path());
    let runs = Cell::new(0);
    let whole = compile_with(&cache, &MEASURE, "sm_80", (13, 0), &runs);
    let path = cache.path(MEASURE.file, key(&MEASURE, "sm_80", (13, 0)));
    let bytes = fs::read(&path).expect("an entry was written");
    let mut flipped = bytes.clone();
    *flipped.last_mut().expect("an entry has bytes") ^= 1;
    let mut longer = bytes.clone();
    longer.push(0);
    for (damage, expected) in [(&bytes[..bytes.len() - 1], 2), (&bytes[..5], 3), (&[], 4), (&flipped, 5), (&longer, 6)]
    {
        fs::write(&path, damage).expect("the entry can be damaged");
        assert_eq!(compile_with(&cache, &MEASURE, "sm_80", (13, 0), &runs), whole);
        assert_eq!(runs.get(), expected);
        assert_eq!(fs::read(&path).expect("mended"), bytes);
    }
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1, "nothing half-written stays behind");
}

#[test]
fn a_cache_that_cannot_be_written_costs_only_time() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("a file");
    fs::write(&file, "in the way").expect("written");
    let cache = CubinCache::in_folder(file.join("cubin"));
    let runs = Cell::new(0);
    compile_with(&cache, &MEASURE, "sm_80", (13, 0), &runs);
    compile_with(&cache, &MEASURE, "sm_80", (13, 0), &runs);
    assert_eq!(runs.get(), 2);
    let refused = cache.write("x", Fingerprint::new(), b"cubin").expect_err("a file is no folder");
    assert!(refused.to_string().contains("XDG_CACHE_HOME"), "{refused}");
}

#[test]
fn a_refusal_is_not_kept() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cache = CubinCache::in_folder(folder.path());
    let refuse = || Err(CudaError::NoCompiler);
    assert!(cached(&MFA_DECODE_PLAIN, "sm_80", (13, 0), Some(&cache), refuse).is_err());
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 0);
}
