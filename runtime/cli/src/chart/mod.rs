//! Charts: a canvas that things are put on from top to bottom, in one style for light and dark. What they show, its users know.

pub mod plane;

use crate::error::CliError;
use rally_graph::render::{escape, html_page};
use std::ffi::OsStr;
use std::fmt::Write;
use std::path::Path;

/// How it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A picture.
    Svg,
    /// A page around the picture, which needs no network.
    Html,
}

impl Form {
    /// The form that the ending of `path` asks for, which was given with `flag`.
    pub fn of(flag: &str, path: &Path) -> Result<Self, CliError> {
        match path.extension().and_then(OsStr::to_str) {
            Some("svg") => Ok(Self::Svg),
            Some("html") => Ok(Self::Html),
            _ => {
                Err(CliError::Mistake(format!("{flag} {}: give it a name that ends in .svg or .html", path.display())))
            }
        }
    }
}

pub const WIDTH: f64 = 960.0;
pub const MARGIN: f64 = 24.0;
pub const LINE: f64 = 18.0;
pub const ROW: f64 = 30.0;
/// Left of a bar, for its name.
const NAME: f64 = 190.0;
/// Right of a bar, for its figures.
const FIGURES: f64 = 190.0;
/// Where bars begin.
pub const BARS: f64 = MARGIN + NAME;
/// The longest bar.
pub const LONGEST: f64 = WIDTH - MARGIN - FIGURES - BARS;

/// Colours are variables, so that one style holds for light and dark.
const STYLE: &str = "
  .chart { --ink: #0f172a; --soft: #64748b; --back: #ffffff; --bar: #3b82f6; --bound: #f97316; --busy: #16a34a; --idle: #e2e8f0;
    font-family: Inter, 'Segoe UI', Helvetica, Arial, sans-serif; }
  @media (prefers-color-scheme: dark) { .chart { --ink: #e2e8f0; --soft: #94a3b8; --back: #0f172a; --bar: #60a5fa;
    --bound: #fdba74; --busy: #4ade80; --idle: #334155; } }
  .chart .back { fill: var(--back); } .chart .title { fill: var(--ink); font-size: 15px; font-weight: 650; }
  .chart .name { fill: var(--ink); font-size: 13px; text-anchor: end; } .chart .figure { fill: var(--ink); font-size: 12px; }
  .chart .note { fill: var(--soft); font-size: 12px; } .chart .bar { fill: var(--bar); } .chart .busy { fill: var(--busy); }
  .chart .other { fill: var(--bound); } .chart .idle { fill: var(--idle); } .chart .range { stroke: var(--ink); stroke-width: 1.5; }
  .chart .bound { stroke: var(--bound); stroke-width: 3; } .chart .middle { text-anchor: middle; } .chart .end { text-anchor: end; }
  .chart .grid { stroke: var(--idle); stroke-width: 1; } .chart .line { fill: none; stroke-width: 2; }
  .chart .target { stroke: var(--bound); stroke-width: 1.5; stroke-dasharray: 4 3; }
  .chart .slope { stroke: var(--soft); stroke-width: 1.5; stroke-dasharray: 6 4; }
";

/// What a chart is put together on.
pub struct Canvas {
    body: String,
    /// Where the next thing goes.
    pub top: f64,
}

impl Canvas {
    /// An empty one.
    pub fn new() -> Self {
        Self { body: String::new(), top: MARGIN }
    }

    /// Puts an element on it. `write!` to a string cannot fail.
    pub fn put(&mut self, element: std::fmt::Arguments<'_>) {
        let _ = self.body.write_fmt(element);
        self.body.push('\n');
    }

    /// Soft lines, broken where they are too long.
    pub fn note(&mut self, text: &str) {
        // About what fits into the width at this size.
        for line in wrapped(text, 140) {
            let top = self.top;
            self.text("note", MARGIN, top, &line);
            self.top += LINE;
        }
    }

    /// A heading.
    pub fn title(&mut self, text: &str) {
        self.top += LINE;
        let top = self.top;
        self.text("title", MARGIN, top, text);
        self.top += LINE / 2.0;
    }

    /// The name of a bar whose middle is at `middle`.
    pub fn name(&mut self, name: &str, middle: f64) {
        self.text("name", MARGIN + NAME - 8.0, middle + 4.0, name);
    }

    /// A text whose baseline begins at (`x`, `y`).
    pub fn text(&mut self, class: &str, x: f64, y: f64, text: &str) {
        let text = escape(text);
        self.put(format_args!("<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{text}</text>"));
    }

    /// A rectangle.
    pub fn bar(&mut self, class: &str, x: f64, y: f64, width: f64, height: f64) {
        self.put(format_args!(
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"/>"
        ));
    }

    /// A straight line.
    pub fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let ((x1, y1), (x2, y2)) = (from, to);
        self.put(format_args!("<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"));
    }

    /// The chart, with what it shows for those who do not see it.
    pub fn finish(self, label: &str, form: Form) -> String {
        let (height, label) = (self.top + MARGIN, escape(label));
        let svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"chart\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
             height=\"{height}\" role=\"img\" aria-label=\"{label}\">\n<style>{STYLE}</style>\n\
             <rect class=\"back\" width=\"{WIDTH}\" height=\"{height}\"/>\n{}</svg>\n",
            self.body
        );
        match form {
            Form::Svg => svg,
            Form::Html => html_page(&label, &svg),
        }
    }
}

/// `text` in lines of at most `width` characters, broken between words.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("there is always a line");
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(word.into());
        } else {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_broken_between_words() {
        assert_eq!(wrapped("one two three", 7), ["one two", "three"]);
        assert_eq!(wrapped("unbreakable", 3), ["unbreakable"]);
        assert_eq!(wrapped("", 3), [""]);
    }
}
