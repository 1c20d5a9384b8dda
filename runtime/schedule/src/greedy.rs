//! The policy `greedy`: list scheduling by stage costs, when the plan is made.
//!
//! Lanes are simulated over a few steps. A lane that is free takes, of the turns that are ready, the one a rule prefers; what
//! each lane did over one settled step is its order. Every rule is tried, ping-pong too, and the order with the shortest
//! steady cycle wins. So it is never worse than ping-pong by the costs it was given, and the same costs give the same order.

use crate::costs::StageCosts;
use crate::policy::{PingPong, Policy};
use rally_graph::plan::{Plan, TaskId, TaskTable, Turn};

/// List scheduling by stage costs.
#[derive(Clone, Debug)]
pub struct Greedy {
    /// What stages cost.
    pub costs: StageCosts,
    /// Rows that a task is taken to have.
    pub rows: usize,
}

impl Default for Greedy {
    /// By assumed costs.
    fn default() -> Self {
        Self { costs: StageCosts::assumed(), rows: 16 }
    }
}

impl Greedy {
    /// The policy to make a new plan with, if costs have moved by more than `tolerance` (0.2: a fifth) from those this one uses.
    pub fn redone(&self, measured: &StageCosts, tolerance: f64) -> Option<Self> {
        self.costs.drifted(measured, tolerance).then(|| Self { costs: measured.clone(), rows: self.rows })
    }
}

impl Greedy {
    /// Its name as a policy.
    pub const NAME: &str = "greedy";
}

impl Policy for Greedy {
    fn name(&self) -> String {
        Self::NAME.into()
    }

    fn orders(&self, table: &TaskTable, micro_batches: usize) -> Vec<Vec<Turn>> {
        let durations: Vec<u64> =
            (0..table.tasks.len()).map(|task| self.costs.task_ns(table, task, self.rows)).collect();
        let mut best = PingPong.orders(table, micro_batches);
        let mut best_ns = cycle_of(table, micro_batches, &best, &durations);
        for rule in [Rule::Ready, Rule::Shortest, Rule::Behind, Rule::Ahead] {
            let Some(orders) = Simulation::new(table, micro_batches, &durations, rule).orders() else { continue };
            let cycle = cycle_of(table, micro_batches, &orders, &durations);
            if cycle < best_ns {
                (best, best_ns) = (orders, cycle);
            }
        }
        best
    }
}

fn cycle_of(table: &TaskTable, micro_batches: usize, orders: &[Vec<Turn>], durations: &[u64]) -> u64 {
    Plan::compile(table.clone(), micro_batches, orders).map_or(u64::MAX, |plan| cycle_ns(&plan, durations))
}

/// Time of one cycle of `plan` once it has settled, if each task takes what `durations` says (nanoseconds, by task).
pub fn cycle_ns(plan: &Plan, durations: &[u64]) -> u64 {
    const CYCLES: usize = 8;
    // Per lane the end of every task so far, over all cycles.
    let mut ends: Vec<Vec<u64>> = vec![Vec::new(); plan.lanes.len()];
    let mut moved = true;
    while moved {
        moved = false;
        for (lane, planned) in plan.lanes.iter().enumerate() {
            while ends[lane].len() < CYCLES * planned.tasks.len() {
                let (cycle, position) =
                    (ends[lane].len() / planned.tasks.len(), ends[lane].len() % planned.tasks.len());
                let task = &planned.tasks[position];
                let mut start = Some(ends[lane].last().copied().unwrap_or(0));
                for wait in &task.waits {
                    let target = plan.wait_target(wait, cycle as i64);
                    let end = if target > 0 { ends[wait.lane].get(target as usize - 1).copied() } else { Some(0) };
                    start = start.zip(end).map(|(start, end)| start.max(end));
                }
                let Some(start) = start else { break };
                ends[lane].push(start + durations[task.task]);
                moved = true;
            }
        }
    }
    // Lanes that wait for a cycle beyond the last stop short of it, so the settled half is counted back from where all are.
    let settled = |lane: usize| {
        let length = plan.lanes[lane].tasks.len();
        let (late, early) = (ends[lane].get((CYCLES - 1) * length - 1), ends[lane].get((CYCLES / 2 - 1) * length - 1));
        late.zip(early).map(|(late, early)| (late - early) / (CYCLES / 2) as u64)
    };
    (0..plan.lanes.len()).filter_map(settled).max().unwrap_or(0)
}

/// Which of the turns that are ready a lane takes.
#[derive(Clone, Copy, Debug)]
enum Rule {
    /// The one that has been ready longest.
    Ready,
    /// The shortest: what feeds other lanes soonest.
    Shortest,
    /// Of the micro-batch that is furthest behind.
    Behind,
    /// Of the micro-batch that is furthest ahead.
    Ahead,
}

/// What a lane can do for a micro-batch without waiting for another lane.
struct Segment<'a> {
    tasks: &'a [TaskId],
    duration: u64,
}

/// A segment as it was run.
#[derive(Clone, Copy)]
struct Ran {
    segment: usize,
    micro_batch: usize,
    step: usize,
}

struct SimulatedLane<'a> {
    segments: Vec<Segment<'a>>,
    /// Segments done, by micro-batch, over all steps.
    done: Vec<usize>,
    /// By micro-batch, when its next segment is ready, once that is known: groups of 64 devices wait for 64 others.
    ready: Vec<Option<u64>>,
    free_at: u64,
    ran: Vec<Ran>,
}

struct Simulation<'a> {
    table: &'a TaskTable,
    micro_batches: usize,
    durations: &'a [u64],
    rule: Rule,
    lanes: Vec<SimulatedLane<'a>>,
    /// By task and micro-batch: times done, and the end of the last.
    ends: Vec<(usize, u64)>,
}

/// Steps simulated, and the step whose order is taken.
const STEPS: usize = 6;
const SETTLED: usize = 4;

/// Nobody runs two steps ahead: a plan has tasks of two neighbouring steps at most.
fn is_fair(step: usize, slowest: usize) -> bool {
    step < STEPS && step <= slowest + 1
}

impl<'a> Simulation<'a> {
    fn new(table: &'a TaskTable, micro_batches: usize, durations: &'a [u64], rule: Rule) -> Self {
        let segment =
            |tasks: &'a [TaskId]| Segment { tasks, duration: tasks.iter().map(|task| durations[*task]).sum() };
        let lane = |lane: usize| SimulatedLane {
            segments: table.segments(lane).into_iter().map(segment).collect(),
            done: vec![0; micro_batches],
            ready: vec![None; micro_batches],
            free_at: 0,
            ran: Vec::new(),
        };
        let ends = vec![(0, 0); table.tasks.len() * micro_batches];
        Self { table, micro_batches, durations, rule, lanes: (0..table.lanes.len()).map(lane).collect(), ends }
    }

    /// The orders of a settled step, if the simulation has one.
    fn orders(mut self) -> Option<Vec<Vec<Turn>>> {
        while let Some((lane, ran, start)) = self.next() {
            self.run(lane, ran, start);
        }
        self.lanes.iter().map(|lane| window(lane, self.micro_batches)).collect()
    }

    /// The lane that can start earliest, and what it takes.
    fn next(&mut self) -> Option<(usize, Ran, u64)> {
        let slowest =
            self.lanes.iter().flat_map(|lane| lane.done.iter().map(|done| done / lane.segments.len())).min()?;
        let mut best: Option<(u64, usize, Ran)> = None;
        for lane in 0..self.lanes.len() {
            if let Some((start, ran)) = self.choose(lane, slowest)
                && best.is_none_or(|(earliest, ..)| start < earliest)
            {
                best = Some((start, lane, ran));
            }
        }
        best.map(|(start, lane, ran)| (lane, ran, start))
    }

    fn choose(&mut self, index: usize, slowest: usize) -> Option<(u64, Ran)> {
        self.find_ready(index, slowest);
        let lane = &self.lanes[index];
        let candidates: Vec<(u64, Ran)> = (0..self.micro_batches)
            .filter_map(|micro_batch| {
                let done = lane.done[micro_batch];
                let (segment, step) = (done % lane.segments.len(), done / lane.segments.len());
                let ready = lane.ready[micro_batch].filter(|_| is_fair(step, slowest))?;
                Some((ready, Ran { segment, micro_batch, step }))
            })
            .collect();
        let start = candidates.iter().map(|(ready, _)| lane.free_at.max(*ready)).min()?;
        let here = candidates.into_iter().filter(|(ready, _)| *ready <= start);
        let chosen = here.min_by_key(|(ready, ran)| {
            let progress = ran.step * lane.segments.len() + ran.segment;
            let wish = match self.rule {
                Rule::Ready => *ready,
                Rule::Shortest => lane.segments[ran.segment].duration,
                Rule::Behind => progress as u64,
                Rule::Ahead => u64::MAX - progress as u64,
            };
            (wish, *ready, ran.micro_batch)
        });
        chosen.map(|(_, ran)| (start, ran))
    }

    /// Notes when the lane's next segments are ready, where that has come to be known.
    fn find_ready(&mut self, index: usize, slowest: usize) {
        for micro_batch in 0..self.micro_batches {
            let lane = &self.lanes[index];
            let (segment, step) =
                (lane.done[micro_batch] % lane.segments.len(), lane.done[micro_batch] / lane.segments.len());
            if lane.ready[micro_batch].is_none() && is_fair(step, slowest) {
                self.lanes[index].ready[micro_batch] =
                    self.ready_at(lane.segments[segment].tasks[0], micro_batch, step);
            }
        }
    }

    /// When what `task` follows is done, if that is known.
    fn ready_at(&self, task: TaskId, micro_batch: usize, step: usize) -> Option<u64> {
        let end = |before: &TaskId, times: usize| {
            let (done, end) = self.ends[before * self.micro_batches + micro_batch];
            (done >= times).then_some(end)
        };
        let mut ready = 0;
        for before in &self.table.tasks[task].after {
            ready = ready.max(end(before, step + 1)?);
        }
        if step > 0 && self.table.entries.contains(&task) {
            for before in &self.table.exits {
                ready = ready.max(end(before, step)?);
            }
        }
        Some(ready)
    }

    fn run(&mut self, index: usize, ran: Ran, start: u64) {
        let lane = &mut self.lanes[index];
        let mut now = start;
        for task in lane.segments[ran.segment].tasks {
            now += self.durations[*task];
            let (done, end) = &mut self.ends[task * self.micro_batches + ran.micro_batch];
            (*done, *end) = (*done + 1, now);
        }
        lane.free_at = now;
        lane.done[ran.micro_batch] += 1;
        lane.ready[ran.micro_batch] = None;
        lane.ran.push(ran);
    }
}

/// Of all stretches of what a lane ran that hold each segment of each micro-batch once, of the settled step or the one before,
/// the one with the fewest turns of the step before.
fn window(lane: &SimulatedLane<'_>, micro_batches: usize) -> Option<Vec<Turn>> {
    let length = lane.segments.len() * micro_batches;
    let whole = |stretch: &&[Ran]| {
        let mut seen = vec![false; length];
        stretch.iter().all(|ran| {
            let place = ran.micro_batch * lane.segments.len() + ran.segment;
            (ran.step == SETTLED || ran.step + 1 == SETTLED) && !std::mem::replace(&mut seen[place], true)
        })
    };
    let behind = |ran: &Ran| ran.step != SETTLED;
    let stretches = lane.ran.windows(length).filter(whole);
    let best = stretches.min_by_key(|stretch| stretch.iter().filter(|ran| behind(ran)).count())?;
    let turns = |ran: &Ran| {
        let (micro_batch, behind) = (ran.micro_batch, behind(ran));
        lane.segments[ran.segment].tasks.iter().map(move |task| Turn { task: *task, micro_batch, behind })
    };
    Some(best.iter().flat_map(turns).collect())
}
