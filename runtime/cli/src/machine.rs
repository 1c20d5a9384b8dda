//! What a result was measured on.

use crate::doctor;
use rally_graph::spec::{Backend, DeploymentSpec};
use rally_kernels::isa::Isa;
use serde::Serialize;
use std::fmt;

/// The machine and the program.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Processor, as it names itself.
    pub cpu: String,
    /// Cores this process may use.
    pub cores: usize,
    /// Vector unit the kernels use.
    pub simd: String,
    /// Memory, where the system says it.
    pub memory_bytes: Option<u64>,
    /// System and its release.
    pub os: String,
    /// Processes that wanted to run in the minute before, this one aside: what a noisy neighbour looks like.
    pub load_average: Option<f64>,
    /// CUDA cards, where a deployment works on them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cuda: Vec<String>,
    /// Version of rally.
    pub rally: &'static str,
    /// `release` or `debug`.
    pub profile: &'static str,
}

impl Machine {
    /// The one that runs this.
    pub fn here() -> Self {
        let release = read("/proc/sys/kernel/osrelease").map(|release| format!(" {release}")).unwrap_or_default();
        Self {
            cpu: doctor::processor_name(),
            cores: doctor::available_cores(),
            simd: format!("{:?}", Isa::detect()).to_lowercase(),
            memory_bytes: doctor::memory_bytes(),
            os: format!("{}{release}", std::env::consts::OS),
            load_average: read("/proc/loadavg").and_then(|text| text.split(' ').next()?.parse().ok()),
            cuda: Vec::new(),
            rally: env!("CARGO_PKG_VERSION"),
            profile: if cfg!(debug_assertions) { "debug" } else { "release" },
        }
    }

    /// The one that runs this, its cards among what it is if one of `specs` has devices on them.
    pub fn with<'a>(specs: impl IntoIterator<Item = &'a DeploymentSpec>) -> Self {
        let on_cuda = |spec: &DeploymentSpec| spec.devices.values().any(|device| device.backend == Backend::Cuda);
        let cuda = if specs.into_iter().any(on_cuda) { cards() } else { Vec::new() };
        Self { cuda, ..Self::here() }
    }
}

/// None if there are none: whoever opens them says why.
#[cfg(feature = "cuda")]
fn cards() -> Vec<String> {
    rally_stages::deployment::Machines::from_environment().names().unwrap_or_default()
}

#[cfg(not(feature = "cuda"))]
fn cards() -> Vec<String> {
    Vec::new()
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

impl fmt::Display for Machine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}, {} cores, {}", self.cpu, self.cores, self.simd)?;
        if let Some(bytes) = self.memory_bytes {
            write!(formatter, ", {:.1} GiB", bytes as f64 / (1u64 << 30) as f64)?;
        }
        for card in &self.cuda {
            write!(formatter, ", {card}")?;
        }
        write!(formatter, ", {}; rally {} ({})", self.os, self.rally, self.profile)?;
        match self.load_average {
            Some(load) => write!(formatter, "; load average before: {load}"),
            None => Ok(()),
        }
    }
}
