//! Experts that several CUDA devices hold, in two parts: every device computes the rows it takes of its experts, then each home sums what
//! all of them have answered, reading it where it was left.
//!
//! Answers are kept by micro-batch, and what would overwrite them has waited for rows that were made of every home's sum.

use super::super::registry::BuildContext;
use super::device::CudaDevice;
use rally_cuda::CudaError;
use rally_cuda::machine::Mark;
use rally_cuda::memory::DeviceSlice;
use rally_cuda::ops::{Answers, Holders, Taken};
use rally_engine::exchange::ExchangeSize;
use rally_engine::remote::Parcel;
use rally_engine::stage::{StageError, TaskContext};
use rally_graph::placement::ExpertPlacement;
use std::sync::Arc;

/// What a device has left for its peers.
struct Left {
    device: Arc<CudaDevice>,
    answers: DeviceSlice<f32>,
    mark: Mark,
}

/// Of one micro-batch.
pub(super) struct Shared {
    pub(super) taken: Taken,
    /// `[rows × top_k, hidden]` by place in the routing.
    pub(super) answers: DeviceSlice<f32>,
    table: DeviceSlice<u64>,
    left: Parcel,
    /// Of all devices, once they have left some.
    pub(super) all: Option<Answers>,
}

pub(super) struct Copies {
    own: usize,
    rows: usize,
    pub(super) top_k: usize,
    hidden: usize,
    pub(super) of: Vec<Shared>,
}

impl Copies {
    /// Of a device that is shard `own` of `shards`.
    pub(super) fn new(
        context: &BuildContext<'_>,
        device: &Arc<CudaDevice>,
        (own, shards): (usize, usize),
    ) -> Result<Self, CudaError> {
        let (shape, rows) = (context.shape, context.gathered_rows());
        let places = rows * shape.top_k;
        let of_one = |_| -> Result<Shared, CudaError> {
            let answers = device.buffer(places * shape.hidden)?;
            let left = Left { device: Arc::clone(device), answers: answers.clone(), mark: device.machine().mark()? };
            let taken = Taken { here: device.copied(&vec![0; places])?, takers: device.copied(&vec![0; places])? };
            let table = device.buffer(shards)?;
            Ok(Shared { taken, answers, table, left: Arc::new(left), all: None })
        };
        let of = (0..context.planner.micro_batches).map(of_one).collect::<Result<_, _>>()?;
        Ok(Self { own, rows, top_k: shape.top_k, hidden: shape.hidden, of })
    }

    pub(super) fn exchange(&self) -> ExchangeSize {
        ExchangeSize { rows: self.rows, width: self.hidden, own: false, stays: true }
    }

    /// Tells the other devices that the answers are there.
    pub(super) fn leave(&self, device: &CudaDevice, task: &TaskContext<'_>) -> Result<(), StageError> {
        let parcel = &self.of[task.micro_batch].left;
        device.machine().record(&own(parcel)?.mark).map_err(device.fault())?;
        let others = (0..task.exchange.peers()).filter(|peer| *peer != self.own);
        others.into_iter().try_for_each(|peer| task.exchange.leave(peer, task.values.rows, parcel))
    }

    /// Waits for those of all others.
    pub(super) fn await_all(&mut self, device: &CudaDevice, task: &TaskContext<'_>) -> Result<(), StageError> {
        let (places, hidden, mine) = (self.rows * self.top_k, self.hidden, self.own);
        let shared = &mut self.of[task.micro_batch];
        let mut of = Vec::with_capacity(task.exchange.peers());
        for peer in 0..task.exchange.peers() {
            if peer == mine {
                of.push((device.machine().place(), shared.answers.clone()));
                continue;
            }
            let parcel = task.exchange.left_by(peer)?.ok_or_else(nothing)?;
            let left = own(&parcel)?;
            device.machine().wait_for(&left.mark).map_err(device.fault())?;
            of.push((left.device.machine().place(), left.answers.clone()));
        }
        if shared.all.is_none() {
            let all = Answers::new(device.machine(), (places, hidden), &shared.table, of);
            shared.all = Some(all.map_err(device.fault())?);
        }
        Ok(())
    }
}

/// A layer's holders, where some expert has several.
pub(super) fn holders(device: &CudaDevice, placed: &ExpertPlacement, own: usize) -> Result<Option<Holders>, CudaError> {
    if placed.copies() == 0 {
        return Ok(None);
    }
    let of: Vec<&[usize]> = (0..placed.experts()).map(|expert| placed.holders(expert)).collect();
    let homes = (0..placed.experts()).map(|expert| placed.home(expert));
    Holders::new(device.machine(), own, &of, homes).map(Some)
}

fn own(parcel: &Parcel) -> Result<&Left, StageError> {
    let other = || StageError::Other("a holder of the same experts left what no CUDA device leaves".into());
    parcel.downcast_ref().ok_or_else(other)
}

fn nothing() -> StageError {
    StageError::Other("answers are due from a holder that has left none: a fault of ours".into())
}
