//! Virtual lanes: a plan executed on virtual time, with given durations instead of work.
//!
//! The same plan, the same step planner and the same readiness rules as real lanes: a lane executes strictly in order, waits
//! for other lanes by their progress counters, and the lane that ends a micro-batch's step last plans its next one. What comes
//! out has the shape of a run's report. Nothing here looks at a clock: the same inputs give the same report.

mod cores;
mod fold;
mod links;
mod near_by;
mod rows;
mod steps;
mod types;

use self::cores::Cores;
pub use self::fold::{Fold, Uneven};
use self::links::Links;
pub use self::links::Transit;
pub use self::near_by::NearBy;
use self::rows::RowFlow;
pub use self::types::{
    Arrival, FoldedError, Load, SequenceTimes, StageSum, VirtualCosts, VirtualLane, VirtualOptions, VirtualReport,
    VirtualTask,
};
use crate::batch::{DeviceBatch, SampleSpec, SequenceId};
use crate::planner::{PlannerConfig, PlannerEvent, StepPlanner, SubmitError};
use crate::span::{CounterSample, Gap, LaneReport, Span};
use rally_graph::kinds::Role;
use rally_graph::plan::{Plan, PlannedTask, TaskId, TaskRole};
use rally_graph::stage_graph::{DeviceIndex, StageIndex};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};

/// What a virtual run is made of.
#[derive(Clone, Copy)]
pub struct VirtualRun<'a> {
    /// The lane orders.
    pub plan: &'a Plan,
    /// Sizes the step planner keeps to.
    pub planner: PlannerConfig,
    /// Devices that hold sequences, in the planner's order.
    pub attention: &'a [DeviceIndex],
    /// Durations.
    pub costs: &'a dyn VirtualCosts,
    /// The token with this index of this sequence: stop tokens come from here.
    pub token: &'a dyn Fn(SequenceId, u64) -> u32,
}

impl VirtualRun<'_> {
    /// Runs all `arrivals` to their ends. Of those that come at the same time, the first in the list is queued first.
    pub fn run(&self, arrivals: Vec<Arrival>) -> Result<VirtualReport, SubmitError> {
        self.run_with(arrivals, VirtualOptions::default())
    }

    /// The same with `options`.
    pub fn run_with(&self, arrivals: Vec<Arrival>, options: VirtualOptions) -> Result<VirtualReport, SubmitError> {
        let fold = Fold::none(World::devices(self));
        let mut world = World::new(self, &fold, arrivals, options);
        world.run()?;
        Ok(world.into_report())
    }

    /// The same for all devices where the plan has only those that `fold` runs. Costs are those of one of them, transits those of all.
    ///
    /// # Errors
    /// [`FoldedError::Uneven`] where devices that were to do the same were given different batches.
    pub fn run_folded(
        &self,
        fold: &Fold,
        arrivals: Vec<Arrival>,
        options: VirtualOptions,
    ) -> Result<VirtualReport, FoldedError> {
        let mut world = World::new(self, fold, arrivals, options);
        world.run()?;
        match world.uneven.take() {
            None => Ok(world.into_report()),
            Some(uneven) => Err(uneven.into()),
        }
    }
}

fn planner(config: PlannerConfig, options: VirtualOptions) -> StepPlanner {
    let mut planner = StepPlanner::new(config);
    if let Some(ns) = options.keep_tpot_ns {
        planner.keep_tpot(ns as f64 * 1e-9);
    }
    if options.reuse_prefixes {
        planner.reuse_prefixes();
    }
    planner.pretend_read(options.pretend_read);
    planner
}

/// What happens at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// The task of this lane is over, or what kept it from going on.
    Ended(usize),
    /// What this lane had sent when it had completed so many tasks is there.
    Delivered(usize, u64),
}

/// A task that runs.
#[derive(Clone, Copy)]
struct Running {
    start_ns: u64,
    step: u64,
    load: Load,
    sampled: usize,
    warm: bool,
    /// It is over and the next step is planned: what is left is the host's time for that.
    planned: bool,
    /// It is over, and since then its lane waits for work to plan.
    held_from_ns: Option<u64>,
}

struct LaneState {
    cycle: u64,
    position: usize,
    /// Tasks completed since the start: what others wait for.
    done: u64,
    /// When it came to its next task.
    ready_ns: u64,
    /// Since its last span.
    gap: Gap,
    running: Option<Running>,
    report: LaneReport,
    first_ns: Option<u64>,
    last_ns: u64,
    bubble_ns: u64,
    samples: Vec<(SequenceId, u32)>,
    near_by: NearBy,
}

struct MicroBatchState {
    planned: Vec<DeviceBatch>,
    samples: Vec<(SequenceId, u32)>,
    arrived: usize,
    /// Rows of this step and what they attend to, and how long its stages have worked: what costs are learned from.
    load: (usize, usize),
    work_ns: u64,
}

/// What came of the end of an exit task.
#[derive(Clone, Copy, PartialEq, Eq)]
enum StepEnd {
    /// Other exits of the step are not over.
    Open,
    /// There is nothing to plan yet.
    Idle,
    /// The next step is planned.
    Planned,
}

struct World<'a> {
    run: &'a VirtualRun<'a>,
    options: VirtualOptions,
    fold: &'a Fold,
    /// Why the fold is wrong, once it is.
    uneven: Option<Uneven>,
    /// By device: its number among the attention devices.
    own: Vec<Option<usize>>,
    /// By number among the attention devices: numbers of those that this one is run for.
    alike: Vec<Vec<usize>>,
    /// By task: whether it begins or ends a step.
    entries: Vec<bool>,
    exits: Vec<bool>,
    /// Requests submitted that have not ended.
    under_way: usize,
    links: Links,
    cores: Cores,
    plan: &'a Plan,
    planner: StepPlanner,
    planner_events: Vec<PlannerEvent>,
    arrivals: VecDeque<Arrival>,
    micro_batches: Vec<MicroBatchState>,
    lanes: Vec<LaneState>,
    /// Where rows are.
    rows: RowFlow<'a>,
    /// The step that runs, by attention device and micro-batch.
    batches: Vec<Vec<DeviceBatch>>,
    counters: Vec<CounterSample>,
    stages: BTreeMap<(StageIndex, u8), StageSum>,
    sequences: HashMap<SequenceId, SequenceTimes>,
    /// Ends of tasks: time, then in the order in which they were found.
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    found: u64,
    final_cycle: u64,
}

impl<'a> World<'a> {
    /// Devices there are.
    fn devices(run: &VirtualRun<'_>) -> usize {
        let lanes = run.plan.lanes.iter().map(|lane| lane.device + 1);
        lanes.chain(run.attention.iter().map(|device| device + 1)).max().unwrap_or(0)
    }

    fn new(run: &'a VirtualRun<'a>, fold: &'a Fold, mut arrivals: Vec<Arrival>, options: VirtualOptions) -> Self {
        arrivals.sort_by_key(|arrival| arrival.at_ns);
        let (plan, config) = (run.plan, run.planner);
        let mut own = vec![None; Self::devices(run)];
        run.attention.iter().enumerate().for_each(|(index, device)| own[*device] = Some(index));
        let alike = |device: &DeviceIndex| fold.members(*device).iter().filter_map(|device| own[*device]).collect();
        let alike = run.attention.iter().map(alike).collect();
        let marked = |ids: &[TaskId]| {
            let mut marked = vec![false; plan.table.tasks.len()];
            ids.iter().for_each(|id| marked[*id] = true);
            marked
        };
        let lane = |name: &String| LaneState {
            cycle: 0,
            position: 0,
            done: 0,
            ready_ns: 0,
            gap: Gap::default(),
            running: None,
            report: LaneReport { name: name.clone(), ..LaneReport::default() },
            first_ns: None,
            last_ns: 0,
            bubble_ns: 0,
            samples: Vec::new(),
            near_by: NearBy::default(),
        };
        let micro_batch = |m: usize| MicroBatchState {
            planned: vec![DeviceBatch::default(); config.devices],
            samples: Vec::new(),
            arrived: plan.exits_at_start(m, |_| true),
            load: (0, 0),
            work_ns: 0,
        };
        Self {
            run,
            options,
            fold,
            uneven: None,
            alike,
            entries: marked(&plan.table.entries),
            exits: marked(&plan.table.exits),
            under_way: 0,
            links: Links::new(plan.lanes.len()),
            cores: Cores::new(plan.lanes.len(), options.cores),
            plan,
            planner: planner(config, options),
            planner_events: Vec::new(),
            arrivals: arrivals.into(),
            micro_batches: (0..plan.micro_batches).map(micro_batch).collect(),
            lanes: plan.lanes.iter().map(|planned| lane(&planned.name)).collect(),
            rows: RowFlow::new(plan, own.clone(), fold),
            own,
            batches: vec![vec![DeviceBatch::default(); plan.micro_batches]; config.devices],
            counters: Vec::new(),
            stages: BTreeMap::new(),
            sequences: HashMap::new(),
            events: BinaryHeap::new(),
            found: 0,
            final_cycle: u64::MAX,
        }
    }

    fn run(&mut self) -> Result<(), SubmitError> {
        for lane in 0..self.lanes.len() {
            self.try_start(lane, 0, lane);
        }
        while self.uneven.is_none()
            && let Some(Reverse((now, _, event))) = self.events.pop()
        {
            match event {
                Event::Ended(lane) => self.end_task(lane, now)?,
                Event::Delivered(lane, done) => self.deliver(lane, done, now),
            }
        }
        Ok(())
    }

    fn schedule(&mut self, at: u64, event: Event) {
        self.events.push(Reverse((at, self.found, event)));
        self.found += 1;
    }

    /// Starts the lane's next task if it runs none and waits for nothing. `by`: the lane whose completion is the occasion.
    fn try_start(&mut self, index: usize, now: u64, by: usize) {
        let (plan, lane) = (self.plan, &self.lanes[index]);
        let planned = &plan.lanes[index].tasks[lane.position];
        let cycle = lane.cycle;
        let reached = |wait: &rally_graph::plan::Wait| {
            let target = plan.wait_target(wait, cycle as i64);
            self.lanes[wait.lane].done as i64 >= target && !self.links.is_under_way(wait.lane, target as u64)
        };
        if lane.running.is_some() {
            return;
        }
        if cycle > self.final_cycle || !planned.waits.iter().all(reached) {
            return self.leave_core(index, now);
        }
        if !self.cores.enter(index) {
            return;
        }
        let (ready_ns, waited) = (lane.ready_ns, now > lane.ready_ns);
        let start_ns = now + if waited { self.run.costs.wake_ns() } else { 0 };
        let gap = &mut self.lanes[index].gap;
        gap.ready(ready_ns);
        if waited {
            gap.waited(by);
        }
        let step = if planned.behind { cycle.wrapping_sub(1) } else { cycle };
        let (load, sampled) = self.begin(index, planned);
        let warm = load.rows > 0 && self.lanes[index].near_by.begin(&plan.table, planned.task);
        let running = Running { start_ns, step, load, sampled, warm, planned: false, held_from_ns: None };
        let duration = if load.rows == 0 { 0 } else { self.run.costs.task_ns(&virtual_task(plan, planned, &running)) };
        self.lanes[index].running = Some(running);
        self.schedule(start_ns + duration, Event::Ended(index));
    }

    /// The lane must wait, and another may have its core.
    fn leave_core(&mut self, index: usize, now: u64) {
        self.cores.leave(index);
        while let Some(next) = self.cores.next() {
            self.try_start(next, now, index);
        }
    }

    /// What the task works on, found as a real lane finds it: in descriptors and slots. And how many tokens it samples.
    fn begin(&mut self, lane: usize, planned: &PlannedTask) -> (Load, usize) {
        let template = &self.plan.table.tasks[planned.task];
        let (device, m) = (template.device, planned.micro_batch);
        let attention = self.own[device];
        if let Some(own) = attention
            && self.entries[planned.task]
        {
            for own in &self.alike[own] {
                std::mem::swap(&mut self.micro_batches[m].planned[*own], &mut self.batches[*own][m]);
            }
            self.rows.begin_step(device, m, batch_load(&self.batches[own][m]));
        }
        let mut sampled = 0;
        if let (TaskRole::Compute, Some(own)) = (template.role, attention)
            && self.plan.table.stages[template.stage].role == Role::Sampling
        {
            sampled = samples(&self.batches[own][m]);
            for own in &self.alike[own] {
                for group in &self.batches[*own][m].groups {
                    let token = |sample: SampleSpec| (self.run.token)(group.sequence, sample.token_index);
                    self.lanes[lane].samples.extend(group.sample.map(|sample| (group.sequence, token(sample))));
                }
            }
        }
        let own = attention.map(|own| batch_load(&self.batches[own][m]));
        (self.rows.of_task(planned.task, m, own), sampled)
    }

    fn end_task(&mut self, index: usize, now: u64) -> Result<(), SubmitError> {
        let plan = self.plan;
        let lane = &self.lanes[index];
        let planned = &plan.lanes[index].tasks[lane.position];
        let Some(running) = lane.running else { return Ok(()) };
        if !running.planned && !self.is_over(index, planned, running, now)? {
            return Ok(());
        }
        let lane = &mut self.lanes[index];
        lane.running = None;
        lane.done += 1;
        lane.position += 1;
        lane.ready_ns = now;
        if lane.position == plan.lanes[index].tasks.len() {
            (lane.position, lane.cycle) = (0, lane.cycle + 1);
        }
        self.send(index, planned, running, now);
        self.try_start(index, now, index);
        for waiter in &planned.wakes {
            self.try_start(*waiter, now, index);
        }
        Ok(())
    }

    /// A task has run to its end. Whether its lane goes on now.
    fn is_over(
        &mut self,
        index: usize,
        planned: &PlannedTask,
        running: Running,
        now: u64,
    ) -> Result<bool, SubmitError> {
        match running.held_from_ns {
            None => self.record(index, running, now),
            Some(from_ns) => {
                self.lanes[index].gap.admission(from_ns, now);
            }
        }
        if !self.exits[planned.task] {
            return Ok(true);
        }
        match self.end_step(index, planned.micro_batch, running, now)? {
            StepEnd::Open => Ok(true),
            StepEnd::Idle => {
                self.leave_core(index, now);
                Ok(false)
            }
            StepEnd::Planned => {
                let host_ns = self.run.costs.plan_ns(&virtual_task(self.plan, planned, &running));
                if host_ns > 0 {
                    self.lanes[index].running = Some(Running { planned: true, ..running });
                    self.schedule(now + host_ns, Event::Ended(index));
                }
                Ok(host_ns == 0)
            }
        }
    }

    /// What the task that has just ended sent is on its way.
    fn send(&mut self, index: usize, planned: &PlannedTask, running: Running, now: u64) {
        let role = self.plan.table.tasks[planned.task].role;
        if running.load.rows == 0 || role == TaskRole::Receive {
            return;
        }
        if let Some(transit) = self.run.costs.transit(&virtual_task(self.plan, planned, &running)) {
            let done = self.lanes[index].done;
            let there_ns = self.links.send(index, done, now, &transit);
            self.schedule(there_ns, Event::Delivered(index, done));
        }
    }

    fn deliver(&mut self, index: usize, done: u64, now: u64) {
        self.links.deliver(index, done);
        let tasks = &self.plan.lanes[index].tasks;
        for waiter in &tasks[((done - 1) % tasks.len() as u64) as usize].wakes {
            self.try_start(*waiter, now, index);
        }
    }

    fn record(&mut self, index: usize, running: Running, end_ns: u64) {
        let lane = &mut self.lanes[index];
        if running.load.rows == 0 {
            return;
        }
        let Running { start_ns, step, .. } = running;
        let planned = &self.plan.lanes[index].tasks[lane.position];
        let template = &self.plan.table.tasks[planned.task];
        let alike = self.fold.members(template.device).len() as u64;
        let (stage, role) = (template.stage, template.role);
        let new = StageSum { stage, role, tasks: 0, busy_ns: 0 };
        let sum = self.stages.entry((stage, role as u8)).or_insert(new);
        (sum.tasks, sum.busy_ns) = (sum.tasks + alike, sum.busy_ns + alike * (end_ns - start_ns));
        if template.computes() {
            self.micro_batches[planned.micro_batch].work_ns += alike * (end_ns - start_ns);
        }
        let (position, rows) = (lane.position as u32, running.load.rows as u32);
        let span = Span { position, step, rows, effort: rows, start_ns, end_ns, ..Span::default() };
        let span = lane.gap.end(span);
        if self.options.keeps_spans {
            lane.report.spans.push(span);
        }
        lane.report.busy_ns += end_ns - start_ns;
        lane.report.tasks += 1;
        lane.bubble_ns += start_ns - lane.last_ns;
        lane.first_ns.get_or_insert(start_ns);
        lane.last_ns = end_ns;
    }

    fn into_report(self) -> VirtualReport {
        let wall_ns = self.lanes.iter().map(|lane| lane.last_ns).max().unwrap_or(0);
        let lane = |mut lane: LaneState| {
            lane.report.active_ns = lane.last_ns - lane.first_ns.unwrap_or(lane.last_ns);
            VirtualLane { report: lane.report, bubble_ns: lane.bubble_ns + (wall_ns - lane.last_ns) }
        };
        let free_pages = self.planner.free_pages();
        let lanes = self.lanes.into_iter().map(lane).collect();
        let sequences = self.sequences.into_iter().collect();
        let stages = self.stages.into_values().collect();
        VirtualReport { lanes, stages, wall_ns, counters: self.counters, sequences, free_pages }
    }
}

/// The task that a lane runs, as costs see it.
fn virtual_task<'a>(plan: &'a Plan, planned: &PlannedTask, running: &Running) -> VirtualTask<'a> {
    let Running { step, load, sampled, warm, .. } = *running;
    VirtualTask { table: &plan.table, task: planned.task, micro_batch: planned.micro_batch, step, load, sampled, warm }
}

/// Rows that a token is sampled after.
fn samples(batch: &DeviceBatch) -> usize {
    batch.groups.iter().filter(|group| group.sample.is_some()).count()
}

fn batch_load(batch: &DeviceBatch) -> Load {
    Load { rows: batch.rows, context: batch.groups.iter().map(|group| group.first_position + group.rows).sum() }
}
