//! From bytes to a [`DeploymentSpec`], with every fault of form at once and the place of every value.
//!
//! It owns size, encoding, depth, JSON syntax and keys written twice; the shape of values (types, ranges, words, required and
//! unknown keys) is read off the generated schema in `walk.rs`. Rules that span two fields are [`crate::validate`]'s.

mod syntax;

use crate::diagnostic::{Diagnostic, Reporter};
use crate::kinds::KindRegistry;
use crate::repair::{self, Touched};
use crate::source::{Place, Positions, join};
use crate::spec::DeploymentSpec;
use crate::{schema, walk, words};
use jsonc_parser::ast::Value;
use std::collections::HashSet;
use std::ops::Range;

/// Largest graph file that is read. The largest sensible ones are a hundredth of it.
pub const MAX_BYTES: usize = 4 << 20;

/// Deepest nesting that is read: a graph file needs 6; the settings of a user's kind get the rest.
pub const MAX_DEPTH: usize = 64;

/// What parsing gives.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// The deployment; absent if there is any error.
    pub spec: Option<DeploymentSpec>,
    /// Where there are errors: the deployment with its faulty values put right somehow, so that
    /// [`validate`](crate::validate::validate) can judge the rest. Nothing else should use it.
    pub repaired: Option<(DeploymentSpec, Touched)>,
    /// All faults of form, in the order of the file.
    pub diagnostics: Vec<Diagnostic>,
    /// Where every value stands.
    pub positions: Positions,
}

/// Reads a graph file. Never panics; whatever is wrong comes back as diagnostics.
pub fn parse_graph(bytes: &[u8], registry: &KindRegistry) -> Parsed {
    let kept = &bytes[..bytes.len().min(MAX_BYTES)];
    let text = String::from_utf8_lossy(kept);
    let mut positions = Positions::new(&text);
    if let Some(diagnostics) = unreadable(bytes, &positions) {
        return Parsed { spec: None, repaired: None, diagnostics, positions };
    }
    // A byte order mark is no part of the text; spans keep counting from the start of the file.
    let offset = if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
    let body = &text[offset..];
    let ast = match syntax::parse_json(body) {
        Ok(ast) => ast,
        Err(fault) => {
            let diagnostics = report_syntax(fault, offset, &positions);
            return Parsed { spec: None, repaired: None, diagnostics, positions };
        }
    };
    let mut twice = Vec::new();
    locate(&ast, offset, &mut positions, &mut twice);
    let mut reporter = Reporter::new(&positions);
    report_twice(twice, &mut reporter);
    let schema = schema::deployment_schema(registry);
    let (repairs, touched) = walk::Walker::new(&schema, registry, &mut reporter).check(&ast);
    let full = reporter.is_full();
    let diagnostics = reporter.finish();
    if !diagnostics.is_empty() {
        let mut value = repair::to_json(&ast);
        repair::apply(&mut value, &repairs);
        let spec: Option<DeploymentSpec> = if full { None } else { serde_json::from_value(value).ok() };
        return Parsed { spec: None, repaired: spec.map(|spec| (spec, touched)), diagnostics, positions };
    }
    match serde_json::from_str(body) {
        Ok(spec) => Parsed { spec: Some(spec), repaired: None, diagnostics, positions },
        Err(error) => {
            // The schema is generated from the same types, so this is a hole in the walk; say so rather than guess.
            let mut reporter = Reporter::new(&positions);
            reporter.error("unreadable", "", format!("this is no deployment: {error}"));
            Parsed { spec: None, repaired: None, diagnostics: reporter.finish(), positions }
        }
    }
}

fn report_syntax(fault: syntax::SyntaxFault, offset: usize, positions: &Positions) -> Vec<Diagnostic> {
    let mut reporter = Reporter::new(positions);
    let span = fault.span.start + offset..fault.span.end + offset;
    reporter.error_at("syntax", span, fault.message).help = fault.help;
    reporter.finish()
}

fn report_twice(twice: Vec<(String, Range<usize>)>, reporter: &mut Reporter<'_>) {
    for (pointer, span) in twice {
        let key = pointer.rsplit('/').next().unwrap_or_default().to_owned();
        let message = format!("the key `{}` is there twice", words::short(&key));
        let added = reporter.error_at("duplicate-key", span, message);
        added.pointer = pointer;
        added.with_help("keep one of the two");
    }
}

impl Parsed {
    /// What can be validated, and which of its values are not as the file has them.
    pub fn judgeable(&self) -> Option<(&DeploymentSpec, Touched)> {
        match (&self.spec, &self.repaired) {
            (Some(spec), _) => Some((spec, Touched::default())),
            (None, Some((spec, touched))) => Some((spec, touched.clone())),
            (None, None) => None,
        }
    }
}

/// Faults that keep the text from being read at all: too large, not UTF-8, nothing there, too deep.
fn unreadable(bytes: &[u8], positions: &Positions) -> Option<Vec<Diagnostic>> {
    let mut reporter = Reporter::new(positions);
    if bytes.len() > MAX_BYTES {
        let (got, most) = (words::bytes(bytes.len() as u64), words::bytes(MAX_BYTES as u64));
        reporter
            .error("too-large", "", format!("the file has {got}; a graph file may have {most}"))
            .with_help("is this the graph file?");
    } else if let Err(error) = std::str::from_utf8(bytes) {
        let at = error.valid_up_to();
        let message = format!("byte {at} (0x{:02x}) is not UTF-8", bytes[at]);
        reporter.error_at("invalid-utf8", at..at + 1, message).with_help("save the file as UTF-8");
    } else if bytes.iter().all(u8::is_ascii_whitespace) {
        reporter
            .error("empty-file", "", "the file is empty; a deployment was expected")
            .with_help("start from a file in `graphs/`");
    } else if let Some(at) = too_deep(bytes) {
        reporter
            .error_at("too-deep", at..at + 1, format!("nested deeper than {MAX_DEPTH} levels"))
            .with_help("a graph file needs 6 levels");
    }
    (!reporter.is_empty()).then(|| reporter.finish())
}

/// Where the nesting passes [`MAX_DEPTH`]. Brackets inside strings do not count.
fn too_deep(bytes: &[u8]) -> Option<usize> {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for (at, byte) in bytes.iter().enumerate() {
        match (in_string, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => in_string = !in_string,
            (true, _) => {}
            (false, b'{' | b'[') => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Some(at);
                }
            }
            (false, b'}' | b']') => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    None
}

/// Notes the place of every value, and keys that an object has twice. `MAX_DEPTH` bounds the recursion.
fn locate(root: &Value<'_>, offset: usize, positions: &mut Positions, twice: &mut Vec<(String, Range<usize>)>) {
    let range = span_of(root, offset);
    positions.insert(String::new(), Place { value: range, key: None });
    locate_inside(root, "", offset, positions, twice);
}

fn locate_inside(
    value: &Value<'_>,
    pointer: &str,
    offset: usize,
    positions: &mut Positions,
    twice: &mut Vec<(String, Range<usize>)>,
) {
    match value {
        Value::Object(object) => {
            let mut seen = HashSet::new();
            for property in &object.properties {
                let below = join(pointer, property.name.as_str());
                let name = jsonc_parser::common::Ranged::range(&property.name);
                let key = name.start + offset..name.end + offset;
                if !seen.insert(property.name.as_str()) {
                    twice.push((below, key));
                    continue;
                }
                positions.insert(below.clone(), Place { value: span_of(&property.value, offset), key: Some(key) });
                locate_inside(&property.value, &below, offset, positions, twice);
            }
        }
        Value::Array(array) => {
            for (index, element) in array.elements.iter().enumerate() {
                let below = format!("{pointer}/{index}");
                positions.insert(below.clone(), Place { value: span_of(element, offset), key: None });
                locate_inside(element, &below, offset, positions, twice);
            }
        }
        _ => {}
    }
}

fn span_of(value: &Value<'_>, offset: usize) -> Range<usize> {
    let range = jsonc_parser::common::Ranged::range(value);
    range.start + offset..range.end + offset
}
