//! Virtual lanes: a plan executed on virtual time, with given durations instead of work.
//!
//! The same plan, the same step planner and the same readiness rules as real lanes: a lane executes strictly in order, waits
//! for other lanes by their progress counters, and the lane that ends a micro-batch's step last plans its next one. What comes
//! out has the shape of a run's report. Nothing here looks at a clock: the same inputs give the same report.

mod rows;

use self::rows::RowFlow;
use crate::batch::{DeviceBatch, SequenceId, SequenceRequest};
use crate::planner::{FinishReason, PlannerConfig, PlannerEvent, StepPlanner, SubmitError};
use crate::span::{CounterSample, Gap, LaneReport, Span};
use rally_graph::kinds::Role;
use rally_graph::plan::{Plan, PlannedTask, TaskId, TaskRole, TaskTable};
use rally_graph::stage_graph::DeviceIndex;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

/// What a task works on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Rows.
    pub rows: usize,
    /// Tokens of context, the rows' own included, summed over the sequences.
    pub context: usize,
}

/// A task that is about to run.
#[derive(Clone, Copy, Debug)]
pub struct VirtualTask<'a> {
    /// All tasks.
    pub table: &'a TaskTable,
    /// Which one.
    pub task: TaskId,
    /// Of which micro-batch.
    pub micro_batch: usize,
    /// In which step.
    pub step: u64,
    /// On what.
    pub load: Load,
}

/// How long things take. A closure from task to nanoseconds is one.
pub trait VirtualCosts {
    /// Nanoseconds of a task; asked only where there are rows.
    fn task_ns(&self, task: &VirtualTask<'_>) -> u64;

    /// Nanoseconds from a task's end until a lane that waited for it goes on.
    fn wake_ns(&self) -> u64 {
        0
    }
}

impl<F: Fn(&VirtualTask<'_>) -> u64> VirtualCosts for F {
    fn task_ns(&self, task: &VirtualTask<'_>) -> u64 {
        self(task)
    }
}

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

/// A request and when it comes.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Nanoseconds since the start.
    pub at_ns: u64,
    /// The request.
    pub request: SequenceRequest,
}

/// What happened to a sequence, in nanoseconds since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SequenceTimes {
    /// When it came.
    pub arrived_ns: u64,
    /// When it left the queue.
    pub admitted_ns: Option<u64>,
    /// Its tokens, and when each was sampled.
    pub tokens: Vec<(u32, u64)>,
    /// Why and when it ended.
    pub finished: Option<(FinishReason, u64)>,
}

/// A lane of a virtual run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualLane {
    /// The same report as a real lane's, with every span.
    pub report: LaneReport,
    /// Time without a task that has rows, from the start to the end of the run.
    pub bubble_ns: u64,
}

/// What a virtual run leaves behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualReport {
    /// By lane, in the plan's order.
    pub lanes: Vec<VirtualLane>,
    /// End of the last task that had rows.
    pub wall_ns: u64,
    /// How full the run was, a sample a planned step.
    pub counters: Vec<CounterSample>,
    /// By id.
    pub sequences: BTreeMap<SequenceId, SequenceTimes>,
    /// KV pages free at the end, over all devices.
    pub free_pages: usize,
}

impl VirtualRun<'_> {
    /// Runs all `arrivals` to their ends. Of those that come at the same time, the first in the list is queued first.
    pub fn run(&self, mut arrivals: Vec<Arrival>) -> Result<VirtualReport, SubmitError> {
        arrivals.sort_by_key(|arrival| arrival.at_ns);
        let mut world = World::new(self, arrivals);
        for lane in 0..world.lanes.len() {
            world.try_start(lane, 0, lane);
        }
        while let Some(Reverse((now, _, lane))) = world.events.pop() {
            world.end_task(lane, now)?;
        }
        Ok(world.into_report())
    }
}

/// A task that runs.
#[derive(Clone, Copy)]
struct Running {
    start_ns: u64,
    step: u64,
    load: Load,
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
}

struct MicroBatchState {
    planned: Vec<DeviceBatch>,
    samples: Vec<(SequenceId, u32)>,
    arrived: usize,
}

struct World<'a> {
    run: &'a VirtualRun<'a>,
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
    sequences: BTreeMap<SequenceId, SequenceTimes>,
    /// Ends of tasks: time, then in the order in which they were found.
    events: BinaryHeap<Reverse<(u64, u64, usize)>>,
    found: u64,
    final_cycle: u64,
}

impl<'a> World<'a> {
    fn new(run: &'a VirtualRun<'a>, arrivals: Vec<Arrival>) -> Self {
        let (plan, config) = (run.plan, run.planner);
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
        };
        let micro_batch = |m: usize| MicroBatchState {
            planned: vec![DeviceBatch::default(); config.devices],
            samples: Vec::new(),
            arrived: plan.exits_at_start(m),
        };
        Self {
            run,
            plan,
            planner: StepPlanner::new(config),
            planner_events: Vec::new(),
            arrivals: arrivals.into(),
            micro_batches: (0..plan.micro_batches).map(micro_batch).collect(),
            lanes: plan.lanes.iter().map(|planned| lane(&planned.name)).collect(),
            rows: RowFlow::new(plan, run.attention),
            batches: vec![vec![DeviceBatch::default(); plan.micro_batches]; config.devices],
            counters: Vec::new(),
            sequences: BTreeMap::new(),
            events: BinaryHeap::new(),
            found: 0,
            final_cycle: u64::MAX,
        }
    }

    fn schedule(&mut self, at: u64, lane: usize) {
        self.events.push(Reverse((at, self.found, lane)));
        self.found += 1;
    }

    /// Starts the lane's next task if it runs none and waits for nothing. `by`: the lane whose completion is the occasion.
    fn try_start(&mut self, index: usize, now: u64, by: usize) {
        let (plan, lane) = (self.plan, &self.lanes[index]);
        let planned = &plan.lanes[index].tasks[lane.position];
        let cycle = lane.cycle;
        let reached =
            |wait: &rally_graph::plan::Wait| self.lanes[wait.lane].done as i64 >= plan.wait_target(wait, cycle as i64);
        if lane.running.is_some() || cycle > self.final_cycle || !planned.waits.iter().all(reached) {
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
        let load = self.begin(index, planned);
        let (task, micro_batch) = (planned.task, planned.micro_batch);
        let task = VirtualTask { table: &plan.table, task, micro_batch, step, load };
        let duration = if load.rows == 0 { 0 } else { self.run.costs.task_ns(&task) };
        self.lanes[index].running = Some(Running { start_ns, step, load, held_from_ns: None });
        self.schedule(start_ns + duration, index);
    }

    /// What the task works on, found as a real lane finds it: in descriptors and slots.
    fn begin(&mut self, lane: usize, planned: &PlannedTask) -> Load {
        let template = &self.plan.table.tasks[planned.task];
        let (device, m) = (template.device, planned.micro_batch);
        let attention = self.run.attention.iter().position(|attention| *attention == device);
        if let Some(own) = attention
            && self.plan.table.entries.contains(&planned.task)
        {
            std::mem::swap(&mut self.micro_batches[m].planned[own], &mut self.batches[own][m]);
            self.rows.begin_step(device, m, batch_load(&self.batches[own][m]));
        }
        if let (TaskRole::Compute, Some(own)) = (template.role, attention)
            && self.plan.table.stages[template.stage].role == Role::Sampling
        {
            for group in &self.batches[own][m].groups {
                let sample = group.sample.map(|s| (group.sequence, (self.run.token)(group.sequence, s.token_index)));
                self.lanes[lane].samples.extend(sample);
            }
        }
        let own = attention.map(|own| batch_load(&self.batches[own][m]));
        self.rows.of_task(planned.task, m, own)
    }

    fn end_task(&mut self, index: usize, now: u64) -> Result<(), SubmitError> {
        let plan = self.plan;
        let lane = &self.lanes[index];
        let planned = &plan.lanes[index].tasks[lane.position];
        let Some(running) = lane.running else { return Ok(()) };
        match running.held_from_ns {
            None => self.record(index, running, now),
            Some(from_ns) => {
                self.lanes[index].gap.admission(from_ns, now);
            }
        }
        let exits = plan.table.exits.contains(&planned.task);
        if exits && !self.end_step(index, planned.micro_batch, running, now)? {
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
        self.try_start(index, now, index);
        for waiter in &planned.wakes {
            self.try_start(*waiter, now, index);
        }
        Ok(())
    }

    fn record(&mut self, index: usize, running: Running, end_ns: u64) {
        let lane = &mut self.lanes[index];
        if running.load.rows == 0 {
            return;
        }
        let Running { start_ns, step, .. } = running;
        let (position, rows) = (lane.position as u32, running.load.rows as u32);
        let span = Span { position, step, rows, effort: rows, start_ns, end_ns, ..Span::default() };
        lane.report.spans.push(lane.gap.end(span));
        lane.report.busy_ns += end_ns - start_ns;
        lane.report.tasks += 1;
        lane.bubble_ns += start_ns - lane.last_ns;
        lane.first_ns.get_or_insert(start_ns);
        lane.last_ns = end_ns;
    }

    /// An exit task is over; the last one of the step plans the next. `false`: there is nothing to plan yet, and the lane waits
    /// for the next arrival.
    fn end_step(&mut self, index: usize, m: usize, exit: Running, now: u64) -> Result<bool, SubmitError> {
        let lane = &mut self.lanes[index];
        let micro_batch = &mut self.micro_batches[m];
        let step = exit.step.wrapping_add(1);
        if exit.held_from_ns.is_none() {
            micro_batch.samples.append(&mut lane.samples);
            micro_batch.arrived += 1;
            if micro_batch.arrived < self.plan.table.exits.len() {
                return Ok(true);
            }
            micro_batch.arrived = 0;
            for (sequence, token) in micro_batch.samples.drain(..) {
                self.planner.observe(sequence, token, &mut self.planner_events);
            }
        }
        self.submit(now)?;
        if self.planner.only_retired() {
            if let Some(next) = self.arrivals.front().map(|arrival| arrival.at_ns) {
                self.publish(now);
                self.lanes[index].running = self.lanes[index].running.map(|r| Running { held_from_ns: Some(now), ..r });
                self.schedule(next, index);
                return Ok(false);
            }
            // Nothing comes any more: a cycle more lets all lanes see the last descriptors through.
            self.final_cycle = self.final_cycle.min(self.lanes[index].cycle + 1);
        }
        self.planner.plan(m, &mut self.micro_batches[m].planned, &mut self.planner_events);
        self.counters.push(self.planner.sample(now, step, m, &self.micro_batches[m].planned));
        self.publish(now);
        Ok(true)
    }

    /// Queues what has come by now.
    fn submit(&mut self, now: u64) -> Result<(), SubmitError> {
        while self.arrivals.front().is_some_and(|arrival| arrival.at_ns <= now) {
            let Some(Arrival { at_ns, request }) = self.arrivals.pop_front() else { break };
            let times = SequenceTimes { arrived_ns: at_ns, ..SequenceTimes::default() };
            let id = request.id;
            self.planner.submit(request)?;
            self.sequences.insert(id, times);
        }
        Ok(())
    }

    fn publish(&mut self, now: u64) {
        for event in self.planner_events.drain(..) {
            match event {
                PlannerEvent::Admitted(id) => self.sequences.entry(id).or_default().admitted_ns = Some(now),
                PlannerEvent::Token { sequence, token, .. } => {
                    self.sequences.entry(sequence).or_default().tokens.push((token, now));
                }
                PlannerEvent::Finished(id, reason) => {
                    self.sequences.entry(id).or_default().finished = Some((reason, now));
                }
            }
        }
    }

    fn into_report(self) -> VirtualReport {
        let wall_ns = self.lanes.iter().map(|lane| lane.last_ns).max().unwrap_or(0);
        let lane = |mut lane: LaneState| {
            lane.report.active_ns = lane.last_ns - lane.first_ns.unwrap_or(lane.last_ns);
            VirtualLane { report: lane.report, bubble_ns: lane.bubble_ns + (wall_ns - lane.last_ns) }
        };
        let free_pages = self.planner.free_pages();
        let lanes = self.lanes.into_iter().map(lane).collect();
        VirtualReport { lanes, wall_ns, counters: self.counters, sequences: self.sequences, free_pages }
    }
}

fn batch_load(batch: &DeviceBatch) -> Load {
    Load { rows: batch.rows, context: batch.groups.iter().map(|group| group.first_position + group.rows).sum() }
}
