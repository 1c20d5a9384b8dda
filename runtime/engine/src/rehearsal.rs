//! Rehearsals: a run of the real lanes whose steps are given instead of planned, to find out what its tasks take. For cost tables.
//!
//! Everything is as in a run: stages take turns in the plan's order, micro-batches alternate, rows cross from core to core, spans are
//! recorded. A stage that was repeated alone would find its weights, its rows and its own code in caches that a run does not
//! leave them in.

use crate::build::{Prepared, prepare};
use crate::control::RunEvent;
use crate::engine::{EngineError, EngineParts, give_back};
use crate::lane::Turns;
use crate::span::LaneReport;
use rally_schedule::batch::DeviceBatch;
use std::time::{Duration, Instant};

/// How many steps of each micro-batch to go on for.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// At least so many.
    pub least: u64,
    /// And more until so much time has passed.
    pub time: Duration,
    /// But never more than these.
    pub most: u64,
    /// Whether devices with memory of their own begin every cycle with nothing in their caches: what a step of a few layers would find
    /// there, one of all layers would not.
    pub cold: bool,
    /// Whether such devices take turns, task by task: several on one card are then timed as if each had a card of its own.
    pub in_turn: bool,
}

/// What every step works on.
pub(crate) struct FixedBatches {
    /// By micro-batch and attention device.
    batches: Vec<Vec<DeviceBatch>>,
    effort: Effort,
    begun: Instant,
}

impl FixedBatches {
    /// The next step of `micro_batch`. Returns whether it is enough.
    pub(crate) fn put(&self, micro_batch: usize, cycle: u64, batches: &mut [DeviceBatch]) -> bool {
        for (batch, fixed) in batches.iter_mut().zip(&self.batches[micro_batch]) {
            // Lanes hand the descriptor before back: after two steps all of them are this one.
            if batch != fixed {
                batch.clone_from(fixed);
            }
        }
        let Effort { least, time, most, .. } = self.effort;
        cycle >= most || (cycle >= least && self.begun.elapsed() >= time)
    }
}

/// Runs `parts` on `batches`, by micro-batch and attention device, step after step, and leaves the stages in `parts`. What is left
/// behind is what a run leaves. The first cycle of the plan has no rows yet.
///
/// # Errors
/// What a run fails with. Then the stages are gone.
pub fn rehearse(
    parts: &mut EngineParts,
    batches: Vec<Vec<DeviceBatch>>,
    effort: Effort,
) -> Result<Vec<LaneReport>, EngineError> {
    let fixed = FixedBatches { batches, effort, begun: Instant::now() };
    let Prepared { mut lanes, control, inbox, .. } = prepare(parts, Some(fixed), None)?;
    let turns = effort.in_turn.then(Turns::default);
    for lane in &mut lanes {
        (lane.sweeps, lane.turns) = (effort.cold, turns.clone());
    }
    let names: Vec<String> = lanes.iter().map(|lane| parts.plan.lanes[lane.index].name.clone()).collect();
    let ends = std::thread::scope(|scope| {
        let mut running = Vec::new();
        for (lane, name) in lanes.into_iter().zip(&names) {
            let builder = std::thread::Builder::new().name(format!("lane {name}"));
            match builder.spawn_scoped(scope, move || lane.run()) {
                Ok(handle) => running.push(handle),
                Err(error) => {
                    control.abort();
                    return Err(EngineError::Thread { lane: name.clone(), message: error.to_string() });
                }
            }
        }
        Ok(running.into_iter().map(|lane| lane.join().ok()).collect::<Vec<_>>())
    })?;
    // The lanes' end of the events goes with the last who holds it, and the channel ends behind what they said.
    drop(control);
    if let Some(error) = inbox.events.iter().find_map(|event| match event {
        RunEvent::Failed(error) => Some(error),
        _ => None,
    }) {
        return Err(error);
    }
    let ends = ends.into_iter().map(|end| end.ok_or(EngineError::EndedEarly)).collect::<Result<Vec<_>, _>>()?;
    let reports = ends.iter().map(|end| end.report.clone()).collect();
    give_back(parts, ends);
    Ok(reports)
}
