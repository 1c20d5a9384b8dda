//! The built-in stages on CUDA devices: the same work as their neighbours one folder up, on values that stay in the device's memory.
//!
//! A stage enqueues and does not wait. What waits is sampling, whose tokens the host needs, and a transfer that sends rows to a device
//! of another kind (`values.rs`).

mod attention;
mod captured;
mod copies;
mod device;
mod embed;
mod ffn;
mod grouped_ffn;
mod load;
mod mfa;
mod o_proj;
mod products;
mod router;
mod sampling;
mod tensor_ffn;
mod values;

pub use device::CudaDevice;
pub(crate) use device::{Crossings, Precision};
pub(crate) use values::CudaValues;

use super::registry::{BuildContext, BuildError};
use rally_cuda::CudaError;
use rally_engine::stage::{Stage, StageError, TaskContext};
use std::sync::Arc;

/// Makes the stage of `context` for `device`.
pub(super) fn build(context: &mut BuildContext<'_>, device: &Arc<CudaDevice>) -> Result<Box<dyn Stage>, BuildError> {
    match context.stage.kind.as_str() {
        "embed" => embed::build(context, device),
        "mfa_attention" => attention::build(context, device),
        "router" => router::build(context, device),
        "expert_ffn" => ffn::build_expert(context, device),
        "dense_ffn" => ffn::build_dense(context, device),
        "combine" => Ok(Box::new(Combine { device: Arc::clone(device) })),
        "sampling" => sampling::build(context, device),
        kind => Err(refused(device, format!("stage kind `{kind}` has no CUDA implementation; give it a CPU device"))),
    }
}

/// A fault of the device while stages are made.
fn fault(device: &CudaDevice) -> impl Fn(CudaError) -> BuildError {
    |error| refused(device, error.to_string())
}

fn refused(device: &CudaDevice, message: String) -> BuildError {
    BuildError::Device { device: device.name(), message }
}

/// x += y.
struct Combine {
    device: Arc<CudaDevice>,
}

impl Stage for Combine {
    fn run(&mut self, task: &mut TaskContext<'_>) -> Result<(), StageError> {
        let values = self.device.values(task.micro_batch);
        let added = self.device.ops().add(&values.x, &values.y, task.batch.rows, task.values.widths.hidden);
        added.map_err(self.device.fault())
    }
}
