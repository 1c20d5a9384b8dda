//! Stage times that were measured on a card for the shapes of one model: with rally's own kernels, each part alone, or by `rally profile`.
//!
//! Only what was measured is here: attention with its output projection undivided, and experts as some ways of sharding have them. What a
//! deployment has beside that follows from the card's figures, and is named.

mod parts;
mod profiled;

use parts::PartTimes;
use profiled::ProfiledTimes;
use rally_cost::Dtype;
use rally_graph::model::ModelShape;
use rally_schedule::cost_table::{CostTable, StageCost};
use std::collections::BTreeSet;
use std::sync::LazyLock;

/// Measured times of one card.
#[derive(Clone, Debug, PartialEq)]
pub struct StageTimes {
    /// The card, as the library of hardware calls it.
    pub hardware: String,
    /// Where and how they were measured.
    pub source: String,
    times: Times,
    /// What was measured on shares of the card, by their multiprocessors.
    shares: Vec<(u32, StageTimes)>,
}

#[derive(Clone, Debug, PartialEq)]
enum Times {
    Parts(PartTimes),
    Profiled(ProfiledTimes),
}

/// Which measured times stand for figures.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum MeasuredCards {
    /// None.
    #[default]
    None,
    /// Those that come with rally.
    BuiltIn,
    /// Those of one card.
    Of(&'static StageTimes),
}

impl MeasuredCards {
    /// Those of the card with this name.
    pub fn of(self, hardware: &str) -> Option<&'static StageTimes> {
        self.all().find(|measured| measured.hardware.eq_ignore_ascii_case(hardware))
    }

    /// All of them.
    pub fn all(self) -> impl Iterator<Item = &'static StageTimes> {
        let built_in: &[StageTimes] = if matches!(self, Self::BuiltIn) { &ALL } else { &[] };
        let other = match self {
            Self::Of(times) => Some(times),
            Self::None | Self::BuiltIn => None,
        };
        built_in.iter().chain(other)
    }

    /// Whether there are any.
    pub fn are_any(self) -> bool {
        self.all().next().is_some()
    }
}

/// Cards that have been measured.
static ALL: LazyLock<Vec<StageTimes>> = LazyLock::new(|| {
    let built_in = [include_str!("measured/h200.json")];
    built_in.map(|text| parts::read(text).expect("a test reads it")).into()
});

impl StageTimes {
    /// Of the card with this name, if it was measured by those who made rally.
    pub fn of(hardware: &str) -> Option<&'static Self> {
        MeasuredCards::BuiltIn.of(hardware)
    }

    /// Of a table that `rally profile` wrote on a card that the library calls `hardware`; `source` says where it is from. `None` if
    /// there is nothing in it that stands for figures.
    pub fn of_table(hardware: &str, source: String, table: &CostTable) -> Option<Self> {
        let on = |sms: u32| {
            let times = Times::Profiled(ProfiledTimes::of(table, sms)?);
            Some(Self { hardware: hardware.into(), source: source.clone(), times, shares: Vec::new() })
        };
        let sizes: BTreeSet<u32> = table.stages.iter().map(|cost| cost.sms).filter(|sms| *sms > 0).collect();
        let shares: Vec<(u32, Self)> = sizes.into_iter().filter_map(|sms| on(sms).map(|times| (sms, times))).collect();
        let whole = on(0)?;
        let is_any = |times: &Self| matches!(&times.times, Times::Profiled(profiled) if profiled.is_any());
        (is_any(&whole) || shares.iter().any(|(_, times)| is_any(times))).then_some(Self { shares, ..whole })
    }

    /// What was measured on shares of the card with so many multiprocessors, if anything was.
    pub fn of_share(&self, sms: u32) -> Option<&Self> {
        self.shares.iter().find(|(of, _)| *of == sms).map(|(_, times)| times)
    }

    /// Kept until the process ends: a command reads one.
    pub fn kept(self) -> &'static Self {
        Box::leak(Box::new(self))
    }

    /// Whether these are times of a model of this shape.
    pub fn fits(&self, shape: &ModelShape) -> bool {
        match &self.times {
            Times::Parts(parts) => parts.fits(shape),
            Times::Profiled(profiled) => profiled.fits(shape),
        }
    }

    /// Seconds of one layer's attention of `rows` sequences that attend to `context` positions in all, its output projection undivided.
    /// `None` for a cache in a type that was not measured.
    pub fn attention_s(&self, rows: f64, context: f64, kv: Dtype) -> Option<f64> {
        match &self.times {
            Times::Parts(parts) => parts.attention_s(rows, context, kv),
            Times::Profiled(profiled) => profiled.attention_s(rows, context, kv),
        }
    }

    /// Seconds of a part of attention whose output projection is divided into slices of `width` columns. Of the parts that follow the
    /// first, `rows` are those that come in.
    pub fn divided_s(&self, rows: f64, context: f64, kv: Dtype, (width, part): (usize, usize)) -> Option<f64> {
        match &self.times {
            Times::Parts(_) => None,
            Times::Profiled(profiled) => profiled.divided_s(rows, context, kv, (width, part)),
        }
    }

    /// Seconds of the experts of one layer on a device that holds `experts` of them, `width` columns of each, when `rows` rows
    /// choose among all. `None` for a shard that was not measured.
    pub fn experts_s(&self, experts: usize, width: usize, rows: f64) -> Option<f64> {
        match &self.times {
            Times::Parts(parts) => parts.experts_s(experts, width, rows),
            Times::Profiled(profiled) => profiled.experts_s(experts, width, rows),
        }
    }

    /// The table's times of a stage beside attention and experts that every device does alike: routers, residual adds, embeddings. A head is
    /// one of so many words.
    pub fn plain(&self, kind: &str, vocab: usize) -> Option<&StageCost> {
        match &self.times {
            Times::Parts(_) => None,
            Times::Profiled(profiled) => profiled.plain(kind, vocab),
        }
    }

    /// Whether those seconds have a shared expert's part in them.
    pub fn has_shared(&self, experts: usize, width: usize) -> bool {
        match &self.times {
            Times::Parts(_) => false,
            Times::Profiled(profiled) => profiled.has_shared(experts, width),
        }
    }

    /// Shards of experts that there are: how many, and columns of each.
    pub fn shards(&self) -> Vec<(usize, usize)> {
        match &self.times {
            Times::Parts(parts) => parts.shards(),
            Times::Profiled(profiled) => profiled.shards(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rally_graph::model::LayerKind;
    use rally_graph::spec::WireDtype;
    use rally_schedule::cost_table::{CostAxis, CostPart, CostPoint, VERSION};

    #[test]
    fn measured_points_are_given_back_and_nothing_else_is_claimed() {
        let h200 = StageTimes::of("h200").expect("it was measured");
        let near =
            |got: Option<f64>, us: f64| assert!(got.is_some_and(|s| (s * 1e6 - us).abs() < 1e-6), "{got:?} {us}");
        near(h200.experts_s(24, 640, 2048.0), 319.0);
        near(h200.experts_s(48, 640, 256.0), 218.0);
        near(h200.experts_s(24, 640, 1536.0), 265.0);
        assert_eq!(h200.experts_s(12, 640, 64.0), None);
        near(h200.attention_s(128.0, 128.0 * 4096.0, Dtype::Bf16), 137.7 + 90.5 + 58.3);
        near(h200.attention_s(64.0, 64.0 * 8192.0, Dtype::Bf16), 142.2 + 70.7 + 58.3);
        near(h200.attention_s(64.0, 64.0 * 4096.0, Dtype::Fp8), 49.0 + 70.7 + 58.3);
        assert_eq!(h200.attention_s(64.0, 1.0, Dtype::F32), None);
        // Few rows take no less than the fewest that were measured.
        near(h200.experts_s(24, 640, 1.0), 112.0);
        assert_eq!(StageTimes::of("H800"), None);
    }

    fn profiled(device: &str, kind: &str, shard: (usize, usize, bool), points: &[(usize, usize, f64)]) -> StageCost {
        let attends = kind == "mfa_attention";
        StageCost {
            stage: kind.into(),
            kind: kind.into(),
            part: CostPart::Compute,
            device: device.into(),
            warm: false,
            axis: if attends { CostAxis::Context } else { CostAxis::Experts },
            experts: shard.0,
            routed_share: if attends { 0.0 } else { 3.0 / 48.0 },
            width: shard.1,
            shared: shard.2,
            sms: 0,
            kv_dtype: attends.then_some(WireDtype::Fp8E4m3),
            points: points
                .iter()
                .map(|(rows, along, seconds)| CostPoint {
                    rows: *rows,
                    along: *along,
                    seconds: *seconds,
                    mean_s: *seconds,
                    p10_s: *seconds,
                    p90_s: *seconds,
                    samples: 8,
                })
                .collect(),
        }
    }

    #[test]
    fn a_profile_s_points_are_given_back() {
        let attention = [(64, 1000, 1e-4), (64, 3000, 2e-4), (128, 1000, 2e-4), (128, 3000, 4e-4)];
        let experts = [(64, 24, 1e-4), (128, 24, 3e-4)];
        let with_shared = [(64, 24, 9e-4), (128, 24, 9e-4)];
        let table = CostTable {
            version: VERSION,
            machine: serde_json::Value::Null,
            model: serde_json::json!({ "hidden": 7168, "experts": 48, "layers": 61 }),
            graph: serde_json::Value::Null,
            stages: vec![
                profiled("attn", "mfa_attention", (0, 0, false), &attention),
                profiled("f0.0", "expert_ffn", (24, 640, true), &with_shared),
                profiled("f1.0", "expert_ffn", (24, 640, false), &experts),
                profiled("g.0", "expert_ffn", (48, 640, true), &with_shared),
                StageCost { warm: true, ..profiled("h.0", "expert_ffn", (12, 640, true), &with_shared) },
            ],
        };
        let times = StageTimes::of_table("H100", "a table".into(), &table).expect("there are some");
        let near = |got: Option<f64>, s: f64| assert!(got.is_some_and(|got| (got - s).abs() < 1e-9), "{got:?} {s}");
        near(times.attention_s(64.0, 64.0 * 2000.0, Dtype::Fp8), 1.5e-4);
        near(times.attention_s(96.5, 96.5 * 1000.0, Dtype::Fp8), 1e-4 + 32.5 / 64.0 * 1e-4);
        assert_eq!(times.attention_s(64.0, 1.0, Dtype::Bf16), None, "a cache in another type was not measured");
        // The device without a shared expert stands for the shard, and one that has it says so.
        near(times.experts_s(24, 640, 96.0), 2e-4);
        assert!(!times.has_shared(24, 640) && times.has_shared(48, 640));
        assert_eq!((times.experts_s(12, 640, 1.0), times.shards()), (None, vec![(24, 640), (48, 640)]));
        let mut shape = ModelShape { hidden: 7168, experts: 48, ..ModelShape::toy(vec![LayerKind::Moe; 61]) };
        assert!(times.fits(&shape));
        shape.layers.truncate(2);
        assert!(times.fits(&shape), "some of its layers");
        shape.layers = vec![LayerKind::Moe; 62];
        assert!(!times.fits(&shape));
        // A projection that is divided is another stage, of parts with times of their own.
        let part = |part, seconds: f64| {
            let points = [(64, 1000, seconds), (512, 1000, 2.0 * seconds)];
            StageCost { part, width: 2048, ..profiled("attn.0", "mfa_attention", (0, 0, false), &points) }
        };
        let stages = vec![part(CostPart::Compute, 1e-4), part(CostPart::Second, 2e-5), part(CostPart::Third, 1e-5)];
        let divided = CostTable { stages, ..table.clone() };
        let divided = StageTimes::of_table("H100", String::new(), &divided).expect("there are some");
        let of = |index| divided.divided_s(64.0, 64.0 * 1000.0, Dtype::Fp8, (2048, index));
        [1e-4, 2e-5, 1e-5].into_iter().enumerate().for_each(|(index, seconds)| near(of(index), seconds));
        assert_eq!(divided.attention_s(64.0, 64_000.0, Dtype::Fp8), None);
        assert_eq!(divided.divided_s(64.0, 64_000.0, Dtype::Fp8, (4096, 0)), None);
        assert_eq!(times.divided_s(64.0, 64_000.0, Dtype::Fp8, (2048, 0)), None);
        let cards = MeasuredCards::Of(times.kept());
        assert!(cards.of("h100").is_some() && cards.of("H200").is_none() && cards.are_any());
        assert!(MeasuredCards::BuiltIn.of("h200").is_some() && !MeasuredCards::None.are_any());
    }

    /// What a share of a card takes says nothing of the whole card, nor of another share.
    #[test]
    fn shares_of_a_card_have_times_of_their_own() {
        let attention = |seconds| [(64, 1000, seconds), (128, 1000, 2.0 * seconds)];
        let of_share = |sms, cost| StageCost { sms, ..cost };
        let whole = profiled("a", "mfa_attention", (0, 0, false), &attention(1e-4));
        let router = StageCost { axis: CostAxis::None, ..profiled("a", "router", (0, 0, false), &[(64, 0, 5e-5)]) };
        let head = StageCost { axis: CostAxis::None, ..profiled("a", "sampling", (0, 0, false), &[(64, 0, 7e-5)]) };
        let stages = vec![
            of_share(84, profiled("a", "mfa_attention", (0, 0, false), &attention(3e-4))),
            of_share(48, profiled("f", "expert_ffn", (48, 5120, true), &[(64, 48, 9e-4), (128, 48, 9e-4)])),
            whole,
            of_share(84, router.clone()),
            head,
        ];
        let model = serde_json::json!({ "hidden": 7168, "experts": 48, "layers": 61, "vocab": 4096 });
        let (machine, graph) = (serde_json::Value::Null, serde_json::Value::Null);
        let table = CostTable { version: VERSION, machine, model, graph, stages };
        let times = StageTimes::of_table("H200", String::new(), &table).expect("there are some");
        let near = |got: Option<f64>, s: f64| assert!(got.is_some_and(|got| (got - s).abs() < 1e-9), "{got:?} {s}");
        let attends = |times: &StageTimes| times.attention_s(64.0, 64_000.0, Dtype::Fp8);
        near(attends(&times), 1e-4);
        near(times.of_share(84).and_then(attends), 3e-4);
        assert_eq!((times.of_share(48).and_then(attends), times.of_share(40)), (None, None));
        assert_eq!((times.shards(), times.of_share(48).map(StageTimes::shards)), (vec![], Some(vec![(48, 5120)])));
        // A router is one of any words, a head of its own.
        assert_eq!(times.plain("router", 4096), None);
        assert_eq!(times.of_share(84).and_then(|times| times.plain("router", 9)), Some(&of_share(84, router)));
        assert!(times.plain("sampling", 4096).is_some() && times.plain("sampling", 128_815).is_none());
        // Nor is there anything to say where only routers were measured.
        let routers = CostTable { stages: table.stages[3..].to_vec(), ..table };
        assert_eq!(StageTimes::of_table("H200", String::new(), &routers), None);
    }

    /// A whole layer was measured beside its parts: 278 and 669 µs of 64 sequences.
    #[test]
    fn parts_add_up_to_whole_layers_that_were_measured() {
        let h200 = StageTimes::of("H200").expect("it was measured");
        for (context, whole_us) in [(8192.0, 278.0), (32_768.0, 669.0)] {
            let us = h200.attention_s(64.0, 64.0 * context, Dtype::Bf16).expect("bf16 was measured") * 1e6;
            assert!((us / whole_us - 1.0).abs() < 0.04, "{context}: {us} of {whole_us}");
        }
    }
}
