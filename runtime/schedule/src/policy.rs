//! Policies: who takes which turn on a lane.
//!
//! A policy orders the tasks of one cycle; it neither runs nor times them. [`Plan::compile`](rally_graph::plan::Plan::compile)
//! proves that an order is complete and cannot deadlock, so a policy of your own can be wrong but cannot hang a run.

use crate::greedy::Greedy;
use rally_graph::order::{self, CustomOrder, OrderError};
use rally_graph::plan::{Plan, PlanError, TaskTable, Turn};
use rally_graph::spec::{PolicyKind, ScheduleSpec};

/// Orders the tasks of every lane.
pub trait Policy: Send + Sync {
    /// Name for reports.
    fn name(&self) -> String;

    /// One order a lane of `table`, each with every task of every micro-batch exactly once. Tasks of one micro-batch keep
    /// their dataflow order on a lane.
    fn orders(&self, table: &TaskTable, micro_batches: usize) -> Vec<Vec<Turn>>;

    /// The same, or why there are none. For policies that read what people wrote.
    fn checked_orders(&self, table: &TaskTable, micro_batches: usize) -> Result<Vec<Vec<Turn>>, OrderError> {
        Ok(self.orders(table, micro_batches))
    }
}

/// One micro-batch after the other: nothing overlaps. The baseline.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sequential;

impl Policy for Sequential {
    fn name(&self) -> String {
        "sequential".into()
    }

    fn orders(&self, table: &TaskTable, micro_batches: usize) -> Vec<Vec<Turn>> {
        let turns = |tasks: &[usize]| {
            (0..micro_batches)
                .flat_map(|m| tasks.iter().map(move |task| turn(*task, m, false)).collect::<Vec<_>>())
                .collect()
        };
        table.lanes.iter().map(|lane| turns(&lane.tasks)).collect()
    }
}

/// Micro-batches take turns on every lane: while the FFN works on one, attention works on the next (Step-3 paper, figure 7).
///
/// A turn ends where the lane would wait for another lane. On the lane that both ends a step and begins the next, the last
/// turn of a micro-batch and its first turn of the next step are one, so the other lanes never see the step's border.
#[derive(Clone, Copy, Debug, Default)]
pub struct PingPong;

impl Policy for PingPong {
    fn name(&self) -> String {
        "ping_pong".into()
    }

    fn orders(&self, table: &TaskTable, micro_batches: usize) -> Vec<Vec<Turn>> {
        (0..table.lanes.len()).map(|lane| rotate(table, lane, micro_batches)).collect()
    }
}

fn rotate(table: &TaskTable, lane: usize, micro_batches: usize) -> Vec<Turn> {
    let segments = table.segments(lane);
    let has = |segment: &[usize], ends: &[usize]| segment.iter().any(|task| ends.contains(task));
    let (first, last) = (segments[0], segments[segments.len() - 1]);
    let joins = segments.len() > 1 && has(first, &table.entries) && has(last, &table.exits);
    let mut order = Vec::new();
    let middle = if joins { &segments[1..segments.len() - 1] } else { &segments[..] };
    if joins {
        for m in 0..micro_batches {
            order.extend(last.iter().map(|task| turn(*task, m, true)));
            order.extend(first.iter().map(|task| turn(*task, m, false)));
        }
    }
    for segment in middle {
        for m in 0..micro_batches {
            order.extend(segment.iter().map(|task| turn(*task, m, false)));
        }
    }
    order
}

fn turn(task: usize, micro_batch: usize, behind: bool) -> Turn {
    Turn { task, micro_batch, behind }
}

/// The order written in the graph file as a pattern of one layer (see [`rally_graph::order`]).
#[derive(Clone, Debug, Default)]
pub struct Custom {
    /// The patterns, by device or group.
    pub order: CustomOrder,
}

impl Policy for Custom {
    fn name(&self) -> String {
        "custom".into()
    }

    /// No orders if the pattern has a fault; [`Policy::checked_orders`] says which.
    fn orders(&self, table: &TaskTable, micro_batches: usize) -> Vec<Vec<Turn>> {
        self.checked_orders(table, micro_batches).unwrap_or_default()
    }

    fn checked_orders(&self, table: &TaskTable, micro_batches: usize) -> Result<Vec<Vec<Turn>>, OrderError> {
        order::expand(table, &self.order, micro_batches)
    }
}

/// A policy and a number of micro-batches, as a graph or `--schedule` names them.
pub struct Schedule {
    /// The policy.
    pub policy: Box<dyn Policy>,
    /// Micro-batches that rotate.
    pub micro_batches: usize,
    /// The text it was made from, as given.
    pub label: String,
}

/// Why a schedule cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// No such policy.
    #[error(
        "`{given}` is no schedule: expected `sequential`, `ping_pong`, `greedy` or `custom`, with `:N` for N micro-batches (1 to 64)"
    )]
    Unknown {
        /// The text.
        given: String,
    },
    /// `custom` without an order to read.
    #[error("the policy `custom` reads `schedule.order` of the graph, and there is none")]
    NoOrder,
    /// `custom:N`, and the graph's order is for another number.
    #[error("the graph's `order` is written for {written} micro-batches, and the schedule asks for {asked}")]
    OtherCount {
        /// Micro-batches of the graph.
        written: usize,
        /// Micro-batches asked for.
        asked: usize,
    },
    /// A custom order that is none.
    #[error(transparent)]
    Order(#[from] OrderError),
    /// Orders that are no plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

/// Most micro-batches a schedule may have.
pub const MAX_MICRO_BATCHES: usize = 64;

impl Schedule {
    /// What the graph file says.
    pub fn from_spec(spec: &ScheduleSpec) -> Result<Self, ScheduleError> {
        let micro_batches = spec.micro_batches as usize;
        let (policy, name): (Box<dyn Policy>, &str) = match spec.policy {
            PolicyKind::Sequential => (Box::new(Sequential), "sequential"),
            PolicyKind::PingPong => (Box::new(PingPong), "ping_pong"),
            PolicyKind::Greedy => (Box::new(Greedy::default()), Greedy::NAME),
            PolicyKind::Custom => {
                let order = spec.order.clone().ok_or(ScheduleError::NoOrder)?;
                (Box::new(Custom { order }), "custom")
            }
        };
        Ok(Self { policy, micro_batches, label: format!("{name}:{micro_batches}") })
    }

    /// `POLICY` or `POLICY:N`; without `:N` as many micro-batches as the graph says.
    pub fn parse(text: &str, spec: &ScheduleSpec) -> Result<Self, ScheduleError> {
        let unknown = || ScheduleError::Unknown { given: text.into() };
        let (name, count) = match text.split_once(':') {
            Some((name, count)) => (name, count.parse::<usize>().map_err(|_| unknown())?),
            None => (text, spec.micro_batches as usize),
        };
        if count == 0 || count > MAX_MICRO_BATCHES {
            return Err(unknown());
        }
        let policy = match name {
            "sequential" => PolicyKind::Sequential,
            "ping_pong" => PolicyKind::PingPong,
            Greedy::NAME => PolicyKind::Greedy,
            "custom" => PolicyKind::Custom,
            _ => return Err(unknown()),
        };
        if policy == PolicyKind::Custom && count != spec.micro_batches as usize {
            return Err(ScheduleError::OtherCount { written: spec.micro_batches as usize, asked: count });
        }
        let mut schedule =
            Self::from_spec(&ScheduleSpec { policy, micro_batches: count as u32, order: spec.order.clone() })?;
        schedule.label = text.into();
        Ok(schedule)
    }

    /// Makes a `greedy` schedule order by other costs than assumed ones; any other stays as it is and asks for none. Returns whether
    /// it was one.
    pub fn order_by(&mut self, greedy: impl FnOnce() -> Greedy) -> bool {
        let asked = self.policy.name() == Greedy::NAME;
        if asked {
            self.policy = Box::new(greedy());
        }
        asked
    }

    /// The plan of this schedule, proved.
    pub fn plan(&self, table: TaskTable) -> Result<Plan, ScheduleError> {
        let orders = self.policy.checked_orders(&table, self.micro_batches)?;
        Ok(Plan::compile(table, self.micro_batches, &orders)?)
    }
}
