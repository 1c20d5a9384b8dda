//! Experts that several CUDA devices hold, in two parts: every device computes the rows it takes of its experts, then each home sums what
//! all of them have answered, reading it where it was left.
//!
//! Answers are kept by micro-batch, and what would overwrite them has waited for rows that were made of every home's sum.

use super::super::registry::BuildContext;
use super::device::CudaDevice;
use rally_cuda::CudaError;
use rally_cuda::machine::Mark;
use rally_cuda::memory::DeviceSlice;
use rally_cuda::ops::{Answered, Answers, Holders, Routing, SharedAnswers, Taken};
use rally_engine::exchange::ExchangeSize;
use rally_engine::remote::Parcel;
use rally_engine::stage::{StageError, TaskContext};
use rally_graph::placement::ExpertPlacement;
use std::sync::Arc;

/// What a device has left for its peers.
struct Left {
    device: Arc<CudaDevice>,
    /// By layer.
    answered: Vec<Answered>,
    mark: Mark,
}

/// Of one micro-batch.
struct Shared {
    taken: Taken,
    left: Arc<Left>,
    parcel: Parcel,
    /// Of a layer: room for addresses, and those of all devices once they have left answers.
    all: Vec<(DeviceSlice<u64>, Option<Answers>)>,
}

pub(super) struct Copies {
    own: usize,
    rows: usize,
    top_k: usize,
    hidden: usize,
    layers: Vec<usize>,
    of: Vec<Shared>,
}

impl Copies {
    /// Of a device that is shard `own` of `shards`. `answered`: where a micro-batch's answers go, by layer of the stage.
    pub(super) fn new(
        context: &BuildContext<'_>,
        device: &Arc<CudaDevice>,
        (own, shards): (usize, usize),
        answered: impl Fn(usize) -> Vec<Answered>,
    ) -> Result<Self, CudaError> {
        let (shape, rows) = (context.shape, context.gathered_rows());
        let places = rows * shape.top_k;
        let of_one = |micro_batch| -> Result<Shared, CudaError> {
            let answered = answered(micro_batch);
            let tables = answered.iter().map(|_| Ok((device.buffer(2 * shards)?, None)));
            let all = tables.collect::<Result<_, CudaError>>()?;
            let left = Arc::new(Left { device: Arc::clone(device), answered, mark: device.machine().mark()? });
            // Rows that pad may have been given to nobody yet.
            let taken = Taken { here: device.copied(&vec![0; places])?, takers: device.copied(&vec![0; places])? };
            Ok(Shared { taken, parcel: Arc::clone(&left) as Parcel, left, all })
        };
        let of = (0..context.planner.micro_batches).map(of_one).collect::<Result<_, _>>()?;
        Ok(Self { own, rows, top_k: shape.top_k, hidden: shape.hidden, layers: context.layers.clone(), of })
    }

    pub(super) fn exchange(&self) -> ExchangeSize {
        ExchangeSize { rows: self.rows, width: self.hidden, own: false, stays: true }
    }

    fn index(&self, layer: usize) -> usize {
        self.layers.iter().position(|other| *other == layer).expect("a layer of the stage")
    }

    /// Of a layer with copies, before the kernels of a part: the second waits for what the others have left.
    pub(super) fn begin(&mut self, device: &CudaDevice, task: &TaskContext<'_>) -> Result<(), StageError> {
        if task.exchange.part() == 0 { Ok(()) } else { self.await_all(device, task) }
    }

    /// Behind them: the first leaves its answers.
    pub(super) fn end(&self, device: &CudaDevice, task: &TaskContext<'_>) -> Result<(), StageError> {
        if task.exchange.part() == 0 { self.leave(device, task) } else { Ok(()) }
    }

    /// Finds out which rows are taken here: the routing that they are sorted by.
    pub(super) fn share(
        &self,
        device: &CudaDevice,
        micro_batch: usize,
        rows: usize,
        holders: &Holders,
    ) -> Result<Routing, CudaError> {
        let (routing, taken) = (&device.values(micro_batch).routing, &self.of[micro_batch].taken);
        device.ops().share_copies(routing, (rows, self.top_k), holders, taken)?;
        Ok(Routing { ids: taken.here.clone(), weights: routing.weights.clone() })
    }

    /// y of the experts at home here, in the second part.
    pub(super) fn sum(
        &self,
        device: &CudaDevice,
        (layer, micro_batch): (usize, usize),
        rows: usize,
        holders: &Holders,
        shared: Option<SharedAnswers<'_>>,
    ) -> Result<(), CudaError> {
        let (values, of) = (device.values(micro_batch), &self.of[micro_batch]);
        let all = of.all[self.index(layer)].1.as_ref().expect("the second part waited for all answers");
        let by = (holders, &of.taken);
        device.ops().sum_copies(&values.routing, (rows, self.top_k), by, all, shared, &values.y)
    }

    /// Tells the other devices that the answers are there.
    fn leave(&self, device: &CudaDevice, task: &TaskContext<'_>) -> Result<(), StageError> {
        let of = &self.of[task.micro_batch];
        device.machine().record(&of.left.mark).map_err(device.fault())?;
        let mut others = (0..task.exchange.peers()).filter(|peer| *peer != self.own);
        others.try_for_each(|peer| task.exchange.leave(peer, task.values.rows, &of.parcel))
    }

    /// Waits for those of all others.
    fn await_all(&mut self, device: &CudaDevice, task: &TaskContext<'_>) -> Result<(), StageError> {
        let (places, hidden, mine, index) = (self.rows * self.top_k, self.hidden, self.own, self.index(task.layer));
        let shared = &mut self.of[task.micro_batch];
        let mut of = Vec::with_capacity(task.exchange.peers());
        for peer in 0..task.exchange.peers() {
            if peer == mine {
                of.push((device.machine().place(), shared.left.answered[index].clone()));
                continue;
            }
            let parcel = task.exchange.left_by(peer)?.ok_or_else(nothing)?;
            let left = own(&parcel)?;
            device.machine().wait_for(&left.mark).map_err(device.fault())?;
            let answered = left.answered.get(index).ok_or_else(nothing)?;
            of.push((left.device.machine().place(), answered.clone()));
        }
        let (table, all) = &mut shared.all[index];
        if all.is_none() {
            let made = Answers::new(device.machine(), (places, hidden), table, of);
            *all = Some(made.map_err(device.fault())?);
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
