//! Opening a graph file.

use crate::error::{Blame, CliError};
use rally_graph::model::ModelShape;
use rally_graph::spec::{DeploymentSpec, ModelSource};
use std::path::{Path, PathBuf};

/// A graph with its model.
pub struct Opened {
    /// The graph.
    pub spec: DeploymentSpec,
    /// Shapes of the model.
    pub shape: ModelShape,
    /// The model's folder.
    pub model_folder: Option<PathBuf>,
}

/// Opens it.
pub fn open(path: &Path, model: Option<&Path>) -> Result<Opened, CliError> {
    let text = std::fs::read_to_string(path).or_mistake()?;
    let spec: DeploymentSpec = serde_json::from_str(&text).or_mistake()?;
    let base = path.parent().unwrap_or(Path::new("."));
    let folder = match (model, &spec.model) {
        (Some(model), _) => Some(model.to_owned()),
        (None, ModelSource::Folder(folder)) => Some(base.join(folder)),
        (None, ModelSource::Config(_)) => None,
    };
    let config = match (&folder, &spec.model) {
        (Some(folder), _) => folder.clone(),
        (None, ModelSource::Config(source)) => base.join(&source.config),
        _ => unreachable!(),
    };
    let shape = rally_stages::config::load_model_shape(&config).or_mistake()?;
    Ok(Opened { spec, shape, model_folder: folder })
}
