//! Timing one stage at a time, on a thread like its device's lane: pinned to the same cores, with the same team. For cost tables.
//!
//! Layers take turns as they do in a run: a stage that repeated one layer would find its weights in a cache.

use crate::engine::EngineError;
use crate::exchange::Exchange;
use crate::lane::pin;
use crate::slot::{Header, Slot};
use crate::stage::{Sample, Stage, StageError, TaskContext};
use crate::values::Values;
use rally_graph::spec::WireDtype;
use rally_graph::stage_graph::Payload;
use rally_kernels::team::Team;
use rally_schedule::batch::DeviceBatch;
use std::time::{Duration, Instant};

/// Rows to work on.
pub struct Workload {
    /// Which rows they are.
    pub batch: DeviceBatch,
    /// Their values; x is put back before every run, since stages add to it.
    pub values: Values,
    /// Token last sampled, by sequence slot.
    pub last_tokens: Vec<u32>,
}

/// How long to go on.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Runs that count, at least one.
    pub least: usize,
    /// More runs until so much time was spent in them.
    pub time: Duration,
    /// But never more than these.
    pub most: usize,
}

/// Runs `work` on a thread pinned like a lane on `cores`.
///
/// # Errors
/// [`EngineError::Thread`] if the system gives none, [`EngineError::LanePanicked`] if `work` panics.
pub fn on_lane<T: Send>(name: &str, cores: &[u32], work: impl FnOnce(&Team) -> T + Send) -> Result<T, EngineError> {
    std::thread::scope(|scope| {
        let run = || {
            let team = Team::pinned(cores);
            pin(cores);
            work(&team)
        };
        let spawned = std::thread::Builder::new().name(format!("lane {name}")).spawn_scoped(scope, run);
        let handle = spawned.map_err(|error| EngineError::Thread { lane: name.into(), message: error.to_string() })?;
        handle.join().map_err(|_| EngineError::LanePanicked {
            lane: name.into(),
            message: "a stage panicked while it was timed".into(),
        })
    })
}

/// Seconds of single runs of `stage`, `layers` taking turns, after one round over them that does not count.
///
/// # Errors
/// What the stage reports.
pub fn time_stage(
    stage: &mut dyn Stage,
    layers: &[usize],
    workload: &mut Workload,
    team: &Team,
    effort: Effort,
) -> Result<Vec<f64>, StageError> {
    let x = workload.values.x.clone();
    let mut samples: Vec<Sample> = Vec::with_capacity(workload.batch.groups.len());
    timed(layers, effort, |layer| {
        workload.values.x.copy_from_slice(&x);
        samples.clear();
        let mut task = TaskContext {
            layer,
            micro_batch: 0,
            batch: &workload.batch,
            values: &mut workload.values,
            last_tokens: &mut workload.last_tokens,
            samples: &mut samples,
            team,
            exchange: Exchange::ALONE,
        };
        let began = Instant::now();
        stage.run(&mut task)?;
        Ok(began.elapsed())
    })
}

/// Seconds of encoding the rows of `values` for the wire, and of decoding them again: what a send and a receive cost within one
/// process.
pub fn time_transfer(values: &mut Values, dtype: WireDtype, payload: Payload, effort: Effort) -> [Vec<f64>; 2] {
    let (rows, widths) = (values.rows, values.widths);
    let mut slot = Slot::new(rows, widths.hidden, widths.top_k, dtype);
    let header = Header { step: 0, layer: 0, rows };
    let sends = endless(effort, || {
        slot.send(values, 0, dtype, payload, header);
    });
    let receives = endless(effort, || match payload {
        Payload::Output => slot.receive_output(&mut values.y, widths.hidden, dtype),
        _ => {
            values.rows = 0;
            values.origins.clear();
            slot.receive_input(values, 0, dtype, payload);
        }
    });
    [sends, receives]
}

fn endless(effort: Effort, mut work: impl FnMut()) -> Vec<f64> {
    let timed = timed(&[0], effort, |_| {
        let began = Instant::now();
        work();
        Ok(began.elapsed())
    });
    timed.unwrap_or_default()
}

fn timed(
    layers: &[usize],
    effort: Effort,
    mut run: impl FnMut(usize) -> Result<Duration, StageError>,
) -> Result<Vec<f64>, StageError> {
    for layer in layers {
        run(*layer)?;
    }
    let (mut seconds, mut spent) = (Vec::new(), Duration::ZERO);
    for layer in layers.iter().cycle() {
        if seconds.len() >= effort.most || (seconds.len() >= effort.least && spent >= effort.time) {
            break;
        }
        let took = run(*layer)?;
        spent += took;
        seconds.push(took.as_secs_f64());
    }
    Ok(seconds)
}
