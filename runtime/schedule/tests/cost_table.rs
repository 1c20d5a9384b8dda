//! Cost tables: what is read back, between and beyond measured points, and what `greedy` gets of them.

use proptest::prelude::*;
use rally_graph::kinds::Role;
use rally_graph::plan::{StageLabel, TaskRole};
use rally_graph::stage_graph::Section;
use rally_schedule::cost_table::{
    CostAxis, CostPart, CostPoint, CostTable, CostTableError, StageCost, TaskSize, VERSION,
};
use serde_json::{Value, json};

fn point(rows: usize, along: usize, seconds: f64) -> CostPoint {
    CostPoint { rows, along, seconds, mean_s: seconds, p10_s: seconds, p90_s: seconds, samples: 9 }
}

fn cost(kind: &str, axis: CostAxis, points: Vec<CostPoint>) -> StageCost {
    StageCost {
        stage: kind.into(),
        kind: kind.into(),
        part: CostPart::Compute,
        warm: false,
        device: "d".into(),
        axis,
        experts: 8,
        routed_share: 0.25,
        width: 0,
        sms: 0,
        shared: false,
        kv_dtype: None,
        points,
    }
}

fn table(stages: Vec<StageCost>) -> CostTable {
    CostTable { version: VERSION, machine: json!("m"), model: json!("s"), graph: json!("g"), stages }
}

/// A time that is linear in both, as attention's is: 2 + 3 rows + rows × context / 10.
fn linear(rows: f64, context: f64) -> f64 {
    2.0 + 3.0 * rows + rows * context / 10.0
}

fn attention() -> StageCost {
    let points = [1, 4, 16]
        .iter()
        .flat_map(|rows| [10, 100, 1000].map(|context| point(*rows, context, linear(*rows as f64, context as f64))));
    cost("attention", CostAxis::Context, points.collect())
}

fn size(rows: usize, context: f64) -> TaskSize {
    TaskSize { rows, context, experts: None }
}

proptest! {
    /// A bilinear time is met everywhere between the points, and beyond the largest as well.
    #[test]
    fn between_and_beyond_points_time_is_linear(rows in 1usize..200, context in 10.0f64..5000.0) {
        let got = attention().seconds(size(rows, context));
        let want = linear(rows as f64, context);
        prop_assert!((got - want).abs() < 1e-9 * want, "{got} is not {want}");
    }

    /// Times are told in tenths of nanoseconds.
    #[test]
    fn a_table_survives_being_written(tenths in proptest::collection::vec(0u64..1 << 40, 1..20)) {
        let seconds = |tenths: u64| tenths as f64 / 1e10;
        let points = tenths.iter().enumerate().map(|(index, tenths)| point(index + 1, 0, seconds(*tenths))).collect();
        let table = table(vec![cost("ffn", CostAxis::None, points), attention()]);
        prop_assert_eq!(CostTable::from_json(&table.to_json()), Ok(table));
    }

    #[test]
    fn any_text_is_answered(text in ".{0,200}") {
        prop_assert!(CostTable::from_json(&text).is_err());
    }
}

#[test]
fn edges_of_the_grid() {
    let attention = attention();
    assert_eq!(attention.seconds(size(0, 100.0)), 0.0);
    // Below the smallest context as at the smallest.
    assert_eq!(attention.seconds(size(1, 1.0)), linear(1.0, 10.0));
    // Noise that falls does not fall on below what was measured.
    let noisy = cost("ffn", CostAxis::None, vec![point(1, 0, 2.0), point(2, 0, 1.5)]);
    assert_eq!(noisy.seconds(size(50, 0.0)), 1.5);
    let single = cost("ffn", CostAxis::None, vec![point(4, 0, 2.0)]);
    assert_eq!((single.seconds(size(1, 0.0)), single.seconds(size(9, 0.0))), (2.0, 2.0));
}

/// The grid is ragged: one row reaches two experts only, sixteen reach all eight.
#[test]
fn experts_are_those_of_even_routing_unless_said() {
    let points = vec![point(1, 2, 2.0), point(16, 2, 4.0), point(16, 8, 16.0)];
    let ffn = cost("expert_ffn", CostAxis::Experts, points);
    let with = |experts| ffn.seconds(TaskSize { rows: 16, context: 0.0, experts });
    assert_eq!((with(Some(2.0)), with(Some(5.0)), with(Some(8.0))), (4.0, 10.0, 16.0));
    let hit = 8.0 * (1.0 - 0.75f64.powi(16));
    assert!((with(None) - (4.0 + 2.0 * (hit - 2.0))).abs() < 1e-9);
}

#[test]
fn the_device_decides_where_it_was_measured() {
    let other = StageCost { device: "e".into(), points: vec![point(1, 0, 7.0)], ..cost("ffn", CostAxis::None, vec![]) };
    let table = table(vec![cost("ffn", CostAxis::None, vec![point(1, 0, 5.0)]), other]);
    let seconds = |stage, device| table.seconds(stage, CostPart::Compute, device, size(1, 0.0));
    assert_eq!(
        (seconds("ffn", "e"), seconds("ffn", "elsewhere"), seconds("router", "e")),
        (Some(7.0), Some(5.0), None)
    );
    assert_eq!(table.seconds("ffn", CostPart::Send, "e", size(1, 0.0)), None);
}

#[test]
fn greedy_gets_its_costs() {
    let costs = table(vec![attention()]).stage_costs(100.0);
    let label = StageLabel {
        id: "attention".into(),
        kind: "attention".into(),
        role: Role::Attention,
        section: Section::Layers,
    };
    assert_eq!(costs.seconds(&label, TaskRole::Compute, 4), linear(4.0, 100.0));
    assert_eq!(costs.seconds(&label, TaskRole::Compute, 10), linear(10.0, 100.0));
}

#[test]
fn what_is_no_table_is_refused() {
    #[track_caller]
    fn refused(change: impl FnOnce(&mut Value), said: &str) {
        let good = table(vec![attention()]);
        let mut json: Value = serde_json::from_str(&good.to_json()).expect("JSON");
        change(&mut json);
        let error = CostTable::from_json(&json.to_string()).expect_err("a broken table").to_string();
        assert!(error.contains(said), "`{error}` should say `{said}`");
    }
    refused(|json| json["version"] = json!(2), "version 2, and this program reads version 1");
    refused(|json| json["stages"][0]["axis"] = json!("rows"), "no cost table");
    refused(|json| json["stages"][0]["speed"] = json!(1), "speed");
    refused(|json| json["stages"][0]["points"] = json!([]), "stage `attention`: it has no points");
    refused(|json| json["stages"][0]["points"][0]["rows"] = json!(99), "do not ascend");
    refused(|json| json["stages"][0]["points"][0]["rows"] = json!(0), "no rows");
    refused(|json| json["stages"][0]["points"][3]["seconds"] = json!(-1.0), "no time");
    assert!(matches!(CostTable::from_json("{"), Err(CostTableError::Form(_))));
}
