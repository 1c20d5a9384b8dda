//! `rally recommend`: the layout to buy for a model and a time per token, and whether to disaggregate at all.
//!
//! It owns what is asked and how the answer is shown; the pipeline and the search are `rally-recommend`'s.

use crate::error::{Blame, CliError};
use crate::output::{OutputFile, print};
use crate::table::Table;
use crate::{Format, cost};
use clap::Args;
use rally_cost::library::{hardware_named, model_named};
use rally_cost::{Dtype, Hardware, SpecError};
use rally_graph::words;
use rally_recommend::calibration::Calibration;
use rally_recommend::graph;
use rally_recommend::pipeline::{Outcome, RESOURCES, Workload};
use rally_recommend::search::{Candidate, DeadZone, Found, Pool, dead_zone, search};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Arguments of `rally recommend`.
#[derive(Clone, Debug, Args)]
pub struct RecommendArgs {
    /// Accelerators there are: a name or spec file and how many; again for another kind.
    #[arg(long = "hardware", value_name = "NAME|FILE:COUNT", required = true)]
    pub pool: Vec<String>,
    /// A model by its name in `rally cost`, a spec file, or a Hugging Face config.json or its folder.
    #[arg(long, value_name = "NAME|FILE", default_value = "Step-3")]
    pub model: String,
    /// Tokens of a sequence while it decodes, with a share if there are several; again for more.
    #[arg(long = "context", value_name = "TOKENS[:SHARE]", default_value = "4096", value_parser = context)]
    pub contexts: Vec<(u64, f64)>,
    /// Time per output token that must hold.
    #[arg(long, value_name = "MS", default_value_t = 50.0, value_parser = cost::milliseconds)]
    pub tpot_ms: f64,
    /// Another price of an accelerator, USD an hour; again for more.
    #[arg(long = "price", value_name = "NAME=USD")]
    pub prices: Vec<String>,
    /// What keys and values are kept in, instead of what the model's spec says.
    #[arg(long, value_name = "DTYPE", value_parser = cost::dtype)]
    pub kv_dtype: Option<Dtype>,
    /// Write the winner as a graph file; --model must then be a Step-3 config.json or its folder.
    #[arg(long, value_name = "F.json")]
    pub out: Option<PathBuf>,
    /// How results are printed.
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

fn context(text: &str) -> Result<(u64, f64), String> {
    let (tokens, share) = text.split_once(':').unwrap_or((text, "1"));
    let tokens = tokens.parse().ok().filter(|tokens| (1..=1 << 30).contains(tokens));
    let share = share.parse().ok().filter(|share: &f64| *share > 0.0 && share.is_finite());
    tokens.zip(share).ok_or("expected TOKENS or TOKENS:SHARE, such as 4096 or 32768:0.2".into())
}

/// All that is asked, looked up.
struct Question {
    workload: Workload,
    pool: Vec<Pool>,
    tpot_s: f64,
    config: Option<PathBuf>,
}

impl Question {
    fn of(args: &RecommendArgs) -> Result<Self, CliError> {
        let mut model = model_named(&args.model).or_mistake()?;
        if let Some(dtype) = args.kv_dtype {
            model.keep_kv_in(dtype);
        }
        let mut hardware = Vec::new();
        let mut counts = Vec::new();
        for entry in &args.pool {
            let wrong = || {
                CliError::Mistake(format!(
                    "--hardware {}: expected NAME:COUNT, such as H800:32",
                    words::printable(entry)
                ))
            };
            let (name, count) = entry.rsplit_once(':').ok_or_else(wrong)?;
            // More would be searched for minutes; an answer for this many is repeated.
            counts.push(count.parse().ok().filter(|count| (2..=512).contains(count)).ok_or_else(wrong)?);
            hardware.push(hardware_named(name).or_mistake()?);
        }
        let hardware = cost::at_prices(hardware, &args.prices)?;
        let pool = hardware.into_iter().zip(counts).map(|(hardware, count)| Pool { hardware, count }).collect();
        let path = Path::new(&args.model);
        let file = if path.is_dir() { path.join("config.json") } else { path.into() };
        let config = file.canonicalize().ok();
        if args.out.is_some() && config.is_none() {
            let message = "--out: a graph names its model's file: give --model as a Step-3 config.json or its folder";
            return Err(CliError::Mistake(message.into()));
        }
        let workload = Workload { model, contexts: args.contexts.clone(), attention_dtype: None };
        Ok(Self { workload, pool, tpot_s: args.tpot_ms / 1e3, config })
    }

    fn on(&self, candidate: &Candidate) -> (&Hardware, &Hardware) {
        (&self.pool[candidate.attention_on].hardware, &self.pool[candidate.ffn_on].hardware)
    }

    fn dead_zone(&self, candidate: &Candidate) -> Result<DeadZone, SpecError> {
        let layout = &candidate.outcome.layout;
        dead_zone(&self.workload, self.on(candidate), layout, self.tpot_s, layout.ffn + 4)
    }
}

/// Runs `rally recommend`.
pub fn run(args: &RecommendArgs) -> Result<ExitCode, CliError> {
    let question = Question::of(args)?;
    let file = args.out.as_deref().map(OutputFile::create).transpose()?;
    let found = search(&question.workload, &question.pool, question.tpot_s).or_mistake()?;
    let zone = found.best.as_ref().map(|best| question.dead_zone(best)).transpose().or_mistake()?;
    print(&match args.format {
        Format::Text => text(&question, &found, zone.as_ref()),
        Format::Json => {
            format!("{}\n", serde_json::to_string_pretty(&answer(&question, &found, zone.as_ref())).or_failure()?)
        }
    })?;
    if let (Some(file), Some(best), Some(config)) = (file, &found.best, &question.config) {
        let config = config.to_string_lossy();
        let on = question.on(best);
        let graph = graph::deployment(&question.workload, on, &best.outcome, &config, args.tpot_ms);
        let graph = serde_json::to_string_pretty(&graph).or_failure()?;
        file.finish(|file| writeln!(file, "{graph}"))?;
    }
    // Nothing that holds is an answer, but no recommendation.
    Ok(if found.best.is_some() || found.undivided.is_some() { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

/// How much dearer than the best a layout may be to be shown to people.
const NEAR: f64 = 2.5;

const COLUMNS: [&str; 10] =
    ["layout", "on", "devices", "o_proj", "FFN", "wire", "batch", "ms/token", "tokens/s/device", "USD/Mtok"];

fn row(question: &Question, candidate: &Candidate) -> Vec<String> {
    let Outcome { layout, batch, tpot_s, .. } = &candidate.outcome;
    let (attention, ffn) = question.on(candidate);
    vec![
        format!("{} ping_pong:{}", layout.name(), layout.micro_batches),
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

fn text(question: &Question, found: &Found, zone: Option<&DeadZone>) -> String {
    let mut out = format!(
        "{} at {} ms a token; {} layouts tried, {} ruled out by a bound\n{}\n\n",
        question.workload.model.name,
        question.tpot_s * 1e3,
        found.tried,
        found.pruned,
        basis(question)
    );
    match &found.best {
        None => {
            out.push_str("No disaggregated layout of this pool holds that: memory or time is short for each of them.\n")
        }
        Some(best) => {
            out.push_str(&table(question, std::iter::once(best)).to_string());
            out.push_str(&format!("{}\n{}\n", reason(question, best), zone.map(zone_text).unwrap_or_default()));
        }
    }
    out.push_str(&format!("\n{}\n", verdict(question, found)));
    // Quicker ones are many and cost a multiple; they are in the JSON.
    let best = found.best.as_ref().map_or(f64::INFINITY, |best| best.outcome.usd_per_mtok());
    let near = |candidate: &&Candidate| candidate.outcome.usd_per_mtok() <= NEAR * best;
    let (cost, throughput) = (found.cost_front.iter().filter(near), found.throughput_front.iter().filter(near));
    out.push_str(&format!("\nCost against time per token, up to {NEAR} times the least\n\n{}", table(question, cost)));
    out.push_str(&format!("\nThroughput against time per token, likewise\n\n{}", table(question, throughput)));
    out
}

/// What the figures rest on.
fn basis(question: &Question) -> String {
    let guessed: Vec<&str> = (question.pool.iter().map(|pool| &pool.hardware))
        .filter(|hardware| !Calibration::is_measured(hardware))
        .map(|hardware| hardware.name.as_str())
        .collect();
    let more = match guessed.is_empty() {
        true => String::new(),
        false => format!("; for {} those of H800 are assumed", guessed.join(", ")),
    };
    format!("Not measured: arithmetic with efficiencies from table 9 of the Step-3 report (arXiv 2507.19427){more}")
}

fn reason(question: &Question, best: &Candidate) -> String {
    let outcome = &best.outcome;
    let stages: Vec<String> = (RESOURCES.iter().zip(outcome.stages))
        .filter(|(_, seconds)| *seconds > 0.0)
        .map(|(name, seconds)| format!("{name} {:.0} µs", seconds * 1e6))
        .collect();
    format!(
        "Bound by {}. A layer: {}.\nMargins: {:.0} % of the time per token, {:.0} % of attention's memory, {:.0} % of the FFN's.",
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

fn verdict(question: &Question, found: &Found) -> String {
    let Some((index, undivided)) = &found.undivided else {
        return "Undivided, no number of servers of this pool holds the model and the time per token.".into();
    };
    let same = format!(
        "Undivided on {} {}: batch {:.0}, {:.1} ms a token, {:.0} tokens/s/device, {:.3} USD/Mtok.",
        undivided.devices,
        question.pool[*index].hardware.name,
        undivided.batch,
        undivided.tpot_s * 1e3,
        undivided.tgs(),
        undivided.usd_per_mtok()
    );
    match found.advantage() {
        Some(share) if share > 0.0 => format!("{same}\nDisaggregation pays: tokens cost {:.0} % less.", share * 100.0),
        Some(share) => format!("{same}\nDo not disaggregate here: tokens would cost {:.0} % more.", -share * 100.0),
        None => format!("{same}\nDo not disaggregate here: nothing disaggregated holds."),
    }
}

fn answer(question: &Question, found: &Found, zone: Option<&DeadZone>) -> Value {
    let candidate = |candidate: &Candidate| {
        let (outcome, layout) = (&candidate.outcome, &candidate.outcome.layout);
        let (attention, ffn) = question.on(candidate);
        let stages: serde_json::Map<String, Value> = RESOURCES
            .iter()
            .zip(outcome.stages)
            .map(|(name, seconds)| ((*name).to_owned(), json!(seconds * 1e6)))
            .collect();
        json!({
            "layout": layout.name(), "attention_on": attention.name, "ffn_on": ffn.name,
            "attention_instances": layout.attention, "ffn_instances": layout.ffn, "devices_per_instance": layout.devices,
            "micro_batches": layout.micro_batches, "o_proj": layout.o_proj, "ffn_replicas": layout.replicas,
            "wire": layout.wire.name(), "batch": outcome.batch, "tpot_ms": outcome.tpot_s * 1e3,
            "tokens_per_s": outcome.tokens_per_s, "tokens_per_s_per_device": outcome.tgs(),
            "usd_per_mtok": outcome.usd_per_mtok(), "bound": outcome.bound(), "layer_us": stages,
            "attention_memory_share": outcome.attention_memory, "ffn_memory_share": outcome.ffn_memory,
        })
    };
    let undivided = found.undivided.map(|(index, undivided)| {
        json!({
            "on": question.pool[index].hardware.name, "devices": undivided.devices, "batch": undivided.batch,
            "tpot_ms": undivided.tpot_s * 1e3, "tokens_per_s": undivided.tokens_per_s,
            "tokens_per_s_per_device": undivided.tgs(), "usd_per_mtok": undivided.usd_per_mtok(),
        })
    });
    json!({
        "model": question.workload.model.name,
        "tpot_ms": question.tpot_s * 1e3,
        "basis": basis(question),
        "best": found.best.as_ref().map(candidate),
        "undivided": undivided,
        "disaggregate": found.advantage().is_some_and(|share| share > 0.0) || found.undivided.is_none() && found.best.is_some(),
        "advantage": found.advantage(),
        "dead_zone": zone.map(|zone| json!({
            "tokens_per_s": zone.tokens_per_s,
            "past_ffn_instances": zone.from.map(|(ffn, _)| ffn),
            "bound": zone.from.map(|(_, bound)| bound),
        })),
        "cost_front": found.cost_front.iter().map(candidate).collect::<Vec<_>>(),
        "throughput_front": found.throughput_front.iter().map(candidate).collect::<Vec<_>>(),
        "tried": found.tried,
        "pruned": found.pruned,
    })
}
