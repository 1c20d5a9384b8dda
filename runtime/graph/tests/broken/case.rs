//! The form of a row: also used by the test that runs the table through the binary.

/// An edit of a good graph and what must be said about it.
pub struct Case {
    pub name: &'static str,
    pub base: &'static str,
    pub edits: &'static [(&'static str, &'static str)],
    pub expect: &'static [(&'static str, &'static str, usize)],
}

/// A row of the table.
pub const fn case(
    name: &'static str,
    base: &'static str,
    edits: &'static [(&'static str, &'static str)],
    expect: &'static [(&'static str, &'static str, usize)],
) -> Case {
    Case { name, base, edits, expect }
}

/// The broken graph.
pub fn edited(case: &Case) -> String {
    let mut text = case.base.to_owned();
    for (from, to) in case.edits {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "{}: `{from}` is not in the graph", case.name);
        text = changed;
    }
    text
}
