//! The answer for people: tables.

use super::study::{Accelerator, Study};
use crate::table::Table;
use rally_cost::sizing::ideal_batch;
use rally_graph::words;

/// All tables, each under what it shows.
pub fn tables(study: &Study) -> String {
    let Study { context, tpot_ms, stages, subject, .. } = study;
    format!(
        "One decoded token at a context of {context} tokens; router, embedding and head left out\n\n{}\n\
         USD per million tokens, attention + FFN, at full peak and bandwidth, with communication hidden: a floor, not a forecast\n\n{}\n\
         Accelerators, and the least share of weights a token must pass ({subject}'s width and layers, {tpot_ms} ms a token)\n\n{}\n\
         One accelerator within a slot of {:.0} µs ({subject}, {tpot_ms} ms in {stages} stages)\n\n{}",
        decoding(study),
        prices(study),
        hardware(study),
        study.accelerators[0].feasibility.slot_s * 1e6,
        slots(study),
    )
}

fn decoding(study: &Study) -> Table {
    let mut table =
        Table::new(&["model", "KV", "attention", "linear", "FFN", "FLOP/byte", "parameters", "active", "sparsity"]);
    for costed in &study.models {
        let (cost, model) = (costed.cost, &costed.model);
        table.row(&[
            &model.name,
            &words::bytes(cost.kv_bytes as u64),
            &gigaflops(cost.attention_flops),
            &gigaflops(cost.linear_flops),
            &gigaflops(cost.ffn_flops),
            &format!("{:.1}", cost.arithmetic_intensity()),
            &format!("{:.1} B", model.parameters() / 1e9),
            &format!("{:.1} B", model.active_parameters() / 1e9),
            &format!("{:.3}", model.sparsity()),
        ]);
    }
    table
}

fn gigaflops(flops: f64) -> String {
    format!("{:.1} GFLOP", flops / 1e9)
}

fn prices(study: &Study) -> Table {
    let names = study.accelerators.iter().map(|on| on.hardware.name.as_str());
    let header: Vec<&str> = ["model"].into_iter().chain(names).chain(["best pair", "alone"]).collect();
    let mut table = Table::new(&header);
    for costed in &study.models {
        let mut cells = vec![costed.model.name.clone()];
        cells.extend(costed.usd.iter().map(|usd| format!("{:.3} + {:.3}", usd.attention, usd.ffn)));
        let (pair, (alone_on, alone)) = (costed.pair, costed.alone());
        let (attention, ffn) = (study.name(pair.attention_on), study.name(pair.ffn_on));
        cells.push(format!("{:.3} {attention} + {ffn}", pair.usd_per_mtok));
        cells.push(format!("{alone:.3} {}", study.name(alone_on)));
        table.row(&cells.iter().map(String::as_str).collect::<Vec<_>>());
    }
    table
}

fn hardware(study: &Study) -> Table {
    let batch = format!("{} batch", study.subject);
    let mut table =
        Table::new(&["hardware", "USD/h", "peak", "bandwidth", "FLOP/byte", "dense batch", &batch, "least sparsity"]);
    let sparsity = study.models.iter().find(|costed| costed.model.name == study.subject);
    let sparsity = sparsity.map_or(1.0, |costed| costed.model.sparsity());
    for on in &study.accelerators {
        let Accelerator { hardware, dtype, peak_flops, dense_batch, min_sparsity, .. } = on;
        table.row(&[
            &hardware.name,
            &format!("{:.2}", on.usd_per_hour),
            &format!("{:.0} TFLOP/s {dtype}", peak_flops / 1e12),
            &format!("{:.2} TB/s", hardware.memory_bytes_per_s() / 1e12),
            &format!("{:.0}", on.flops_per_byte()),
            &format!("{dense_batch:.0}"),
            &format!("{:.0}", ideal_batch(*dense_batch, sparsity)),
            &format!("{min_sparsity:.3}"),
        ]);
    }
    table
}

fn slots(study: &Study) -> Table {
    let mut table = Table::new(&[
        "hardware",
        "reads",
        "attention weights",
        "left for KV",
        "context tokens",
        "sequences",
        "FFN weights",
        "FFN takes",
    ]);
    for on in &study.accelerators {
        let slot = on.feasibility;
        table.row(&[
            &on.hardware.name,
            &words::bytes(slot.slot_bytes as u64),
            &words::bytes(slot.attention_weight_bytes as u64),
            &words::bytes(slot.kv_bytes as u64),
            &format!("{:.0}K", slot.context_tokens / 1e3),
            &format!("{:.0}", slot.sequences.floor()),
            &words::bytes(slot.ffn_weight_bytes as u64),
            &format!("{} devices", slot.ffn_devices),
        ]);
    }
    table
}
