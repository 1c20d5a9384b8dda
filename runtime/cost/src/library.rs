//! The specs that come with rally, and how a name or a path becomes one.
//!
//! The files themselves are `models/*.json` and `hardware/*.json` of this crate, compiled in. A user's own file is read by path.

use crate::{Hardware, Model, SpecError};
use rally_graph::words;
use std::path::Path;
use std::sync::LazyLock;

macro_rules! files {
    ($folder:literal: $($name:literal),+) => {
        [$((concat!($folder, "/", $name, ".json"), include_str!(concat!("../", $folder, "/", $name, ".json")))),+]
    };
}

/// In the order in which the report's tables have them.
const MODELS: [(&str, &str); 9] = files!("models": "dsv3", "kimi-k2", "qwen3-moe", "qwen3-32b", "llama-4-maverick", "minimax-m1",
    "ernie-4.5", "pangu-pro", "step-3");

/// Those of the report's table 4 first.
const HARDWARE: [(&str, &str); 9] =
    files!("hardware": "h800", "h20", "a800", "910b", "h100", "h200", "b200", "l20", "l4");

/// The hardware that the report compares.
pub const REPORT_HARDWARE: [&str; 4] = ["H800", "H20", "A800", "910B"];

/// All models that come with rally.
pub fn models() -> &'static [Model] {
    static ALL: LazyLock<Vec<Model>> = LazyLock::new(|| parsed(&MODELS, Model::parse));
    &ALL
}

/// All accelerators that come with rally.
pub fn hardware() -> &'static [Hardware] {
    static ALL: LazyLock<Vec<Hardware>> = LazyLock::new(|| parsed(&HARDWARE, Hardware::parse));
    &ALL
}

fn parsed<T>(files: &[(&str, &str)], parse: fn(&str, &Path) -> Result<T, SpecError>) -> Vec<T> {
    let all = files.iter().map(|(file, text)| parse(text, Path::new(file)));
    all.collect::<Result<_, _>>().expect("a test reads every file that is compiled in")
}

/// The accelerator of that name in the library, or of the file at that path.
///
/// # Errors
/// [`SpecError`]: no such name, with the nearest; or what is wrong with the file.
pub fn hardware_named(name: &str) -> Result<Hardware, SpecError> {
    if is_path(name) {
        let file = Path::new(name);
        return Hardware::parse(&read(file)?, file);
    }
    let known = hardware().iter().find(|hardware| hardware.is_called(name)).cloned();
    known.ok_or_else(|| unknown("hardware", name, hardware().iter().map(|hardware| hardware.name.as_str())))
}

/// The model of that name in the library, or of the file at that path: a spec, a Hugging Face `config.json`, or its folder.
///
/// # Errors
/// [`SpecError`]: no such name, with the nearest; or what is wrong with the file.
pub fn model_named(name: &str) -> Result<Model, SpecError> {
    let known = models().iter().find(|model| model.name.eq_ignore_ascii_case(name)).cloned();
    if let Some(model) = known {
        return Ok(model);
    }
    let path = Path::new(name);
    if is_path(name) || path.is_dir() {
        let file = if path.is_dir() { path.join("config.json") } else { path.into() };
        return Model::parse(&read(&file)?, &file);
    }
    Err(unknown("model", name, models().iter().map(|model| model.name.as_str())))
}

fn is_path(name: &str) -> bool {
    name.ends_with(".json") || name.contains('/')
}

fn unknown<'a>(what: &'static str, name: &str, known: impl Iterator<Item = &'a str> + Clone) -> SpecError {
    SpecError::UnknownName { what, name: words::printable(&words::short(name)), help: words::suggest(name, known) }
}

/// Largest spec that is read; real ones have a few kilobytes.
const MOST_BYTES: u64 = 4 << 20;

fn read(file: &Path) -> Result<String, SpecError> {
    let io = |source| SpecError::Io { file: file.into(), source };
    let metadata = std::fs::metadata(file).map_err(io)?;
    // Opening a pipe would wait for a writer.
    if !metadata.is_file() || metadata.len() > MOST_BYTES {
        let message = format!("not a regular file of at most {}", words::bytes(MOST_BYTES));
        return Err(io(std::io::Error::new(std::io::ErrorKind::InvalidInput, message)));
    }
    std::fs::read_to_string(file).map_err(io)
}
