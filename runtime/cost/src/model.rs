//! A decoder as counting needs it: the kinds of its layers, their widths, and in what its cache is kept.

mod attention;
mod config;

use crate::fields::{self, Fields};
use crate::{Dtype, SpecError};
use std::path::Path;

pub use attention::Attention;

/// The FFN of a layer. Matrices are three: gate, up and down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ffn {
    /// One, of this inner width.
    Dense {
        /// Inner width.
        width: u64,
    },
    /// Routed experts, and shared ones that every token passes.
    Moe {
        /// Routed experts there are.
        experts: u64,
        /// Routed experts that a token passes.
        top_k: u64,
        /// Inner width of a routed expert.
        expert_width: u64,
        /// Inner width of all shared experts together; 0 for none.
        shared_width: u64,
    },
}

impl Ffn {
    /// Inner width that a token passes.
    pub fn active_width(self) -> u64 {
        match self {
            Self::Dense { width } => width,
            Self::Moe { top_k, expert_width, shared_width, .. } => top_k * expert_width + shared_width,
        }
    }

    /// Inner width there is.
    pub fn total_width(self) -> u64 {
        match self {
            Self::Dense { width } => width,
            Self::Moe { experts, expert_width, shared_width, .. } => experts * expert_width + shared_width,
        }
    }

    /// Share of its weights that a token passes: (k + shared) / (E + shared), 1 for a dense one.
    pub fn sparsity(self) -> f64 {
        self.active_width() as f64 / self.total_width() as f64
    }

    /// Weights, without the router.
    pub fn parameters(self, hidden: u64) -> f64 {
        3.0 * hidden as f64 * self.total_width() as f64
    }
}

/// Equal layers.
#[derive(Clone, Debug, PartialEq)]
pub struct Layers {
    /// How many.
    pub count: u64,
    /// Their attention.
    pub attention: Attention,
    /// Their FFN.
    pub ffn: Ffn,
}

/// In what a model's cache is kept, by kind of attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvDtypes {
    /// Keys and values of the whole context.
    pub full: Dtype,
    /// Keys and values of a window or chunk.
    pub window: Dtype,
    /// A recurrent state.
    pub state: Dtype,
}

impl Default for KvDtypes {
    /// 8 bits, and a state in full precision, since it sums over the whole past.
    fn default() -> Self {
        Self { full: Dtype::Fp8, window: Dtype::Fp8, state: Dtype::F32 }
    }
}

/// Shapes of a decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// As reports name it.
    pub name: String,
    /// Where the shapes are from.
    pub source: Option<String>,
    /// Width of the residual stream.
    pub hidden: u64,
    /// Rows of the embedding and of the head.
    pub vocab: u64,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// What its cache is kept in.
    pub kv_dtypes: KvDtypes,
    /// Its layers by kind, in no order.
    pub layers: Vec<Layers>,
}

impl Model {
    /// Parses a spec (`name`, `source`, `kv_dtype`, `config`) or a bare Hugging Face `config.json`; `file` names the model in the
    /// second case, and the place of errors in both.
    ///
    /// # Errors
    /// [`SpecError`] naming file and key. Unknown keys are refused in a spec and left alone in a `config.json`.
    pub fn parse(text: &str, file: &Path) -> Result<Self, SpecError> {
        let root = fields::parse(text, file)?;
        let fields = Fields::new(&root, file)?;
        let Some(inner) = fields.object("config")? else {
            return config::read(&fields, name_of(file));
        };
        fields.only(&["name", "source", "kv_dtype", "kv_dtype_source", "config"])?;
        let name = fields.text("name")?.ok_or_else(|| fields.missing("name", "reports need something to call it"))?;
        let mut model = config::read(&inner, name.into())?;
        model.source = fields.text("source")?.map(str::to_owned);
        model.kv_dtypes = kv_dtypes(&fields)?;
        fields.text("kv_dtype_source")?;
        Ok(model)
    }

    /// Keeps all keys and values in `dtype`; a state stays as it is.
    pub fn keep_kv_in(&mut self, dtype: Dtype) {
        (self.kv_dtypes.full, self.kv_dtypes.window) = (dtype, dtype);
    }

    /// Number of layers.
    pub fn layer_count(&self) -> u64 {
        self.layers.iter().map(|layers| layers.count).sum()
    }

    /// Weights: layers with their routers, embedding and head; norms and biases are left out.
    pub fn parameters(&self) -> f64 {
        let embedding = self.hidden as f64 * self.vocab as f64;
        let routers = self.sum(|layers| match layers.ffn {
            Ffn::Moe { experts, .. } => experts as f64 * self.hidden as f64,
            Ffn::Dense { .. } => 0.0,
        });
        self.attention_parameters()
            + self.ffn_parameters()
            + routers
            + if self.tied { embedding } else { 2.0 * embedding }
    }

    /// Weights that a token passes: projections, its experts, the head.
    pub fn active_parameters(&self) -> f64 {
        self.attention_parameters() + self.ffn_active_parameters() + self.hidden as f64 * self.vocab as f64
    }

    /// Weights of the attentions' projections.
    pub fn attention_parameters(&self) -> f64 {
        self.sum(|layers| layers.attention.parameters(self.hidden))
    }

    /// The same that one accelerator of `o_proj` holds, which divide the output projections: all of the others.
    pub fn attention_parameters_each(&self, o_proj: f64) -> f64 {
        self.sum(|layers| {
            let attention = &layers.attention;
            attention.input_parameters(self.hidden) + attention.output_parameters(self.hidden) / o_proj
        })
    }

    /// Inputs of a layer's output projection, a mean over the layers.
    pub fn output_width(&self) -> f64 {
        let widths = self.sum(|layers| layers.attention.output_parameters(self.hidden));
        widths / self.hidden as f64 / self.layer_count() as f64
    }

    /// Weights of the FFNs that a token passes, routers left out.
    pub fn ffn_active_parameters(&self) -> f64 {
        self.sum(|layers| 3.0 * self.hidden as f64 * layers.ffn.active_width() as f64)
    }

    /// Weights of all FFNs, routers left out.
    pub fn ffn_parameters(&self) -> f64 {
        self.sum(|layers| layers.ffn.parameters(self.hidden))
    }

    /// Least share of an FFN's weights that a token passes, over the layers.
    pub fn sparsity(&self) -> f64 {
        self.layers.iter().map(|layers| layers.ffn.sparsity()).fold(1.0, f64::min)
    }

    /// The sum of something over all layers.
    pub fn sum(&self, of: impl FnMut(&Layers) -> f64) -> f64 {
        let mut of = of;
        self.layers.iter().map(|layers| layers.count as f64 * of(layers)).sum()
    }
}

/// `config.json` says nothing: then it is the folder that names the model.
fn name_of(file: &Path) -> String {
    let stem = file.file_stem().unwrap_or_default();
    let folder = file.parent().and_then(Path::file_name).filter(|_| stem == "config");
    folder.unwrap_or(stem).to_string_lossy().into_owned()
}

fn kv_dtypes(fields: &Fields<'_>) -> Result<KvDtypes, SpecError> {
    let mut dtypes = KvDtypes::default();
    let Some(inner) = fields.object("kv_dtype")? else { return Ok(dtypes) };
    inner.only(&["full", "window", "state"])?;
    for (key, dtype) in [("full", &mut dtypes.full), ("window", &mut dtypes.window), ("state", &mut dtypes.state)] {
        let Some(value) = inner.find(key) else { continue };
        let named = value.as_str().and_then(Dtype::named);
        let names = Dtype::ALL.map(Dtype::name);
        *dtype = named.ok_or_else(|| inner.invalid(key, value, rally_graph::words::list(&names)))?;
    }
    Ok(dtypes)
}
