//! Compiles every kernel with NVRTC for every architecture it claims; needs no card. `kernels/cuda/compile_check` installs
//! the pinned compiler and runs this.

use rally_cuda::cache::CubinCache;
use rally_cuda::compile;
use rally_cuda::source::{ARCHITECTURES, SOURCES};
use std::process::ExitCode;

fn main() -> ExitCode {
    match compile::compiler_version() {
        Ok((major, minor)) => println!("NVRTC {major}.{minor}"),
        Err(error) => {
            eprintln!("compile_check: {error}");
            return ExitCode::FAILURE;
        }
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cache = CubinCache::in_folder(folder.path());
    let mut refused = 0;
    for arch in ARCHITECTURES {
        compile::prepare(&SOURCES.each_ref(), arch, &cache);
        for source in &SOURCES {
            match compile::cubin(source, arch, Some(&cache)) {
                Ok(cubin) => println!("ok   {} {arch}: {} bytes", source.file, cubin.len()),
                Err(error) => {
                    refused += 1;
                    println!("FAIL {error}");
                }
            }
        }
    }
    let kept = std::fs::read_dir(folder.path()).map_or(0, Iterator::count);
    assert_eq!(kept + refused, SOURCES.len() * ARCHITECTURES.len(), "all that compiles is kept");
    if refused == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
