//! Every figure of the Step-3 report that the formulas must give, read from `report.json`.

use rally_cost::decode::DecodeCost;
use rally_cost::library::{REPORT_HARDWARE, hardware_named, model_named, models};
use rally_cost::price::{UnitPrice, UsdPerMtok, best_pair};
use rally_cost::{Dtype, Hardware, Model, sizing};
use serde_json::Value;

const CONTEXTS: [(u64, &str); 2] = [(8192, "8k"), (32_768, "32k")];
/// The report's promise of a time per token.
const TPOT_S: f64 = 0.050;

fn report() -> Value {
    serde_json::from_str(include_str!("report.json")).expect("the data file is JSON")
}

fn entries(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().expect("an object").iter().map(|(key, value)| (key.as_str(), value))
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("a number, not {value}"))
}

fn model(name: &str) -> Model {
    model_named(name).expect("a model of the library")
}

fn hardware(name: &str) -> Hardware {
    hardware_named(name).expect("hardware of the library")
}

/// To so many significant digits, as printed.
fn significant(value: f64, digits: usize) -> String {
    format!("{value:.*e}", digits - 1)
}

#[track_caller]
fn check(what: &str, shown: String, expected: String, wrong: &mut Vec<String>) {
    if shown != expected {
        wrong.push(format!("{what}: {shown}, the report has {expected}"));
    }
}

fn usd(cost: &DecodeCost, name: &str) -> UsdPerMtok {
    let hardware = hardware(name);
    UsdPerMtok::of(cost, UnitPrice::of(&hardware, hardware.decode_dtype()).expect("the library has prices and peaks"))
}

#[test]
fn tables_2_and_3_to_three_digits() {
    let (report, mut wrong, mut count) = (report(), Vec::new(), 0);
    for (name, row) in entries(&report["decode"]) {
        let model = model(name);
        let [short, long] = CONTEXTS.map(|(tokens, _)| model.decode_cost(tokens));
        // Table 2 is at 8K and table 3 at 32K; projections and FFN stand in both.
        let values = [
            short.kv_bytes,
            short.attention_flops,
            long.kv_bytes,
            long.attention_flops,
            short.linear_flops,
            short.ffn_flops,
            long.linear_flops,
            long.ffn_flops,
        ];
        let columns = [0, 1, 2, 3, 4, 5, 4, 5];
        for (value, column) in values.into_iter().zip(columns) {
            let expected = number(&row[column]);
            check(&format!("{name}, column {column}"), significant(value, 3), significant(expected, 3), &mut wrong);
            count += 1;
        }
    }
    assert_eq!((wrong, count), (Vec::new(), 72));
}

#[test]
fn table_5_to_three_digits() {
    let (report, mut wrong, mut count) = (report(), Vec::new(), 0);
    for (name, row) in entries(&report["unit_prices"]) {
        let hardware = hardware(name);
        let price = UnitPrice::of(&hardware, hardware.decode_dtype()).expect("priced");
        // The report prints 2.806 as 2.80.
        let cut = |value: f64| if row["truncated"] == true { (value * 1e21).floor() / 1e21 } else { value };
        let flop = significant(cut(price.usd_per_flop), 3);
        check(&format!("{name} FLOP"), flop, significant(number(&row["usd_per_flop"]), 3), &mut wrong);
        let byte = significant(price.usd_per_byte, 3);
        check(&format!("{name} byte"), byte, significant(number(&row["usd_per_byte"]), 3), &mut wrong);
        count += 2;
    }
    assert_eq!((wrong, count), (Vec::new(), 8));
}

#[test]
fn table_6_to_three_decimals() {
    let (report, mut wrong, mut count) = (report(), Vec::new(), 0);
    for (name, row) in entries(&report["usd_per_mtok"]) {
        for (column, accelerator) in REPORT_HARDWARE.iter().enumerate() {
            let costs = CONTEXTS.map(|(tokens, context)| (context, usd(&model(name).decode_cost(tokens), accelerator)));
            let attention = costs.map(|(context, usd)| (format!("attention_{context}"), usd.attention));
            for (key, value) in attention.into_iter().chain([("ffn".to_owned(), costs[0].1.ffn)]) {
                let expected = format!("{:.3}", number(&row[&key][column]));
                check(&format!("{name} {accelerator} {key}"), format!("{value:.3}"), expected, &mut wrong);
                count += 1;
            }
        }
    }
    assert_eq!((wrong, count), (Vec::new(), 108));
}

#[test]
fn table_7_and_the_batches_that_follow() {
    let (report, step3, mut wrong) = (report(), model("Step-3"), Vec::new());
    let sparsity = |name: &str, share| {
        let hardware = hardware(name);
        sizing::min_sparsity(&step3, &hardware, hardware.decode_dtype(), share, TPOT_S).expect("a peak")
    };
    for (name, expected) in entries(&report["min_sparsity"]) {
        check(name, format!("{:.3}", sparsity(name, 1.0)), format!("{:.3}", number(expected)), &mut wrong);
    }
    // 40 of 50 GB/s a network card.
    check("H800 as measured", format!("{:.3}", sparsity("H800", 0.8)), "0.073".into(), &mut wrong);
    for name in REPORT_HARDWARE {
        let hardware = hardware(name);
        let dense = sizing::ideal_dense_batch(&hardware, hardware.decode_dtype()).expect("a peak");
        let routed = sizing::ideal_batch(dense, step3.sparsity());
        let roofline = 2.0 * dense;
        for (key, value) in
            [("roofline_flops_per_byte", roofline), ("ideal_dense_batch", dense), ("ideal_moe_batch_of_step3", routed)]
        {
            let expected = number(&report[key][name]);
            // The report rounds the batch before it divides.
            let near = (value - expected).abs() <= expected * 2e-3 || (value - expected).abs() <= 0.5;
            check(&format!("{name} {key}"), near.to_string(), "true".into(), &mut wrong);
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    assert_eq!(significant(step3.sparsity(), 3), significant(4.0 / 49.0, 3));
}

#[test]
fn best_pairs_and_figure_1() {
    let (report, mut wrong) = (report(), Vec::new());
    let pair = |name: &str, tokens| {
        let cost = model(name).decode_cost(tokens);
        best_pair(&REPORT_HARDWARE.map(|hardware| usd(&cost, hardware))).expect("four to choose from")
    };
    for (name, row) in entries(&report["best_total"]) {
        for (tokens, context) in CONTEXTS {
            let pair = pair(name, tokens);
            let expected = format!("{:.3}", number(&row[context]));
            check(&format!("{name} {context}"), format!("{:.3}", pair.usd_per_mtok), expected, &mut wrong);
            for (key, index) in [("attention_on", pair.attention_on), ("ffn_on", pair.ffn_on)] {
                let expected = row[key].as_str().expect("a name").to_owned();
                check(&format!("{name} {context} {key}"), REPORT_HARDWARE[index].to_owned(), expected, &mut wrong);
            }
        }
    }
    for (name, expected) in entries(&report["cheapest_8k"]) {
        // Figure 1's points are sums of table 6's rounded entries.
        let off = (pair(name, 8192).usd_per_mtok - number(expected)).abs();
        check(&format!("figure 1 {name}"), (off <= 1e-3).to_string(), "true".into(), &mut wrong);
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn parameters_and_cache_of_step3() {
    let step3 = model("Step-3");
    assert_eq!(format!("{:.2}", step3.parameters() / 1e9), "316.29");
    assert_eq!(format!("{:.2}", step3.active_parameters() / 1e9), "37.90");
    assert_eq!(step3.decode_cost(1).kv_bytes, 31_232.0);
    assert_eq!(step3.decode_cost(1).kv_bytes / step3.layer_count() as f64, 512.0);
    // What the models' makers say of themselves, in 10⁹ weights.
    let known = [("DSv3", 671.0), ("Kimi K2", 1040.0), ("Qwen3 MoE", 235.0), ("Qwen3 32B", 32.8), ("Llama 4 M", 400.0)];
    let known = known.into_iter().chain([("MM M1", 456.0), ("ERNIE 4.5", 300.0), ("Pangu Pro", 72.0)]);
    for (name, billions) in known {
        let counted = model(name).parameters() / 1e9;
        assert!((counted - billions).abs() <= 0.02 * billions, "{name}: {counted} of {billions}");
    }
}

#[test]
fn arithmetic_intensity() {
    for (name, expected) in entries(&report()["arithmetic_intensity"]) {
        assert_eq!(model(name).decode_cost(8192).arithmetic_intensity(), number(expected), "{name}");
    }
}

#[test]
fn slots_of_the_pipeline() {
    // 16.6 ms and 12.5 ms over 61 layers.
    let slots = [3, 4].map(|stages| format!("{:.0}", sizing::slot_s(TPOT_S, stages, 61) * 1e6));
    assert_eq!(slots, ["272", "205"]);
    assert_eq!(sizing::stage_budget_s(TPOT_S, 4), 0.0125);
}

#[test]
fn the_l20_can_be_attention_and_takes_48_cards_for_the_ffn() {
    let l20 = sizing::feasibility(&model("Step-3"), &hardware("L20"), 8192, TPOT_S, 3);
    let megabytes = |bytes: f64| bytes / 1e6;
    // The report rounds at every step of its chain, and so is off by up to 0.5 %.
    let chain = [
        (megabytes(l20.slot_bytes), 235.0),
        (megabytes(l20.attention_weight_bytes), 67.0),
        (megabytes(l20.kv_bytes), 168.0),
        (l20.context_tokens / 1e3, 328.0),
        (megabytes(l20.ffn_weight_bytes), 117.0),
    ];
    for (value, expected) in chain {
        assert!((value - expected).abs() <= 7e-3 * expected, "{value} for {expected}");
    }
    // 41 in the report, which divides by 8,000.
    assert_eq!((l20.sequences.round(), l20.ffn_servers, l20.ffn_devices), (40.0, 6, 48));
    let l4 = sizing::feasibility(&model("Step-3"), &hardware("L4"), 8192, TPOT_S, 3);
    assert!(l4.attention_weight_bytes > 0.8 * l4.slot_bytes, "weights alone take most of an L4's slot");
}

#[test]
fn throughput_arithmetic() {
    let devices = |attention: f64, ffn: f64| 8.0 * (attention + ffn);
    let per_device = |batch, tpot_s, devices| sizing::tokens_per_s_per_device(batch, tpot_s, devices).round();
    // 6144 sequences at exactly 50 ms on 2A2F; 9216 on 3A4F.
    assert_eq!(per_device(6144.0, TPOT_S, devices(2.0, 2.0)), 3840.0);
    assert_eq!(per_device(9216.0, TPOT_S, devices(3.0, 4.0)), 3291.0);
    // The same batch and time on more attention instances: 4A2F and 16A2F from 2A2F's 4039.
    let tpot_s = 6144.0 / (4039.0 * devices(2.0, 2.0));
    assert_eq!([4.0, 16.0].map(|a| per_device(6144.0, tpot_s, devices(a, 2.0))), [2693.0, 898.0]);
}

#[test]
fn what_an_ffn_accelerator_of_2a2f_exchanges() {
    // 128 rows from each of two attention accelerators, in StepMesh's slot of 273 µs.
    let gigabits = sizing::ffn_network_bytes_per_s(7168, 256.0, 273e-6) * 8.0 / 1e9;
    assert_eq!(format!("{gigabits:.1}"), "161.3");
    let kibibytes = |bytes: f64| 128.0 * 7168.0 * bytes / 1024.0;
    assert_eq!((kibibytes(1.0), kibibytes(2.0)), (896.0, 1792.0));
}

#[test]
fn every_model_has_all_it_needs() {
    assert_eq!(models().len(), 9);
    for model in models() {
        assert!(model.source.is_some(), "{} has no source", model.name);
        assert!(model.active_parameters() <= model.parameters(), "{}", model.name);
        assert!(model.kept_bytes(8192) <= model.decode_cost(8192).kv_bytes, "{}", model.name);
    }
    assert_eq!(hardware("A800").decode_dtype(), Dtype::Bf16);
}
