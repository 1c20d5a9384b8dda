//! `rally recommend`: the layout to buy for a model and a time per token, and whether to disaggregate at all.
//!
//! It owns what is asked and how the answer is shown; the pipeline, the search and the simulation of its finalists are
//! `rally-recommend`'s.

mod figures;
mod forms;
mod text;

use crate::chart::Form;
use crate::error::{Blame, CliError};
use crate::load_args::read_trace;
use crate::measured::{self, MeasuredFile};
use crate::output::{OutputFile, print};
use crate::{Format, cost};
use clap::Args;
use rally_cost::library::{hardware_named, model_named};
use rally_cost::{Dtype, Hardware, SpecError};
use rally_graph::words;
use rally_load::trace_file::TraceOptions;
use rally_predict::measured::StageTimes;
use rally_recommend::calibration::Calibration;
use rally_recommend::demand::Demand;
use rally_recommend::finalists::{Finalists, Finals};
use rally_recommend::graph;
use rally_recommend::pipeline::Workload;
use rally_recommend::search::{Candidate, DeadZone, Found, Pool, dead_zone, search};
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
    /// Contexts and arrivals of real requests instead: an Azure LLM inference trace (.csv) or a Mooncake trace (.jsonl).
    #[arg(long, value_name = "F.csv|F.jsonl", conflicts_with = "contexts")]
    pub trace_file: Option<PathBuf>,
    /// Time per output token that must hold.
    #[arg(long, value_name = "MS", default_value_t = 50.0, value_parser = cost::milliseconds)]
    pub tpot_ms: f64,
    /// Another price of an accelerator, USD an hour; again for more.
    #[arg(long = "price", value_name = "NAME=USD")]
    pub prices: Vec<String>,
    /// Share of the links' rate that rows get: 0.8 is what DeepEP measured on H800.
    #[arg(long, value_name = "SHARE", default_value_t = 1.0, value_parser = cost::share)]
    pub network_efficiency: f64,
    /// Take stage times that were measured, where there are some; the rest follows from efficiencies. Those of rally's fast kernels on an
    /// H200, or of tables that `rally profile` wrote on a card; NAME if they are to stand for another card than their own.
    #[arg(long, value_name = "[NAME:]F.json,…", num_args = 0..=1, require_equals = true)]
    pub measured: Option<Option<MeasuredFile>>,
    /// What keys and values are kept in, instead of what the model's spec says.
    #[arg(long, value_name = "DTYPE", value_parser = cost::dtype)]
    pub kv_dtype: Option<Dtype>,
    /// Write the winner as a graph file; --model must then be a Step-3 config.json or its folder.
    #[arg(long, value_name = "F.json")]
    pub out: Option<PathBuf>,
    /// Draw throughput and cost against time per token, cost against context, attention to FFN, and micro-batches.
    #[arg(long, value_name = "F.svg|F.html")]
    pub plot: Option<PathBuf>,
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
    demand: Option<Demand>,
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
        let demand = args.trace_file.as_deref().map(|path| read_trace(path, TraceOptions::default())).transpose()?;
        let demand = demand.map(|requests| Demand::of(&requests));
        let contexts = demand.as_ref().map_or_else(|| args.contexts.clone(), |demand| demand.contexts.clone());
        let mut workload = Workload { contexts, link_share: args.network_efficiency, ..Workload::at(model, 1) };
        let pool: Vec<Pool> = pool;
        let cards = measured::cards(args.measured.as_ref(), pool.iter().map(|pool| &pool.hardware))?;
        if cards.are_any() && !workload.measure(cards, pool.iter().map(|pool| &pool.hardware)) {
            return Err(measured::nothing_of(cards));
        }
        Ok(Self { workload, pool, tpot_s: args.tpot_ms / 1e3, config, demand })
    }

    fn on(&self, candidate: &Candidate) -> (&Hardware, &Hardware) {
        (&self.pool[candidate.attention_on].hardware, &self.pool[candidate.ffn_on].hardware)
    }

    fn dead_zone(&self, candidate: &Candidate) -> Result<DeadZone, SpecError> {
        let layout = &candidate.outcome.layout;
        dead_zone(&self.workload, self.on(candidate), layout, self.tpot_s, layout.ffn + 4)
    }

    /// What the figures rest on.
    fn basis(&self) -> String {
        let guessed: Vec<&str> = (self.pool.iter().map(|pool| &pool.hardware))
            .filter(|hardware| !Calibration::is_measured(hardware))
            .map(|hardware| hardware.name.as_str())
            .collect();
        let more = match guessed.is_empty() {
            true => String::new(),
            false => format!("; for {} those of H800 are assumed", guessed.join(", ")),
        };
        if self.workload.measured.are_any() {
            let times: Vec<&StageTimes> = self.workload.measured.all().collect();
            let sources: Vec<&str> = times.iter().map(|measured| measured.source.as_str()).collect();
            let shards = times.iter().flat_map(|measured| measured.shards());
            let shards: Vec<String> = shards.map(|(experts, width)| format!("{experts} × {width}")).collect();
            return format!(
                "Measured: attention with its projections undivided, and experts in shards of {} columns \
                 ({}); layouts with other parts are left out. Not measured: dense layers, shared experts, router, embedding, head, sums, \
                 transfers; those follow from efficiencies of table 9 of the Step-3 report{more}",
                words::list(&shards),
                sources.join("; ")
            );
        }
        format!("Not measured: arithmetic with efficiencies from table 9 of the Step-3 report (arXiv 2507.19427){more}")
    }
}

/// All that was found.
struct Answer {
    found: Found,
    /// On virtual lanes; none for models that rally has no stages for.
    finals: Option<Finals>,
    zone: Option<DeadZone>,
}

impl Answer {
    fn of(question: &Question) -> Result<Self, CliError> {
        let found = search(&question.workload, &question.pool, question.tpot_s).or_mistake()?;
        let finalists = Finalists::new(&question.workload, &question.pool, question.tpot_s);
        let finals = finalists.map(|finalists| finalists.run(&found)).transpose().or_mistake()?;
        let mut answer = Self { found, finals, zone: None };
        answer.zone = answer.best().map(|best| question.dead_zone(best)).transpose().or_mistake()?;
        Ok(answer)
    }

    /// What to buy: by virtual lanes where they have a word in it, else by arithmetic.
    fn best(&self) -> Option<&Candidate> {
        match &self.finals {
            Some(finals) => finals.best.as_ref().map(|best| &best.candidate),
            None => self.found.best.as_ref(),
        }
    }

    fn policy(&self) -> &str {
        let best = self.finals.as_ref().and_then(|finals| finals.best.as_ref());
        best.and_then(|best| best.simulated.schedule.split(':').next()).unwrap_or("ping_pong")
    }

    /// Tokens a second and USD an hour of what to buy.
    fn rate(&self) -> Option<(f64, f64)> {
        match &self.finals {
            Some(finals) => finals.best.as_ref().map(|best| (best.simulated.tokens_per_s, best.simulated.usd_per_hour)),
            None => self.found.best.as_ref().map(|best| (best.outcome.tokens_per_s, best.outcome.usd_per_hour)),
        }
    }

    /// How many of it a trace takes, in its busiest minute; none without arrivals.
    fn copies(&self, demand: &Demand) -> Option<u64> {
        let (rate, _) = self.rate()?;
        Some((demand.busiest_tokens_per_s? / rate).ceil().max(1.0) as u64)
    }

    fn usd_per_mtok(&self) -> Option<f64> {
        match &self.finals {
            Some(finals) => finals.best.as_ref().map(|best| best.simulated.usd_per_mtok()),
            None => self.found.best.as_ref().map(|best| best.outcome.usd_per_mtok()),
        }
    }

    /// By how much disaggregated tokens are cheaper than undivided ones, as a share.
    fn advantage(&self) -> Option<f64> {
        let (_, undivided) = self.found.undivided.as_ref()?;
        Some(1.0 - self.usd_per_mtok()? / undivided.usd_per_mtok())
    }
}

/// Runs `rally recommend`.
pub fn run(args: &RecommendArgs) -> Result<ExitCode, CliError> {
    let question = Question::of(args)?;
    let file = args.out.as_deref().map(OutputFile::create).transpose()?;
    let plot =
        args.plot.as_deref().map(|path| Ok::<_, CliError>((Form::of("--plot", path)?, OutputFile::create(path)?)));
    let plot = plot.transpose()?;
    let answer = Answer::of(&question)?;
    if let Some((form, file)) = plot {
        let drawn = figures::draw(&question, &answer, form)?;
        file.finish(|file| file.write_all(drawn.as_bytes()))?;
    }
    print(&match args.format {
        Format::Text => text::text(&question, &answer),
        Format::Json => format!("{}\n", serde_json::to_string_pretty(&forms::json(&question, &answer)).or_failure()?),
    })?;
    if let (Some(file), Some(best), Some(config)) = (file, answer.best(), &question.config) {
        let (config, on) = (config.to_string_lossy(), question.on(best));
        let graph = graph::deployment(&question.workload, on, &best.outcome, answer.policy(), &config, args.tpot_ms);
        let graph = serde_json::to_string_pretty(&graph).or_failure()?;
        file.finish(|file| writeln!(file, "{graph}"))?;
    }
    // Nothing that holds is an answer, but no recommendation.
    Ok(if answer.best().is_some() || answer.found.undivided.is_some() { ExitCode::SUCCESS } else { ExitCode::from(2) })
}
