//! A layer's way through attention and FFN instances, as seven resources that micro-batches pass one behind the other:
//!
//! ```text
//! attention → o_proj exchange (fabric of A) → network → gather (fabric of F) → FFN → scatter (fabric of F) → network → next layer
//! ```
//!
//! Each serves one micro-batch at a time, in order ([`Fabric::Hidden`]); or a device computes for no other while rows of its own exchange
//! are on the fabric, as rally's lanes do ([`Fabric::OnLanes`]). Instances of a kind do the same at the same time, so one of each stands
//! for all: exact for equal rows, and the reason why a prediction does not grow with the number of accelerators. Left out: embedding,
//! head and sampling, jitter, uneven experts and sequences, and fixed times of the FFN, for which table 9 has no figure. What all that
//! comes to, virtual lanes say ([`crate::simulate`]).

use crate::calibration::Calibration;
use crate::simulate::shape;
use rally_cost::model::Ffn;
use rally_cost::price::usd_per_mtok;
use rally_cost::{Dtype, Hardware, Model, SpecError};
use rally_predict::measured::{MeasuredCards, StageTimes};

/// Share of an accelerator's memory, as sold, that weights and cache may take; the rest is for slots and workspaces. vLLM's default
/// comes to 0.96 of it, since drivers report more than is sold; the report's 3A2F takes 0.903.
pub(crate) const MEMORY_SHARE: f64 = 0.92;

/// Names of the resources, in order.
pub const RESOURCES: [&str; 7] =
    ["attention", "o_proj exchange", "network A to F", "gather", "FFN", "scatter", "network F to A"];

/// A deployment on attention and FFN instances.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    /// Attention instances.
    pub attention: u32,
    /// FFN instances.
    pub ffn: u32,
    /// Accelerators of an instance, on one server.
    pub devices: u32,
    /// Micro-batches that rotate.
    pub micro_batches: u32,
    /// Accelerators over which the output projection is divided: 1 or all of an instance.
    pub o_proj: u32,
    /// Whether FFN instances hold all experts each and divide the rows, instead of dividing the experts and seeing all rows.
    pub replicas: bool,
    /// What rows are sent in, attention to FFN. They come back in bf16.
    pub wire: Dtype,
}

impl Layout {
    /// Accelerators it takes.
    pub fn total_devices(&self) -> u32 {
        (self.attention + self.ffn) * self.devices
    }

    /// `2A2F`.
    pub fn name(&self) -> String {
        format!("{}A{}F", self.attention, self.ffn)
    }
}

/// Whether exchanges inside a server hide behind computing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fabric {
    /// Every micro-batch has a stream of its own, so one's exchange is under way while another computes: the Step-3 report's system.
    Hidden,
    /// A device waits for its own exchanges: rally's lanes, whose orders do not part a stage from its exchange.
    OnLanes,
}

/// What is decoded: the model, and contexts with their shares; and how well links are used for it.
#[derive(Clone, Debug)]
pub struct Workload {
    /// The model, with its cache's dtypes.
    pub model: Model,
    /// Tokens and shares; shares add up to anything.
    pub contexts: Vec<(u64, f64)>,
    /// What attention proper is computed in.
    pub attention_dtype: Option<Dtype>,
    /// Share of the links' rate that rows get.
    pub link_share: f64,
    /// Whether exchanges hide.
    pub fabric: Fabric,
    /// Stage times that were measured on a card and stand for efficiencies where they fit.
    pub measured: MeasuredCards,
}

impl Workload {
    /// One context for all, links at their full rate, rally's lanes.
    pub fn at(model: Model, context: u64) -> Self {
        let contexts = vec![(context, 1.0)];
        Self {
            model,
            contexts,
            attention_dtype: None,
            link_share: 1.0,
            fabric: Fabric::OnLanes,
            measured: MeasuredCards::None,
        }
    }

    /// A mean over the contexts.
    fn mean(&self, of: impl Fn(u64) -> f64) -> f64 {
        let shares: f64 = self.contexts.iter().map(|(_, share)| share).sum();
        self.contexts.iter().map(|(tokens, share)| of(*tokens) * share).sum::<f64>() / shares
    }

    /// Tokens of a sequence, a mean.
    pub fn mean_context(&self) -> f64 {
        self.mean(|tokens| tokens as f64)
    }

    /// Bytes of cache that a sequence keeps.
    pub fn kept_bytes(&self) -> f64 {
        self.mean(|tokens| self.model.kept_bytes(tokens))
    }

    /// Takes the stage times of `cards` where there are some of the hardware and they are of this model's shapes. Whether there are any.
    pub fn measure<'a>(&mut self, cards: MeasuredCards, mut hardware: impl Iterator<Item = &'a Hardware>) -> bool {
        let shape = shape(&self.model);
        let fits = |hardware: &Hardware| {
            cards.of(&hardware.name).zip(shape.as_ref()).is_some_and(|(measured, shape)| measured.fits(shape))
        };
        self.measured = if hardware.any(fits) { cards } else { MeasuredCards::None };
        self.measured.are_any()
    }

    /// Whether attention and routed experts of `layout` have times that were measured, wherever the card has any. What was not would be
    /// taken at an efficiency that no kernel of the others reaches, and win by it.
    pub fn knows(&self, on: (&Hardware, &Hardware), layout: &Layout) -> bool {
        let servers = if layout.replicas { 1.0 } else { f64::from(layout.ffn) };
        self.knows_attention(on.0, layout.o_proj) && self.knows_experts(on.1, servers, f64::from(layout.devices))
    }

    /// The same of attention and FFN undivided on `devices` accelerators in whole servers.
    pub fn knows_undivided(&self, hardware: &Hardware, devices: u32) -> bool {
        let per_server = hardware.links().devices_per_server.value.min(f64::from(devices));
        self.knows_attention(hardware, 1) && self.knows_experts(hardware, f64::from(devices) / per_server, per_server)
    }

    fn knows_attention(&self, hardware: &Hardware, o_proj: u32) -> bool {
        self.measured_on(hardware)
            .is_none_or(|measured| o_proj <= 1 && measured.attention_s(1.0, 1.0, self.model.kv_dtypes.full).is_some())
    }

    fn knows_experts(&self, hardware: &Hardware, servers: f64, tensor: f64) -> bool {
        self.measured_on(hardware).is_none_or(|measured| {
            self.model.layers.iter().all(|layers| match layers.ffn {
                Ffn::Dense { .. } => true,
                Ffn::Moe { experts, expert_width, .. } => {
                    let (held, width) = held(experts, expert_width, servers, tensor);
                    measured.experts_s(held, width, 1.0).is_some()
                }
            })
        })
    }

    fn measured_on(&self, hardware: &Hardware) -> Option<&'static StageTimes> {
        self.measured.of(&hardware.name)
    }

    /// Time of one layer's attention of `rows` rows on one accelerator, its output projection divided by `o_proj`.
    ///
    /// # Errors
    /// [`SpecError`] where the spec has no such peak.
    pub fn attention_s(&self, hardware: &Hardware, rows: f64, o_proj: f64) -> Result<f64, SpecError> {
        let calibration = Calibration::of(hardware);
        let layers = self.model.layer_count() as f64;
        let dtype = hardware.decode_dtype();
        let bytes = self.mean(|tokens| self.model.decode_cost(tokens).kv_bytes) / layers;
        let flops = self.mean(|tokens| self.model.decode_cost(tokens).attention_flops) / layers;
        let context = rows * self.mean_context();
        let measured = self.measured_on(hardware).filter(|_| o_proj <= 1.0);
        if let Some(seconds) = measured.and_then(|of| of.attention_s(rows, context, self.model.kv_dtypes.full)) {
            return Ok(seconds);
        }
        let core_peak = hardware.peak(self.attention_dtype.unwrap_or(dtype))?;
        let core = (rows * bytes / hardware.memory_bytes_per_s()).max(rows * flops / core_peak);
        let all = self.model.attention_parameters();
        let weights = self.model.attention_parameters_each(o_proj) / layers;
        // Divided, a device multiplies its part for the rows of all.
        let projections =
            (weights / hardware.memory_bytes_per_s()).max(2.0 * rows * all / layers / hardware.peak(dtype)?);
        Ok((core + projections) / calibration.efficiency + calibration.layer_s)
    }

    /// Time of one layer's FFN of `rows` rows, its experts over `servers` and the widths of each over `tensor` accelerators.
    ///
    /// # Errors
    /// [`SpecError`] where the spec has no such peak.
    pub fn ffn_s(&self, hardware: &Hardware, rows: f64, servers: f64, tensor: f64) -> Result<f64, SpecError> {
        let (layers, devices) = (self.model.layer_count() as f64, servers * tensor);
        let peak = hardware.peak(hardware.decode_dtype())?;
        let takes = |bytes: f64, flops: f64| {
            (bytes / devices / hardware.memory_bytes_per_s()).max(flops / devices / peak)
                / Calibration::of(hardware).efficiency
        };
        if let Some(measured) = self.measured_on(hardware) {
            let matrices = 3.0 * self.model.hidden as f64;
            let dense = |width: u64| takes(matrices * width as f64, 2.0 * rows * matrices * width as f64);
            let mut known = true;
            let all = self.model.sum(|layers| match layers.ffn {
                Ffn::Dense { width } => dense(width),
                Ffn::Moe { experts, expert_width, shared_width, .. } => {
                    let (held, width) = held(experts, expert_width, servers, tensor);
                    let routed = measured.experts_s(held, width, rows);
                    known &= routed.is_some();
                    let shared = if measured.has_shared(held, width) { 0.0 } else { dense(shared_width) };
                    routed.unwrap_or(0.0) + shared
                }
            });
            if known {
                return Ok(all / layers);
            }
        }
        let bytes = self.ffn_bytes_read(rows) / layers;
        let flops = 2.0 * rows * self.model.ffn_active_parameters() / layers;
        Ok(takes(bytes, flops))
    }

    /// 8-bit weights that `rows` rows touch when every expert is as likely as any other.
    fn ffn_bytes_read(&self, rows: f64) -> f64 {
        let touched = |ffn: Ffn| match ffn {
            Ffn::Moe { experts, top_k, expert_width, shared_width } => {
                let missed = (1.0 - top_k as f64 / experts as f64).powf(rows);
                experts as f64 * (1.0 - missed) * expert_width as f64 + shared_width as f64
            }
            Ffn::Dense { width } => width as f64,
        };
        let matrices = 3.0 * self.model.hidden as f64;
        self.model.sum(|layers| matrices * touched(layers.ffn))
    }

    /// Bytes of the weights on an accelerator that attends, one of `o_proj` that divide the output projections: 8-bit projections,
    /// and embedding and head in bf16.
    pub(crate) fn attention_device_bytes(&self, o_proj: f64) -> f64 {
        let ends = 2.0 * Dtype::Bf16.bytes() * (self.model.hidden * self.model.vocab) as f64;
        self.model.attention_parameters_each(o_proj) + ends
    }
}

/// Experts of an accelerator and columns of each, at most.
fn held(experts: u64, width: u64, servers: f64, tensor: f64) -> (usize, usize) {
    let part = |whole: u64, parts: f64| (whole as f64 / parts).ceil() as usize;
    (part(experts, servers), part(width, tensor))
}

/// Seconds of each of [`RESOURCES`] for one layer of one micro-batch.
///
/// # Errors
/// [`SpecError`] where a spec has no such peak.
pub fn stage_seconds(
    workload: &Workload,
    (on_attention, on_ffn): (&Hardware, &Hardware),
    layout: &Layout,
    rows: f64,
) -> Result<[f64; 7], SpecError> {
    let (a, f, g) = (f64::from(layout.attention), f64::from(layout.ffn), f64::from(layout.devices));
    let hidden = workload.model.hidden as f64;
    let (sent, answered) = (hidden * layout.wire.bytes(), hidden * Dtype::Bf16.bytes());
    let links = workload.link_share;
    let (a_rows, f_rows) = (rows / (a * g), if layout.replicas { rows / f } else { rows });
    let (a_links, f_links) = (on_attention.links(), on_ffn.links());
    // Divided by heads: what the others' heads found for a row goes to them, and parts of the sums of everyone else's rows come back.
    let heads = workload.model.output_width() * Dtype::Bf16.bytes() / f64::from(layout.o_proj);
    let exchanged = if layout.o_proj > 1 { (g - 1.0) * a_rows * (heads + answered) } else { 0.0 };
    // An attention device sends each row to every FFN instance that divides the experts.
    let copies = if layout.replicas { 1.0 } else { f };
    let network = |bytes: f64| {
        let a_side = a_rows * copies * bytes / a_links.network_bytes_per_s_per_device();
        a_side.max(f_rows / g * bytes / f_links.network_bytes_per_s_per_device()) / links
    };
    let fabric = |bytes: f64| f_rows * bytes * (g - 1.0) / g / (f_links.fabric_bytes_per_s.value * links);
    let ffn_servers = if layout.replicas { 1.0 } else { f };
    Ok([
        workload.attention_s(on_attention, a_rows, f64::from(layout.o_proj))?,
        exchanged / (a_links.fabric_bytes_per_s.value * links),
        network(sent),
        fabric(sent),
        workload.ffn_s(on_ffn, f_rows, ffn_servers, g)?,
        fabric(answered),
        network(answered),
    ])
}

/// What serves one micro-batch at a time: a name and seconds.
pub fn served(stages: &[f64; 7], fabric: Fabric) -> Vec<(&'static str, f64)> {
    let [attention, o_proj, there, gather, ffn, scatter, back] = *stages;
    match fabric {
        Fabric::Hidden => RESOURCES.into_iter().zip(*stages).collect(),
        Fabric::OnLanes => vec![
            ("attention and its exchange", attention + o_proj),
            (RESOURCES[2], there),
            ("FFN, gather and scatter", gather + ffn + scatter),
            (RESOURCES[6], back),
        ],
    }
}

/// Time per token of `micro_batches` that rotate through `stages`, `layers` layers a token: micro-batches pass the resources on
/// virtual time, in order, until two tokens take the same.
pub fn time_per_token_s(stages: &[f64], micro_batches: u32, layers: u64) -> f64 {
    let mut free = vec![0.0; stages.len()];
    let mut ready = vec![0.0; micro_batches as usize];
    let mut begun = 0.0;
    // The pipeline is filled during the first token; the second is steady.
    for token in 0..2 {
        if token == 1 {
            begun = ready[0];
        }
        for _ in 0..layers {
            for ready in &mut ready {
                for (stage, free) in stages.iter().zip(&mut free) {
                    *ready = f64::max(*ready, *free) + stage;
                    *free = *ready;
                }
            }
        }
    }
    ready[0] - begun
}

/// A deployment with what it does.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Which.
    pub layout: Layout,
    /// Sequences under way in all micro-batches.
    pub batch: f64,
    /// Seconds of each of [`RESOURCES`].
    pub stages: [f64; 7],
    /// Which of them go on side by side.
    pub fabric: Fabric,
    /// Time per token.
    pub tpot_s: f64,
    /// Tokens a second of the deployment.
    pub tokens_per_s: f64,
    /// USD an hour of the accelerators used.
    pub usd_per_hour: f64,
    /// Share of an attention device's memory that weights and cache take.
    pub attention_memory: f64,
    /// Share of an FFN device's memory that weights take.
    pub ffn_memory: f64,
}

impl Outcome {
    /// Of `layout` with `rows` rows a micro-batch.
    ///
    /// # Errors
    /// [`SpecError`] where a spec lacks a peak or a price.
    pub fn of(workload: &Workload, on: (&Hardware, &Hardware), layout: &Layout, rows: f64) -> Result<Self, SpecError> {
        let stages = stage_seconds(workload, on, layout, rows)?;
        let fabric = workload.fabric;
        let each: Vec<f64> = served(&stages, fabric).into_iter().map(|(_, seconds)| seconds).collect();
        let tpot_s = time_per_token_s(&each, layout.micro_batches, workload.model.layer_count());
        let batch = rows * f64::from(layout.micro_batches);
        let (a, f, g) = (f64::from(layout.attention), f64::from(layout.ffn), f64::from(layout.devices));
        let weights = workload.attention_device_bytes(f64::from(layout.o_proj));
        let attention_bytes = weights + batch * workload.kept_bytes() / (a * g);
        let ffn_bytes = workload.model.ffn_parameters() / if layout.replicas { g } else { f * g };
        Ok(Self {
            layout: layout.clone(),
            batch,
            stages,
            fabric,
            tpot_s,
            tokens_per_s: batch / tpot_s,
            usd_per_hour: g * (a * on.0.price()? + f * on.1.price()?),
            attention_memory: attention_bytes / on.0.memory_bytes(),
            ffn_memory: ffn_bytes / on.1.memory_bytes(),
        })
    }

    /// Whether all fits into memory and the time per token into `tpot_s`.
    pub fn holds(&self, tpot_s: f64) -> bool {
        self.tpot_s <= tpot_s && self.attention_memory <= MEMORY_SHARE && self.ffn_memory <= MEMORY_SHARE
    }

    /// Tokens a second and accelerator.
    pub fn tgs(&self) -> f64 {
        self.tokens_per_s / f64::from(self.layout.total_devices())
    }

    /// USD per million tokens.
    pub fn usd_per_mtok(&self) -> f64 {
        usd_per_mtok(self.usd_per_hour, self.tokens_per_s)
    }

    /// What bounds it: the slowest resource, or, where that stands idle, a micro-batch's own way through all of them.
    pub fn bound(&self) -> &'static str {
        let served = served(&self.stages, self.fabric);
        let (slowest, longest) =
            served.iter().copied().max_by(|left, right| left.1.total_cmp(&right.1)).expect("there are several");
        match self.stages.iter().sum::<f64>() > f64::from(self.layout.micro_batches) * longest {
            true => "a micro-batch's way through all stages",
            false => slowest,
        }
    }
}
