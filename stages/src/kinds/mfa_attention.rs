//! `mfa_attention`: norm, low-rank query, one key and one value head, rope, KV append, attention, output projection, x += o,
//! and the norm that makes the FFN's input u (Step-3 paper, section 4; `spec` of the layer in the crate's documentation).
//!
//! It keeps K and V of every layer it runs in, in pages. All rows of a chunk are stored before any is attended, and attention
//! reads them as stored, so a chunk's size changes no bit. With `shard.o_proj` the output projection is split over a group's
//! devices (`o_proj.rs`).
//!
//! Weights of layer N: `input_layernorm`, `self_attn.{q_proj, inter_norm, wq, k_proj, v_proj, o_proj}`,
//! `post_attention_layernorm`.

use super::layers::Layers;
use super::o_proj::Split;
use super::registry::{BuildContext, BuildError};
use crate::checkpoint::Part;
use rally_engine::exchange::ExchangeSize;
use rally_engine::slot::storage_dtype;
use rally_engine::stage::{Stage, StageError, TaskContext};
use rally_graph::model::ModelShape;
use rally_kernels::activation::add_in_place;
use rally_kernels::attention::{AttentionScratch, mfa_attention_chunk};
use rally_kernels::kv::KvPool;
use rally_kernels::linear::linear;
use rally_kernels::matrix::Matrix;
use rally_kernels::norm::{rms_norm, rms_norm_in_place};
use rally_kernels::rope::RopeTable;

struct Layer {
    input_norm: Vec<f32>,
    q_proj: Matrix,
    inter_norm: Vec<f32>,
    wq: Matrix,
    k_proj: Matrix,
    v_proj: Matrix,
    o_proj: Matrix,
    post_norm: Vec<f32>,
    kv: KvPool,
}

struct MfaAttention {
    layers: Layers<Layer>,
    rope: RopeTable,
    heads: usize,
    head_dim: usize,
    eps: f32,
    page_tokens: usize,
    normed: Vec<f32>,
    compressed: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    attended: Vec<f32>,
    projected: Vec<f32>,
    split: Option<Split>,
    scratch: AttentionScratch,
}

pub(super) fn build(context: &mut BuildContext<'_>) -> Result<Box<dyn Stage>, BuildError> {
    let shape = context.shape;
    let split = Split::of(context);
    let layers = Layers::make(context, |layer| load_layer(context, layer, split.as_ref()))?;
    let (rows, width) = (context.attention_rows(), shape.heads * shape.head_dim);
    Ok(Box::new(MfaAttention {
        layers,
        rope: RopeTable::new(shape.head_dim, shape.rope_theta, shape.max_positions),
        heads: shape.heads,
        head_dim: shape.head_dim,
        eps: shape.rms_norm_eps,
        page_tokens: context.planner.page_tokens,
        normed: vec![0.0; rows * shape.hidden],
        compressed: vec![0.0; rows * shape.query_rank],
        q: vec![0.0; rows * width],
        k: vec![0.0; rows * shape.head_dim],
        v: vec![0.0; rows * shape.head_dim],
        attended: vec![0.0; rows * width],
        projected: vec![0.0; rows * shape.hidden],
        split,
        scratch: AttentionScratch::default(),
    }))
}

fn load_layer(context: &BuildContext<'_>, layer: usize, split: Option<&Split>) -> Result<Layer, BuildError> {
    let ModelShape { hidden, query_rank, head_dim, heads, .. } = *context.shape;
    let vector = |name: &str, len| context.weights.vector(&format!("model.layers.{layer}.{name}.weight"), len);
    let matrix =
        |name: &str, rows, cols| context.matrix(&format!("model.layers.{layer}.self_attn.{name}.weight"), rows, cols);
    let width = heads * head_dim;
    let columns = split.map_or(0..width, Split::columns);
    let o_proj = format!("model.layers.{layer}.self_attn.o_proj.weight");
    let dtype = storage_dtype(context.stage.spec.kv_dtype.unwrap_or_default());
    let pages = context.planner.pages_per_device as usize;
    Ok(Layer {
        input_norm: vector("input_layernorm", hidden)?,
        q_proj: matrix("q_proj", query_rank, hidden)?,
        inter_norm: vector("self_attn.inter_norm", query_rank)?,
        wq: matrix("wq", width, query_rank)?,
        k_proj: matrix("k_proj", head_dim, hidden)?,
        v_proj: matrix("v_proj", head_dim, hidden)?,
        o_proj: context.weights.matrix(&o_proj, hidden, width, Part::cols(hidden, columns))?,
        post_norm: vector("post_attention_layernorm", hidden)?,
        kv: KvPool::new(pages, context.planner.page_tokens, head_dim, head_dim, dtype),
    })
}

impl Stage for MfaAttention {
    fn run(&mut self, task: &mut TaskContext<'_>) -> Result<(), StageError> {
        match task.exchange.part() {
            0 => {
                self.project(task);
                self.append(task);
                self.attend(task);
                if let Some(split) = &mut self.split {
                    return split.send_slices(task, &self.attended);
                }
                self.project_out(task);
            }
            1 => return self.project_slice(task),
            _ => {
                let split = self.split.as_mut().ok_or(StageError::NoExchange)?;
                split.sum(task, &mut self.projected)?;
            }
        }
        self.finish(task);
        Ok(())
    }

    fn exchanges(&self) -> Vec<ExchangeSize> {
        self.split.as_ref().map(Split::exchanges).unwrap_or_default()
    }
}

impl MfaAttention {
    /// x to q, k and v.
    fn project(&mut self, task: &TaskContext<'_>) {
        let layer = self.layers.at(task.layer);
        let (rows, hidden) = (task.batch.rows, task.values.widths.hidden);
        let normed = &mut self.normed[..rows * hidden];
        rms_norm(&task.values.x[..rows * hidden], rows, &layer.input_norm, self.eps, normed);
        let compressed = &mut self.compressed[..rows * layer.q_proj.rows()];
        linear(task.team, normed, rows, &layer.q_proj, compressed);
        rms_norm_in_place(compressed, rows, &layer.inter_norm, self.eps);
        linear(task.team, compressed, rows, &layer.wq, &mut self.q[..rows * layer.wq.rows()]);
        linear(task.team, normed, rows, &layer.k_proj, &mut self.k[..rows * self.head_dim]);
        linear(task.team, normed, rows, &layer.v_proj, &mut self.v[..rows * self.head_dim]);
    }

    /// Rope, and every row's k and v into its page.
    fn append(&mut self, task: &TaskContext<'_>) {
        let layer = self.layers.at_mut(task.layer);
        let (d, width) = (self.head_dim, self.heads * self.head_dim);
        for group in &task.batch.groups {
            let pages = &task.batch.pages[group.pages.clone()];
            for (i, row) in group.row_range().enumerate() {
                let position = group.first_position + i;
                self.rope.apply(&mut self.q[row * width..(row + 1) * width], position);
                self.rope.apply(&mut self.k[row * d..(row + 1) * d], position);
                let (page, offset) = (pages[position / self.page_tokens], position % self.page_tokens);
                layer.kv.write(page, offset, &self.k[row * d..(row + 1) * d], &self.v[row * d..(row + 1) * d]);
            }
        }
    }

    fn attend(&mut self, task: &TaskContext<'_>) {
        let layer = self.layers.at(task.layer);
        let (heads, d) = (self.heads, self.head_dim);
        for group in &task.batch.groups {
            let pages = &task.batch.pages[group.pages.clone()];
            let range = group.first_row * heads * d..(group.first_row + group.rows) * heads * d;
            let (q, out) = (&self.q[range.clone()], &mut self.attended[range]);
            let (kv, context) = (&layer.kv, group.first_position + 1);
            mfa_attention_chunk(task.team, q, group.rows, heads, d, kv, pages, context, out, &mut self.scratch);
        }
    }

    fn project_out(&mut self, task: &TaskContext<'_>) {
        let layer = self.layers.at(task.layer);
        let (rows, hidden) = (task.batch.rows, task.values.widths.hidden);
        let attended = &self.attended[..rows * layer.wq.rows()];
        linear(task.team, attended, rows, &layer.o_proj, &mut self.projected[..rows * hidden]);
    }

    fn project_slice(&mut self, task: &TaskContext<'_>) -> Result<(), StageError> {
        let layer = self.layers.at(task.layer);
        let split = self.split.as_mut().ok_or(StageError::NoExchange)?;
        split.project(task, &layer.o_proj)
    }

    /// x += o, u.
    fn finish(&mut self, task: &mut TaskContext<'_>) {
        let layer = self.layers.at(task.layer);
        let (rows, hidden) = (task.batch.rows, task.values.widths.hidden);
        let x = &mut task.values.x[..rows * hidden];
        add_in_place(x, &self.projected[..rows * hidden]);
        rms_norm(x, rows, &layer.post_norm, self.eps, &mut task.values.u[..rows * hidden]);
    }
}
