//! The same accelerators without disaggregation: every device attends to its own sequences, and the FFN is divided over all.
//!
//! Two micro-batches, so that one computes while the other's rows travel. Experts are divided over servers and widths inside a
//! server, as the FFN of a disaggregated layout is; rows go to the servers of their experts only.

use crate::pipeline::{Fabric, MEMORY_SHARE, Workload};
use rally_cost::model::Ffn;
use rally_cost::price::usd_per_mtok;
use rally_cost::{Dtype, Hardware, SpecError};

/// An undivided deployment with what it does.
#[derive(Clone, Copy, Debug)]
pub struct Undivided {
    /// Accelerators.
    pub devices: u32,
    /// Sequences under way.
    pub batch: f64,
    /// Time per token.
    pub tpot_s: f64,
    /// Tokens a second of the deployment.
    pub tokens_per_s: f64,
    /// USD an hour.
    pub usd_per_hour: f64,
    /// Share of a device's memory that weights and cache take.
    pub memory: f64,
}

/// Micro-batches that take turns computing.
const MICRO_BATCHES: f64 = 2.0;

impl Undivided {
    /// With `rows` rows a micro-batch over `devices` accelerators.
    ///
    /// # Errors
    /// [`SpecError`] where a spec lacks a peak or a price.
    pub fn of(workload: &Workload, hardware: &Hardware, devices: u32, rows: f64) -> Result<Self, SpecError> {
        let (n, links, model) = (f64::from(devices), hardware.links(), &workload.model);
        let per_server = links.devices_per_server.value.min(n);
        let servers = (n / per_server).ceil();
        let own = rows / n;
        let computing =
            workload.attention_s(hardware, own, 1.0)? + workload.ffn_s(hardware, rows, servers, per_server)?;
        let row_bytes = model.hidden as f64 * (Dtype::Fp8.bytes() + Dtype::Bf16.bytes());
        // Servers that a row's experts are expected on, and of those the ones that are not its own.
        let top_k = model.layers.iter().map(|layers| match layers.ffn {
            Ffn::Moe { top_k, .. } => top_k as f64,
            Ffn::Dense { .. } => 1.0,
        });
        let away = (servers - 1.0) * (1.0 - (1.0 - 1.0 / servers).powf(top_k.fold(1.0, f64::max)));
        let network = own * away * row_bytes / (links.network_bytes_per_s_per_device() * workload.link_share);
        let server_rows = own * per_server * (1.0 + away);
        let fabric = server_rows * row_bytes * (per_server - 1.0)
            / per_server
            / (links.fabric_bytes_per_s.value * workload.link_share);
        let (computing, travelling) = match workload.fabric {
            Fabric::Hidden => (computing, network + fabric),
            // As with attention and FFN apart: a device stands still for its own server's exchanges.
            Fabric::OnLanes => (computing + fabric, network),
        };
        // One computes while the other travels; neither can be quicker than its own way.
        let layer = (MICRO_BATCHES * computing).max(computing + travelling).max(MICRO_BATCHES * network.max(fabric));
        let tpot_s = layer * model.layer_count() as f64;
        let batch = MICRO_BATCHES * rows;
        let weights = workload.attention_device_bytes(1.0) + model.ffn_parameters() / n;
        let bytes = weights + batch * workload.kept_bytes() / n;
        Ok(Self {
            devices,
            batch,
            tpot_s,
            tokens_per_s: batch / tpot_s,
            usd_per_hour: n * hardware.price()?,
            memory: bytes / hardware.memory_bytes(),
        })
    }

    /// Whether all fits into memory and the time per token into `tpot_s`.
    pub fn holds(&self, tpot_s: f64) -> bool {
        self.tpot_s <= tpot_s && self.memory <= MEMORY_SHARE
    }

    /// Tokens a second and accelerator.
    pub fn tgs(&self) -> f64 {
        self.tokens_per_s / f64::from(self.devices)
    }

    /// USD per million tokens.
    pub fn usd_per_mtok(&self) -> f64 {
        usd_per_mtok(self.usd_per_hour, self.tokens_per_s)
    }
}
