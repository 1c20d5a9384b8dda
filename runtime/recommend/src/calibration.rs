//! How much of its peaks an accelerator reaches, from table 9 of the Step-3 report and nothing else.
//!
//! Derivation. The table has the time of one attention layer at two contexts with the same rows. What grows with the context is
//! the core: reading keys and values, or computing scores, whichever takes longer; so
//!
//! ```text
//! efficiency = (core at 32K − core at 8K, at full peak) / (measured at 32K − measured at 8K)
//! ```
//!
//! and the rest, the measured time less the core and the reading of the projections' weights at that efficiency, is a fixed time a
//! layer: launches, norms, rope, cache appends. Nothing of table 8 (whole deployments) enters.

use rally_cost::library::{hardware_named, model_named};
use rally_cost::{Dtype, Hardware, SpecError};
use serde_json::Value;
use std::sync::LazyLock;

/// What an accelerator reaches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Calibration {
    /// Share of its bandwidth and of its peak.
    pub efficiency: f64,
    /// Fixed time of a layer's attention.
    pub layer_s: f64,
}

/// The accelerator whose row stands for those that the table does not have.
const FALLBACK: &str = "H800";

/// Every row of the table, derived once: a search asks a million times.
static ROWS: LazyLock<Vec<(String, Calibration)>> = LazyLock::new(|| {
    let table: Value = serde_json::from_str(include_str!("calibration.json")).expect("a test derives every row of it");
    let rows = table["microseconds"].as_object().expect("a test derives every row of it");
    let derived = |(name, row): (&String, &Value)| -> Result<_, SpecError> {
        Ok((name.clone(), Calibration::derived(&hardware_named(name)?, &table, row)?))
    };
    rows.iter().map(derived).collect::<Result<_, _>>().expect("a test derives every row of it")
});

impl Calibration {
    /// Of an accelerator; where the table has no row for it, H800's.
    pub fn of(hardware: &Hardware) -> Self {
        let row = |name: &str| ROWS.iter().find(|(known, _)| known == name).map(|(_, calibration)| *calibration);
        row(&hardware.name).or(row(FALLBACK)).expect("a test derives every row of it")
    }

    /// Whether the table has a row for it.
    pub fn is_measured(hardware: &Hardware) -> bool {
        ROWS.iter().any(|(name, _)| *name == hardware.name)
    }

    fn derived(hardware: &Hardware, table: &Value, measured: &Value) -> Result<Self, SpecError> {
        let number = |value: &Value| value.as_f64().expect("the table holds numbers");
        let model = model_named("Step-3")?;
        let layers = model.layer_count() as f64;
        let rows = number(&table["rows"]);
        let core = |index: usize| -> Result<f64, SpecError> {
            let cost = model.decode_cost(number(&table["contexts"][index]) as u64);
            // The library keeps this cache in one byte a value.
            let bytes = rows * cost.kv_bytes / layers * number(&table["kv_dtype_bytes"]);
            let reading = bytes / hardware.memory_bytes_per_s();
            Ok(reading.max(rows * cost.attention_flops / layers / hardware.peak(Dtype::Bf16)?))
        };
        let seconds = |index: usize| number(&measured[index]) * 1e-6;
        let efficiency = (core(1)? - core(0)?) / (seconds(1) - seconds(0));
        let weights = model.attention_parameters() / layers;
        let dtype = hardware.decode_dtype();
        let projections = (weights / hardware.memory_bytes_per_s()).max(2.0 * rows * weights / hardware.peak(dtype)?);
        let layer_s = (seconds(0) - (core(0)? + projections) / efficiency).max(0.0);
        Ok(Self { efficiency, layer_s })
    }
}
