//! `--costs`: a measured cost table for `greedy`, taken only where it was measured on the same.

use crate::error::CliError;
use crate::identity::Identity;
use crate::input::{mistake, read_named};
use clap::Args;
use rally_engine::schedule::cost_table::CostTable;
use rally_engine::schedule::greedy::Greedy;
use rally_engine::schedule::policy::Schedule;
use std::path::{Path, PathBuf};

const FLAG: &str = "--costs";

/// Arguments that give `greedy` measured costs.
#[derive(Clone, Debug, Args)]
pub struct CostArgs {
    /// A cost table of `rally profile` that `greedy` orders by, instead of assumed costs.
    #[arg(long, value_name = "F.json")]
    costs: Option<PathBuf>,
    /// Take the table of --costs also if it is of another machine, model or graph.
    #[arg(long, requires = "costs")]
    costs_anyway: bool,
}

/// A cost table that was read.
pub struct Costs<'a> {
    path: &'a Path,
    table: CostTable,
    anyway: bool,
}

impl CostArgs {
    /// The file, if one was given.
    pub fn path(&self) -> Option<&Path> {
        self.costs.as_deref()
    }

    /// Reads it, if one was given.
    pub fn read(&self) -> Result<Option<Costs<'_>>, CliError> {
        let Some(path) = self.path() else { return Ok(None) };
        let table = read_named(FLAG, path, CostTable::from_json)?;
        Ok(Some(Costs { path, table, anyway: self.costs_anyway }))
    }
}

impl Costs<'_> {
    /// Makes `schedule` order by the table, for micro-batches of `rows` that attend to `context` positions each, if it is `greedy`
    /// and the table is of what `identity` says. Returns whether it was `greedy`.
    pub fn order(
        &self,
        schedule: &mut Schedule,
        identity: &Identity,
        rows: usize,
        context: f64,
    ) -> Result<bool, CliError> {
        let taken = schedule.order_by(|| Greedy { costs: self.table.stage_costs(context), rows });
        let differences = if taken && !self.anyway { identity.differences(&self.table) } else { Vec::new() };
        match differences.is_empty() {
            true => Ok(taken),
            false => Err(mistake(
                FLAG,
                self.path,
                &format!(
                    "it was measured on something else: {}; measure again with `rally profile`, or insist with --costs-anyway",
                    differences.join(", ")
                ),
            )),
        }
    }

    /// Nothing here orders by costs.
    pub fn unused(&self) -> CliError {
        mistake(FLAG, self.path, "only `greedy` orders by costs, and no schedule here is `greedy`")
    }
}
