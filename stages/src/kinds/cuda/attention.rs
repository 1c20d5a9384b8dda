//! `mfa_attention` on a CUDA device: the steps of its neighbour for the CPU, kernel by kernel.

use super::super::layers::Layers;
use super::super::registry::{BuildContext, BuildError};
use super::captured::{Captured, Which};
use super::device::CudaDevice;
use super::load::{self, LoadError, stored};
use super::mfa::FastAttention;
use super::{fault, refused};
use rally_cuda::CudaError;
use rally_cuda::memory::DeviceSlice;
use rally_cuda::mfa::MfaCall;
use rally_cuda::ops::{KvPages, Stored, Weights};
use rally_engine::slot::storage_dtype;
use rally_engine::stage::{Stage, StageError, TaskContext};
use rally_graph::model::ModelShape;
use rally_kernels::rope;
use std::sync::Arc;

struct Layer {
    input_norm: DeviceSlice<f32>,
    q_proj: Weights,
    inter_norm: DeviceSlice<f32>,
    wq: Weights,
    k_proj: Weights,
    v_proj: Weights,
    o_proj: Weights,
    post_norm: DeviceSlice<f32>,
    kv: KvPages,
    /// With [`FastAttention`], a call for each micro-batch.
    calls: Vec<MfaCall>,
}

struct MfaAttention {
    captured: Captured,
    kernels: Kernels,
    most: usize,
    first_layer: usize,
}

struct Kernels {
    device: Arc<CudaDevice>,
    layers: Layers<Layer>,
    heads: usize,
    hidden: usize,
    eps: f32,
    /// `[positions, head_dim]`: cosines, then sines.
    rope: DeviceSlice<f32>,
    buffers: Buffers,
    fast: Option<FastAttention>,
}

/// Of one micro-batch at a time.
struct Buffers {
    normed: DeviceSlice<f32>,
    compressed: DeviceSlice<f32>,
    q: DeviceSlice<f32>,
    k: DeviceSlice<f32>,
    v: DeviceSlice<f32>,
    attended: DeviceSlice<f32>,
    projected: DeviceSlice<f32>,
}

pub(super) fn build(context: &mut BuildContext<'_>, device: &Arc<CudaDevice>) -> Result<Box<dyn Stage>, BuildError> {
    let shape = context.shape;
    if !context.peers.is_empty() {
        return Err(refused(device, "`shard.o_proj` runs on CPU devices alone: leave it out".into()));
    }
    let mut fast = fast(context, device).map_err(fault(device))?;
    let layers = Layers::make(context, |layer| load_layer(context, device, layer, &mut fast));
    let layers = layers.map_err(LoadError::on(device))?;
    let first_layer = context.layers.first().copied().unwrap_or_default();
    let rope = rope_table(context, device).map_err(fault(device))?;
    let buffers = buffers(context, device).map_err(fault(device))?;
    let (heads, hidden, eps) = (shape.heads, shape.hidden, shape.rms_norm_eps);
    let kernels = Kernels { device: Arc::clone(device), layers, heads, hidden, eps, rope, buffers, fast };
    let most = context.attention_rows();
    Ok(Box::new(MfaAttention { captured: Captured::default(), kernels, most, first_layer }))
}

fn kv_format(context: &BuildContext<'_>) -> Stored {
    stored(storage_dtype(context.stage.spec.kv_dtype.unwrap_or_default()))
}

fn fast(context: &BuildContext<'_>, device: &CudaDevice) -> Result<Option<FastAttention>, CudaError> {
    let pages = (context.planner.page_tokens, kv_format(context));
    FastAttention::new(device, context.shape, pages, (context.attention_rows(), context.planner.micro_batches))
}

fn buffers(context: &BuildContext<'_>, device: &CudaDevice) -> Result<Buffers, CudaError> {
    let (shape, rows) = (context.shape, context.attention_rows());
    let width = shape.heads * shape.head_dim;
    Ok(Buffers {
        normed: device.buffer(rows * shape.hidden)?,
        compressed: device.buffer(rows * shape.query_rank)?,
        q: device.buffer(rows * width)?,
        k: device.buffer(rows * shape.head_dim)?,
        v: device.buffer(rows * shape.head_dim)?,
        attended: device.buffer(rows * width)?,
        projected: device.buffer(rows * shape.hidden)?,
    })
}

/// The CPU's table, of as many positions as the device has KV for.
fn rope_table(context: &BuildContext<'_>, device: &CudaDevice) -> Result<DeviceSlice<f32>, CudaError> {
    let (shape, planner) = (context.shape, context.planner);
    let positions = shape.max_positions.min(planner.pages_per_device as usize * planner.page_tokens);
    let d = shape.head_dim;
    let frequencies = rope::frequencies(d, shape.rope_theta);
    let mut table = vec![0.0; positions * d];
    for (position, row) in table.chunks_exact_mut(d).enumerate() {
        rope::write_angles(position, &frequencies, row);
    }
    device.copied(&table)
}

fn load_layer(
    context: &BuildContext<'_>,
    device: &CudaDevice,
    layer: usize,
    fast: &mut Option<FastAttention>,
) -> Result<Layer, LoadError> {
    let ModelShape { hidden, query_rank, head_dim, heads, .. } = *context.shape;
    let vector = |name: &str, len| load::vector(context, device, &format!("model.layers.{layer}.{name}.weight"), len);
    let matrix = |name: &str, rows, cols| {
        load::matrix(context, device, &format!("model.layers.{layer}.self_attn.{name}.weight"), rows, cols)
    };
    let (width, planner) = (heads * head_dim, context.planner);
    // One more, for rows that pad.
    let pages = planner.pages_per_device as usize;
    let kv = KvPages::new(device.machine(), pages + 1, planner.page_tokens, head_dim, kv_format(context))?;
    let (kv, calls) = match fast {
        Some(fast) => fast.layer(device, kv)?,
        None => (kv, Vec::new()),
    };
    Ok(Layer {
        input_norm: vector("input_layernorm", hidden)?,
        q_proj: matrix("q_proj", query_rank, hidden)?,
        inter_norm: vector("self_attn.inter_norm", query_rank)?,
        wq: matrix("wq", width, query_rank)?,
        k_proj: matrix("k_proj", head_dim, hidden)?,
        v_proj: matrix("v_proj", head_dim, hidden)?,
        o_proj: matrix("o_proj", hidden, width)?,
        post_norm: vector("post_attention_layernorm", hidden)?,
        kv,
        calls,
    })
}

impl Stage for MfaAttention {
    fn pretend(&mut self) -> Result<bool, StageError> {
        let Kernels { device, layers, .. } = &self.kernels;
        let filled = layers.iter().try_for_each(|layer| layer.kv.pretend(device.machine()));
        filled.map(|()| true).map_err(device.fault())
    }

    fn run(&mut self, task: &mut TaskContext<'_>) -> Result<(), StageError> {
        let Self { captured, kernels, most, first_layer } = self;
        if let Some(fast) = kernels.fast.as_mut().filter(|_| task.layer == *first_layer) {
            fast.plan(&kernels.device, task).map_err(kernels.device.fault())?;
        }
        let which = Which::of(task);
        let rows = (task.batch.rows, *most);
        let done = captured.run(&kernels.device, which, rows, |rows| kernels.enqueue(which, rows));
        done.map_err(kernels.device.fault())
    }
}

impl Kernels {
    fn enqueue(&self, which: Which, rows: usize) -> Result<(), CudaError> {
        let layer = self.layers.at(which.layer);
        let (ops, values, to) = (self.device.ops(), self.device.values(which.micro_batch), &self.buffers);
        let (hidden, eps) = (self.hidden, self.eps);
        ops.rms_norm(&values.x, None, rows, &layer.input_norm, eps, &to.normed)?;
        ops.matmul(&to.normed, rows, &layer.q_proj, &to.compressed)?;
        ops.rms_norm(&to.compressed, None, rows, &layer.inter_norm, eps, &to.compressed)?;
        ops.matmul(&to.compressed, rows, &layer.wq, &to.q)?;
        ops.matmul(&to.normed, rows, &layer.k_proj, &to.k)?;
        ops.matmul(&to.normed, rows, &layer.v_proj, &to.v)?;
        ops.rope_append(&to.q, &to.k, &to.v, &self.rope, rows, self.heads, &values.paged, &layer.kv)?;
        match &self.fast {
            Some(fast) => fast.attend(&self.device, &layer.calls[which.micro_batch], &to.q, rows, &to.attended)?,
            None => ops.attention(&to.q, rows, self.heads, &values.paged, &layer.kv, &to.attended)?,
        }
        ops.matmul(&to.attended, rows, &layer.o_proj, &to.projected)?;
        ops.add(&values.x, &to.projected, rows, hidden)?;
        ops.rms_norm(&values.x, None, rows, &layer.post_norm, eps, &values.u)
    }
}
