//! Words for what a lane does and for what keeps it from doing anything.

use rally_graph::kinds::Role;
use rally_graph::plan::{Plan, TaskId, TaskRole, TaskTable};
use rally_graph::stage_graph::{DeviceIndex, Payload};
use serde::Serialize;

/// What a task's time is spent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Computing on the attention side: embedding, attention, routing, combining, sampling.
    Attention,
    /// Computing an FFN.
    Ffn,
    /// Carrying FFN inputs: sends, receives and exchanges of A→F.
    AToF,
    /// Carrying FFN outputs: the same of F→A.
    FToA,
}

impl Work {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Attention, Self::Ffn, Self::AToF, Self::FToA];

    /// As people read it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Attention => "A",
            Self::Ffn => "F",
            Self::AToF => "A→F",
            Self::FToA => "F→A",
        }
    }

    /// Whether it moves values instead of computing them.
    pub fn is_transfer(self) -> bool {
        matches!(self, Self::AToF | Self::FToA)
    }

    /// What it is to a lane that waits for it.
    pub fn cause(self) -> Cause {
        match self {
            Self::Attention => Cause::Attention,
            Self::Ffn => Cause::Ffn,
            Self::AToF | Self::FToA => Cause::Transfer,
        }
    }

    /// What `task` does.
    pub(crate) fn of(table: &TaskTable, task: TaskId) -> Self {
        let template = &table.tasks[task];
        let carried = |payload| if payload == Payload::Output { Self::FToA } else { Self::AToF };
        if !template.computes() {
            return carried(template.payload);
        }
        match table.stages[template.stage].role {
            Role::Ffn => Self::Ffn,
            Role::Embed | Role::Attention | Role::Router | Role::Combine | Role::Sampling => Self::Attention,
            Role::Transfer | Role::Rowwise => match Side::of(table, template.device) {
                Side::Attention => Self::Attention,
                Side::Ffn => Self::Ffn,
                // A device with neither stands between the two, as the stage of a network does.
                Side::Between => {
                    let before = template.after.iter().map(|before| table.tasks[*before].payload);
                    carried(before.into_iter().find(|payload| *payload != Payload::None).unwrap_or_default())
                }
            },
        }
    }
}

/// Where a lane stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// Its device holds sequences (whether it computes FFNs as well or not).
    Attention,
    /// Its device computes FFNs.
    Ffn,
    /// Neither.
    Between,
}

impl Side {
    fn of(table: &TaskTable, device: DeviceIndex) -> Self {
        let tasks = || table.tasks.iter().filter(|task| task.device == device && task.role == TaskRole::Compute);
        let role = |task: &rally_graph::plan::TaskTemplate| table.stages[task.stage].role;
        if tasks().any(|task| matches!(role(task), Role::Attention | Role::Embed | Role::Sampling)) {
            Self::Attention
        } else if tasks().any(|task| role(task) == Role::Ffn) {
            Self::Ffn
        } else {
            Self::Between
        }
    }

    /// The side of every lane of `plan`.
    pub(crate) fn of_lanes(plan: &Plan) -> Vec<Self> {
        plan.lanes.iter().map(|lane| Self::of(&plan.table, lane.device)).collect()
    }
}

/// Why a lane did nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// It waited for attention (or another stage of that side) to be computed.
    Attention,
    /// It waited for an FFN to be computed.
    Ffn,
    /// It waited for values on their way.
    Transfer,
    /// Nothing was there to be decoded.
    Admission,
    /// It, or the lane it waited for, planned the next step, handed over, or had to be woken.
    Host,
}

impl Cause {
    /// All of them, in the order of [`Cause::index`].
    pub const ALL: [Self; 5] = [Self::Attention, Self::Ffn, Self::Transfer, Self::Admission, Self::Host];

    /// Place in [`Cause::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// As people and metrics read it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Attention => "attention",
            Self::Ffn => "ffn",
            Self::Transfer => "transfer",
            Self::Admission => "admission",
            Self::Host => "host",
        }
    }
}
