//! Where things stand in a graph file: JSON pointers to byte ranges, byte offsets to lines and columns.

use std::collections::HashMap;
use std::ops::Range;

/// Place of one value, and of its key if it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) value: Range<usize>,
    pub(crate) key: Option<Range<usize>>,
}

/// Every value of a parsed file by its JSON pointer. The default knows no place: line 1, column 1, for specs made in memory.
#[derive(Clone, Debug, Default)]
pub struct Positions {
    text: String,
    line_starts: Vec<usize>,
    places: HashMap<String, Place>,
}

impl Positions {
    pub(crate) fn new(text: &str) -> Self {
        let line_starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { text: text.to_owned(), line_starts, places: HashMap::new() }
    }

    pub(crate) fn insert(&mut self, pointer: String, place: Place) {
        // Of a key written twice the first place stays: the second is reported as the fault.
        self.places.entry(pointer).or_insert(place);
    }

    /// The text of the file, invalid UTF-8 replaced.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Byte range of the value at `pointer` (or of its key), else of the nearest value around it.
    pub fn span(&self, pointer: &str, at_key: bool) -> Range<usize> {
        let mut rest = pointer;
        loop {
            if let Some(place) = self.places.get(rest) {
                // Around a missing value the whole object would be marked; its opening is enough.
                let around = |value: &Range<usize>| value.start..(value.start + 1).min(value.end);
                return match &place.key {
                    Some(key) if at_key && rest.len() == pointer.len() => key.clone(),
                    _ if rest.len() == pointer.len() => place.value.clone(),
                    _ => around(&place.value),
                };
            }
            match rest.rfind('/') {
                Some(at) => rest = &rest[..at],
                None => return 0..0,
            }
        }
    }

    /// Line and column, both from 1, the column in characters.
    pub fn line_column(&self, offset: usize) -> (usize, usize) {
        let line = self.line_starts.partition_point(|start| *start <= offset).max(1);
        let start = self.line_starts.get(line - 1).copied().unwrap_or(0);
        let before = self.text.get(start..offset.min(self.text.len()));
        (line, before.map_or(0, |text| text.chars().count()) + 1)
    }
}

/// Appends a key to a JSON pointer, escaped.
pub fn join(pointer: &str, key: &str) -> String {
    if key.contains(['~', '/']) {
        format!("{pointer}/{}", key.replace('~', "~0").replace('/', "~1"))
    } else {
        format!("{pointer}/{key}")
    }
}
