//! Stop strings in text that arrives in pieces.

/// What [`StopScanner::push`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scanned {
    /// Text that can be shown: it is before any stop string and cannot be the beginning of one.
    pub text: String,
    /// Index of the stop string that ended the text, in the list given to [`StopScanner::new`].
    pub stop: Option<usize>,
}

/// Watches text for stop strings, across the borders of pieces.
///
/// The text ends where the stop string begins that is *complete* first; of two that are complete at the same character,
/// the longer counts. This does not depend on how the text is cut into pieces. Kept back is the longest end of the text
/// that begins a stop string, and nothing else.
#[derive(Clone, Debug)]
pub struct StopScanner {
    stops: Vec<String>,
    held: String,
    stopped: Option<usize>,
}

impl StopScanner {
    /// A scanner for the given stop strings; empty ones never match.
    pub fn new(stops: &[String]) -> Self {
        Self { stops: stops.to_vec(), held: String::new(), stopped: None }
    }

    /// Takes the next piece of text. After a stop string, everything is swallowed.
    pub fn push(&mut self, text: &str) -> Scanned {
        if self.stopped.is_some() {
            return Scanned { text: String::new(), stop: self.stopped };
        }
        self.held.push_str(text);
        if let Some((start, stop)) = self.first_match() {
            self.stopped = Some(stop);
            self.held.truncate(start);
            return Scanned { text: std::mem::take(&mut self.held), stop: self.stopped };
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        Scanned { text: std::mem::replace(&mut self.held, rest), stop: None }
    }

    /// Returns what was kept back, since no more text comes.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Where the first complete stop string begins, and its index.
    fn first_match(&self) -> Option<(usize, usize)> {
        let matches = self.stops.iter().enumerate().filter(|(_, stop)| !stop.is_empty()).filter_map(|(index, stop)| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start, index))
        });
        matches.min().map(|(_, start, index)| (start, index))
    }
}

/// Length in bytes of the longest end of `text` with which `stop` begins, short of all of `stop`. Both are UTF-8, so
/// an end that equals a beginning starts at a character.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len().saturating_sub(1));
    (1..=longest).rev().find(|length| text.as_bytes().ends_with(&stop.as_bytes()[..*length])).unwrap_or(0)
}
