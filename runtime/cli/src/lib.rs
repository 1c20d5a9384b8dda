//! The rally command line, one file per command.

#![forbid(unsafe_code)]

pub mod bench;
mod chart;
pub mod check;
pub mod cost;
mod cost_args;
pub mod doctor;
mod drive;
pub mod error;
mod graph_file;
mod hosts;
mod identity;
mod input;
mod interrupt;
pub mod journal;
mod load_args;
pub mod logging;
mod machine;
mod measured;
pub mod observe;
pub mod output;
pub mod predict;
pub mod profile;
pub mod recommend;
mod report;
pub mod requests;
pub mod run;
pub mod serve;
mod session;
pub mod show;
mod show_plan;
mod stragglers;
pub mod table;
mod trace_form;

use clap::{Parser, Subcommand, ValueEnum};
use error::CliError;
use std::process::ExitCode;

/// A decode runtime for attention–FFN-disaggregated language models.
///
/// A deployment is one graph file: which stages there are, where each runs, how micro-batches rotate, and which latency must
/// hold. rally checks it, shows it, runs it, and measures it.
#[derive(Debug, Parser)]
#[command(name = "rally", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// How log lines look. They go to stderr: warnings and worse, or what the environment variable RALLY_LOG (else RUST_LOG)
    /// asks for, such as `info` or `rally_engine=debug`.
    #[arg(long, value_enum, default_value_t, global = true, value_name = "FORMAT")]
    log_format: logging::LogFormat,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Report every fault of a graph file; then the bytes of each device and the stage budget.
    Check(check::CheckArgs),
    /// Draw the stage graph, or list the plan.
    Show(show::ShowArgs),
    /// Decode prompts to the end.
    Run(Box<run::RunArgs>),
    /// Answer OpenAI's HTTP requests until told to stop.
    Serve(Box<serve::ServeArgs>),
    /// Run one host of a deployment that has several, for whoever runs `rally run` or `rally serve` on another. SIGTERM or Ctrl-C asks it to leave: it ends
    /// once the others do its part, or no run needs it; a second one ends it at once.
    Worker(Box<hosts::worker::WorkerArgs>),
    /// Measure a load on a deployment, or compare schedules, graphs and the undivided model under it.
    Bench(Box<bench::BenchArgs>),
    /// Measure each stage over a grid of rows, context and experts, as a cost table.
    Profile(Box<profile::ProfileArgs>),
    /// Say what decoding costs in theory: models on accelerators, and what a network and a time per token allow.
    Cost(Box<cost::CostArgs>),
    /// Say what a load will do on a deployment: its plan and planner on virtual time.
    Predict(Box<predict::PredictArgs>),
    /// Search layouts of a pool of accelerators for the cheapest tokens within a time per token, disaggregated or not.
    Recommend(Box<recommend::RecommendArgs>),
    /// Say what this machine has, what is missing, and what that means.
    Doctor(doctor::DoctorArgs),
}

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object on stdout.
    Json,
}

impl std::fmt::Display for Format {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// Parses the process arguments, runs the command, and returns the exit code: 0 success, 2 a user's mistake, 1 a failure of
/// ours, 130 after Ctrl-C.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match logging::start(cli.log_format).and_then(|()| dispatch(cli.command)) {
        Ok(code) => code,
        Err(error) => {
            match &error {
                CliError::Reported => {}
                CliError::Interrupted => eprintln!("interrupted: what was there has been printed"),
                CliError::Mistake(_) | CliError::Failure(_) => eprintln!("error: {error}"),
            }
            error.exit_code()
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode, CliError> {
    match command {
        Command::Check(args) => check::run(&args),
        Command::Show(args) => show::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Worker(args) => hosts::worker::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Profile(args) => profile::run(&args),
        Command::Cost(args) => cost::run(&args),
        Command::Predict(args) => predict::run(&args),
        Command::Recommend(args) => recommend::run(&args),
        Command::Doctor(args) => doctor::run(&args),
    }
}
