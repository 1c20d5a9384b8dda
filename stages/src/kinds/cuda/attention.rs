//! `mfa_attention` on a CUDA device: the steps of its neighbour for the CPU, kernel by kernel.

use super::super::layers::Layers;
use super::super::registry::{BuildContext, BuildError};
use super::captured::{Captured, Which};
use super::device::CudaDevice;
use super::fault;
use super::load::{self, LoadError, stored};
use super::mfa::{FastAttention, FastLayer};
use super::o_proj::{self, Split};
use super::products::{Matrix, Rows};
use crate::checkpoint::Part;
use rally_cuda::CudaError;
use rally_cuda::memory::DeviceSlice;
use rally_cuda::mfa_append::{Appended, Projected};
use rally_cuda::ops::{KvPages, Stored};
use rally_cuda::tensor::{Angles, Norm, TensorMatrix, WIDTH_WITH_KEYS};
use rally_engine::exchange::ExchangeSize;
use rally_engine::slot::storage_dtype;
use rally_engine::stage::{Stage, StageError, TaskContext};
use rally_graph::model::ModelShape;
use rally_kernels::rope;
use std::sync::Arc;

struct Layer {
    input_norm: DeviceSlice<f32>,
    q_proj: Matrix,
    inter_norm: DeviceSlice<f32>,
    wq: Matrix,
    k_proj: Matrix,
    v_proj: Matrix,
    o_proj: Matrix,
    post_norm: DeviceSlice<f32>,
    kv: KvPages,
    /// With [`FastAttention`].
    fast: Option<FastLayer>,
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
    split: Option<Split>,
}

/// Of one micro-batch at a time.
struct Buffers {
    normed: Rows,
    compressed: DeviceSlice<f32>,
    /// `compressed`, normed.
    ranked: Rows,
    /// Empty where heads are rotated as they are made.
    q: DeviceSlice<f32>,
    k: DeviceSlice<f32>,
    v: DeviceSlice<f32>,
    /// Empty where the fast attention leaves bf16, and its next reader takes that.
    attended: DeviceSlice<f32>,
    /// `attended`, towards the output projection.
    out: Rows,
    /// Empty where the output projection adds to x itself.
    projected: DeviceSlice<f32>,
}

pub(super) fn build(context: &mut BuildContext<'_>, device: &Arc<CudaDevice>) -> Result<Box<dyn Stage>, BuildError> {
    let shape = context.shape;
    let mut fast = fast(context, device).map_err(fault(device))?;
    let layers = Layers::make(context, |layer| load_layer(context, device, layer, &mut fast));
    let layers = layers.map_err(LoadError::on(device))?;
    let first_layer = context.layers.first().copied().unwrap_or_default();
    let rope = rope_table(context, device).map_err(fault(device))?;
    let like = layers.iter().next();
    let split = Split::of(context, device, like.map(|layer: &Layer| &layer.o_proj)).map_err(fault(device))?;
    let buffers = buffers(context, device, like, (fast.is_some(), split.is_some())).map_err(fault(device))?;
    let (heads, hidden, eps) = (shape.heads, shape.hidden, shape.rms_norm_eps);
    let kernels = Kernels { device: Arc::clone(device), layers, heads, hidden, eps, rope, buffers, fast, split };
    let most = context.attention_rows();
    Ok(Box::new(MfaAttention { captured: Captured::default(), kernels, most, first_layer }))
}

/// Whether heads leave the product that makes them rotated, and keys and values go to their pages beside the norm before it.
fn rotates(device: &CudaDevice, wq: &TensorMatrix) -> bool {
    wq.cols() <= WIDTH_WITH_KEYS && !device.tensor().is_some_and(|tensor| tensor.groups(wq.stored()))
}

fn kv_format(context: &BuildContext<'_>) -> Stored {
    stored(storage_dtype(context.stage.spec.kv_dtype.unwrap_or_default()))
}

fn fast(context: &BuildContext<'_>, device: &CudaDevice) -> Result<Option<FastAttention>, CudaError> {
    let pages = (context.planner.page_tokens, kv_format(context));
    FastAttention::new(device, context.shape, pages, (context.attention_rows(), context.planner.micro_batches))
}

/// `like`: any layer, if there is one.
fn buffers(
    context: &BuildContext<'_>,
    device: &CudaDevice,
    like: Option<&Layer>,
    (is_fast, is_split): (bool, bool),
) -> Result<Buffers, CudaError> {
    let (shape, rows) = (context.shape, context.attention_rows());
    let width = shape.heads * shape.head_dim;
    let compressed = device.buffer(rows * shape.query_rank)?;
    let towards = |matrix: Option<&Matrix>, plain: &dyn Fn() -> Result<DeviceSlice<f32>, CudaError>| match matrix {
        Some(matrix) => Rows::towards(device, matrix, rows, plain),
        None => plain().map(Rows::Plain),
    };
    // Of what is split, the product has buffers of its own.
    let o_proj = like.filter(|_| !is_split).map(|layer| &layer.o_proj);
    let is_narrow = matches!(o_proj, Some(Matrix::Tensor(_)));
    let rotates_all = is_fast && matches!(like.map(|layer| &layer.wq), Some(Matrix::Tensor(wq)) if rotates(device, wq));
    let attended = device.buffer(if is_fast && is_narrow { 0 } else { rows * width })?;
    Ok(Buffers {
        normed: towards(like.map(|layer| &layer.q_proj), &|| device.buffer(rows * shape.hidden))?,
        ranked: towards(like.map(|layer| &layer.wq), &|| Ok(compressed.clone()))?,
        compressed,
        q: device.buffer(if rotates_all { 0 } else { rows * width })?,
        k: device.buffer(rows * shape.head_dim)?,
        v: device.buffer(rows * shape.head_dim)?,
        out: towards(o_proj, &|| Ok(attended.clone()))?,
        attended,
        projected: device.buffer(if is_narrow || is_split { 0 } else { rows * shape.hidden })?,
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
            .map(Arc::new)
    };
    let (width, planner) = (heads * head_dim, context.planner);
    // One more, for rows that pad.
    let pages = planner.pages_per_device as usize;
    let kv = KvPages::new(device.machine(), pages + 1, planner.page_tokens, head_dim, kv_format(context))?;
    let (kv, fast) = match fast {
        Some(fast) => fast.layer(device, kv).map(|(kv, layer)| (kv, Some(layer)))?,
        None => (kv, None),
    };
    let (o_proj, columns) = (format!("model.layers.{layer}.self_attn.o_proj.weight"), o_proj::columns(context, width));
    let o_proj = load::matrix_part(context, device, &o_proj, hidden, width, Part::cols(hidden, columns))?;
    let of_hidden = [
        matrix("q_proj", query_rank, hidden)?,
        matrix("k_proj", head_dim, hidden)?,
        matrix("v_proj", head_dim, hidden)?,
    ];
    let [q_proj, k_proj, v_proj] = Matrix::all(device, of_hidden)?;
    Ok(Layer {
        input_norm: vector("input_layernorm", hidden)?,
        q_proj,
        inter_norm: vector("self_attn.inter_norm", query_rank)?,
        wq: Matrix::one(device, matrix("wq", width, query_rank)?)?,
        k_proj,
        v_proj,
        o_proj: Matrix::one(device, Arc::new(o_proj))?,
        post_norm: vector("post_attention_layernorm", hidden)?,
        kv,
        fast,
    })
}

impl Stage for MfaAttention {
    fn pretend(&mut self) -> Result<bool, StageError> {
        let Kernels { device, layers, .. } = &self.kernels;
        let filled = layers.iter().try_for_each(|layer| layer.kv.pretend(device.machine()));
        filled.map(|()| true).map_err(device.fault())
    }

    fn exchanges(&self) -> Vec<ExchangeSize> {
        self.kernels.split.as_ref().map(Split::exchanges).unwrap_or_default()
    }

    fn run(&mut self, task: &mut TaskContext<'_>) -> Result<(), StageError> {
        let Self { captured, kernels, most, first_layer } = self;
        let device = Arc::clone(&kernels.device);
        let which = Which { form: task.exchange.part(), ..Which::of(task) };
        let rows = (task.batch.rows, *most);
        match (which.form, kernels.split.is_some()) {
            (0, _) => {
                if let Some(fast) = kernels.fast.as_mut().filter(|_| task.layer == *first_layer) {
                    fast.plan(&device, task).map_err(device.fault())?;
                }
                // Parts are 0 to 2.
                let readers = kernels.fast.as_ref().map_or(0, |fast| fast.readers(task.micro_batch).form());
                let which = Which { form: 4 * readers, ..which };
                let done = captured.run(&device, which, rows, |rows| kernels.attend(which, rows));
                done.map_err(device.fault())?;
                kernels.split.as_mut().map_or(Ok(()), |split| split.leave_slices(&device, task))
            }
            (1, true) => kernels.multiply_slice(captured, which, task),
            _ => {
                let split = kernels.split.as_ref().ok_or(StageError::NoExchange)?;
                split.take_parts(&device, task)?;
                let done = captured.run(&device, which, rows, |rows| kernels.finish(which, rows));
                done.map_err(device.fault())
            }
        }
    }
}

impl Kernels {
    /// All of it, or as far as what the slices of a split output projection are made from.
    fn attend(&self, which: Which, rows: usize) -> Result<(), CudaError> {
        let layer = self.layers.at(which.layer);
        let (device, to, eps) = (&*self.device, &self.buffers, self.eps);
        let (ops, values) = (device.ops(), device.values(which.micro_batch));
        to.normed.norm(device, &values.x, rows, &layer.input_norm, eps)?;
        let of_hidden = [(&layer.q_proj, &to.compressed), (&layer.k_proj, &to.k), (&layer.v_proj, &to.v)];
        to.normed.times_all(device, rows, of_hidden)?;
        let queries = || {
            to.ranked.norm(device, &to.compressed, rows, &layer.inter_norm, eps)?;
            to.ranked.times(device, rows, &layer.wq, &to.q)
        };
        match (&self.fast, &layer.fast) {
            (Some(fast), Some(fast_layer)) => {
                match (&to.ranked, &layer.wq) {
                    (Rows::Narrow(ranked), Matrix::Tensor(wq)) if rotates(device, wq) => {
                        let (table, at, kv) = (&self.rope, &values.paged, fast_layer.pages());
                        let keys = Appended { k: &to.k, v: &to.v, table, at, kv };
                        let norm = Norm { weight: &layer.inter_norm, eps, normed: None };
                        device.tensor_ops().narrow_appending(&to.compressed, rows, norm, ranked, keys)?;
                        let angles = Angles { table, positions: &at.positions };
                        device.tensor_ops().project_rotated(ranked, rows, wq, angles, &fast.rotated())?;
                    }
                    _ => {
                        queries()?;
                        let from = Projected { q: &to.q, k: &to.k, v: &to.v };
                        fast.append(fast_layer, rows, from, &self.rope, &values.paged)?;
                    }
                }
                fast.attend(fast_layer, which.micro_batch)?;
                match &to.out {
                    Rows::Narrow(narrowed) => fast.narrow(device, rows, narrowed)?,
                    Rows::Plain(plain) => fast.widen(device, rows, plain)?,
                }
            }
            _ => {
                queries()?;
                ops.rope_append(&to.q, &to.k, &to.v, &self.rope, rows, self.heads, &values.paged, &layer.kv)?;
                ops.attention(&to.q, rows, self.heads, &values.paged, &layer.kv, &to.attended)?;
                to.out.take(device, &to.attended, rows)?;
            }
        }
        if let Some(split) = &self.split {
            return split.pack(device, which.micro_batch, rows, &to.attended);
        }
        to.out.times_added(device, rows, &layer.o_proj, (&values.x, self.hidden), &to.projected)?;
        self.norm(which, rows)
    }

    /// The own slice with the rows of all peers.
    fn multiply_slice(
        &mut self,
        captured: &mut Captured,
        which: Which,
        task: &TaskContext<'_>,
    ) -> Result<(), StageError> {
        let (device, layer) = (Arc::clone(&self.device), self.layers.at(which.layer));
        let split = self.split.as_mut().ok_or(StageError::NoExchange)?;
        let rows = split.gather(&device, task)?;
        let done = captured.run(&device, which, (rows, split.most()), |rows| {
            split.multiply(&device, which.micro_batch, rows, &layer.o_proj)
        });
        done.map_err(device.fault())?;
        split.leave_parts(&device, task)
    }

    /// x += o out of its parts, u.
    fn finish(&self, which: Which, rows: usize) -> Result<(), CudaError> {
        if let Some(split) = &self.split {
            split.add(&self.device, rows, &self.device.values(which.micro_batch).x)?;
        }
        self.norm(which, rows)
    }

    /// x to u.
    fn norm(&self, which: Which, rows: usize) -> Result<(), CudaError> {
        let (layer, values) = (self.layers.at(which.layer), self.device.values(which.micro_batch));
        self.buffers.normed.norm_to(&self.device, &values.x, rows, (&layer.post_norm, self.eps), &values.u)
    }
}
