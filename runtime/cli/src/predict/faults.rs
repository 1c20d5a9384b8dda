//! A plan of faults on virtual lanes: links that are late and hosts that are slow or stand still. Virtual lanes lose nothing, and nothing
//! on them dies, so other faults are refused by name.

use crate::error::CliError;
use rally_engine::schedule::virtual_lanes::{Transit, VirtualTask};
use rally_graph::plan::TaskRole;
use rally_graph::stage_graph::StageGraph;
use rally_predict::durations::Durations;
use rally_transport::SlotKey;
use rally_transport::faults::{CONTROL, Fault, FaultKind, FaultPlan, Sent, share_of};
use std::cell::RefCell;

/// Durations with faults.
pub struct Faulted<'a> {
    durations: Box<dyn Durations + 'a>,
    plan: FaultPlan,
    graph: &'a StageGraph,
    /// By fault, how often it has happened.
    spent: RefCell<Vec<u64>>,
}

impl<'a> Faulted<'a> {
    /// `durations` with what of `plan` has a meaning there.
    pub fn new(durations: Box<dyn Durations + 'a>, plan: FaultPlan, graph: &'a StageGraph) -> Result<Self, CliError> {
        use FaultKind::{Delay, Reorder, Slow, Stop};
        for (index, fault) in plan.faults.iter().enumerate() {
            let kind = fault.fault.name();
            if !matches!(fault.fault, Delay | Reorder | Slow | Stop) {
                return Err(CliError::Mistake(format!(
                    "--faults: faults[{index}] (`{kind}`): virtual lanes lose nothing and no process dies there; they know `delay`, \
                     `reorder`, `slow` and `stop`"
                )));
            }
            if fault.edge.as_deref() == Some(CONTROL) {
                return Err(CliError::Mistake(format!(
                    "--faults: faults[{index}] (`{kind}`): virtual lanes have no messages beside rows"
                )));
            }
        }
        let spent = RefCell::new(vec![0; plan.faults.len()]);
        Ok(Self { durations, plan, graph, spent })
    }

    /// Seconds for each other host's device that a task sends to: what the faults that `wanted` names add up to.
    fn late_s(&self, task: &VirtualTask<'_>, wanted: impl Fn(FaultKind) -> bool) -> Vec<f64> {
        let template = &task.table.tasks[task.task];
        let (stage, own) = (&self.graph.stages[template.stage], self.graph.devices[template.device].host);
        let (Some(transfer), TaskRole::Send, Some(own)) = (&stage.transfer, template.role, own) else {
            return Vec::new();
        };
        let elsewhere = |to: &usize| Some((*to, self.graph.devices[*to].host.filter(|host| *host != own)?));
        let late = transfer.to.iter().filter_map(elsewhere).map(|(to, host)| {
            let [edge, micro_batch, from, to] =
                [template.stage, task.micro_batch, template.device, to].map(|index| index as u16);
            let key = SlotKey { edge, micro_batch, from, to, leg: 0 };
            let sent = Sent {
                edge: Some((&stage.id, key)),
                from: &self.graph.hosts[own],
                to: &self.graph.hosts[host],
                step: task.step,
                layer: template.layer.unwrap_or(0) as u32,
                epoch: 0,
            };
            let indexed = self.plan.faults.iter().enumerate().filter(|(_, fault)| wanted(fault.fault));
            indexed.map(|(index, fault)| self.fault_s(index, fault, &sent)).sum()
        });
        late.collect()
    }

    fn fault_s(&self, index: usize, fault: &Fault, sent: &Sent<'_>) -> f64 {
        let Some(drawn) = self.plan.meets(index, sent) else { return 0.0 };
        let spent = &mut self.spent.borrow_mut()[index];
        if *spent >= fault.most() {
            return 0.0;
        }
        *spent += 1;
        let seconds = fault.time().unwrap_or_default().as_secs_f64();
        if fault.fault == FaultKind::Reorder { seconds * share_of(drawn) } else { seconds }
    }
}

impl Durations for Faulted<'_> {
    fn task_s(&self, task: &VirtualTask<'_>) -> f64 {
        let stands_still = self.late_s(task, |kind| matches!(kind, FaultKind::Slow | FaultKind::Stop));
        self.durations.task_s(task) + stands_still.iter().sum::<f64>()
    }

    fn plan_s(&self, exit: &VirtualTask<'_>) -> f64 {
        self.durations.plan_s(exit)
    }

    fn transit(&self, task: &VirtualTask<'_>) -> Option<Transit> {
        let late = self.late_s(task, |kind| matches!(kind, FaultKind::Delay | FaultKind::Reorder));
        let late_ns = (late.into_iter().fold(0.0, f64::max) * 1e9).round() as u64;
        let transit = self.durations.transit(task);
        if late_ns == 0 {
            return transit;
        }
        let mut transit = transit.unwrap_or_default();
        transit.latency_ns += late_ns;
        Some(transit)
    }
}
