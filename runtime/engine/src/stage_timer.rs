//! Timing one stage at a time, on a thread like its device's lane: pinned to the same cores, with the same team. For cost tables.
//!
//! Layers take turns as they do in a run: a stage that repeated one layer would find its weights in a cache.

use crate::engine::EngineError;
use crate::exchange::{Exchange, ExchangeSize, Legs};
use crate::lane::pin;
use crate::primitives::Mutex;
use crate::slot::{Header, Slot};
use crate::stage::{Sample, Stage, StageError, TaskContext};
use crate::values::Values;
use rally_graph::spec::WireDtype;
use rally_graph::stage_graph::Payload;
use rally_kernels::team::Team;
use rally_schedule::batch::DeviceBatch;
use std::sync::Arc;
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

/// A layer to time a stage in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimedLayer {
    /// Which.
    pub layer: usize,
    /// Parts that the stage is done in there, at least 1.
    pub parts: usize,
    /// Devices that hand each other rows between its parts, this one among them; 0 where it works alone.
    pub peers: usize,
}

/// Seconds of single runs of `stage`, by part, `layers` taking turns, after one round over them that does not count.
///
/// Between two parts every peer hands back what it was sent: as many rows as where all peers have equal work. A part that no
/// layer has is empty.
///
/// # Errors
/// What the stage reports.
pub fn time_stage(
    stage: &mut dyn Stage,
    layers: &[TimedLayer],
    workload: &mut Workload,
    team: &Team,
    effort: Effort,
) -> Result<Vec<Vec<f64>>, StageError> {
    let x = workload.values.x.clone();
    let mut samples: Vec<Sample> = Vec::with_capacity(workload.batch.groups.len());
    let loopback = loopback(layers, &stage.exchanges());
    let parts = layers.iter().map(|layer| layer.parts).max().unwrap_or(1);
    let order: Vec<usize> = (0..layers.len()).collect();
    timed(&order, parts, effort, |index, laps| {
        workload.values.x.copy_from_slice(&x);
        samples.clear();
        let (TimedLayer { layer, parts, peers }, rows) = (layers[index], workload.values.rows);
        for (part, lap) in laps.iter_mut().enumerate().take(parts) {
            let legs = loopback.get(part).filter(|_| peers > 0);
            let mut task = TaskContext {
                layer,
                micro_batch: 0,
                batch: &workload.batch,
                values: &mut workload.values,
                last_tokens: &mut workload.last_tokens,
                samples: &mut samples,
                effort: rows,
                team,
                exchange: Exchange::new(legs),
            };
            let began = Instant::now();
            // As a lane does it: what goes out is emptied and counted with the part.
            if let Some(legs) = legs {
                let begun = legs.begin(Header { step: 0, layer, rows });
                begun.map_err(|error| StageError::Other(error.to_string()))?;
            }
            stage.run(&mut task)?;
            *lap = Some(began.elapsed());
        }
        Ok(())
    })
}

/// The legs of every part, what goes out of one coming into the next.
fn loopback(layers: &[TimedLayer], sizes: &[ExchangeSize]) -> Vec<Legs> {
    let Some(split) = layers.iter().find(|layer| layer.peers > 0) else { return Vec::new() };
    let size = |part: usize| sizes.get(part).copied().unwrap_or_default();
    let mut legs: Vec<Legs> = Vec::with_capacity(split.parts);
    for part in 0..split.parts {
        let mut here = Legs { part, ..Legs::default() };
        if let Some(before) = legs.last() {
            (here.incoming, here.incoming_width) = (before.outgoing.clone(), before.outgoing_width);
        }
        if part + 1 < split.parts {
            let ExchangeSize { rows, width, .. } = size(part);
            let slot = |_| Arc::new(Mutex::new(Slot::new(rows, width, 0, WireDtype::F32)));
            (here.outgoing, here.outgoing_width) = ((0..split.peers).map(slot).collect(), width);
        }
        legs.push(here);
    }
    legs
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
    let timed = timed(&[0], 1, effort, |_, laps| {
        let began = Instant::now();
        work();
        laps[0] = Some(began.elapsed());
        Ok(())
    });
    timed.unwrap_or_default().pop().unwrap_or_default()
}

/// Seconds by part. `run` leaves what each part took, and nothing where there was none.
fn timed(
    turns: &[usize],
    parts: usize,
    effort: Effort,
    mut run: impl FnMut(usize, &mut [Option<Duration>]) -> Result<(), StageError>,
) -> Result<Vec<Vec<f64>>, StageError> {
    let mut laps = vec![None; parts];
    for turn in turns {
        run(*turn, &mut laps)?;
    }
    let (mut seconds, mut runs, mut spent) = (vec![Vec::new(); parts], 0, Duration::ZERO);
    for turn in turns.iter().cycle() {
        if runs >= effort.most || (runs >= effort.least && spent >= effort.time) {
            break;
        }
        laps.fill(None);
        run(*turn, &mut laps)?;
        for (lap, seconds) in laps.iter().zip(&mut seconds) {
            seconds.extend(lap.map(|lap| lap.as_secs_f64()));
            spent += lap.unwrap_or_default();
        }
        runs += 1;
    }
    Ok(seconds)
}
