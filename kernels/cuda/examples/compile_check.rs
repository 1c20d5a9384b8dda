//! Compiles every kernel with NVRTC for every architecture it claims; needs no card. `kernels/cuda/compile_check` installs
//! the pinned compiler and runs this.

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
    let mut refused = 0;
    for source in &SOURCES {
        for arch in ARCHITECTURES {
            match compile::compile(source, arch) {
                Ok(cubin) => println!("ok   {} {arch}: {} bytes", source.file, cubin.len()),
                Err(error) => {
                    refused += 1;
                    println!("FAIL {error}");
                }
            }
        }
    }
    if refused == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
