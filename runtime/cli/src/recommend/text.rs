//! The answer for people.

use super::{Answer, Question};
use crate::table::Table;
use rally_graph::words;
use rally_recommend::demand::Demand;
use rally_recommend::finalists::{Finalist, Finals};
use rally_recommend::pipeline::{Outcome, RESOURCES};
use rally_recommend::search::{Candidate, DeadZone};
use rally_recommend::simulate::Terms;

/// How much dearer than the best a layout may be to be shown to people.
const NEAR: f64 = 2.5;

const COLUMNS: [&str; 10] =
    ["layout", "on", "devices", "o_proj", "FFN", "wire", "batch", "ms/token", "tokens/s/device", "USD/Mtok"];
const SIMULATED: [&str; 5] = ["order", "simulated ms", "off", "tokens/s/device", "USD/Mtok"];

pub(super) fn text(question: &Question, answer: &Answer) -> String {
    let found = &answer.found;
    let mut out = format!(
        "{} at {} ms a token; {} layouts tried, {} ruled out by a bound\n{}\n\n",
        question.workload.model.name,
        question.tpot_s * 1e3,
        found.tried,
        found.pruned,
        question.basis()
    );
    match answer.best() {
        None => {
            out.push_str("No disaggregated layout of this pool holds that: memory or time is short for each of them.\n")
        }
        Some(best) => {
            match &answer.finals {
                Some(finals) => out.push_str(&simulated(question, finals)),
                None => out.push_str(&format!(
                    "{}Not on virtual lanes: rally has no stages for this model.\n",
                    table(question, std::iter::once(best))
                )),
            }
            let zone = answer.zone.as_ref().map(zone_text).unwrap_or_default();
            out.push_str(&format!("{}\n{zone}\n", reason(question, best)));
        }
    }
    if let Some(demand) = &question.demand {
        out.push_str(&format!("{}\n", demanded(demand, answer)));
    }
    out.push_str(&format!("\n{}\n", verdict(question, answer)));
    if let Some(finals) = answer.finals.as_ref().filter(|finals| !finals.finalists.is_empty()) {
        out.push_str(&format!(
            "\nFinalists on virtual lanes, with the rows that arithmetic gave them\n\n{}",
            finalists(question, finals.finalists.iter())
        ));
        out.push_str(&format!(
            "\nCost against time per token, the cheapest on virtual lanes\n\n{}",
            finalists(question, finals.front.iter().rev())
        ));
    }
    // Quicker ones are many and cost a multiple; they are in the JSON.
    let best = found.best.as_ref().map_or(f64::INFINITY, |best| best.outcome.usd_per_mtok());
    let near = |candidate: &&Candidate| candidate.outcome.usd_per_mtok() <= NEAR * best;
    let (cost, throughput) = (found.cost_front.iter().filter(near), found.throughput_front.iter().filter(near));
    out.push_str(&format!(
        "\nCost against time per token by arithmetic, up to {NEAR} times the least\n\n{}",
        table(question, cost)
    ));
    out.push_str(&format!("\nThroughput against time per token, likewise\n\n{}", table(question, throughput)));
    out
}

fn row(question: &Question, candidate: &Candidate) -> Vec<String> {
    let Outcome { layout, batch, tpot_s, .. } = &candidate.outcome;
    let (attention, ffn) = question.on(candidate);
    vec![
        format!("{} × {}", layout.name(), words::plural(layout.micro_batches.into(), "micro-batch")),
        format!("{} + {}", attention.name, ffn.name),
        format!("{} × {}", layout.attention + layout.ffn, layout.devices),
        if layout.o_proj > 1 { format!("over {}", layout.o_proj) } else { "whole".into() },
        if layout.replicas && layout.ffn > 1 { "copied".into() } else { "divided".into() },
        layout.wire.to_string(),
        format!("{batch:.0}"),
        format!("{:.1}", tpot_s * 1e3),
        format!("{:.0}", candidate.outcome.tgs()),
        format!("{:.3}", candidate.outcome.usd_per_mtok()),
    ]
}

fn table<'a>(question: &Question, candidates: impl Iterator<Item = &'a Candidate>) -> Table {
    let mut table = Table::new(&COLUMNS);
    for candidate in candidates {
        table.row(&row(question, candidate).iter().map(String::as_str).collect::<Vec<_>>());
    }
    table
}

/// Up to the time per token as by arithmetic, then as simulated.
fn finalists<'a>(question: &Question, finalists: impl Iterator<Item = &'a Finalist>) -> Table {
    let mut table = Table::new(&[&COLUMNS[..8], &SIMULATED[..]].concat());
    for finalist in finalists {
        let mut cells = row(question, &finalist.candidate);
        cells.truncate(8);
        let simulated = &finalist.simulated;
        cells.extend([
            simulated.schedule.clone(),
            format!("{:.1}", simulated.tpot_s * 1e3),
            format!("{:+.0} %", finalist.off() * 100.0),
            format!("{:.0}", simulated.tgs()),
            format!("{:.3}", simulated.usd_per_mtok()),
        ]);
        table.row(&cells.iter().map(String::as_str).collect::<Vec<_>>());
    }
    table
}

/// The winner on virtual lanes and what keeps it from its arithmetic.
fn simulated(question: &Question, finals: &Finals) -> String {
    let Some(best) = &finals.best else { return String::new() };
    let mut out = finalists(question, std::iter::once(best)).to_string();
    if let Some(Terms { pipeline, fabric, plan, ends, overheads }) = finals.terms {
        let ms = |seconds: f64| seconds * 1e3;
        out.push_str(&format!(
            "All side by side it would take {:.1} ms; lanes that wait for their own exchanges {:+.1}, the plan's order and layers that \
             differ {:+.1}, embedding, head and sampling {:+.1}, launches and latencies {:+.1}.\n",
            ms(pipeline),
            ms(fabric),
            ms(plan),
            ms(ends),
            ms(overheads)
        ));
    }
    if let Some(other) = &finals.other_order {
        out.push_str(&format!("In the order {} it takes {:.1} ms.\n", other.schedule, other.tpot_s * 1e3));
    }
    out
}

fn reason(question: &Question, best: &Candidate) -> String {
    let outcome = &best.outcome;
    let stages: Vec<String> = (RESOURCES.iter().zip(outcome.stages))
        .filter(|(_, seconds)| *seconds > 0.0)
        .map(|(name, seconds)| format!("{name} {:.0} µs", seconds * 1e6))
        .collect();
    format!(
        "Bound by {}. A layer: {}.\nMargins, by arithmetic: {:.0} % of the time per token, {:.0} % of attention's memory, {:.0} % of the \
         FFN's.",
        outcome.bound(),
        stages.join(", "),
        (1.0 - outcome.tpot_s / question.tpot_s) * 100.0,
        (1.0 - outcome.attention_memory) * 100.0,
        (1.0 - outcome.ffn_memory) * 100.0,
    )
}

fn zone_text(zone: &DeadZone) -> String {
    match zone.from {
        Some((ffn, bound)) => {
            format!(
                "Dead zone: past {} nothing is gained; bound there by {bound}.",
                words::plural(ffn.into(), "FFN instance")
            )
        }
        None => "No dead zone within four more FFN instances.".into(),
    }
}

/// What a trace asks for, and how many deployments that takes.
fn demanded(demand: &Demand, answer: &Answer) -> String {
    let told = format!(
        "The trace: {} over {:.0} s, contexts of {:.0} on average",
        words::plural(demand.requests as u64, "request"),
        demand.span_s,
        demand.mean_context()
    );
    let (Some(mean), Some(busiest)) = (demand.tokens_per_s, demand.busiest_tokens_per_s) else {
        return format!("{told}; all come at once, so nothing is said of rates.");
    };
    let rates = format!("{told}; {mean:.0} tokens/s, {busiest:.0} in its busiest minute.");
    match (answer.copies(demand), answer.rate()) {
        (Some(copies), Some((rate, usd_per_hour))) => format!(
            "{rates} That takes {}, {:.2} USD an hour, busy to {:.0} % on average.",
            words::plural(copies, "such deployment"),
            usd_per_hour * copies as f64,
            mean / (rate * copies as f64) * 100.0
        ),
        _ => rates,
    }
}

fn verdict(question: &Question, answer: &Answer) -> String {
    let Some((index, undivided)) = &answer.found.undivided else {
        return "Undivided, no number of servers of this pool holds the model and the time per token.".into();
    };
    let same = format!(
        "Undivided on {} {}, by arithmetic: batch {:.0}, {:.1} ms a token, {:.0} tokens/s/device, {:.3} USD/Mtok.",
        undivided.devices,
        question.pool[*index].hardware.name,
        undivided.batch,
        undivided.tpot_s * 1e3,
        undivided.tgs(),
        undivided.usd_per_mtok()
    );
    match answer.advantage() {
        Some(share) if share > 0.0 => format!("{same}\nDisaggregation pays: tokens cost {:.0} % less.", share * 100.0),
        Some(share) => format!("{same}\nDo not disaggregate here: tokens would cost {:.0} % more.", -share * 100.0),
        None => format!("{same}\nDo not disaggregate here: nothing disaggregated holds."),
    }
}
