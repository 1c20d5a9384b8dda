//! Products of rows with weights on Hopper's tensor cores, and what belongs to them: rows sorted by expert, norm and quantise, the
//! sum of experts' answers (`cu/tensor*.cu`, `cu/slots.cu`, `cu/rows_fast.cu`). fp8 weights meet rows in e4m3 with a scale each 128
//! inputs, bf16 weights rows in bf16. Shapes that do not fit are the plain operations' ([`crate::ops`]).
//!
//! Everything is enqueued and not waited for, and nothing but pointers is told by the host: counts of experts stay on the device.

mod experts;
mod groups;
mod product;
mod project;
mod rows;

pub use experts::Slots;
pub use product::TensorMatrix;
pub use project::Angles;
pub use rows::{Narrowed, Norm, WIDTH_WITH_KEYS};

use crate::device::Device;
use crate::error::CudaError;
use crate::machine::Machine;
use crate::memory::{Arena, DeviceSlice};
use crate::module::{Kernel, Order, Shape};
use crate::ops::Stored;
use crate::source;
use crate::stream::Stream;
use groups::Groups;
use std::ffi::c_void;
use std::sync::Arc;

/// Tokens of a tile at most.
const TILE_TOKENS: usize = 160;
/// Of several tiles of the same weights: the kernels are faster with 128, and weights are read twice anyway.
const TILE_STEP: usize = 128;

/// A kernel for e4m3 and one for bf16.
type Both = [Kernel; 2];

/// All kernels of the tensor-core path on one stream.
#[derive(Debug)]
pub struct TensorOps {
    device: Arc<Device>,
    stream: Arc<Stream>,
    place: Kernel,
    narrow: rows::NarrowKernels,
    narrow_append: Both,
    sum: Kernel,
    up: Both,
    down: Both,
    /// By format, then by how many tokens a tile has at most.
    project: [[Kernel; 5]; 2],
    groups: Groups,
    /// Sums of parts of the inputs, on their way to whoever adds them.
    partials: DeviceSlice<f32>,
    /// How many parts of each item have come.
    counters: DeviceSlice<i32>,
}

impl TensorOps {
    /// Compiles and loads the kernels for a card that has what they need; none for others.
    ///
    /// # Errors
    /// What compiling and loading say; no memory.
    pub fn new(device: &Arc<Device>, stream: &Arc<Stream>) -> Result<Option<TensorOps>, CudaError> {
        if !device.card().is_hopper() {
            return Ok(None);
        }
        let ctas = stream.multiprocessors() as usize;
        let arena = Arena::new(device, TensorOps::bytes(ctas))?;
        TensorOps::within(device, stream, ctas, arena).map(Some)
    }

    /// The same on a machine, with memory of its own; none where it has none of these kernels, or only counts.
    ///
    /// # Errors
    /// As [`TensorOps::new`].
    pub fn on(machine: &dyn Machine) -> Result<Option<TensorOps>, CudaError> {
        let ctas = machine.mfa_ctas();
        if ctas == 0 {
            return Ok(None);
        }
        let arena = machine.allocate(TensorOps::bytes(ctas))?;
        let Some((device, stream)) = machine.card() else { return Ok(None) };
        TensorOps::within(device, stream, ctas, arena).map(Some)
    }

    /// Bytes of what it keeps.
    fn bytes(ctas: usize) -> usize {
        Arena::bytes_for([product::partials_for(ctas) * 4, product::items_at_most(ctas) * 4])
    }

    fn within(
        device: &Arc<Device>,
        stream: &Arc<Stream>,
        ctas: usize,
        mut arena: Arena,
    ) -> Result<TensorOps, CudaError> {
        let both = |source, names: [&'static str; 2], shared| -> Result<Both, CudaError> {
            let module = device.load(source)?;
            Ok([module.kernel(names[0], shared)?, module.kernel(names[1], shared)?])
        };
        device.prepare(&source::TENSOR.each_ref());
        let rows = device.load(&source::ROWS_FAST)?;
        let (partials, counters) = (product::partials_for(ctas), product::items_at_most(ctas));
        let ops = TensorOps {
            place: device.load(&source::SLOTS)?.kernel("place_slots", 0)?,
            narrow: rows::NarrowKernels::of(&rows)?,
            narrow_append: [rows.kernel("narrow_append_fp8", 0)?, rows.kernel("narrow_append_bf16", 0)?],
            sum: rows.kernel("sum_slots", 0)?,
            up: both(&source::TENSOR_UP, ["tensor_up_fp8", "tensor_up_bf16"], product::UP_SHARED)?,
            down: both(&source::TENSOR_DOWN, ["tensor_down_fp8", "tensor_down_bf16"], product::DOWN_SHARED)?,
            project: project::kernels(device)?,
            groups: Groups::load(device)?,
            partials: arena.take(partials)?,
            counters: arena.take(counters)?,
            device: Arc::clone(device),
            stream: Arc::clone(stream),
        };
        ops.stream.fill(&ops.counters, 0)?;
        Ok(ops)
    }

    /// Its device.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Where work goes.
    pub fn stream(&self) -> &Arc<Stream> {
        &self.stream
    }

    /// Enqueues a kernel that waits for the one before where it says so.
    ///
    /// # Safety
    /// `A` is the kernel's parameter; memory that it names is large enough and outlives the work.
    unsafe fn launch<A>(&self, kernel: &Kernel, grid: usize, block: u32, arguments: A) -> Result<(), CudaError> {
        // SAFETY: passed on.
        unsafe { self.launch_over(kernel, (grid, 1), block, arguments) }
    }

    /// The same of a grid that is wide and high.
    ///
    /// # Safety
    /// As [`TensorOps::launch`].
    unsafe fn launch_over<A>(
        &self,
        kernel: &Kernel,
        grid: (usize, usize),
        block: u32,
        mut arguments: A,
    ) -> Result<(), CudaError> {
        if grid.0 * grid.1 == 0 {
            return Ok(());
        }
        self.device.bind()?;
        let mut argument: *mut c_void = (&raw mut arguments).cast();
        let shape = Shape { grid: (grid.0 as u32, grid.1 as u32), block, order: Order::Overlapped };
        // SAFETY: passed on; the launch copies the parameter.
        unsafe { kernel.launch(&self.stream, shape, std::slice::from_mut(&mut argument)) }
    }
}

/// Which of [`Both`].
fn of(both: &Both, stored: Stored) -> &Kernel {
    &both[usize::from(stored != Stored::Fp8)]
}

fn refused(operation: &'static str, problem: String) -> CudaError {
    CudaError::Shape { operation, problem }
}
