//! Figures of a run while it runs: what each lane spent its time on, how full the planner is. Written by lanes and the planner,
//! read by whoever wants to know: a scrape, a terminal.
//!
//! Every number is an atomic with one writer, stored without a lock and without ordering, so a lane pays a few nanoseconds a task
//! whether or not anyone looks. A lane's figures say all of its time up to the end of its last task that had rows; what it does
//! at the moment comes in when it is over.

mod page;
mod pieces;
mod series;
mod stragglers;
mod waits;

pub(crate) use series::{Series, counts_routing};
pub(crate) use waits::{Awaited, LaneMeter};

use crate::clock::RunClock;
use crossbeam::utils::CachePadded;
use pieces::Pieces;
use rally_graph::plan::Plan;
use rally_graph::stage_graph::StageGraph;
use rally_metrics::{AtomicHistogram, BubbleCause, names};
use rally_schedule::batch::DeviceBatch;
use rally_schedule::planner::StepPlanner;
use std::sync::atomic::{AtomicU64, Ordering};
use stragglers::Efforts;

/// Nanoseconds in a second, as histograms of seconds count.
const NS_PER_S: f64 = 1e9;

/// Pieces of time that are kept of a lane for each task of its list: a task and what the gap before it was. So a lane that waits
/// for one task of a cycle still finds all that was meanwhile.
const PIECES_PER_TASK: usize = 4;
/// Fewest pieces kept of a lane.
const FEWEST_PIECES: usize = 64;

/// What a lane's time in tasks went to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    Attention,
    Ffn,
    Transfer,
}

impl Work {
    /// What it is to a lane that waits meanwhile.
    fn cause(self) -> BubbleCause {
        match self {
            Self::Attention => BubbleCause::Attention,
            Self::Ffn => BubbleCause::Ffn,
            Self::Transfer => BubbleCause::Transfer,
        }
    }
}

/// A run's figures. Shared by its lanes, its planner, and all who look.
#[derive(Debug)]
pub struct RunFigures {
    clock: RunClock,
    lanes: Vec<CachePadded<LaneFigures>>,
    planner: PlannerFigures,
    /// Ids, by stage.
    stages: Vec<String>,
    /// By stage: whether its devices do unequal work for the same rows.
    uneven: Vec<bool>,
    /// Which stages are transfers.
    edges: Vec<usize>,
}

/// What one lane publishes.
#[derive(Debug)]
struct LaneFigures {
    name: String,
    device: String,
    /// The group that its device is one of.
    group: String,
    /// By [`Work`].
    work_ns: [AtomicU64; 3],
    /// By [`BubbleCause`].
    bubble_ns: [AtomicU64; 5],
    tasks: AtomicU64,
    /// Up to when the sums above account for all time, since the run began.
    accounted_ns: AtomicU64,
    /// What it did last, for lanes that wait for it.
    pieces: Pieces,
    series: Vec<Series>,
    /// By series.
    durations: Vec<AtomicHistogram>,
    /// By series.
    efforts: Vec<Efforts>,
    /// Of waits for transfers, by stage.
    exposed_ns: Vec<AtomicU64>,
    /// Experts of a layer; 0: nothing is routed on this lane.
    experts: usize,
    /// `[layers, experts]`.
    expert_tokens: Vec<AtomicU64>,
}

#[derive(Debug)]
struct PlannerFigures {
    running: AtomicU64,
    waiting: AtomicU64,
    /// Sequences that the run's owner holds back.
    waiting_outside: AtomicU64,
    used_pages: AtomicU64,
    pages: u64,
    preemptions: AtomicU64,
    prefix_queries: AtomicU64,
    prefix_hits: AtomicU64,
    /// Micro-batches that sequences go to.
    micro_batches_in_use: AtomicU64,
    /// Micro-batch steps planned with rows.
    rows: AtomicHistogram,
}

/// A lane's times at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LaneSample {
    /// Name of the lane.
    pub name: String,
    /// In tasks that had rows, in nanoseconds.
    pub busy_ns: u64,
    /// Of that, in sends, receives and exchanges.
    pub transfer_ns: u64,
    /// Outside them, in nanoseconds, by [`BubbleCause`].
    pub bubble_ns: [u64; 5],
    /// Tasks that had rows.
    pub tasks: u64,
    /// Since the run began: the end of the last such task, and the sum of all times above.
    pub accounted_ns: u64,
}

/// A run at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunSample {
    /// Since the run began, in nanoseconds.
    pub at_ns: u64,
    /// By lane, in the plan's order.
    pub lanes: Vec<LaneSample>,
    /// Sequences that hold pages.
    pub running: u64,
    /// Sequences in the queue, and those that the run's owner holds back.
    pub waiting: u64,
    /// KV pages in use, over all devices.
    pub used_pages: u64,
    /// KV pages there are.
    pub pages: u64,
    /// Times that a sequence gave its pages back.
    pub preemptions: u64,
}

impl RunFigures {
    /// All zero. `experts`: by lane, how many experts its routers choose among.
    pub(crate) fn new(
        clock: RunClock,
        plan: &Plan,
        graph: &StageGraph,
        planner: &StepPlanner,
        experts: &[usize],
    ) -> Self {
        let lane = |index: usize| CachePadded::new(LaneFigures::new(plan, graph, index, experts[index]));
        Self {
            clock,
            lanes: (0..plan.lanes.len()).map(lane).collect(),
            planner: PlannerFigures {
                running: AtomicU64::new(0),
                waiting: AtomicU64::new(0),
                waiting_outside: AtomicU64::new(0),
                used_pages: AtomicU64::new(0),
                pages: planner.pages() as u64,
                preemptions: AtomicU64::new(0),
                prefix_queries: AtomicU64::new(0),
                prefix_hits: AtomicU64::new(0),
                micro_batches_in_use: AtomicU64::new(planner.micro_batches_in_use() as u64),
                rows: AtomicHistogram::new(names::MICRO_BATCH_TOKENS.edges(), 1.0),
            },
            stages: graph.stages.iter().map(|stage| stage.id.clone()).collect(),
            uneven: plan.table.uneven.clone(),
            edges: (0..graph.stages.len()).filter(|stage| graph.stages[*stage].transfer.is_some()).collect(),
        }
    }

    /// Another host runs `lane`: who waits for it waits for a transfer, as far as can be seen from here.
    pub(crate) fn is_elsewhere(&self, lane: usize) {
        self.lanes[lane].pieces.begin(0, BubbleCause::Transfer);
    }

    /// How things stand.
    pub fn sample(&self) -> RunSample {
        let read = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        RunSample {
            at_ns: self.clock.now_ns(),
            lanes: self.lanes.iter().map(|lane| lane.sample()).collect(),
            running: read(&self.planner.running),
            waiting: self.planner.all_waiting(),
            used_pages: read(&self.planner.used_pages),
            pages: self.planner.pages,
            preemptions: read(&self.planner.preemptions),
        }
    }

    /// So many sequences wait for this run without having been submitted to it: its owner has a queue of its own.
    pub fn set_waiting_outside(&self, sequences: usize) {
        self.planner.waiting_outside.store(sequences as u64, Ordering::Relaxed);
    }

    /// Leaves the samples so far out of all histograms, once: those of a warm-up. Sums of seconds go on.
    pub fn forget_samples(&self) {
        let durations = self.lanes.iter().flat_map(|lane| &lane.durations);
        durations.chain([&self.planner.rows]).for_each(AtomicHistogram::forget);
    }

    /// To be called under the planner's lock.
    pub(crate) fn queue(&self, planner: &StepPlanner) {
        let set = |cell: &AtomicU64, value: u64| cell.store(value, Ordering::Relaxed);
        set(&self.planner.running, planner.running() as u64);
        set(&self.planner.waiting, planner.waiting() as u64);
        set(&self.planner.used_pages, planner.used_pages() as u64);
        set(&self.planner.preemptions, planner.preemptions());
        set(&self.planner.prefix_queries, planner.prefix_queries());
        set(&self.planner.prefix_hits, planner.prefix_hits());
        set(&self.planner.micro_batches_in_use, planner.micro_batches_in_use() as u64);
    }

    /// A micro-batch's step was planned. To be called under the planner's lock.
    pub(crate) fn planned(&self, planner: &StepPlanner, batches: &[DeviceBatch]) {
        self.queue(planner);
        match batches.iter().map(|batch| batch.rows as u64).sum() {
            0 => {}
            rows => self.planner.rows.record(rows),
        }
    }
}

impl PlannerFigures {
    fn all_waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed) + self.waiting_outside.load(Ordering::Relaxed)
    }
}

impl LaneFigures {
    fn new(plan: &Plan, graph: &StageGraph, index: usize, experts: usize) -> Self {
        let zeros = |count: usize| (0..count).map(|_| AtomicU64::new(0)).collect();
        let series = Series::of_lane(plan, graph, index);
        Self {
            name: plan.lanes[index].name.clone(),
            device: graph.devices[plan.lanes[index].device].name.clone(),
            group: graph.devices[plan.lanes[index].device].group.clone(),
            work_ns: Default::default(),
            bubble_ns: Default::default(),
            tasks: AtomicU64::new(0),
            accounted_ns: AtomicU64::new(0),
            pieces: Pieces::new((PIECES_PER_TASK * plan.lanes[index].tasks.len()).max(FEWEST_PIECES)),
            durations: series.iter().map(|series| AtomicHistogram::new(series.edges(), NS_PER_S)).collect(),
            efforts: series.iter().map(|_| Efforts::default()).collect(),
            series,
            exposed_ns: zeros(graph.stages.len()),
            experts,
            expert_tokens: zeros(experts * graph.layers),
        }
    }

    fn sample(&self) -> LaneSample {
        let read = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        LaneSample {
            name: self.name.clone(),
            busy_ns: self.work_ns.iter().map(read).sum(),
            transfer_ns: read(&self.work_ns[Work::Transfer as usize]),
            bubble_ns: self.bubble_ns.each_ref().map(read),
            tasks: read(&self.tasks),
            accounted_ns: read(&self.accounted_ns),
        }
    }
}

/// Adds to a number that only this thread writes.
fn add(cell: &AtomicU64, value: u64) {
    cell.store(cell.load(Ordering::Relaxed) + value, Ordering::Relaxed);
}
