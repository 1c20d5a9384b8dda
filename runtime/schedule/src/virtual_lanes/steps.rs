//! Between two steps of a micro-batch: what came is queued, what was sampled is counted, the next step is planned.

use super::types::{Arrival, SequenceTimes};
use super::{Event, Running, StepEnd, World};
use crate::batch::DeviceBatch;
use crate::planner::{PlannerEvent, SubmitError};

impl World<'_> {
    /// An exit task is over; the last one of the step plans the next. Where there is nothing to plan yet, the lane waits for the
    /// next arrival.
    pub(super) fn end_step(&mut self, index: usize, m: usize, exit: Running, now: u64) -> Result<StepEnd, SubmitError> {
        let lane = &mut self.lanes[index];
        let micro_batch = &mut self.micro_batches[m];
        let step = exit.step.wrapping_add(1);
        if exit.held_from_ns.is_none() {
            micro_batch.samples.append(&mut lane.samples);
            micro_batch.arrived += 1;
            if micro_batch.arrived < self.plan.table.exits.len() {
                return Ok(StepEnd::Open);
            }
            micro_batch.arrived = 0;
            for (sequence, token) in micro_batch.samples.drain(..) {
                self.planner.observe(sequence, token, &mut self.planner_events);
            }
            if self.options.learns {
                let (load, seconds) = (micro_batch.load, micro_batch.work_ns as f64 * 1e-9);
                self.planner.learn(load.0, load.1, seconds);
            }
            micro_batch.work_ns = 0;
        }
        self.publish(now);
        self.submit(now)?;
        if self.planner.is_idle() {
            if let Some(next) = self.arrivals.front().map(|arrival| arrival.at_ns) {
                self.lanes[index].running = self.lanes[index].running.map(|r| Running { held_from_ns: Some(now), ..r });
                self.schedule(next, Event::Ended(index));
                return Ok(StepEnd::Idle);
            }
            // Nothing comes any more: a cycle more lets all lanes see the last descriptors through.
            self.final_cycle = self.final_cycle.min(self.lanes[index].cycle + 1);
        }
        self.planner.begin_plan(m, now as f64 * 1e-9);
        self.planner.plan(m, &mut self.micro_batches[m].planned, &mut self.planner_events);
        let planned = &self.micro_batches[m].planned;
        let sum = |of: fn(&DeviceBatch) -> usize| planned.iter().map(of).sum();
        self.micro_batches[m].load = (sum(|batch| batch.rows), sum(DeviceBatch::context));
        if self.fold.folds() {
            self.uneven = self.rows.uneven(m, &self.alike, &self.micro_batches[m].planned);
        }
        if self.options.keeps_spans {
            self.counters.push(self.planner.sample(now, step, m, &self.micro_batches[m].planned));
        }
        self.publish(now);
        Ok(StepEnd::Planned)
    }

    /// Queues what has come by now, as far as so many may be under way.
    fn submit(&mut self, now: u64) -> Result<(), SubmitError> {
        let most = self.options.max_under_way.unwrap_or(usize::MAX);
        while self.under_way < most && self.arrivals.front().is_some_and(|arrival| arrival.at_ns <= now) {
            let Some(Arrival { at_ns, request }) = self.arrivals.pop_front() else { break };
            // All at once: grown step by step, a token would come to take twice its room.
            let tokens = Vec::with_capacity(request.max_new_tokens.min(1 << 16));
            let times = SequenceTimes { arrived_ns: at_ns, tokens, ..SequenceTimes::default() };
            let id = request.id;
            self.planner.submit(request)?;
            self.under_way += 1;
            self.sequences.insert(id, times);
        }
        Ok(())
    }

    fn publish(&mut self, now: u64) {
        for event in self.planner_events.drain(..) {
            match event {
                PlannerEvent::Admitted { sequence, .. } => {
                    self.sequences.entry(sequence).or_default().admitted_ns = Some(now);
                }
                PlannerEvent::Token { sequence, token, .. } => {
                    self.sequences.entry(sequence).or_default().tokens.push((token, now));
                }
                PlannerEvent::Finished(id, reason) => {
                    self.under_way -= 1;
                    self.sequences.entry(id).or_default().finished = Some((reason, now));
                }
            }
        }
    }
}
