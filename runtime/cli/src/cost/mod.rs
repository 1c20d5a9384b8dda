//! `rally cost`: what decoding costs in theory, by the Step-3 report's formulas.
//!
//! It owns what is asked and how the answer is shown; the formulas and the specs are `rally-cost`'s.

mod figures;
mod forms;
mod study;
mod text;

use crate::chart::Form;
use crate::error::{Blame, CliError};
use crate::output::{OutputFile, print};
use clap::{Args, ValueEnum};
use rally_cost::Dtype;
use std::path::PathBuf;
use std::process::ExitCode;
use study::Study;
pub(crate) use study::at_prices;

/// Arguments of `rally cost`.
#[derive(Clone, Debug, Args)]
pub struct CostArgs {
    /// Tokens that a decoded token attends to.
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
    pub context: u64,
    /// A model by its name here, a spec file, or a Hugging Face config.json or its folder; again for more. All nine unless given.
    #[arg(long = "model", value_name = "NAME|FILE")]
    pub models: Vec<String>,
    /// An accelerator by its name here, or a spec file; again for more. H800, H20, A800 and 910B unless given.
    #[arg(long, value_name = "NAME|FILE")]
    pub hardware: Vec<String>,
    /// Another price of an accelerator, USD an hour; again for more.
    #[arg(long = "price", value_name = "NAME=USD")]
    pub prices: Vec<String>,
    /// What products are computed in. Unless given: fp8 where the accelerator has it, else bf16.
    #[arg(long, value_name = "DTYPE", value_parser = dtype)]
    pub dtype: Option<Dtype>,
    /// What all keys and values are kept in, instead of what each model's spec says.
    #[arg(long, value_name = "DTYPE", value_parser = dtype)]
    pub kv_dtype: Option<Dtype>,
    /// Time per output token that sparsity and batches are reckoned for.
    #[arg(long, value_name = "MS", default_value_t = 50.0, value_parser = milliseconds)]
    pub tpot_ms: f64,
    /// Stages that a token's time is divided into: three, or four with one for each direction of the network.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub stages: u32,
    /// Share of the network's rate that is reached: 0.8 is what DeepEP measured on H800.
    #[arg(long, value_name = "SHARE", default_value_t = 1.0, value_parser = share)]
    pub network_share: f64,
    /// How results are printed.
    #[arg(long, value_enum, default_value_t = CostFormat::Text)]
    pub format: CostFormat,
    /// Draw one of the report's figures into --out instead of printing tables.
    #[arg(long, value_enum, requires = "out")]
    pub figure: Option<Figure>,
    /// Where the figure goes.
    #[arg(long, value_name = "F.svg|F.html", requires = "figure")]
    pub out: Option<PathBuf>,
}

/// Forms of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CostFormat {
    /// Tables for people.
    Text,
    /// One JSON object.
    Json,
    /// A line for each model and accelerator.
    Csv,
}

/// Pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Figure {
    /// Cost against activated parameters.
    #[value(name = "1")]
    Parameters,
    /// Cost of attention and FFN, on the best pair and on the best single accelerator.
    #[value(name = "2")]
    Parts,
    /// Attention's FLOPs against its bytes, with the accelerators' rooflines.
    #[value(name = "5")]
    Intensity,
    /// Cost against context.
    Context,
}

pub(crate) fn dtype(text: &str) -> Result<Dtype, String> {
    let names = Dtype::ALL.map(Dtype::name);
    Dtype::named(text).ok_or_else(|| rally_graph::words::suggest(text, names))
}

pub(crate) fn milliseconds(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|value| (1e-3..=1e6).contains(value)).ok_or("a time in ms, from 0.001 to 1e6".into())
}

pub(crate) fn share(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|value| (1e-3..=1.0).contains(value)).ok_or("a share, from 0.001 to 1".into())
}

/// Runs `rally cost`.
pub fn run(args: &CostArgs) -> Result<ExitCode, CliError> {
    let study = Study::of(args)?;
    if let (Some(figure), Some(path)) = (args.figure, &args.out) {
        let form = Form::of("--out", path)?;
        let drawn = figures::draw(figure, &study, form)?;
        OutputFile::create(path)?.finish(|file| file.write_all(drawn.as_bytes()))?;
        return Ok(ExitCode::SUCCESS);
    }
    print(&match args.format {
        CostFormat::Text => text::tables(&study),
        CostFormat::Json => format!("{}\n", serde_json::to_string_pretty(&forms::json(&study)).or_failure()?),
        CostFormat::Csv => forms::csv(&study),
    })?;
    Ok(ExitCode::SUCCESS)
}
