//! `--faults F.json`: what is to go wrong in this process, on purpose.

use super::Hosts;
use crate::error::CliError;
use crate::input::{mistake, read_named};
use clap::Args;
use rally_graph::stage_graph::StageGraph;
use rally_transport::faults::{FaultPlan, Faults, ProcessFault};
use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How often each fault has happened, in a process that was started again by one.
const SPENT: &str = "RALLY_FAULTS_SPENT";

/// The flag of a plan of faults.
#[derive(Clone, Debug, Args)]
pub struct FaultArgs {
    /// In a graph with hosts: do to this host's process, and to what it sends, what this plan says (runtime/cli/schema/faults.v1.schema.json):
    /// frames lost, late, twice, changed; a way cut; the process killed, stopped, slow, restarted. For tests. Give all hosts the same
    /// plan; RALLY_LOG=rally_transport::faults=info tells of each fault. Virtual lanes know `delay`, `reorder`, `slow` and `stop`.
    #[arg(long, value_name = "F.json")]
    pub faults: Option<PathBuf>,
}

/// Ids of transfers by their number among stages.
pub fn transfers(graph: &StageGraph) -> HashMap<u16, String> {
    let transfers = graph.stages.iter().enumerate().filter(|(_, stage)| stage.transfer.is_some());
    transfers.map(|(index, stage)| (index as u16, stage.id.clone())).collect()
}

impl FaultArgs {
    /// The plan of a graph with these hosts.
    pub fn read(&self, hosts: &[String], graph: &StageGraph) -> Result<Option<FaultPlan>, CliError> {
        let edges: BTreeSet<String> = transfers(graph).into_values().collect();
        let read = |path: &PathBuf| read_named("--faults", path, |text| FaultPlan::parse(text, hosts, &edges));
        self.faults.as_ref().map(read).transpose()
    }

    /// A graph without hosts has no way between two that something could happen on.
    pub fn refuse_without_hosts(&self) -> Result<(), CliError> {
        match &self.faults {
            Some(path) => Err(mistake("--faults", path, "this graph has no hosts")),
            None => Ok(()),
        }
    }
}

impl Hosts {
    /// Lets happen to this host what `args` say.
    pub fn with_faults(mut self, args: &FaultArgs, graph: &StageGraph) -> Result<Self, CliError> {
        let Some(plan) = args.read(&self.names, graph)? else { return Ok(self) };
        let spent = std::env::var(SPENT).unwrap_or_default();
        let spent: Vec<u64> = spent.split(',').map_while(|count| count.parse().ok()).collect();
        let faults = Faults::new(
            plan,
            (self.names.clone(), self.own),
            transfers(graph),
            &spent,
            Box::new(|fault| happen(&fault)),
        );
        self.faults = Some(Arc::new(faults));
        Ok(self)
    }
}

/// Does to this process what is to be done. A system that refuses ends it all the same: a test must not pass because nothing happened.
#[cfg(unix)]
fn happen(fault: &ProcessFault) {
    use rustix::process::{Signal, getpid, kill_process};
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    let signal = |signal: Signal| {
        if let Err(error) = kill_process(getpid(), signal) {
            eprintln!("error: --faults: this process takes no signal: {error}");
            std::process::abort();
        }
    };
    let seconds = |time: &Duration| time.as_secs_f64().to_string();
    match fault {
        ProcessFault::Kill => signal(Signal::KILL),
        ProcessFault::Stop(time) => {
            // Someone else must wake it.
            let wake = ["-c", "sleep \"$0\"; kill -CONT \"$1\"", &seconds(time), &std::process::id().to_string()]
                .map(str::to_owned);
            if let Err(error) = Command::new("sh").args(wake).spawn() {
                eprintln!("error: --faults: nobody to wake this process: {error}");
                std::process::abort();
            }
            signal(Signal::STOP);
        }
        ProcessFault::Restart { after, spent } => {
            let spent = spent.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
            // In place of this process: its threads, memory and connections are gone as if it had been killed, its number stays.
            let mut again = Command::new("sh");
            again.args(["-c", "sleep \"$0\"; exec \"$@\"", &seconds(after)]).env(SPENT, spent);
            again.arg(std::env::current_exe().unwrap_or_else(|_| "rally".into())).args(std::env::args_os().skip(1));
            let error = again.exec();
            eprintln!("error: --faults: this process cannot begin anew: {error}");
            std::process::abort();
        }
    }
}

#[cfg(not(unix))]
fn happen(_: &ProcessFault) {
    std::process::abort();
}
