//! Which kind makes which stage. User kinds register here beside the built-in ones.

use super::{combine, embed, ffn, mfa_attention, router, sampling};
use crate::checkpoint::{CheckpointError, Part, WeightSource};
use rally_engine::schedule::planner::PlannerConfig;
use rally_engine::stage::Stage;
use rally_graph::model::ModelShape;
use rally_graph::stage_graph::{DeviceIndex, ResolvedStage};
use rally_kernels::matrix::Matrix;
use std::collections::HashMap;
use std::sync::Arc;

/// Everything a stage may need to know to be made for one device.
pub struct BuildContext<'a> {
    /// The stage, names resolved.
    pub stage: &'a ResolvedStage,
    /// The device it is made for.
    pub device: DeviceIndex,
    /// Layers it runs in, ascending; empty outside the layers.
    pub layers: Vec<usize>,
    /// Shapes of the model.
    pub shape: &'a ModelShape,
    /// Where weights come from.
    pub weights: &'a dyn WeightSource,
    /// Sizes that batches keep to.
    pub planner: PlannerConfig,
    /// Attention devices of the deployment.
    pub attention_devices: usize,
    /// Devices that this one exchanges rows with inside the stage, itself among them; empty where it works alone.
    pub peers: Vec<DeviceIndex>,
    /// Matrices that several stages of this device share, by tensor name.
    pub shared: &'a mut HashMap<String, Arc<Matrix>>,
    /// The device, if its backend is CUDA.
    #[cfg(feature = "cuda")]
    pub cuda: Option<Arc<super::cuda::CudaDevice>>,
}

impl<'a> BuildContext<'a> {
    /// For a stage outside any graph: one device, small batches.
    pub fn standalone(
        stage: &'a ResolvedStage,
        layers: Vec<usize>,
        shape: &'a ModelShape,
        weights: &'a dyn WeightSource,
        shared: &'a mut HashMap<String, Arc<Matrix>>,
    ) -> Self {
        let planner = PlannerConfig {
            micro_batches: 1,
            devices: 1,
            sequences: 16,
            sequences_per_device: 16,
            rows_per_device: 64,
            rows_per_micro_batch: 64,
            prefill_chunk: 64,
            pages_per_device: 64,
            page_tokens: 64,
            max_positions: shape.max_positions,
        };
        Self {
            stage,
            device: 0,
            layers,
            shape,
            weights,
            planner,
            attention_devices: 1,
            peers: Vec::new(),
            shared,
            #[cfg(feature = "cuda")]
            cuda: None,
        }
    }

    /// Most rows of a micro-batch on a device that holds sequences.
    pub fn attention_rows(&self) -> usize {
        self.planner.rows_per_device
    }

    /// Most rows of a micro-batch on a device that may get those of every attention device.
    pub fn gathered_rows(&self) -> usize {
        self.planner.rows_per_device * self.attention_devices
    }

    /// The whole of a matrix.
    pub fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Matrix, CheckpointError> {
        self.weights.matrix(name, rows, cols, Part::all(rows, cols))
    }

    /// The whole of a matrix that other stages of this device may hold as well: read once.
    pub fn shared_matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<Arc<Matrix>, CheckpointError> {
        if let Some(matrix) = self.shared.get(name) {
            return Ok(Arc::clone(matrix));
        }
        let matrix = Arc::new(self.matrix(name, rows, cols)?);
        self.shared.insert(name.into(), Arc::clone(&matrix));
        Ok(matrix)
    }
}

/// Why a stage could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A weight is missing or wrong.
    #[error(transparent)]
    Weights(#[from] CheckpointError),
    /// A device cannot take a stage.
    #[error("{device}: {message}")]
    Device {
        /// What the device is.
        device: String,
        /// Why not, and what would help.
        message: String,
    },
    /// No factory for a kind.
    #[error("no implementation is registered for stage kind `{kind}`")]
    UnknownKind {
        /// The kind.
        kind: String,
    },
}

/// Makes a stage for a device.
pub type StageFactory = Box<dyn Fn(&mut BuildContext<'_>) -> Result<Box<dyn Stage>, BuildError> + Send + Sync>;

/// Factories by kind.
pub struct StageRegistry {
    factories: HashMap<String, StageFactory>,
}

impl StageRegistry {
    /// The built-in kinds.
    pub fn builtin() -> Self {
        let mut registry = Self { factories: HashMap::new() };
        registry.register("embed", Box::new(embed::build));
        registry.register("mfa_attention", Box::new(mfa_attention::build));
        registry.register("router", Box::new(router::build));
        registry.register("expert_ffn", Box::new(ffn::build_expert));
        registry.register("dense_ffn", Box::new(ffn::build_dense));
        registry.register("combine", Box::new(combine::build));
        registry.register("sampling", Box::new(sampling::build));
        registry
    }

    /// Adds a kind, or replaces one.
    pub fn register(&mut self, kind: &str, factory: StageFactory) {
        self.factories.insert(kind.into(), factory);
    }

    /// Makes the stage of `context`.
    pub fn build(&self, context: &mut BuildContext<'_>) -> Result<Box<dyn Stage>, BuildError> {
        #[cfg(feature = "cuda")]
        if let Some(device) = context.cuda.clone() {
            return super::cuda::build(context, &device);
        }
        let kind = &context.stage.kind;
        let factory = self.factories.get(kind).ok_or_else(|| BuildError::UnknownKind { kind: kind.clone() })?;
        factory(context)
    }
}
