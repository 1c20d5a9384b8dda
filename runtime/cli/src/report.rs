//! Diagnostics of a graph file as people read them: the line, a caret, what was expected, the remedy.

use miette::{GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, SourceCode};
use rally_graph::diagnostic::{Diagnostic, Severity};
use std::fmt;
use std::io::IsTerminal;
use std::path::Path;

/// Longest line that is shown around a fault; a file without line breaks would fill the terminal.
const MAX_LINE_BYTES: usize = 400;

/// Prints all diagnostics and a count to stderr.
pub fn print(file: &Path, text: &str, diagnostics: &[Diagnostic]) {
    if diagnostics.is_empty() {
        return;
    }
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    eprint!("{}", render(file, text, diagnostics, colour));
}

/// The reports as text.
pub fn render(file: &Path, text: &str, diagnostics: &[Diagnostic], colour: bool) -> String {
    let theme = if colour { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
    let handler = GraphicalReportHandler::new_themed(theme).with_width(110).with_links(false).with_context_lines(1);
    let source = NamedSource::new(file.display().to_string(), text.to_owned());
    let mut out = String::new();
    for diagnostic in diagnostics {
        let report = Report { diagnostic, source: &source, span: visible(text, diagnostic) };
        if handler.render_report(&mut out, &report).is_err() {
            out.push_str(&format!("{}:{diagnostic}\n", file.display()));
        }
    }
    let count = |severity: Severity, word: &str| {
        let count = diagnostics.iter().filter(|diagnostic| diagnostic.severity == severity).count();
        (count > 0).then(|| rally_graph::words::plural(count as u64, word))
    };
    let counts: Vec<String> =
        [count(Severity::Error, "error"), count(Severity::Warning, "warning")].into_iter().flatten().collect();
    out.push_str(&format!("{}: {}\n", file.display(), counts.join(", ")));
    out
}

/// The part of the span on its first line; `None` where there is no line to show.
fn visible(text: &str, diagnostic: &Diagnostic) -> Option<(usize, usize)> {
    let start = diagnostic.span.start;
    let before = text.get(..start)?;
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
    let end = diagnostic.span.end.min(line_end).max(start);
    (!text.is_empty() && line_end - line_start <= MAX_LINE_BYTES).then_some((start, end - start))
}

struct Report<'a> {
    diagnostic: &'a Diagnostic,
    source: &'a NamedSource<String>,
    span: Option<(usize, usize)>,
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Diagnostic { message, line, column, .. } = self.diagnostic;
        match self.span {
            None if self.diagnostic.span.end > 0 => write!(out, "{message} (line {line}, column {column})"),
            _ => out.write_str(message),
        }
    }
}

impl fmt::Debug for Report<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

impl std::error::Error for Report<'_> {}

impl miette::Diagnostic for Report<'_> {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(self.diagnostic.code))
    }

    fn severity(&self) -> Option<miette::Severity> {
        Some(match self.diagnostic.severity {
            Severity::Error => miette::Severity::Error,
            Severity::Warning => miette::Severity::Warning,
        })
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.diagnostic.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.span.map(|_| self.source as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let (start, length) = self.span?;
        let label = match self.diagnostic.pointer.as_str() {
            "" => None,
            pointer => Some(pointer.to_owned()),
        };
        Some(Box::new(std::iter::once(LabeledSpan::new(label, start, length))))
    }
}
