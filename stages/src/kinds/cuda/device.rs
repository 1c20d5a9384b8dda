//! A CUDA device of a deployment: its kernels, the values of its micro-batches, and what its stages share.

use super::products::TensorCores;
use rally_cuda::CudaError;
use rally_cuda::machine::{Machine, write};
use rally_cuda::memory::{Arena, DeviceSlice, Plain};
use rally_cuda::nccl::Fabric;
use rally_cuda::ops::{Choice, Ops, Paged, Routing, Stored, Weights, record_bytes};
use rally_cuda::tensor::TensorOps;
use rally_engine::Widths;
use rally_engine::schedule::planner::PlannerConfig;
use rally_engine::stage::StageError;
use rally_graph::spec::ComputeDtype;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// One device. Its stages and the rows that cross its edges work on it in the order of its lane, which is its stream's.
pub struct CudaDevice {
    ops: Ops,
    tensor: Option<TensorCores>,
    pub(super) widths: Widths,
    values: Vec<MicroBatch>,
    /// Encoded rows on their way in, or out to the host.
    pub(super) wire: DeviceSlice<u8>,
    /// A part of a sum, `[rows, hidden]`; empty where nothing is summed.
    pub(super) part: DeviceSlice<f32>,
    /// Stages replay their kernels.
    captures: bool,
    /// Matrices that several stages share, by tensor name.
    shared: Mutex<HashMap<String, Arc<Weights>>>,
    /// Ways to sum parts of y that are on several cards.
    fabrics: OnceLock<Vec<Arc<Fabric>>>,
}

/// A micro-batch's values.
pub(super) struct MicroBatch {
    /// Residual stream, `[rows, hidden]`.
    pub(super) x: DeviceSlice<f32>,
    /// FFN input.
    pub(super) u: DeviceSlice<f32>,
    /// FFN output.
    pub(super) y: DeviceSlice<f32>,
    /// A sum of parts of y that is not y yet; empty where there is none.
    pub(super) sum: DeviceSlice<f32>,
    /// What is offered of u, y and sum as it crosses, row by row; empty where they cross as they are, or do not.
    pub(super) offered: [DeviceSlice<u8>; 3],
    /// Chosen experts, `[rows, top_k]`.
    pub(super) routing: Routing,
    /// The batch descriptor: the five parts and the page numbers, one after another.
    pub(super) descriptor: DeviceSlice<i32>,
    /// Token ids, a part of it.
    pub(super) tokens: DeviceSlice<i32>,
    /// Positions and pages.
    pub(super) paged: Paged,
    /// Rows that tokens are sampled from.
    pub(super) sampled: DeviceSlice<i32>,
    /// How.
    pub(super) choices: DeviceSlice<Choice>,
}

/// Words of a descriptor for each row before the page numbers: token, position, first page, sampled row, and a choice.
pub(super) const DESCRIBED: usize = 4 + size_of::<Choice>() / size_of::<i32>();

/// How a device's stages work.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Precision {
    /// What rows may be narrowed to on their way into products.
    pub(crate) compute: ComputeDtype,
    /// Whether kernels are captured and replayed.
    pub(crate) captures: bool,
}

/// What a device does with rows that cross to or from devices of its kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Crossings {
    /// Bytes of a row of u, of y, and of a sum of parts of y, as it offers them; 0 if they cross as they are, or do not.
    pub(crate) offered: [usize; 3],
    /// Whether it sums parts of y.
    pub(crate) sums: bool,
}

impl MicroBatch {
    fn new(
        machine: &dyn Machine,
        rows: usize,
        widths: Widths,
        pages: usize,
        crossings: &Crossings,
    ) -> Result<Self, CudaError> {
        // A page more: that of rows that pad.
        let (wide, chosen, described) = (rows * widths.hidden, rows * widths.top_k, rows * DESCRIBED + pages + 1);
        let summed = if crossings.sums { wide } else { 0 };
        let offered = crossings.offered.map(|record| rows * record);
        let sizes = [wide, wide, wide, summed, chosen, chosen, described].map(|count| count * 4);
        let mut arena = machine.allocate(Arena::bytes_for(sizes.into_iter().chain(offered)))?;
        let (x, u, y, sum) = (arena.take(wide)?, arena.take(wide)?, arena.take(wide)?, arena.take(summed)?);
        let routing = Routing { ids: arena.take(chosen)?, weights: arena.take(chosen)? };
        let descriptor: DeviceSlice<i32> = arena.take(described)?;
        let offered = [arena.take(offered[0])?, arena.take(offered[1])?, arena.take(offered[2])?];
        let part = |index: usize| descriptor.part(index * rows, rows);
        let paged = Paged { positions: part(1), first: part(2), pages: descriptor.part(DESCRIBED * rows, pages + 1) };
        write(machine, &[pages as i32], &paged.pages.part(pages, 1))?;
        // Rows that pad are routed as whatever was there says, which has to be experts.
        machine.fill(&routing.ids.as_bytes(), 0)?;
        // A choice holds a double: after four words a row, of an arena's slice, it is aligned.
        let choices = descriptor.part(4 * rows, (DESCRIBED - 4) * rows).as_bytes().cast();
        Ok(Self { x, u, y, sum, offered, routing, tokens: part(0), sampled: part(3), choices, paged, descriptor })
    }
}

impl CudaDevice {
    /// On a machine of its own. `rows`: most rows of a micro-batch.
    pub(crate) fn open(
        machine: Arc<dyn Machine>,
        planner: &PlannerConfig,
        rows: usize,
        widths: Widths,
        crossings: &Crossings,
        Precision { compute, captures }: Precision,
    ) -> Result<Arc<Self>, CudaError> {
        let ops = Ops::new(machine)?;
        let machine = Arc::clone(ops.machine());
        let tensor = TensorCores::of(&*machine, compute)?;
        let pages = planner.pages_per_device as usize;
        let values = (0..planner.micro_batches).map(|_| MicroBatch::new(&*machine, rows, widths, pages, crossings));
        let values = values.collect::<Result<_, _>>()?;
        // An f32 record is the longest, unless rows are so narrow that a scale outweighs them.
        let record = record_bytes(Stored::F32, widths.hidden).max(record_bytes(Stored::Fp8, widths.hidden));
        let wire = machine.allocate(rows * record)?.take(rows * record)?;
        let part = if crossings.sums { rows * widths.hidden } else { 0 };
        let part = machine.allocate(part * size_of::<f32>())?.take(part)?;
        Ok(Arc::new(Self {
            ops,
            tensor,
            widths,
            values,
            wire,
            part,
            captures,
            shared: Mutex::default(),
            fabrics: OnceLock::new(),
        }))
    }

    /// Lets it sum through these, from now on.
    pub(crate) fn connect(&self, fabrics: Vec<Arc<Fabric>>) {
        // Whoever opens devices does so once.
        let _ = self.fabrics.set(fabrics);
    }

    pub(super) fn fabrics(&self) -> &[Arc<Fabric>] {
        self.fabrics.get().map_or(&[], Vec::as_slice)
    }

    /// Number of its card; none of the processor.
    pub(crate) fn card(&self) -> Option<usize> {
        self.machine().card().map(|(card, _)| card.card().ordinal)
    }

    /// What it is, for people.
    pub fn name(&self) -> String {
        self.machine().name()
    }

    pub(super) fn ops(&self) -> &Ops {
        &self.ops
    }

    /// Tensor cores, where the graph asks for them and the card has them.
    pub(super) fn tensor(&self) -> Option<&TensorCores> {
        self.tensor.as_ref()
    }

    /// Their kernels, for whoever was made for them.
    pub(super) fn tensor_ops(&self) -> &TensorOps {
        self.tensor.as_ref().expect("what is made for tensor cores is made where there are some").ops()
    }

    pub(super) fn machine(&self) -> &dyn Machine {
        &**self.ops.machine()
    }

    /// Whether stages replay their kernels.
    pub(super) fn captures(&self) -> bool {
        self.captures
    }

    pub(super) fn values(&self, micro_batch: usize) -> &MicroBatch {
        &self.values[micro_batch]
    }

    /// Buffers of a stage, each of so many elements.
    pub(super) fn buffer<T: Plain>(&self, count: usize) -> Result<DeviceSlice<T>, CudaError> {
        self.machine().allocate(count * size_of::<T>())?.take(count)
    }

    /// A stage's own copy of what the host has.
    pub(super) fn copied<T: Plain>(&self, values: &[T]) -> Result<DeviceSlice<T>, CudaError> {
        let on_device = self.buffer(values.len())?;
        write(self.machine(), values, &on_device)?;
        Ok(on_device)
    }

    /// A fault of the device at work.
    pub(super) fn fault(&self) -> impl Fn(CudaError) -> StageError {
        |error| StageError::Device { device: self.name(), message: error.to_string() }
    }

    /// The matrix `name`, made by `load` when first asked for.
    pub(super) fn shared<E>(&self, name: &str, load: impl FnOnce() -> Result<Weights, E>) -> Result<Arc<Weights>, E> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(weights) = shared.get(name) {
            return Ok(Arc::clone(weights));
        }
        let weights = Arc::new(load()?);
        shared.insert(name.into(), Arc::clone(&weights));
        Ok(weights)
    }
}
