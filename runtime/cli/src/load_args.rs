//! The flags that describe a load, and the load they make. Knows no engine: whoever replays, predicts or serves can take them.

use crate::error::{Blame, CliError};
use clap::Args;
use rally_load::arrival::ArrivalProcess;
use rally_load::synthetic::RandomLengths;
use rally_load::trace_file::{self, TraceFormat, TraceOptions};
use rally_load::{Load, LoadLimits};
use serde_json::{Value, json};
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

/// Requests of a load that nobody described.
const DEFAULT_PROMPTS: usize = 24;

/// What is asked of a deployment. With none of these flags: 24 requests at once, 32 prompt and 64 output tokens each.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Load")]
pub struct LoadArgs {
    /// Requests; of a trace file, the first so many.
    #[arg(long, value_name = "N", value_parser = count)]
    num_prompts: Option<usize>,
    /// Prompt tokens of a request. All of them are read: prefixes are not reused.
    #[arg(long, value_name = "N", default_value = "32", value_parser = count)]
    random_input_len: usize,
    /// Tokens to generate for a request.
    #[arg(long, value_name = "N", default_value = "64", value_parser = count)]
    random_output_len: usize,
    /// Draw lengths uniformly from (1 − R) to (1 + R) times those above.
    #[arg(long, value_name = "R", default_value = "0", value_parser = range_ratio)]
    random_range_ratio: f64,
    /// A fixed batch: N requests of exactly these lengths that start together and run to their ends.
    #[arg(long, value_name = "N", value_parser = count, conflicts_with_all = ["num_prompts", "trace_file", "request_rate", "max_concurrency", "random_range_ratio"])]
    batch: Option<usize>,
    /// Arrivals and lengths of real requests: an Azure LLM inference trace (.csv) or a Mooncake trace (.jsonl).
    #[arg(long, value_name = "F.csv|F.jsonl", conflicts_with_all = ["random_input_len", "random_output_len", "random_range_ratio"])]
    trace_file: Option<PathBuf>,
    /// Multiply the trace's arrival times: 0.5 plays it twice as fast.
    #[arg(long, value_name = "X", default_value = "1", value_parser = positive, requires = "trace_file")]
    trace_time_scale: f64,
    /// Only what arrives in the trace's first seconds, before scaling.
    #[arg(long, value_name = "S", value_parser = positive, requires = "trace_file")]
    trace_seconds: Option<f64>,
    /// Shorten requests that are longer than the graph's limits allow, instead of refusing them.
    #[arg(long)]
    clip: bool,
    /// Open loop: requests arrive at R a second, whatever becomes of them; `inf`: all at once. Replaces a trace's times.
    #[arg(long, value_name = "R", value_parser = rate)]
    request_rate: Option<f64>,
    /// Shape of the gaps' gamma distribution: 1 is a Poisson process, less is burstier, more is more even.
    #[arg(long, value_name = "B", default_value = "1", value_parser = positive, requires = "request_rate")]
    burstiness: f64,
    /// Closed loop: at most N requests under way, the next one begins when one has ended.
    #[arg(long, value_name = "N", value_parser = count)]
    max_concurrency: Option<usize>,
    /// Seed of lengths, arrivals and token ids.
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
}

/// A load, and how it is told.
#[derive(Clone, Debug)]
pub struct MadeLoad {
    /// The requests.
    pub load: Load,
    /// For people.
    pub words: String,
    /// For results.
    pub json: Value,
    /// Of token ids.
    pub seed: u64,
}

impl MadeLoad {
    /// Tells that the first `tokens` tokens of every prompt count as read, if any do.
    pub fn pretend_read(&mut self, tokens: usize) {
        if tokens > 0 {
            self.words.push_str(&format!(", the first {tokens} tokens of each taken as read"));
            self.json["pretend_read"] = json!(tokens);
        }
    }
}

impl LoadArgs {
    /// The load, as it was asked for: no request is held against any limits yet.
    pub fn make(&self) -> Result<MadeLoad, CliError> {
        let mut requests = match (&self.trace_file, self.batch) {
            (Some(path), _) => self.read(path)?,
            (None, Some(batch)) => self.lengths(0.0).requests(batch, self.seed),
            (None, None) => {
                self.lengths(self.random_range_ratio).requests(self.num_prompts.unwrap_or(DEFAULT_PROMPTS), self.seed)
            }
        };
        if let Some(rate) = self.request_rate {
            ArrivalProcess { rate, burstiness: self.burstiness }.schedule(&mut requests, self.seed);
        }
        let load = Load { requests, max_concurrency: self.max_concurrency };
        let (words, json) = (self.words(&load), self.json(&load));
        Ok(MadeLoad { load, words, json, seed: self.seed })
    }

    /// Holds `made` against what every deployment can take: clips it if that was asked for, and says so.
    pub fn fit(&self, made: &mut MadeLoad, limits: LoadLimits) -> Result<(), CliError> {
        let clipped = if self.clip { made.load.clip(limits) } else { 0 };
        made.load.check(limits).or_mistake()?;
        if clipped > 0 {
            // Their lengths are others now.
            made.words = self.words(&made.load);
            made.words.push_str(&format!(", {clipped} of them clipped to {} tokens", limits.total_tokens));
        }
        if self.clip {
            made.json["clipped"] = json!(clipped);
        }
        Ok(())
    }

    /// The trace that is read, if any.
    pub fn trace_file(&self) -> Option<&Path> {
        self.trace_file.as_deref()
    }

    /// Sequences that must run at once for the load to be what was asked for.
    pub fn fixed_batch(&self) -> Option<usize> {
        self.batch
    }

    fn lengths(&self, range_ratio: f64) -> RandomLengths {
        RandomLengths { input_len: self.random_input_len, output_len: self.random_output_len, range_ratio }
    }

    fn read(&self, path: &Path) -> Result<Vec<rally_load::LoadRequest>, CliError> {
        let (time_scale, most, within_s) = (self.trace_time_scale, self.num_prompts, self.trace_seconds);
        read_trace(path, TraceOptions { time_scale, most, within_s })
    }

    fn arrival_words(&self) -> String {
        let arrival = match (self.request_rate, &self.trace_file) {
            (Some(rate), _) if rate.is_finite() => format!("open loop at {rate} requests/s"),
            (None, Some(_)) => format!("arriving as in the trace, times × {}", self.trace_time_scale),
            _ => "all at once".into(),
        };
        match self.max_concurrency {
            Some(most) => format!("{arrival}, at most {most} under way"),
            None => arrival,
        }
    }

    fn words(&self, load: &Load) -> String {
        let count = load.requests.len();
        let mean = |of: fn(&rally_load::LoadRequest) -> usize| {
            load.requests.iter().map(of).sum::<usize>() as f64 / count.max(1) as f64
        };
        let (prompt, output) = (mean(|request| request.prompt_tokens), mean(|request| request.output_tokens));
        format!(
            "{count} requests of {prompt:.0} prompt and {output:.0} output tokens on average, {}",
            self.arrival_words()
        )
    }

    fn json(&self, load: &Load) -> Value {
        let kind = match (&self.trace_file, self.batch) {
            (Some(_), _) => "trace",
            (None, Some(_)) => "batch",
            (None, None) => "random",
        };
        let mut json = json!({
            "kind": kind,
            "num_prompts": load.requests.len(),
            // JSON has no infinity.
            "request_rate": self.request_rate.filter(|rate| rate.is_finite()),
            "burstiness": self.burstiness,
            "max_concurrency": self.max_concurrency,
            "seed": self.seed,
        });
        match &self.trace_file {
            Some(path) => {
                json["trace_file"] = json!(path.display().to_string());
                json["trace_time_scale"] = json!(self.trace_time_scale);
                json["trace_seconds"] = json!(self.trace_seconds);
            }
            None => {
                json["random_input_len"] = json!(self.random_input_len);
                json["random_output_len"] = json!(self.random_output_len);
                json["random_range_ratio"] = json!(self.random_range_ratio);
            }
        }
        json
    }
}

/// Reads a trace in the format that its name's ending tells.
pub fn read_trace(path: &Path, options: TraceOptions) -> Result<Vec<rally_load::LoadRequest>, CliError> {
    let mistake = |what: String| CliError::Mistake(format!("{}: {what}", path.display()));
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or("");
    let format = TraceFormat::of_ending(ending).ok_or_else(|| {
        mistake("a trace's name ends in .csv (Azure LLM inference trace) or .jsonl (Mooncake trace)".into())
    })?;
    let file = File::open(path).map_err(|error| mistake(format!("cannot be read: {error}")))?;
    trace_file::read(BufReader::new(file), format, options).map_err(|error| mistake(error.to_string()))
}

/// A number of things, at least one. More than 2^24 requests or tokens are a slip of the keyboard.
fn count(text: &str) -> Result<usize, String> {
    let in_range = text.parse::<usize>().ok().filter(|count| (1..=1 << 24).contains(count));
    in_range.ok_or_else(|| format!("expected a whole number from 1 to {}", 1 << 24))
}

fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| number.is_finite() && *number > 0.0);
    number.ok_or_else(|| "expected a number above 0".into())
}

fn rate(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| *number > 0.0);
    number.ok_or_else(|| "expected requests a second above 0, or `inf`".into())
}

fn range_ratio(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| (0.0..1.0).contains(number));
    number.ok_or_else(|| "expected a number from 0 to below 1".into())
}
