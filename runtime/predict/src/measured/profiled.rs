//! Times of a table that `rally profile` wrote: attention layers by rows and context, whole or by the parts of one whose output projection is
//! divided, and experts by their shard.

use rally_cost::Dtype;
use rally_graph::model::ModelShape;
use rally_graph::spec::WireDtype;
use rally_schedule::cost_table::{CostPart, CostTable, StageCost, TaskSize};

/// What of a table stands for figures.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ProfiledTimes {
    hidden: u64,
    all_experts: u64,
    layers: u64,
    /// By the cache's type; of a divided one every part.
    attention: Vec<(Dtype, StageCost)>,
    /// Of each shard one, without a shared expert where there is such a device.
    experts: Vec<StageCost>,
    /// Stages that depend on their rows alone.
    plain: Vec<StageCost>,
    vocab: u64,
}

/// Kinds of them.
const PLAIN: [&str; 4] = ["router", "combine", "embed", "sampling"];

impl ProfiledTimes {
    /// What the table has of shares with so many multiprocessors; 0: of whole cards.
    pub(super) fn of(table: &CostTable, sms: u32) -> Option<Self> {
        let of_model = |key: &str| table.model[key].as_u64();
        let mut times = Self {
            hidden: of_model("hidden")?,
            all_experts: of_model("experts")?,
            layers: of_model("layers")?,
            attention: Vec::new(),
            experts: Vec::new(),
            plain: Vec::new(),
            vocab: of_model("vocab").unwrap_or_default(),
        };
        let counts = |cost: &&StageCost| cost.sms == sms && !cost.warm && CostPart::OF_STAGE.contains(&cost.part);
        for cost in table.stages.iter().filter(counts) {
            // What else is done in parts are experts with copies.
            let is_in_parts = |other: &StageCost| other.stage == cost.stage && other.part == CostPart::Second;
            match cost.kind.as_str() {
                "expert_ffn" if table.stages.iter().any(is_in_parts) => {}
                "mfa_attention" => times.attention.extend(cost.kv_dtype.map(|dtype| (kept_in(dtype), cost.clone()))),
                "expert_ffn" if cost.width > 0 => times.add(cost),
                kind if PLAIN.contains(&kind) && times.plain.iter().all(|known| known.kind != kind) => {
                    times.plain.push(cost.clone());
                }
                _ => {}
            }
        }
        Some(times)
    }

    /// Whether there is anything of what differs from deployment to deployment.
    pub(super) fn is_any(&self) -> bool {
        !self.attention.is_empty() || !self.experts.is_empty()
    }

    pub(super) fn plain(&self, kind: &str, vocab: usize) -> Option<&StageCost> {
        let same = |cost: &&StageCost| cost.kind == kind && (kind != "sampling" || self.vocab == vocab as u64);
        self.plain.iter().find(same)
    }

    fn add(&mut self, cost: &StageCost) {
        match self.experts.iter_mut().find(|known| (known.experts, known.width) == (cost.experts, cost.width)) {
            Some(known) if known.shared && !cost.shared => *known = cost.clone(),
            Some(_) => {}
            None => self.experts.push(cost.clone()),
        }
    }

    /// Some layers of a model are of its shapes as all of them are.
    pub(super) fn fits(&self, shape: &ModelShape) -> bool {
        let [hidden, experts, layers] = [shape.hidden, shape.experts, shape.layers.len()].map(|size| size as u64);
        [hidden, experts] == [self.hidden, self.all_experts] && layers <= self.layers
    }

    pub(super) fn attention_s(&self, rows: f64, context: f64, kv: Dtype) -> Option<f64> {
        self.part_s(rows, context, |dtype, cost| dtype == kv && cost.width == 0)
    }

    pub(super) fn divided_s(&self, rows: f64, context: f64, kv: Dtype, (width, part): (usize, usize)) -> Option<f64> {
        self.part_s(rows, context, |dtype, cost| dtype == kv && cost.width == width && cost.part.index() == part)
    }

    fn part_s(&self, rows: f64, context: f64, is: impl Fn(Dtype, &StageCost) -> bool) -> Option<f64> {
        let (_, cost) = self.attention.iter().find(|(dtype, cost)| is(*dtype, cost))?;
        let context = context / rows.max(1.0);
        Some(between(rows, |rows| cost.seconds(TaskSize { rows, context, experts: None })))
    }

    pub(super) fn experts_s(&self, experts: usize, width: usize, rows: f64) -> Option<f64> {
        let cost = self.shard(experts, width)?;
        Some(between(rows, |rows| cost.seconds(TaskSize { rows, context: 0.0, experts: None })))
    }

    pub(super) fn has_shared(&self, experts: usize, width: usize) -> bool {
        self.shard(experts, width).is_some_and(|cost| cost.shared)
    }

    pub(super) fn shards(&self) -> Vec<(usize, usize)> {
        self.experts.iter().map(|cost| (cost.experts, cost.width)).collect()
    }

    fn shard(&self, experts: usize, width: usize) -> Option<&StageCost> {
        self.experts.iter().find(|cost| (cost.experts, cost.width) == (experts, width))
    }
}

fn kept_in(dtype: WireDtype) -> Dtype {
    match dtype {
        WireDtype::F32 => Dtype::F32,
        WireDtype::Bf16 => Dtype::Bf16,
        WireDtype::Fp8E4m3 => Dtype::Fp8,
    }
}

/// Of a mean number of rows, one at least.
fn between(rows: f64, of: impl Fn(usize) -> f64) -> f64 {
    let rows = rows.max(1.0);
    let (below, share) = (rows.floor(), rows.fract());
    let lower = of(below as usize);
    if share == 0.0 { lower } else { lower + share * (of(below as usize + 1) - lower) }
}
