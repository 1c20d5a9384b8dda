//! What a fault in a graph file looks like: severity, stable code, place, message, remedy.
//!
//! It owns no rule: parsing and validation make diagnostics, the command line prints them.

use crate::source::Positions;
use crate::words;
use serde::Serialize;
use std::ops::Range;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The deployment cannot run.
    Error,
    /// It can run, but hardly as meant.
    Warning,
}

/// One fault of a graph file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// Stable name of the rule, in kebab case.
    pub code: &'static str,
    /// JSON pointer of the value. An unknown key's pointer includes the key.
    pub pointer: String,
    /// Line of the value (of the key, where the key is at fault), from 1.
    pub line: usize,
    /// Column, from 1, in characters.
    pub column: usize,
    /// What is there and what was expected.
    pub message: String,
    /// The remedy, if there is one to name.
    pub help: Option<String>,
    /// The same place as a byte range of the file, for source snippets.
    #[serde(skip)]
    pub span: Range<usize>,
}

impl Diagnostic {
    /// Whether it is an error.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// Adds the remedy.
    pub fn with_help(&mut self, help: impl Into<String>) -> &mut Self {
        self.help = Some(words::printable(&help.into()));
        self
    }
}

impl std::fmt::Display for Diagnostic {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let severity = if self.is_error() { "error" } else { "warning" };
        write!(out, "{}:{}: {severity}[{}] {}", self.line, self.column, self.code, self.message)?;
        match &self.help {
            Some(help) => write!(out, " (help: {help})"),
            None => Ok(()),
        }
    }
}

/// Faults a report holds at most: past these a file is something else than a graph.
pub const MAX_DIAGNOSTICS: usize = 200;

/// Collects diagnostics and finds their places.
#[derive(Debug)]
pub struct Reporter<'a> {
    positions: &'a Positions,
    found: Vec<Diagnostic>,
}

impl<'a> Reporter<'a> {
    /// An empty report about the file that `positions` belongs to.
    pub fn new(positions: &'a Positions) -> Self {
        Self { positions, found: Vec::new() }
    }

    /// Adds an error about the value at `pointer`.
    pub fn error(
        &mut self,
        code: &'static str,
        pointer: impl Into<String>,
        message: impl Into<String>,
    ) -> &mut Diagnostic {
        self.push(Severity::Error, code, pointer.into(), message.into(), false)
    }

    /// Adds a warning about the value at `pointer`.
    pub fn warning(
        &mut self,
        code: &'static str,
        pointer: impl Into<String>,
        message: impl Into<String>,
    ) -> &mut Diagnostic {
        self.push(Severity::Warning, code, pointer.into(), message.into(), false)
    }

    /// Adds an error about the key that `pointer` ends in.
    pub fn key_error(
        &mut self,
        code: &'static str,
        pointer: impl Into<String>,
        message: impl Into<String>,
    ) -> &mut Diagnostic {
        self.push(Severity::Error, code, pointer.into(), message.into(), true)
    }

    /// Adds an error at a byte range, for faults that have no pointer.
    pub fn error_at(&mut self, code: &'static str, span: Range<usize>, message: impl Into<String>) -> &mut Diagnostic {
        let added = self.push(Severity::Error, code, String::new(), message.into(), false);
        added.span = span;
        let start = added.span.start;
        let (line, column) = self.positions.line_column(start);
        let last = self.found.len() - 1;
        let added = &mut self.found[last];
        (added.line, added.column) = (line, column);
        added
    }

    /// Whether any error was found.
    pub fn has_errors(&self) -> bool {
        self.found.iter().any(Diagnostic::is_error)
    }

    /// Takes over what another report found, of every rule and place only the first: for walks that pass a place more than once.
    pub fn absorb_once(&mut self, other: Reporter<'_>) {
        for diagnostic in other.found {
            let same = |known: &Diagnostic| known.code == diagnostic.code && known.pointer == diagnostic.pointer;
            if !self.found.iter().any(same) {
                self.found.push(diagnostic);
            }
        }
    }

    /// An empty report about the same file.
    pub fn beside(&self) -> Reporter<'a> {
        Reporter::new(self.positions)
    }

    /// Whether no more faults are wanted.
    pub fn is_full(&self) -> bool {
        self.found.len() >= MAX_DIAGNOSTICS
    }

    /// How many were found so far.
    pub fn len(&self) -> usize {
        self.found.len()
    }

    /// Whether nothing was found so far.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// The diagnostics in the order of the file, each once, at most [`MAX_DIAGNOSTICS`].
    pub fn finish(mut self) -> Vec<Diagnostic> {
        self.found.sort_by_key(|diagnostic| (diagnostic.span.start, diagnostic.severity));
        let mut kept: Vec<Diagnostic> = Vec::with_capacity(self.found.len());
        for diagnostic in self.found {
            let same = |other: &Diagnostic| {
                (other.code, &other.pointer, &other.message)
                    == (diagnostic.code, &diagnostic.pointer, &diagnostic.message)
            };
            if !kept.iter().rev().take(16).any(same) {
                kept.push(diagnostic);
            }
        }
        kept.truncate(MAX_DIAGNOSTICS);
        kept
    }

    fn push(
        &mut self,
        severity: Severity,
        code: &'static str,
        pointer: String,
        message: String,
        at_key: bool,
    ) -> &mut Diagnostic {
        let span = self.positions.span(&pointer, at_key);
        let (line, column) = self.positions.line_column(span.start);
        let message = words::printable(&message);
        self.found.push(Diagnostic { severity, code, pointer, line, column, message, help: None, span });
        let last = self.found.len() - 1;
        &mut self.found[last]
    }
}
