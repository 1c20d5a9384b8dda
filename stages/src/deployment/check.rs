//! Reading and judging a graph file together with the configuration of its model. Opens no weights and no device.
//!
//! Paths in a graph are relative to its own file; a model given from outside replaces the graph's.

use super::make_exact;
use crate::config::load_model_shape;
use rally_engine::schedule::costs::StageCosts;
use rally_graph::diagnostic::{Diagnostic, Reporter};
use rally_graph::hardware::Machine;
use rally_graph::kinds::KindRegistry;
use rally_graph::model::{ModelShape, layer_range};
use rally_graph::parse::{MAX_BYTES, parse_graph};
use rally_graph::source::Positions;
use rally_graph::spec::{DeploymentSpec, ModelConfigSource, ModelSource};
use rally_graph::validate::{Validation, validate};
use rally_graph::words;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// What replaces or adds to what the graph file says.
#[derive(Clone, Copy, Default)]
pub struct Choices<'a> {
    /// Model folder instead of the graph's.
    pub model: Option<&'a Path>,
    /// Every wire, KV cache and computation f32.
    pub exact: bool,
    /// Schedule instead of the graph's, as `POLICY[:N]`.
    pub schedule: Option<&'a str>,
    /// Measured stage costs for the policy `greedy`; the model's shapes stand in where nothing was measured.
    pub costs: Option<&'a StageCosts>,
    /// Kinds the graph may use; the built-in ones if absent.
    pub kinds: Option<&'a KindRegistry>,
    /// What the graph is held against: cores and memory of this machine.
    pub machine: Machine,
}

/// All that can be said about a graph file.
#[derive(Debug)]
pub struct Checked {
    /// The file.
    pub path: PathBuf,
    /// The deployment; absent where the file has faults of form.
    pub spec: Option<DeploymentSpec>,
    /// Shapes of the model; absent where they cannot be read.
    pub shape: Option<ModelShape>,
    /// Layers of the whole model, of which the graph may take a part; absent as `shape`.
    pub model_layers: Option<usize>,
    /// The model's folder; absent where weights are made by a rule.
    pub model_folder: Option<PathBuf>,
    /// Every fault and warning, in the order of the file.
    pub diagnostics: Vec<Diagnostic>,
    /// The file's text and places.
    pub positions: Positions,
}

impl Checked {
    fn nothing(path: &Path) -> Self {
        Self {
            path: path.into(),
            spec: None,
            shape: None,
            model_layers: None,
            model_folder: None,
            diagnostics: Vec::new(),
            positions: Positions::default(),
        }
    }

    /// Whether there is no error (there may be warnings).
    pub fn is_good(&self) -> bool {
        !self.diagnostics.iter().any(Diagnostic::is_error)
    }
}

/// Reads and judges a graph file. Whatever is wrong, unreadable files included, is among the diagnostics.
pub fn check_graph(path: &Path, choices: &Choices<'_>) -> Checked {
    match read(path) {
        Ok(bytes) => check_text(path, &bytes, choices),
        Err(error) => {
            let mut checked = Checked::nothing(path);
            let mut reporter = Reporter::new(&checked.positions);
            let message = format!("the graph file {} cannot be read: {error}", path.display());
            reporter.error("file-unreadable", "", message);
            checked.diagnostics = reporter.finish();
            checked
        }
    }
}

/// Judges a graph that was read already, or is no file: paths in it are relative to `path`.
pub fn check_text(path: &Path, bytes: &[u8], choices: &Choices<'_>) -> Checked {
    let registry = choices.kinds.unwrap_or(KindRegistry::shared());
    let mut checked = Checked::nothing(path);
    let parsed = parse_graph(bytes, registry);
    let whole = parsed.spec.is_some();
    let judgeable = parsed.judgeable().map(|(spec, touched)| (spec.clone(), touched));
    (checked.positions, checked.diagnostics) = (parsed.positions, parsed.diagnostics);
    let Some((mut spec, touched)) = judgeable else { return checked };
    if choices.exact {
        make_exact(&mut spec);
    }
    let (config, model_folder) = locate_model(path, &spec, choices.model);
    checked.model_folder = model_folder;
    match load_model_shape(&config) {
        Ok(shape) => {
            let all = shape.layers.len();
            checked.model_layers = Some(all);
            match part_of(shape, &spec, choices.model) {
                Ok(shape) => checked.shape = Some(shape),
                Err(asked) => checked.diagnostics.extend(no_such_layers(&checked.positions, &asked, all)),
            }
        }
        Err(error) => {
            let fault = model_fault(&checked.positions, &spec, choices.model, &error.to_string());
            let asked = |fault: &Diagnostic| choices.model.is_some() || !touched.covers(&fault.pointer);
            checked.diagnostics.extend(fault.into_iter().filter(asked));
        }
    }
    let (positions, shape, machine) = (&checked.positions, checked.shape.as_ref(), choices.machine);
    let validation = Validation { spec: &spec, positions, registry, shape, machine, touched: &touched };
    checked.diagnostics.extend(validate(&validation));
    checked.diagnostics.sort_by_key(|diagnostic| diagnostic.span.start);
    checked.spec = whole.then_some(spec);
    checked
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    if std::fs::metadata(path)?.is_dir() {
        return Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a folder"));
    }
    // One byte past the limit is enough to know that a file is too large.
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Where the configuration is, and the model's folder if it has one.
fn locate_model(path: &Path, spec: &DeploymentSpec, model: Option<&Path>) -> (PathBuf, Option<PathBuf>) {
    let base = path.parent().unwrap_or(Path::new(""));
    match (model, &spec.model) {
        (Some(folder), _) => (folder.to_owned(), Some(folder.to_owned())),
        (None, ModelSource::Folder(folder)) => (base.join(folder), Some(base.join(folder))),
        (None, ModelSource::Config(source)) => (base.join(&source.config), None),
    }
}

/// The layers that the graph asks for, all if it does not say; what it asked for if there are no such.
fn part_of(shape: ModelShape, spec: &DeploymentSpec, model: Option<&Path>) -> Result<ModelShape, String> {
    match &spec.model {
        ModelSource::Config(ModelConfigSource { layers: Some(text), .. }) if model.is_none() => {
            layer_range(text).and_then(|range| shape.of_layers(range)).ok_or_else(|| text.clone())
        }
        _ => Ok(shape),
    }
}

fn no_such_layers(positions: &Positions, asked: &str, all: usize) -> Vec<Diagnostic> {
    let mut reporter = Reporter::new(positions);
    let message = format!("`{}` are no layers of this model, which has {all}", words::short(asked));
    reporter
        .error("no-such-layers", "/model/layers", message)
        .with_help(format!("a number or an inclusive ascending range within `0..{}`", all.saturating_sub(1)));
    reporter.finish()
}

fn model_fault(positions: &Positions, spec: &DeploymentSpec, model: Option<&Path>, error: &str) -> Vec<Diagnostic> {
    let pointer = match (model, &spec.model) {
        (None, ModelSource::Config(_)) => "/model/config",
        _ => "/model",
    };
    let mut reporter = Reporter::new(positions);
    let added = reporter.error("model-unreadable", pointer, format!("the model cannot be used: {error}"));
    match (model, &spec.model) {
        (Some(_), _) => added.with_help("`--model` names a folder with `config.json`"),
        (None, ModelSource::Folder(_)) => added
            .with_help("`model` is a folder with `config.json`, relative to the graph file; `--model DIR` replaces it"),
        (None, ModelSource::Config(_)) => added.with_help("`config` is a `config.json`, relative to the graph file"),
    };
    reporter.finish()
}
