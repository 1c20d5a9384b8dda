//! The output projection split over the CUDA devices of a group: its neighbour's three parts, on rows that stay in the devices' memory.
//!
//! What a part leaves for a peer stays where it was made, with a mark behind it; the peer's device waits for the mark, and copies. It is
//! kept by micro-batch, and what would overwrite it has waited for rows that the peer sent after it had read it.

use super::super::registry::BuildContext;
use super::device::CudaDevice;
use super::products::{Matrix, Rows};
use rally_cuda::CudaError;
use rally_cuda::machine::{Mark, copy};
use rally_cuda::memory::DeviceSlice;
use rally_cuda::ops::Sliced;
use rally_engine::exchange::ExchangeSize;
use rally_engine::remote::Parcel;
use rally_engine::stage::{StageError, TaskContext};
use rally_graph::shard::part;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Rows that a device has left for a peer.
struct Left {
    device: Arc<CudaDevice>,
    rows: DeviceSlice<f32>,
    /// First value of them, written before the lane says that they are there.
    first: AtomicUsize,
    mark: Arc<Mark>,
}

/// What one part leaves in a micro-batch.
struct Leaving {
    mark: Arc<Mark>,
    /// By peer.
    parcels: Vec<(Arc<Left>, Parcel)>,
}

pub(super) struct Split {
    columns: Sliced,
    /// Which of the slices is here.
    index: usize,
    hidden: usize,
    /// By micro-batch: rows of the own sequences by slice, and parts of o for the rows of all peers.
    packed: Vec<DeviceSlice<f32>>,
    partials: Vec<DeviceSlice<f32>>,
    /// Rows of all peers in the columns of the own slice, then towards its product.
    gathered: DeviceSlice<f32>,
    inputs: Rows,
    /// Parts of o of the own rows, `[slices, most, hidden]`.
    parts: DeviceSlice<f32>,
    /// By part and micro-batch, made when first used.
    leaving: [Vec<Option<Leaving>>; 2],
}

/// Columns of the slice that is here, of `width`; all of them where a device has the whole projection.
pub(super) fn columns(context: &BuildContext<'_>, width: usize) -> Range<usize> {
    let index = context.peers.iter().position(|peer| *peer == context.device);
    index.map_or(0..width, |index| part(width, context.peers.len(), index))
}

impl Split {
    /// `None` where a device has the whole projection. `slice`: the one that is here.
    pub(super) fn of(
        context: &BuildContext<'_>,
        device: &CudaDevice,
        slice: Option<&Matrix>,
    ) -> Result<Option<Self>, CudaError> {
        let slices = context.peers.len();
        let (Some(index), Some(slice)) = (context.peers.iter().position(|peer| *peer == context.device), slice) else {
            return Ok(None);
        };
        let (shape, most) = (context.shape, context.attention_rows());
        let (width, hidden, micro_batches) =
            (shape.heads * shape.head_dim, shape.hidden, context.planner.micro_batches);
        let of_each = |count: usize| (0..micro_batches).map(|_| device.buffer(count)).collect::<Result<Vec<_>, _>>();
        let gathered = device.buffer(slices * most * part(width, slices, index).len())?;
        let parts = device.buffer(slices * most * hidden)?;
        // Rows that pad read what nobody sent: numbers, at least.
        [&gathered, &parts].into_iter().try_for_each(|rows| device.machine().fill(&rows.as_bytes(), 0))?;
        let none = || (0..micro_batches).map(|_| None).collect();
        Ok(Some(Self {
            columns: Sliced { width, slices, most },
            index,
            hidden,
            packed: of_each(most * width)?,
            partials: of_each(slices * most * hidden)?,
            inputs: Rows::towards(device, slice, slices * most, || Ok(gathered.clone()))?,
            gathered,
            parts,
            leaving: [none(), none()],
        }))
    }

    pub(super) fn exchanges(&self) -> Vec<ExchangeSize> {
        let size = |width| ExchangeSize { rows: self.columns.most, width, own: true, stays: true };
        vec![size(part(self.columns.width, self.columns.slices, self.index).len()), size(self.hidden)]
    }

    /// Most rows of all peers.
    pub(super) fn most(&self) -> usize {
        self.columns.slices * self.columns.most
    }

    /// `attended`, `[rows, width]`, by slice.
    pub(super) fn pack(
        &self,
        device: &CudaDevice,
        micro_batch: usize,
        rows: usize,
        attended: &DeviceSlice<f32>,
    ) -> Result<(), CudaError> {
        device.ops().slice_columns(attended, rows, self.columns, &self.packed[micro_batch])
    }

    /// Each slice to its device, once it is packed.
    pub(super) fn leave_slices(&mut self, device: &Arc<CudaDevice>, task: &TaskContext<'_>) -> Result<(), StageError> {
        let (m, rows, Sliced { width, slices, most }) = (task.micro_batch, task.batch.rows, self.columns);
        let first = |peer: usize| most * part(width, slices, peer).start;
        let sent = (0..slices).map(|peer| (first(peer), rows));
        leave(&mut self.leaving[0][m], device, task, &self.packed[m], sent)
    }

    /// The rows of all peers in the own columns. Returns how many.
    pub(super) fn gather(&self, device: &CudaDevice, task: &TaskContext<'_>) -> Result<usize, StageError> {
        let wide = part(self.columns.width, self.columns.slices, self.index).len();
        let mut all = 0;
        for peer in 0..self.columns.slices {
            let rows = task.exchange.rows_from(peer)?;
            take(device, task, peer, &self.gathered.part(all * wide, rows * wide))?;
            all += rows;
        }
        Ok(all)
    }

    /// Their product with the slice.
    pub(super) fn multiply(
        &self,
        device: &CudaDevice,
        micro_batch: usize,
        rows: usize,
        slice: &Matrix,
    ) -> Result<(), CudaError> {
        self.inputs.take(device, &self.gathered, rows)?;
        self.inputs.times(device, rows, slice, &self.partials[micro_batch])
    }

    /// Each peer's part back to it, once they are multiplied.
    pub(super) fn leave_parts(&mut self, device: &Arc<CudaDevice>, task: &TaskContext<'_>) -> Result<(), StageError> {
        let m = task.micro_batch;
        let mut sent = Vec::with_capacity(self.columns.slices);
        let mut first = 0;
        for peer in 0..self.columns.slices {
            let rows = task.exchange.rows_from(peer)?;
            sent.push((first * self.hidden, rows));
            first += rows;
        }
        leave(&mut self.leaving[1][m], device, task, &self.partials[m], sent.into_iter())
    }

    /// The parts of the own rows.
    pub(super) fn take_parts(&self, device: &CudaDevice, task: &TaskContext<'_>) -> Result<(), StageError> {
        let count = task.batch.rows * self.hidden;
        for peer in 0..self.columns.slices {
            take(device, task, peer, &self.parts.part(peer * self.columns.most * self.hidden, count))?;
        }
        Ok(())
    }

    /// `x += o`, the parts of o in order of the slices.
    pub(super) fn add(&self, device: &CudaDevice, rows: usize, x: &DeviceSlice<f32>) -> Result<(), CudaError> {
        device.ops().add_slices(&self.parts, rows, Sliced { width: self.hidden, ..self.columns }, x)
    }
}

/// Says to each peer where its rows are in `whole`: from which value on, and how many.
fn leave(
    leaving: &mut Option<Leaving>,
    device: &Arc<CudaDevice>,
    task: &TaskContext<'_>,
    whole: &DeviceSlice<f32>,
    sent: impl ExactSizeIterator<Item = (usize, usize)>,
) -> Result<(), StageError> {
    let leaving = match leaving {
        Some(leaving) => leaving,
        None => {
            let mark = Arc::new(device.machine().mark().map_err(device.fault())?);
            let one = |_| {
                let (device, mark) = (Arc::clone(device), Arc::clone(&mark));
                let left = Arc::new(Left { device, rows: whole.clone(), first: AtomicUsize::new(0), mark });
                (Arc::clone(&left), left as Parcel)
            };
            let parcels = (0..sent.len()).map(one).collect();
            leaving.insert(Leaving { mark, parcels })
        }
    };
    device.machine().record(&leaving.mark).map_err(device.fault())?;
    for (peer, ((left, parcel), (first, rows))) in leaving.parcels.iter().zip(sent).enumerate() {
        left.first.store(first, Ordering::Relaxed);
        task.exchange.leave(peer, rows, parcel)?;
    }
    Ok(())
}

/// Copies what `peer` has left, as many values as `to` has.
fn take(device: &CudaDevice, task: &TaskContext<'_>, peer: usize, to: &DeviceSlice<f32>) -> Result<(), StageError> {
    let Some(parcel) = task.exchange.left_by(peer)? else { return Ok(()) };
    let other = || StageError::Other("a peer of the output projection left what no CUDA device leaves".into());
    let left: &Left = parcel.downcast_ref().ok_or_else(other)?;
    let from = left.rows.part(left.first.load(Ordering::Relaxed), to.len());
    let machine = device.machine();
    let copied = machine.wait_for(&left.mark).and_then(|()| copy(machine, &from, left.device.machine().place(), to));
    copied.map_err(device.fault())
}
