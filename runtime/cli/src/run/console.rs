//! Texts on stdout, in input order: streamed on a terminal, whole elsewhere.
//!
//! Several requests generate at once, and a terminal has one cursor: the first unfinished request streams, those behind it are
//! kept until it is their turn.

use crate::error::CliError;
use crate::output::print;
use std::io::IsTerminal;

/// What to print of a request without text.
fn ids_text(ids: &[u32]) -> String {
    let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
    ids.join(" ")
}

struct Entry {
    /// Shown before the text: the prompt, where it is text.
    opening: String,
    /// Text that was not printed yet.
    pending: String,
    finished: bool,
}

/// The queue of texts.
pub struct Console {
    entries: Vec<Entry>,
    /// First that is not completely printed.
    current: usize,
    opened: bool,
    streams: bool,
    colours: bool,
    silent: bool,
}

impl Console {
    /// For requests that open with `openings`. `silent` prints nothing (results go elsewhere); under a live view, which has the
    /// end of the terminal, `whole` texts are printed.
    pub fn new(openings: Vec<String>, silent: bool, whole: bool) -> Self {
        let entry = |opening| Entry { opening, pending: String::new(), finished: false };
        let terminal = std::io::stdout().is_terminal();
        let streams = terminal && !whole;
        let colours = terminal && std::env::var_os("NO_COLOR").is_none();
        Self { entries: openings.into_iter().map(entry).collect(), current: 0, opened: false, streams, colours, silent }
    }

    /// More text of a request.
    pub fn text(&mut self, request: usize, text: &str) -> Result<(), CliError> {
        self.entries[request].pending.push_str(text);
        self.advance()
    }

    /// A request without text: its ids.
    pub fn ids(&mut self, request: usize, ids: &[u32]) {
        self.entries[request].pending = ids_text(ids);
    }

    /// A request is complete.
    pub fn finished(&mut self, request: usize) -> Result<(), CliError> {
        self.entries[request].finished = true;
        self.advance()
    }

    fn advance(&mut self) -> Result<(), CliError> {
        while !self.silent && self.current < self.entries.len() {
            let entry = &mut self.entries[self.current];
            if !entry.finished && (!self.streams || entry.pending.is_empty()) {
                return Ok(());
            }
            let mut out = String::new();
            if !self.opened {
                let (on, off) = if self.colours { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
                let gap = if self.current > 0 { "\n" } else { "" };
                out.push_str(&format!("{gap}{on}{}{off}", entry.opening));
            }
            out.push_str(&std::mem::take(&mut entry.pending));
            self.opened = true;
            if entry.finished {
                out.push('\n');
                self.opened = false;
                self.current += 1;
            }
            print(&out)?;
        }
        Ok(())
    }
}
