//! `rally check`: every fault of a graph file; then per device the bytes against capacity, and the stage budget.

use crate::Format;
use crate::error::CliError;
use crate::graph_file;
use crate::{output, report};
use clap::Args;
use rally_graph::diagnostic::Diagnostic;
use rally_graph::kinds::KindRegistry;
use rally_graph::memory::{self, Budget, DeviceMemory};
use rally_graph::model::ModelShape;
use rally_graph::spec::DeploymentSpec;
use rally_graph::words::{bytes, microseconds, plural, printable};
use rally_stages::deployment::Checked;
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `rally check`.
#[derive(Clone, Debug, Args)]
pub struct CheckArgs {
    /// The graph file.
    pub graph: PathBuf,
    /// Model folder to use instead of the graph's.
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// How results are printed.
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// What `--format json` prints.
#[derive(Serialize)]
struct CheckReport<'a> {
    ok: bool,
    diagnostics: &'a [Diagnostic],
    devices: Vec<DeviceMemory>,
    budget: Option<Budget>,
}

/// Runs `rally check`.
pub fn run(args: &CheckArgs) -> Result<ExitCode, CliError> {
    let checked = graph_file::check(&args.graph, args.model.as_deref());
    let known = checked.spec.as_ref().zip(checked.shape.as_ref());
    let counted = |(spec, shape): (&DeploymentSpec, &ModelShape)| {
        memory::device_memory(spec, shape, KindRegistry::shared(), graph_file::this_machine())
    };
    // What a graph with errors would need misleads, unless the error is that it does not fit.
    let countable =
        checked.diagnostics.iter().all(|diagnostic| !diagnostic.is_error() || diagnostic.code == "over-capacity");
    let devices = known.filter(|_| countable).map(counted).unwrap_or_default();
    let budget = known.and_then(|(spec, shape)| memory::budget(spec, shape));
    match args.format {
        Format::Json => {
            let report = CheckReport { ok: checked.is_good(), diagnostics: &checked.diagnostics, devices, budget };
            let text = serde_json::to_string_pretty(&report).map_err(|error| CliError::Failure(error.to_string()))?;
            output::print(&format!("{text}\n"))?;
        }
        Format::Text => {
            report::print(&args.graph, checked.positions.text(), &checked.diagnostics);
            if let (Some((spec, shape)), false) = (known, devices.is_empty()) {
                output::print(&summary(&checked, spec, shape, &devices, budget))?;
            }
        }
    }
    Ok(if checked.is_good() { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

fn summary(
    checked: &Checked,
    spec: &DeploymentSpec,
    shape: &ModelShape,
    devices: &[DeviceMemory],
    budget: Option<Budget>,
) -> String {
    let verdict = if checked.is_good() { "ok" } else { "does not fit" };
    let layers = plural(shape.layers.len() as u64, "layer");
    let mut out =
        format!("{}: {verdict}: {}, {layers}\n\n", printable(&spec.name), plural(devices.len() as u64, "device"));
    out.push_str(&memory_table(spec, devices));
    out.push_str("\nbytes are counted from the model's shapes and `limits`, not measured\n");
    if let Some(budget) = budget {
        let micro_batches = u64::from(spec.schedule.micro_batches);
        out.push_str(&format!(
            "\nstage budget: {} ms per token ÷ {layers} = {} a layer ÷ {} = {} for each stage, transfers both ways together\n",
            budget.tpot_ms,
            microseconds(budget.layer_us),
            plural(micro_batches, "micro-batch"),
            microseconds(budget.slot_us)
        ));
    }
    out
}

/// One row a device; equal neighbours of a group share one.
fn memory_table(spec: &DeploymentSpec, devices: &[DeviceMemory]) -> String {
    let mut rows = vec![["device", "weights", "KV", "slots", "needed", "capacity", "used"].map(str::to_owned)];
    let mut start = 0;
    while start < devices.len() {
        let first = &devices[start];
        let alike = |other: &&DeviceMemory| {
            let group = |memory: &DeviceMemory| memory.name.rsplit_once('.').map(|(group, _)| group.to_owned());
            DeviceMemory { name: first.name.clone(), ..(*other).clone() } == *first
                && group(other).filter(|group| spec.devices.contains_key(group)) == group(first)
                && group(first).is_some()
        };
        let count = devices[start..].iter().take_while(alike).count().max(1);
        let name = match count {
            1 => first.name.clone(),
            _ => format!("{} … {}", first.name, devices[start + count - 1].name),
        };
        let capacity = match (first.capacity_bytes, &first.capacity_source) {
            (Some(capacity), Some(source)) => format!("{} ({source})", bytes(capacity)),
            _ => "unknown".to_owned(),
        };
        let used = first.capacity_bytes.map_or("–".to_owned(), |capacity| {
            format!("{:.1} %", first.needed_bytes() as f64 * 100.0 / capacity.max(1) as f64)
        });
        let cell = |count: u64| if count == 0 { "–".to_owned() } else { bytes(count) };
        let needed = bytes(first.needed_bytes());
        rows.push([
            name,
            cell(first.weights_bytes),
            cell(first.kv_bytes),
            cell(first.slots_bytes),
            needed,
            capacity,
            used,
        ]);
        start += count;
    }
    align(&rows)
}

/// Names left, numbers right.
fn align<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| match column {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        out.push_str(cells.collect::<Vec<_>>().join("   ").trim_end());
        out.push('\n');
    }
    out
}
