//! Whole deployments of the Step-3 report (table 8) with efficiencies from table 9 alone. The gap is shown, not fitted.

use rally_cost::library::{hardware_named, model_named};
use rally_cost::{Dtype, Hardware};
use rally_recommend::calibration::Calibration;
use rally_recommend::pipeline::{Fabric, Layout, Outcome, Workload, time_per_token_s};

fn h800() -> Hardware {
    hardware_named("H800").expect("in the library")
}

/// Attention and FFN instances, batch, context, cache in bf16, and the report's tokens a second and accelerator.
const TABLE_8: [(u32, u32, f64, u64, bool, f64); 3] =
    [(2, 2, 6144.0, 4096, false, 4039.0), (3, 2, 6048.0, 4096, true, 3321.0), (4, 2, 6144.0, 8192, false, 2643.0)];

fn predicted((attention, ffn, batch, context, bf16, _): (u32, u32, f64, u64, bool, f64)) -> Outcome {
    let mut model = model_named("Step-3").expect("in the library");
    let mut attention_dtype = None;
    if bf16 {
        (model.kv_dtypes.full, attention_dtype) = (Dtype::Bf16, Some(Dtype::Bf16));
    }
    // That system has a stream of its own for every micro-batch (StepMesh, on both sides).
    let workload = Workload { attention_dtype, fabric: Fabric::Hidden, ..Workload::at(model, context) };
    let layout = Layout { attention, ffn, devices: 8, micro_batches: 3, o_proj: 8, replicas: false, wire: Dtype::Fp8 };
    Outcome::of(&workload, (&h800(), &h800()), &layout, batch / 3.0).expect("specs are whole")
}

#[test]
fn deployments_meet_50_ms_in_the_reports_order() {
    let outcomes = TABLE_8.map(predicted);
    for (outcome, row) in outcomes.iter().zip(TABLE_8) {
        let stages = outcome.stages.map(|seconds| (seconds * 1e6).round());
        let (ms, tgs, gap) = (outcome.tpot_s * 1e3, outcome.tgs(), outcome.tgs() / row.5 - 1.0);
        println!(
            "{}: {ms:.1} ms, {tgs:.0} TGS, report {}, {:+.0} %, µs {stages:?}",
            outcome.layout.name(),
            row.5,
            gap * 100.0
        );
        assert!(outcome.holds(0.050), "{} takes {ms} ms", outcome.layout.name());
        assert!(gap > 0.0, "a floor cannot be above what was measured");
    }
    assert!(outcomes[0].tgs() > outcomes[1].tgs() && outcomes[1].tgs() > outcomes[2].tgs());
}

/// What the pipeline leaves out, each at a figure from outside table 8, in ms a token; `NOTES.md` has the table.
#[test]
fn the_gap_is_decomposed_and_not_closed_by_fitting() {
    const MICRO_BATCHES: f64 = 3.0;
    let calibration = Calibration::of(&h800());
    for row in TABLE_8 {
        let outcome = predicted(row);
        let with = |slower: &dyn Fn(usize, f64) -> f64| {
            let stages: Vec<f64> = outcome.stages.iter().enumerate().map(|(at, stage)| slower(at, *stage)).collect();
            (time_per_token_s(&stages, 3, 61) - outcome.tpot_s) * 1e3
        };
        // DeepEP measured 40 of 50 GB/s a card; fabrics are given the same share.
        let network = with(&|at, stage| if [2, 6].contains(&at) { stage / 0.8 } else { stage });
        let fabric = with(&|at, stage| if [1, 3, 5].contains(&at) { stage / 0.8 } else { stage });
        let ffn = with(&|at, stage| if at == 4 { stage + calibration.layer_s } else { stage });
        // The head in bf16, read once a micro-batch.
        let head_bytes = 2.0 * 7168.0 * 128_815.0;
        let head = MICRO_BATCHES * head_bytes / h800().memory_bytes_per_s() / calibration.efficiency * 1e3;
        let gap = (row.2 / (row.5 * f64::from(outcome.layout.total_devices())) - outcome.tpot_s) * 1e3;
        let parts = [network, fabric, ffn, head];
        println!(
            "{}: gap {gap:.1} ms: network, fabric, FFN, head {parts:.1?}, rest {:.1}",
            outcome.layout.name(),
            gap - parts.iter().sum::<f64>()
        );
        assert!(parts.iter().all(|part| *part > 0.0 && *part < gap), "each is a part of the gap: {parts:?} of {gap}");
    }
}

#[test]
fn efficiencies_are_what_table_9_gives() {
    for (name, efficiency, layer_us) in [("H800", 0.943, 57.5), ("H20", 0.687, -1.0), ("A800", 0.845, 113.1)] {
        let hardware = hardware_named(name).expect("in the library");
        let calibration = Calibration::of(&hardware);
        assert_eq!(format!("{:.3}", calibration.efficiency), format!("{efficiency:.3}"), "{name}");
        assert!(Calibration::is_measured(&hardware));
        if layer_us >= 0.0 {
            assert!((calibration.layer_s * 1e6 - layer_us).abs() < 0.6, "{name}: {}", calibration.layer_s);
        }
    }
    assert!(!Calibration::is_measured(&hardware_named("L20").expect("in the library")));
}

/// Where attention, FFN and both ways of the network together take as long as each other, nothing stands idle.
#[test]
fn three_equal_thirds_leave_no_bubble() {
    let slot = 1e-3;
    let time = time_per_token_s(&[slot, slot / 3.0, slot, slot * 2.0 / 3.0], 3, 61);
    assert!((time - 3.0 * 61.0 * slot).abs() < 1e-9, "{time}");
    let one = time_per_token_s(&[slot, slot], 1, 61);
    assert!((one - 2.0 * 61.0 * slot).abs() < 1e-9, "a single micro-batch overlaps with nothing: {one}");
}

/// Table 9's other models with efficiencies that only Step-3's rows gave: MFA is quickest everywhere; MLA falls behind the more, the longer
/// the context, on an accelerator that computes little; and on one that computes much it is GQA that comes last.
#[test]
fn attention_layers_are_ordered_as_in_table_9() {
    let layer_us = |name: &str, accelerator: &str, context: u64| {
        let mut model = model_named(name).expect("in the library");
        model.kv_dtypes.full = Dtype::Bf16;
        let workload = Workload { attention_dtype: Some(Dtype::Bf16), ..Workload::at(model, context) };
        let hardware = hardware_named(accelerator).expect("in the library");
        workload.attention_s(&hardware, 64.0, 1.0).expect("it has a bf16 peak") * 1e6
    };
    for context in [8192, 32_768] {
        let [mfa, mla, gqa] = ["Step-3", "DSv3", "Qwen3 MoE"].map(|name| layer_us(name, "H800", context));
        assert!(mfa < mla && mla < gqa, "H800 at {context}: {mfa:.0} {mla:.0} {gqa:.0}");
    }
    // The report measured 2.9 and 3.3; MLA's kernel there reaches more of an H20 than MFA's does, which one efficiency cannot say.
    let ratio = |context| layer_us("DSv3", "H20", context) / layer_us("Step-3", "H20", context);
    assert!(
        (2.9..4.0).contains(&ratio(8192)) && (3.3..4.5).contains(&ratio(32_768)),
        "{} {}",
        ratio(8192),
        ratio(32_768)
    );
    assert!(ratio(32_768) > ratio(8192));
}
