//! Tests and benchmarks of the CUDA kernels, for a machine with a card. One command each:
//!
//! ```sh
//! cargo run --release -p rally-cuda --example rally-gpu -- test
//! cargo run --release -p rally-cuda --example rally-gpu -- bench
//! cargo run --release -p rally-cuda --example rally-gpu -- shares
//! cargo run --release -p rally-cuda --example rally-gpu -- peers 2
//! ```
//!
//! The binary stands alone: strip it and carry it to a machine without Rust. `bench NAME` runs lines that contain NAME.

mod attention_bench;
mod bench;
mod data;
mod peers;
mod plain;
mod prefill;
mod problem;
mod reference;
mod shares;
mod tensor;
mod tensor_bench;
mod tests;

use rally_cuda::{CudaError, Device};
use std::process::ExitCode;

fn run() -> Result<bool, CudaError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let filter = arguments.get(1).map_or("", String::as_str);
    let device = Device::open(0)?;
    let card = device.card();
    println!("{}, {} multiprocessors, {}", card.name, card.multiprocessors, card.arch());
    match arguments.first().map(String::as_str) {
        Some("test") => tests::run(&device, filter),
        Some("bench") => bench::run(&device, filter).map(|()| true),
        Some("peers") => peers::run(filter.parse().unwrap_or(2)),
        Some("shares") => shares::run(&device, &mut bench::Bench::new(&device)?, filter),
        _ => {
            println!("usage: rally-gpu test|bench|shares [NAME], or peers [CARDS]");
            Ok(false)
        }
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("rally-gpu: {error}");
            ExitCode::FAILURE
        }
    }
}
