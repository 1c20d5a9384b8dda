//! Opening a graph file: its bytes, every fault in them, and the shapes of its model.
//!
//! Opens no weights and no device. Paths in a graph are relative to its own file; `--model` replaces the graph's model.

use crate::doctor;
use crate::error::CliError;
use crate::report;
use rally_graph::diagnostic::{Diagnostic, Reporter};
use rally_graph::hardware::Machine;
use rally_graph::kinds::KindRegistry;
use rally_graph::model::ModelShape;
use rally_graph::parse::{MAX_BYTES, parse_graph};
use rally_graph::source::Positions;
use rally_graph::spec::{DeploymentSpec, ModelSource};
use rally_graph::validate::{Validation, validate};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// A graph without errors, and its model.
pub struct Opened {
    /// The graph.
    pub spec: DeploymentSpec,
    /// Shapes of the model.
    pub shape: ModelShape,
    /// The model's folder; `None` where the graph has a configuration and a rule that makes weights.
    pub model_folder: Option<PathBuf>,
}

/// All that can be said about a graph file.
pub struct Checked {
    /// The deployment; absent where the file has faults of form.
    pub spec: Option<DeploymentSpec>,
    /// Shapes of the model; absent where they cannot be read.
    pub shape: Option<ModelShape>,
    /// The model's folder, if it has one.
    pub model_folder: Option<PathBuf>,
    /// Every fault and warning, in the order of the file.
    pub diagnostics: Vec<Diagnostic>,
    /// The file's text and places.
    pub positions: Positions,
}

impl Checked {
    /// Whether there is no error (there may be warnings).
    pub fn is_good(&self) -> bool {
        !self.diagnostics.iter().any(Diagnostic::is_error)
    }
}

/// Opens a graph that must be good: prints what there is to say to stderr, and fails if any of it is an error.
pub fn open(path: &Path, model: Option<&Path>) -> Result<Opened, CliError> {
    let checked = check(path, model);
    report::print(path, checked.positions.text(), &checked.diagnostics);
    if !checked.is_good() {
        return Err(CliError::Reported);
    }
    match (checked.spec, checked.shape) {
        (Some(spec), Some(shape)) => Ok(Opened { spec, shape, model_folder: checked.model_folder }),
        _ => Err(CliError::Failure(format!("{}: no error was reported, but there is no graph", path.display()))),
    }
}

/// Reads and judges a graph file. Whatever is wrong, unreadable files included, is among the diagnostics.
pub fn check(path: &Path, model: Option<&Path>) -> Checked {
    let registry = KindRegistry::shared();
    let bytes = match read(path) {
        Ok(bytes) => bytes,
        Err(error) => return unreadable(path, &error),
    };
    let parsed = parse_graph(&bytes, registry);
    let (positions, mut diagnostics) = (parsed.positions, parsed.diagnostics);
    let Some(spec) = parsed.spec else {
        return Checked { spec: None, shape: None, model_folder: None, diagnostics, positions };
    };
    let (config, model_folder) = locate_model(path, &spec, model);
    let shape = match rally_stages::config::load_model_shape(&config) {
        Ok(shape) => Some(shape),
        Err(error) => {
            diagnostics.extend(model_fault(&positions, &spec, model, &error.to_string()));
            None
        }
    };
    let validation =
        Validation { spec: &spec, positions: &positions, registry, shape: shape.as_ref(), machine: this_machine() };
    diagnostics.extend(validate(&validation));
    diagnostics.sort_by_key(|diagnostic| diagnostic.span.start);
    Checked { spec: Some(spec), shape, model_folder, diagnostics, positions }
}

/// What the machine that runs this program has.
pub fn this_machine() -> Machine {
    Machine { cores: Some(online_cores()), memory_bytes: doctor::memory_bytes() }
}

/// Cores of the machine, which may be more than this process may use: a pinned lane names a core of the machine.
fn online_cores() -> usize {
    let last = std::fs::read_to_string("/sys/devices/system/cpu/online").ok().and_then(|text| {
        let last = text.trim().rsplit(['-', ',']).next()?.parse::<usize>().ok()?;
        Some(last + 1)
    });
    last.unwrap_or_else(doctor::available_cores)
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

fn unreadable(path: &Path, error: &io::Error) -> Checked {
    let positions = Positions::default();
    let mut reporter = Reporter::new(&positions);
    reporter.error("file-unreadable", "", format!("the graph file {} cannot be read: {error}", path.display()));
    let diagnostics = reporter.finish();
    Checked { spec: None, shape: None, model_folder: None, diagnostics, positions }
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
