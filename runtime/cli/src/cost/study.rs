//! What was asked for, looked up and reckoned: every model on every accelerator.

use super::CostArgs;
use crate::error::{Blame, CliError};
use rally_cost::decode::DecodeCost;
use rally_cost::library::{REPORT_HARDWARE, hardware_named, model_named, models};
use rally_cost::price::{Pair, UnitPrice, UsdPerMtok, best_pair};
use rally_cost::sizing::{self, Feasibility};
use rally_cost::{Dtype, Hardware, Model};
use rally_graph::words;

/// An accelerator and what it makes of a byte and a FLOP.
pub struct Accelerator {
    pub hardware: Hardware,
    /// What products are computed in.
    pub dtype: Dtype,
    pub peak_flops: f64,
    pub usd_per_hour: f64,
    pub unit: UnitPrice,
    /// The batch at which a dense FFN is bound by computing.
    pub dense_batch: f64,
    /// The least sparsity that its network can feed.
    pub min_sparsity: f64,
    pub feasibility: Feasibility,
}

impl Accelerator {
    /// FLOPs that it can do for each byte that it reads.
    pub fn flops_per_byte(&self) -> f64 {
        self.peak_flops / self.hardware.memory_bytes_per_s()
    }
}

/// A model and what its tokens cost.
pub struct Costed {
    pub model: Model,
    pub cost: DecodeCost,
    /// One entry an accelerator.
    pub usd: Vec<UsdPerMtok>,
    pub pair: Pair,
}

impl Costed {
    /// The accelerator on which all of it is cheapest, and what that costs.
    pub fn alone(&self) -> (usize, f64) {
        let totals = self.usd.iter().map(UsdPerMtok::total).enumerate();
        totals.min_by(|left, right| left.1.total_cmp(&right.1)).expect("a study has an accelerator")
    }
}

/// The whole answer.
pub struct Study {
    pub context: u64,
    pub tpot_ms: f64,
    pub stages: u32,
    pub models: Vec<Costed>,
    pub accelerators: Vec<Accelerator>,
    /// Whose shapes sparsity and feasibility are reckoned with.
    pub subject: String,
}

/// The model whose shapes the report sizes networks for.
const SUBJECT: &str = "Step-3";

impl Study {
    /// Looks everything up and reckons.
    pub fn of(args: &CostArgs) -> Result<Self, CliError> {
        let mut wanted = match args.models.is_empty() {
            true => models().to_vec(),
            false => args.models.iter().map(|name| model_named(name)).collect::<Result<_, _>>().or_mistake()?,
        };
        for model in &mut wanted {
            if let Some(dtype) = args.kv_dtype {
                model.keep_kv_in(dtype);
            }
        }
        distinct("--model", wanted.iter().map(|model| model.name.as_str()))?;
        let subject = wanted.iter().find(|model| model.name == SUBJECT).unwrap_or(&wanted[0]).clone();
        let accelerators = priced(args)?
            .into_iter()
            .map(|hardware| accelerator(hardware, &subject, args))
            .collect::<Result<Vec<_>, _>>()
            .or_mistake()?;
        let models = wanted.into_iter().map(|model| costed(model, args.context, &accelerators)).collect();
        let subject = subject.name;
        Ok(Self { context: args.context, tpot_ms: args.tpot_ms, stages: args.stages, models, accelerators, subject })
    }

    /// The same models on the same accelerators at another context.
    pub fn usd_at(&self, costed: &Costed, context: u64) -> f64 {
        self::costed(costed.model.clone(), context, &self.accelerators).pair.usd_per_mtok
    }

    /// The name of an accelerator.
    pub fn name(&self, index: usize) -> &str {
        &self.accelerators[index].hardware.name
    }
}

fn accelerator(hardware: Hardware, subject: &Model, args: &CostArgs) -> Result<Accelerator, rally_cost::SpecError> {
    let dtype = args.dtype.unwrap_or(hardware.decode_dtype());
    let tpot_s = args.tpot_ms / 1e3;
    Ok(Accelerator {
        dtype,
        peak_flops: hardware.peak(dtype)?,
        usd_per_hour: hardware.price()?,
        unit: UnitPrice::of(&hardware, dtype)?,
        dense_batch: sizing::ideal_dense_batch(&hardware, dtype)?,
        min_sparsity: sizing::min_sparsity(subject, &hardware, dtype, args.network_share, tpot_s)?,
        feasibility: sizing::feasibility(subject, &hardware, args.context, tpot_s, args.stages),
        hardware,
    })
}

fn costed(model: Model, context: u64, accelerators: &[Accelerator]) -> Costed {
    let cost = model.decode_cost(context);
    let usd: Vec<UsdPerMtok> = accelerators.iter().map(|on| UsdPerMtok::of(&cost, on.unit)).collect();
    let pair = best_pair(&usd).expect("a study has an accelerator");
    Costed { model, cost, usd, pair }
}

/// The accelerators asked for, at the prices asked for.
fn priced(args: &CostArgs) -> Result<Vec<Hardware>, CliError> {
    let names: Vec<&str> = match args.hardware.is_empty() {
        true => REPORT_HARDWARE.to_vec(),
        false => args.hardware.iter().map(String::as_str).collect(),
    };
    at_prices(names.into_iter().map(hardware_named).collect::<Result<_, _>>().or_mistake()?, &args.prices)
}

/// `hardware`, of different names, at `prices` of the form NAME=USD.
pub fn at_prices(mut hardware: Vec<Hardware>, prices: &[String]) -> Result<Vec<Hardware>, CliError> {
    distinct("--hardware", hardware.iter().map(|hardware| hardware.name.as_str()))?;
    for price in prices {
        let wrong = |why: &str| CliError::Mistake(format!("--price {}: {why}", words::printable(price)));
        let (name, usd) = price.rsplit_once('=').ok_or_else(|| wrong("expected NAME=USD"))?;
        let usd: f64 = usd.parse().map_err(|_| wrong("expected NAME=USD, such as H800=2.5"))?;
        let Some(at) = hardware.iter().position(|hardware| hardware.is_called(name)) else {
            let help = words::suggest(name, hardware.iter().map(|hardware| hardware.name.as_str()));
            return Err(wrong(&format!("that is none of the accelerators here: {help}")));
        };
        hardware[at] = hardware[at].clone().at_price(usd).or_mistake()?;
    }
    Ok(hardware)
}

/// Results are keyed by names.
fn distinct<'a>(flag: &str, names: impl Iterator<Item = &'a str>) -> Result<(), CliError> {
    let mut seen = std::collections::BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(CliError::Mistake(format!(
                "{flag}: two are called {name}, and results are told apart by names"
            )));
        }
    }
    Ok(())
}
