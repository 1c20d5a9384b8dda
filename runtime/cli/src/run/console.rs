//! Texts for stdout, in input order: streamed on a terminal, whole elsewhere.
//!
//! Several requests generate at once, and a terminal has one cursor: the first unfinished request streams, those behind it are
//! kept until it is their turn. Whoever owns the console prints what it has ready, and knows from it how far the output has got.

use crate::journal::record::Position;
use std::io::IsTerminal;

/// What to print of a request without text.
fn ids_text(ids: &[u32]) -> String {
    let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
    ids.join(" ")
}

struct Entry {
    /// Shown before the text: the prompt, where it is text.
    opening: String,
    /// Text that was not given out yet.
    pending: String,
    finished: bool,
}

/// The queue of texts.
pub struct Console {
    entries: Vec<Entry>,
    /// What is given out, the bytes of [`Position`] without opening and colours.
    position: Position,
    /// To be printed.
    ready: Vec<u8>,
    /// Bytes of what comes next that an earlier process has printed.
    skip: u64,
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
        let entries = openings.into_iter().map(entry).collect();
        Self { entries, position: Position::default(), ready: Vec::new(), skip: 0, streams, colours, silent }
    }

    /// Another process has given out all that is before `position`. To be said before any text comes.
    pub fn begin_at(&mut self, position: Position) {
        self.position = position;
        // What its request had then comes once more.
        self.position.bytes = 0;
        self.skip = position.bytes;
    }

    /// Another process has printed so many bytes of the whole output, which is the same whoever prints it as long as it goes to a file.
    pub fn begin_behind(&mut self, bytes: u64) {
        self.skip = bytes;
    }

    /// More text of a request.
    pub fn text(&mut self, request: usize, text: &str) {
        self.entries[request].pending.push_str(text);
        self.advance();
    }

    /// A request without text: its ids.
    pub fn ids(&mut self, request: usize, ids: &[u32]) {
        self.entries[request].pending = ids_text(ids);
    }

    /// A request is complete.
    pub fn finished(&mut self, request: usize) {
        self.entries[request].finished = true;
        self.advance();
    }

    /// What is to be printed now. It counts as printed.
    pub fn take_ready(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.ready)
    }

    /// What was given out to be printed, from the first request on.
    pub fn position(&self) -> Position {
        self.position
    }

    fn advance(&mut self) {
        while !self.silent && self.position.requests < self.entries.len() {
            let entry = &mut self.entries[self.position.requests];
            if !entry.finished && (!self.streams || entry.pending.is_empty()) {
                return;
            }
            if !self.position.opened {
                let (on, off) = if self.colours { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
                let gap = if self.position.requests > 0 { "\n" } else { "" };
                let opening = format!("{gap}{on}{}{off}", entry.opening);
                give_out(&mut self.ready, &mut self.skip, &opening);
            }
            let text = std::mem::take(&mut entry.pending);
            let finished = entry.finished;
            give_out(&mut self.ready, &mut self.skip, &text);
            self.position.opened = true;
            self.position.bytes += text.len() as u64;
            if finished {
                give_out(&mut self.ready, &mut self.skip, "\n");
                self.position = Position { requests: self.position.requests + 1, ..Position::default() };
            }
        }
    }
}

/// Adds to `ready` what of `text` is beyond the first `skip` bytes. A process can be killed in the middle of a character.
fn give_out(ready: &mut Vec<u8>, skip: &mut u64, text: &str) {
    let skipped = usize::try_from(*skip).unwrap_or(usize::MAX).min(text.len());
    *skip -= skipped as u64;
    ready.extend_from_slice(&text.as_bytes()[skipped..]);
}
