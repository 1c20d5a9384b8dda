//! The comparison as a picture: tokens per second with their range, time per token against its bound, lanes busy and idle.

use super::result::{Measurement, mean};
use rally_graph::render::{escape, html_page};
use rally_load::statistics::Spread;
use rally_load::summary::Summary;
use std::fmt::Write;

/// How it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A picture.
    Svg,
    /// A page around the picture, which needs no network.
    Html,
}

impl Form {
    /// By a file name's ending.
    pub fn of_ending(ending: &str) -> Option<Self> {
        match ending {
            "svg" => Some(Self::Svg),
            "html" => Some(Self::Html),
            _ => None,
        }
    }
}

const WIDTH: f64 = 960.0;
const MARGIN: f64 = 24.0;
const LINE: f64 = 18.0;
const ROW: f64 = 30.0;
const NAME: f64 = 190.0;
/// Right of a bar, for its figures.
const FIGURES: f64 = 190.0;
const LANE: f64 = 16.0;

/// Colours are variables, so that one style holds for light and dark.
const STYLE: &str = "
  .bench { --ink: #0f172a; --soft: #64748b; --back: #ffffff; --bar: #3b82f6; --bound: #f97316; --busy: #16a34a; --idle: #e2e8f0;
    font-family: Inter, 'Segoe UI', Helvetica, Arial, sans-serif; }
  @media (prefers-color-scheme: dark) { .bench { --ink: #e2e8f0; --soft: #94a3b8; --back: #0f172a; --bar: #60a5fa;
    --bound: #fdba74; --busy: #4ade80; --idle: #334155; } }
  .bench .back { fill: var(--back); } .bench .title { fill: var(--ink); font-size: 15px; font-weight: 650; }
  .bench .name { fill: var(--ink); font-size: 13px; text-anchor: end; } .bench .figure { fill: var(--ink); font-size: 12px; }
  .bench .note { fill: var(--soft); font-size: 12px; } .bench .bar { fill: var(--bar); } .bench .busy { fill: var(--busy); }
  .bench .idle { fill: var(--idle); } .bench .range { stroke: var(--ink); stroke-width: 1.5; }
  .bench .bound { stroke: var(--bound); stroke-width: 3; }
";

/// Draws `measurements` under `heading`, with the verdict below.
pub fn draw(measurements: &[Measurement<'_>], heading: &[String], verdict: &[String], form: Form) -> String {
    let mut canvas = Canvas { body: String::new(), top: MARGIN };
    heading.iter().for_each(|line| canvas.note(line));
    throughput(&mut canvas, measurements);
    tpot(&mut canvas, measurements);
    lanes(&mut canvas, measurements);
    canvas.top += LINE / 2.0;
    verdict.iter().for_each(|line| canvas.note(line));
    let svg = canvas.finish();
    match form {
        Form::Svg => svg,
        Form::Html => html_page("rally bench", &svg),
    }
}

fn throughput(canvas: &mut Canvas, measurements: &[Measurement<'_>]) {
    canvas.title("output tokens per second (median, and range over rounds)");
    let bars: Vec<Bar> = measurements
        .iter()
        .filter_map(|measurement| {
            let spread = Spread::of(&measurement.each(Summary::output_throughput))?;
            Some(Bar { name: measurement.name.clone(), spread, bound: None, digits: 0 })
        })
        .collect();
    canvas.bars(&bars);
}

fn tpot(canvas: &mut Canvas, measurements: &[Measurement<'_>]) {
    canvas.title("time per output token, ms (orange: what a step could take by its stages' times)");
    let bars: Vec<Bar> = measurements
        .iter()
        .filter_map(|measurement| {
            let spread = Spread::of(&measurement.each(|summary| mean(summary.tpot_ms)))?;
            let bound = measurement.rounds.measured.bound_tpot_ms();
            Some(Bar { name: measurement.name.clone(), spread, bound, digits: 3 })
        })
        .collect();
    canvas.bars(&bars);
}

fn lanes(canvas: &mut Canvas, measurements: &[Measurement<'_>]) {
    canvas.title("lanes, share of time busy");
    for measurement in measurements {
        for lane in &measurement.rounds.measured.lanes {
            canvas.share(&format!("{} · {}", measurement.name, lane.name), lane.busy_share());
        }
        canvas.top += 6.0;
    }
}

struct Bar {
    name: String,
    spread: Spread,
    /// Marked beside the value.
    bound: Option<f64>,
    digits: usize,
}

struct Canvas {
    body: String,
    /// Where the next thing goes.
    top: f64,
}

impl Canvas {
    /// `write!` to a string cannot fail.
    fn put(&mut self, element: std::fmt::Arguments<'_>) {
        let _ = self.body.write_fmt(element);
        self.body.push('\n');
    }

    fn note(&mut self, text: &str) {
        // About what fits into the width at this size.
        for line in wrapped(text, 140) {
            let (top, line) = (self.top, escape(&line));
            self.put(format_args!("<text class=\"note\" x=\"{MARGIN}\" y=\"{top}\">{line}</text>"));
            self.top += LINE;
        }
    }

    fn title(&mut self, text: &str) {
        self.top += LINE;
        let (top, text) = (self.top, escape(text));
        self.put(format_args!("<text class=\"title\" x=\"{MARGIN}\" y=\"{top}\">{text}</text>"));
        self.top += LINE / 2.0;
    }

    fn name(&mut self, name: &str, middle: f64) {
        let x = MARGIN + NAME - 8.0;
        self.put(format_args!("<text class=\"name\" x=\"{x}\" y=\"{}\">{}</text>", middle + 4.0, escape(name)));
    }

    fn bars(&mut self, bars: &[Bar]) {
        let most = bars.iter().map(|bar| bar.spread.max.max(bar.bound.unwrap_or(0.0))).fold(0.0, f64::max);
        let scale = if most > 0.0 { (WIDTH - 2.0 * MARGIN - NAME - FIGURES) / most } else { 0.0 };
        let left = MARGIN + NAME;
        for bar in bars {
            let (top, middle, digits) = (self.top + 4.0, self.top + ROW / 2.0, bar.digits);
            let Spread { median, min, max, count, .. } = bar.spread;
            self.name(&bar.name, middle);
            let width = median * scale;
            let height = ROW - 8.0;
            self.put(format_args!(
                "<rect class=\"bar\" x=\"{left}\" y=\"{top}\" width=\"{width:.1}\" height=\"{height}\" rx=\"3\"/>"
            ));
            if count > 1 {
                let (from, to) = (left + min * scale, left + max * scale);
                self.put(format_args!(
                    "<line class=\"range\" x1=\"{from:.1}\" x2=\"{to:.1}\" y1=\"{middle}\" y2=\"{middle}\"/>"
                ));
            }
            if let Some(bound) = bar.bound {
                let x = left + bound * scale;
                let (y1, y2) = (top - 2.0, top + height + 2.0);
                self.put(format_args!("<line class=\"bound\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{y1}\" y2=\"{y2}\"/>"));
            }
            let range = if count > 1 { format!(" ({min:.digits$}–{max:.digits$})") } else { String::new() };
            let x = WIDTH - MARGIN - FIGURES + 12.0;
            self.put(format_args!(
                "<text class=\"figure\" x=\"{x}\" y=\"{}\">{median:.digits$}{range}</text>",
                middle + 4.0
            ));
            self.top += ROW;
        }
    }

    fn share(&mut self, name: &str, share: f64) {
        let (left, full) = (MARGIN + NAME, WIDTH - 2.0 * MARGIN - NAME - FIGURES);
        let (top, middle) = (self.top + 2.0, self.top + LANE / 2.0);
        let (busy, height) = (full * share.clamp(0.0, 1.0), LANE - 4.0);
        self.name(name, middle);
        self.put(format_args!("<rect class=\"idle\" x=\"{left}\" y=\"{top}\" width=\"{full}\" height=\"{height}\"/>"));
        self.put(format_args!(
            "<rect class=\"busy\" x=\"{left}\" y=\"{top}\" width=\"{busy:.1}\" height=\"{height}\"/>"
        ));
        let x = WIDTH - MARGIN - FIGURES + 12.0;
        let percent = share * 100.0;
        self.put(format_args!("<text class=\"figure\" x=\"{x}\" y=\"{}\">{percent:.0} %</text>", middle + 4.0));
        self.top += LANE;
    }

    fn finish(self) -> String {
        let height = self.top + MARGIN;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"bench\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
             height=\"{height}\" role=\"img\" aria-label=\"schedules side by side\">\n<style>{STYLE}</style>\n\
             <rect class=\"back\" width=\"{WIDTH}\" height=\"{height}\"/>\n{}</svg>\n",
            self.body
        )
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
