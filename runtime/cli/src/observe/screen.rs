//! The part of the terminal that is redrawn in place. A process has one terminal, so there is one such part.
//!
//! Whoever prints while it may be there prints [`above`] it. It is on stderr; stdout may be the same terminal or not.

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Width of each line that is drawn, in columns.
static DRAWN: Mutex<Vec<usize>> = Mutex::new(Vec::new());

fn drawn() -> MutexGuard<'static, Vec<usize>> {
    DRAWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether stderr can be redrawn in place.
pub fn can_redraw() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Whether colours are wanted on stderr.
pub fn wants_colours() -> bool {
    can_redraw() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Rows and columns of the terminal at this moment, and of an ordinary one if it does not say.
pub fn size() -> (usize, usize) {
    let (rows, columns) = console::Term::stderr().size_checked().unwrap_or((24, 80));
    (rows.into(), columns.into())
}

/// Runs `print` where the drawn lines begin; they are gone then, until they are drawn next.
pub fn above<T>(print: impl FnOnce() -> T) -> T {
    let mut lines = drawn();
    if !lines.is_empty() {
        // A terminal that has gone is noticed by whoever prints results.
        let _ = io::stderr().write_all(erase(&lines, size().1).as_bytes());
        lines.clear();
    }
    print()
}

/// Draws `lines` in place of those drawn before. `text` has colours in it, `width` is what is seen.
pub fn draw(lines: &[(String, usize)]) {
    let mut before = drawn();
    let mut out = erase(&before, size().1);
    lines.iter().for_each(|(text, _)| {
        out.push_str(text);
        out.push_str("\r\n");
    });
    let _ = io::stderr().write_all(out.as_bytes());
    *before = lines.iter().map(|(_, width)| *width).collect();
}

/// Leaves what is drawn where it is: what comes next is printed below.
pub fn keep() {
    drawn().clear();
}

/// Back to the first drawn line, with nothing from there on. A terminal that has become narrower has wrapped long lines.
fn erase(widths: &[usize], columns: usize) -> String {
    let rows: usize = widths.iter().map(|width| width.div_ceil(columns.max(1)).max(1)).sum();
    if rows == 0 { String::new() } else { format!("\r\x1b[{rows}A\x1b[J") }
}

/// Stderr for logs, above what is drawn.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        above(|| io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_a_narrower_terminal_wrapped_are_erased_whole() {
        assert_eq!(erase(&[], 80), "");
        assert_eq!(erase(&[79, 0, 10], 80), "\r\x1b[3A\x1b[J");
        assert_eq!(erase(&[79, 0, 10], 40), "\r\x1b[4A\x1b[J");
    }
}
