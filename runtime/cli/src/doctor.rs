//! `rally doctor`: what this machine has, what is missing, and what that means.

use crate::error::CliError;
use crate::output::print;
use crate::table::Table;
use serde::Serialize;
use std::fs;
use std::process::ExitCode;

mod cuda;
mod nixl;

/// Arguments of `rally doctor`.
#[derive(Debug, clap::Args)]
pub struct DoctorArgs {
    /// Output format.
    #[arg(long, value_enum, default_value_t)]
    format: crate::Format,
}

/// One finding.
#[derive(Debug, Serialize)]
struct Finding {
    /// What was looked for.
    item: &'static str,
    /// `ok`, `missing` or `limited`.
    state: &'static str,
    /// What is there.
    found: String,
    /// What that means for rally.
    meaning: String,
}

/// Runs the command.
pub fn run(args: &DoctorArgs) -> Result<ExitCode, CliError> {
    let mut findings = vec![processor(), cores(), vector_units(), memory(), huge_pages()];
    findings.extend(cuda::findings());
    findings.push(nixl::finding());
    match args.format {
        crate::Format::Json => {
            print(&format!("{}\n", serde_json::json!({ "rally": env!("CARGO_PKG_VERSION"), "findings": findings })))?
        }
        crate::Format::Text => {
            let mut table = Table::new(&["", "item", "found", "what it means"]);
            for finding in &findings {
                table.row(&[finding.state, finding.item, &finding.found, &finding.meaning]);
            }
            print(&format!("rally {}\n{table}", env!("CARGO_PKG_VERSION")))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// First line of a `/proc` file that begins with `key`, its value trimmed.
fn proc_value(file: &str, key: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// What the processor calls itself, else its architecture.
pub fn processor_name() -> String {
    proc_value("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.into())
}

fn processor() -> Finding {
    let found = processor_name();
    Finding { item: "processor", state: "ok", found, meaning: "CPU devices run here (`backend`: `cpu`)".into() }
}

/// Cores this process may use.
pub fn available_cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn cores() -> Finding {
    let count = available_cores();
    let (state, meaning) = match count {
        1 => ("limited", "attention and FFN lanes take turns on one core: correct, but nothing overlaps".into()),
        _ => ("ok", format!("{count} CPU lanes can run at once; more lanes than that take turns")),
    };
    Finding { item: "cores", state, found: count.to_string(), meaning }
}

fn vector_units() -> Finding {
    let isa = rally_kernels::isa::Isa::detect();
    let found = format!("{isa:?}").to_lowercase();
    let portable = found.contains("portable");
    let meaning = if portable {
        "kernels use the portable path: right, and several times slower than with AVX2"
    } else {
        "kernels use it; results have the same bits on AVX2 and AVX-512"
    };
    Finding { item: "vector unit", state: if portable { "limited" } else { "ok" }, found, meaning: meaning.into() }
}

/// Bytes of memory this machine has, if it says so.
pub fn memory_bytes() -> Option<u64> {
    let text = proc_value("/proc/meminfo", "MemTotal")?;
    let kib: u64 = text.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

fn memory() -> Finding {
    match memory_bytes() {
        Some(bytes) => Finding {
            item: "memory",
            state: "ok",
            found: format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64),
            meaning: "`rally check` holds CPU devices without `memory_bytes` against this".into(),
        },
        None => Finding {
            item: "memory",
            state: "limited",
            found: "unknown".into(),
            meaning: "give CPU devices `memory_bytes`, so that `rally check` can hold them against it".into(),
        },
    }
}

fn huge_pages() -> Finding {
    let text = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    let chosen = text.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map(|(chosen, _)| chosen.to_owned());
    let (state, meaning) = match chosen.as_deref() {
        Some("always" | "madvise") => ("ok", "weights can sit on huge pages: about a third more read bandwidth"),
        _ => ("limited", "weights sit on 4 KiB pages: expect about a quarter less read bandwidth"),
    };
    let found = chosen.unwrap_or_else(|| "not supported".into());
    Finding { item: "huge pages", state, found, meaning: meaning.into() }
}
