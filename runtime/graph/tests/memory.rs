//! Bytes against numbers worked out by hand: the published model, and a small one.

mod common;

use rally_graph::hardware::Machine;
use rally_graph::kinds::{KindRegistry, Role, StageKindInfo, WeightPart};
use rally_graph::memory::{budget, device_memory, kv_bytes_per_token, pages_per_device};
use rally_graph::model::WeightFormat;
use rally_graph::parse::parse_graph;
use rally_graph::shard::{ShardCounts, ShardPosition};
use rally_graph::spec::{DeploymentSpec, Limits};

fn spec(graph: &str) -> DeploymentSpec {
    parse_graph(graph.as_bytes(), KindRegistry::shared()).spec.expect("the graph has no faults")
}

fn weights(kind: &str, format: WeightFormat, counts: ShardCounts, position: ShardPosition) -> u64 {
    let shape = rally_graph::model::ModelShape { weight_format: format, ..common::step3() };
    let info: &dyn StageKindInfo = KindRegistry::shared().get(kind).expect("the kind is built in");
    info.weights_bytes(&WeightPart { shape: &shape, layer: Some(10), counts, position, held: None })
}

#[test]
fn step3_layers_weigh_what_the_paper_says() {
    let (whole, first) = (ShardCounts::of(None), ShardPosition::default());
    // 169,345,024 values in the projections, and three norms.
    let norms = 2 * (2 * 7168 + 2048);
    assert_eq!(weights("mfa_attention", WeightFormat::Bf16, whole, first), 2 * 169_345_024 + norms);
    let scales = 4 * (16 * 56 + 2 * 2 * 56 + 128 * 16 + 56 * 128);
    assert_eq!(weights("mfa_attention", WeightFormat::Fp8Block, whole, first), 169_345_024 + scales + norms);
    // Paper §6: 66.6 MB of fp8 are read per layer where o_proj is split over 8.
    let split = ShardCounts { o_proj: 8, ..whole };
    let read = weights("mfa_attention", WeightFormat::Fp8Block, split, first) as f64;
    assert!((66.5e6..66.7e6).contains(&read), "{read}");
    // 48 routed experts and the shared one, 110,100,480 values each.
    assert_eq!(weights("expert_ffn", WeightFormat::Bf16, whole, first), 2 * 49 * 110_100_480);
    let halves = ShardCounts { experts: 2, tensor: 8, ..whole };
    let second = ShardPosition { expert: 1, ..first };
    assert_eq!(weights("expert_ffn", WeightFormat::Bf16, halves, second), 2 * 24 * 110_100_480 / 8);
    assert_eq!(weights("dense_ffn", WeightFormat::Bf16, whole, first), 2 * 3 * 7168 * 18_432);
}

#[test]
fn step3_keeps_512_bytes_of_kv_per_token_and_layer_in_fp8() {
    // Paper §6, table 2: 31,232 bytes over 61 layers; ours adds one f32 scale for each of K and V.
    assert_eq!(kv_bytes_per_token(&spec(common::STEP3), &common::step3(), KindRegistry::shared()), 31_232 + 61 * 8);
}

#[test]
fn step3_fits_and_its_budget_is_the_papers() {
    let (spec, shape) = (spec(common::STEP3), common::step3());
    let devices = device_memory(&spec, &shape, KindRegistry::shared(), Machine::default());
    assert_eq!(devices.len(), 32);
    for device in &devices {
        assert!(device.capacity_bytes.is_some_and(|capacity| device.needed_bytes() < capacity), "{device:?}");
    }
    // 25,165,824 tokens over 16 devices.
    assert_eq!(devices[0].kv_bytes, 1_572_864 * 31_720);
    assert_eq!(devices[16].kv_bytes, 0);
    let budget = budget(&spec, &shape).expect("the graph has an SLO");
    assert_eq!((budget.layer_us.round(), budget.slot_us.round()), (820.0, 273.0));
}

#[test]
fn replicas_hold_everything_and_kv_is_rounded_down_to_pages() {
    let graph = common::TINY.replace("\"kv_tokens\": 65536", "\"kv_tokens\": 191");
    let devices = device_memory(&spec(&graph), &common::tiny(), KindRegistry::shared(), Machine::default());
    // Two pages of 64 tokens, six layers, K and V of 64 values in bf16.
    assert_eq!(devices[0].kv_bytes, 128 * 6 * 2 * 64 * 2);
    assert_eq!(devices[0].capacity_bytes, None);
    let both = common::STEP3.replace("{ \"experts\": 2, \"tensor\": 8 }", "{ \"tensor\": 8, \"replicas\": 2 }");
    let devices = device_memory(&spec(&both), &common::step3(), KindRegistry::shared(), Machine::default());
    assert_eq!(devices[16].weights_bytes, devices[24].weights_bytes);
}

/// 191 tokens are five pages of 37 and a rest: of two devices each has two, and the sum stays below the limit.
#[test]
fn devices_keep_the_limit_together() {
    let limits = |kv_tokens| Limits { kv_tokens, page_tokens: 37, ..spec(common::TINY).limits };
    assert_eq!([1, 2, 3, 5, 6].map(|devices| pages_per_device(&limits(191), devices)), [5, 2, 1, 1, 0]);
    for (kv_tokens, devices) in [(36, 1), (37, 1), (1000, 3), (65_536, 7), (1 << 40, 4096)] {
        let pages = pages_per_device(&limits(kv_tokens), devices);
        let held = |pages: u64| pages * devices as u64 * 37;
        assert!(held(pages) <= kv_tokens && kv_tokens < held(pages + 1));
    }
}

#[test]
fn every_builtin_kind_says_what_it_is() {
    let registry = KindRegistry::builtin();
    assert_eq!(registry.names().len(), 8);
    for kind in registry.iter() {
        assert!(kind.doc().ends_with('.'), "{}", kind.name());
        assert!(kind.role() == Role::Transfer || !kind.writes().is_empty(), "{}", kind.name());
    }
}
