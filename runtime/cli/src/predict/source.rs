//! Where durations come from: a profile, or figures of accelerators and the shares of them that are reached.

use super::PredictArgs;
use crate::error::{Blame, CliError};
use crate::identity::ModelIdentity;
use crate::input::{mistake, read_named};
use crate::measured::{self, MeasuredFile};
use clap::Args;
use rally_cost::Hardware;
use rally_cost::library::hardware_named;
use rally_engine::schedule::cost_table::CostTable;
use rally_predict::measured::StageTimes;
use rally_predict::roofline::Efficiency;
use rally_stages::deployment::Deployment;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::PathBuf;

/// Of durations that follow from figures.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Without a profile")]
pub(super) struct EfficiencyArgs {
    /// Share of the memory's bandwidth that stages reach.
    #[arg(long, value_name = "X", default_value_t = Efficiency::default().memory, value_parser = share, conflicts_with = "profile")]
    memory_efficiency: f64,
    /// Share of the peak FLOPs that stages reach.
    #[arg(long, value_name = "X", default_value_t = Efficiency::default().compute, value_parser = share, conflicts_with = "profile")]
    compute_efficiency: f64,
    /// Share of the links' bandwidth that transfers reach.
    #[arg(long, value_name = "X", default_value_t = Efficiency::default().network, value_parser = share, conflicts_with = "profile")]
    network_efficiency: f64,
    /// Microseconds before a task does anything.
    #[arg(long, value_name = "US", default_value_t = Efficiency::default().launch_s * 1e6, value_parser = microseconds, conflicts_with = "profile")]
    launch_us: f64,
    /// Microseconds of a layer's attention beside reading and computing: norms, rope, cache appends.
    #[arg(long, value_name = "US", default_value_t = Efficiency::default().attention_s * 1e6, value_parser = microseconds, conflicts_with = "profile")]
    attention_us: f64,
    /// Microseconds until the first byte is there, between hosts.
    #[arg(long, value_name = "US", default_value_t = Efficiency::default().latency_s * 1e6, value_parser = microseconds, conflicts_with = "profile")]
    latency_us: f64,
    /// Take stage times that were measured, where there are some; figures stand for the rest. Those of rally's fast kernels on an H200, or
    /// of tables that `rally profile` wrote on a card; NAME if they are to stand for another card than their own.
    #[arg(long, value_name = "[NAME:]F.json,…", num_args = 0..=1, require_equals = true, conflicts_with = "profile")]
    measured: Option<Option<MeasuredFile>>,
    /// A row for several devices leaves its own once, and the network copies it.
    #[arg(long, conflicts_with = "profile")]
    multicast: bool,
}

impl EfficiencyArgs {
    fn efficiency(&self) -> Efficiency {
        Efficiency {
            memory: self.memory_efficiency,
            compute: self.compute_efficiency,
            network: self.network_efficiency,
            launch_s: self.launch_us * 1e-6,
            attention_s: self.attention_us * 1e-6,
            latency_s: self.latency_us * 1e-6,
            multicast: self.multicast,
        }
    }
}

fn share(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| *number > 0.0 && *number <= 1.0);
    number.ok_or_else(|| "expected a number above 0, at most 1".into())
}

fn microseconds(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| (0.0..=1e6).contains(number));
    number.ok_or_else(|| "expected microseconds from 0 to 1000000".into())
}

/// Where durations come from.
pub(super) enum Source {
    /// What was measured, in a file.
    Profile(PathBuf, CostTable),
    /// Figures, and shares of them that are reached, by device: the same shares of all.
    Figures { hardware: Vec<Hardware>, shares: Vec<Efficiency>, measured: Vec<Option<&'static StageTimes>> },
}

impl Source {
    pub(super) fn of(args: &PredictArgs, deployment: &Deployment) -> Result<Self, CliError> {
        if let Some(path) = &args.profile {
            let table = read_named("--profile", path, CostTable::from_json)?;
            let differences = ModelIdentity::of(deployment).differences(&table);
            if !differences.is_empty() {
                let of = format!("it was measured with another model: {}", differences.join(", "));
                return Err(mistake("--profile", path, &of));
            }
            return Ok(Self::Profile(path.clone(), table));
        }
        let mut named: HashMap<String, Hardware> = HashMap::new();
        let mut hardware = Vec::new();
        for device in &deployment.stage_graph().devices {
            let of_graph = || deployment.spec.devices.get(&device.group).and_then(|entry| entry.hardware.clone());
            let name = args.hardware.clone().or_else(of_graph).ok_or_else(|| {
                CliError::Mistake(format!(
                    "nothing says how fast device `{}` is: give --profile F.json (`rally profile` measures it) or --hardware NAME, \
                     or name its `hardware` in the graph",
                    device.name
                ))
            })?;
            if !named.contains_key(&name) {
                named.insert(name.clone(), hardware_named(&name).or_mistake()?);
            }
            hardware.push(named[&name].clone());
        }
        let shares = vec![args.efficiency.efficiency(); hardware.len()];
        let cards = measured::cards(args.efficiency.measured.as_ref(), hardware.iter())?;
        let of = |hardware: &Hardware| cards.of(&hardware.name).filter(|measured| measured.fits(&deployment.shape));
        let measured: Vec<Option<&'static StageTimes>> = hardware.iter().map(of).collect();
        if cards.are_any() && measured.iter().all(Option::is_none) {
            return Err(measured::nothing_of(cards));
        }
        Ok(Self::Figures { hardware, shares, measured })
    }

    pub(super) fn json(&self) -> Value {
        match self {
            Self::Profile(path, _) => json!({ "profile": path.display().to_string() }),
            Self::Figures { hardware, shares, measured } => {
                let efficiency = shares.first().copied().unwrap_or_default();
                let measured = measured.iter().flatten().next().map(|measured| measured.source.as_str());
                json!({
                    "measured": measured,
                "hardware": names(hardware),
                "efficiency": {
                    "memory": efficiency.memory,
                    "compute": efficiency.compute,
                    "network": efficiency.network,
                    "launch_us": efficiency.launch_s * 1e6,
                    "attention_us": efficiency.attention_s * 1e6,
                    "latency_us": efficiency.latency_s * 1e6,
                    "multicast": efficiency.multicast,
                },
                })
            }
        }
    }

    /// The machine that durations are of.
    pub(super) fn machine(&self) -> Value {
        match self {
            Self::Profile(_, table) => table.machine.clone(),
            Self::Figures { hardware, .. } => json!({ "hardware": names(hardware), "devices": hardware.len() }),
        }
    }

    /// Cores that lanes share, where durations are of a machine that has so many. Times of cards take none.
    pub(super) fn cores(&self) -> Option<usize> {
        match self {
            Self::Profile(_, table) if table.machine["cuda"].is_array() => None,
            Self::Profile(_, table) => table.machine["cores"].as_u64().and_then(|cores| usize::try_from(cores).ok()),
            Self::Figures { .. } => None,
        }
    }

    pub(super) fn words(&self) -> String {
        match self {
            Self::Profile(path, table) => {
                let cpu = table.machine["cpu"].as_str().unwrap_or("an unknown machine");
                let cards = table.machine["cuda"].as_array().into_iter().flatten().filter_map(Value::as_str);
                let on: Vec<&str> = std::iter::once(cpu).chain(cards).collect();
                format!("durations from {}, measured on {}", path.display(), on.join(", "))
            }
            Self::Figures { hardware, shares, measured } => {
                let efficiency = shares.first().copied().unwrap_or_default();
                let measured = measured.iter().flatten().next();
                let measured = measured.map(|measured| format!("stage times as measured ({}); else ", measured.source));
                let measured = measured.unwrap_or_default();
                format!(
                    "{measured}durations from figures of {}: {:.0} % of the memory's bandwidth, {:.0} % of the FLOPs, {:.0} % of the links, {} µs a \
                 launch, {} µs between hosts",
                    names(hardware).join(", "),
                    efficiency.memory * 100.0,
                    efficiency.compute * 100.0,
                    efficiency.network * 100.0,
                    efficiency.launch_s * 1e6,
                    efficiency.latency_s * 1e6,
                )
            }
        }
    }
}

/// Each once.
fn names(hardware: &[Hardware]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for hardware in hardware {
        if !names.contains(&hardware.name.as_str()) {
            names.push(&hardware.name);
        }
    }
    names
}
