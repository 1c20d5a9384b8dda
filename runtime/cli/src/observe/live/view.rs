//! The view as lines of text, for a terminal of any size; pure.

use super::moment::{LaneNow, Moment};
use rally_metrics::BubbleCause;

/// Narrower than this, a lane's line has its busy share and no causes.
const WIDTH_WITH_CAUSES: usize = 64;
/// Narrower than this, there are no bars.
const WIDTH_WITH_BARS: usize = 32;
/// What causes get beside a bar: two or three of them.
const CAUSES_WIDTH: usize = 40;
/// Longest bar: a share is read to a percent, and wide terminals have room for words.
const LONGEST_BAR: usize = 50;
/// Bubbles of less than this are not worth words.
const SMALLEST_SHARE: f64 = 0.005;

/// How a piece of text is shown where there are colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// As it is.
    Plain,
    /// Less important.
    Dim,
    /// A heading.
    Bold,
    /// Computing, and all that is well.
    Good,
    /// Moving values.
    Moving,
    /// Doing nothing, or a target missed.
    Bad,
}

impl Style {
    fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Dim => "\x1b[2m",
            Self::Bold => "\x1b[1m",
            Self::Good => "\x1b[32m",
            Self::Moving => "\x1b[33m",
            Self::Bad => "\x1b[31m",
        }
    }
}

/// A line in pieces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line(Vec<(Style, String)>);

impl Line {
    fn push(&mut self, style: Style, text: impl Into<String>) {
        self.0.push((style, text.into()));
    }

    /// Columns it takes.
    pub fn width(&self) -> usize {
        self.0.iter().map(|(_, text)| console::measure_text_width(text)).sum()
    }

    /// As a terminal shows it, or as plain text.
    pub fn text(&self, colours: bool) -> String {
        let piece = |(style, text): &(Style, String)| match style.code() {
            "" => text.clone(),
            _ if !colours => text.clone(),
            code => format!("{code}{text}\x1b[0m"),
        };
        self.0.iter().map(piece).collect()
    }

    /// Without what is beyond `width` columns.
    fn cut(mut self, width: usize) -> Self {
        let mut left = width;
        for (_, text) in &mut self.0 {
            if console::measure_text_width(text) > left {
                *text = console::truncate_str(text, left, "").into_owned();
            }
            left -= console::measure_text_width(text);
        }
        self
    }
}

/// The view of `moment` on a terminal of `(rows, columns)`; never as high or as wide as it, so that nothing scrolls or wraps.
pub fn draw(moment: &Moment, title: &str, slo_tpot_ms: Option<f64>, (rows, columns): (usize, usize)) -> Vec<Line> {
    let width = columns.saturating_sub(1);
    let mut lines = vec![heading(moment, title)];
    // Heading, latencies, rates, and the line that the cursor stands in.
    let room = rows.saturating_sub(4).max(1);
    let shown = if moment.lanes.len() > room { room - 1 } else { moment.lanes.len() };
    let names = moment.lanes.iter().map(|lane| console::measure_text_width(&lane.name)).max().unwrap_or(0);
    lines.extend(moment.lanes[..shown].iter().map(|lane| lane_line(lane, names, width)));
    if shown < moment.lanes.len() {
        lines.push(others(&moment.lanes[shown..]));
    }
    lines.push(latencies(moment, slo_tpot_ms));
    lines.push(rates(moment));
    lines.truncate(rows.saturating_sub(1).max(1));
    lines.into_iter().map(|line| line.cut(width)).collect()
}

fn heading(moment: &Moment, title: &str) -> Line {
    let mut line = Line::default();
    line.push(Style::Bold, title);
    line.push(Style::Plain, format!("  {:.1} s  {}", moment.elapsed_s, done(moment)));
    line
}

fn done(moment: &Moment) -> String {
    let requests = &moment.requests;
    format!("{} of {} requests done", requests.finished, requests.finished + requests.open)
}

fn lane_line(lane: &LaneNow, names: usize, width: usize) -> Line {
    let mut line = Line::default();
    let padding = names.saturating_sub(console::measure_text_width(&lane.name));
    line.push(Style::Plain, format!("{}{} ", lane.name, " ".repeat(padding)));
    let share = format!(" {:3.0} % busy", lane.busy() * 100.0);
    if width >= WIDTH_WITH_BARS {
        let with_causes = width >= WIDTH_WITH_CAUSES;
        let taken = names + 1 + share.len() + if with_causes { CAUSES_WIDTH } else { 0 };
        bar(lane, width.saturating_sub(taken).clamp(8, LONGEST_BAR), &mut line);
        line.push(Style::Plain, share);
        if with_causes {
            line.push(Style::Dim, causes(lane, width.saturating_sub(line.width())));
        }
    } else {
        line.push(Style::Plain, share.trim_start());
    }
    line
}

/// `█` computing, `▓` moving values, `░` doing nothing.
fn bar(lane: &LaneNow, width: usize, line: &mut Line) {
    let at = |share: f64| (share * width as f64).round() as usize;
    let (compute, busy) = (at(lane.compute), at(lane.busy()));
    line.push(Style::Good, "█".repeat(compute));
    line.push(Style::Moving, "▓".repeat(busy - compute));
    line.push(Style::Bad, "░".repeat(width.saturating_sub(busy)));
}

/// Why it stands idle, the most important cause first, as many as there is `room` for.
fn causes(lane: &LaneNow, room: usize) -> String {
    let mut causes: Vec<(BubbleCause, f64)> = BubbleCause::ALL.into_iter().zip(lane.bubble).collect();
    causes.retain(|(_, share)| *share >= SMALLEST_SHARE);
    causes.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    let mut text = String::new();
    for (cause, share) in causes {
        let separator = if text.is_empty() { ", idle for " } else { ", " };
        let words = format!("{separator}{} {:.0} %", cause.name(), share * 100.0);
        if text.len() + words.len() > room {
            break;
        }
        text.push_str(&words);
    }
    text
}

fn others(lanes: &[LaneNow]) -> Line {
    let busy = lanes.iter().map(LaneNow::busy);
    let (least, most) = busy.fold((1.0f64, 0.0f64), |(least, most), busy| (least.min(busy), most.max(busy)));
    let mut line = Line::default();
    let text = format!("and {} lanes more, {:.0} to {:.0} % busy", lanes.len(), least * 100.0, most * 100.0);
    line.push(Style::Dim, text);
    line
}

fn latencies(moment: &Moment, slo_tpot_ms: Option<f64>) -> Line {
    let mut line = Line::default();
    line.push(Style::Plain, tpot(moment));
    if let (Some(slo), Some(_)) = (slo_tpot_ms, moment.requests.tpot_ms) {
        let kept = moment.requests.kept_share;
        let style = if kept >= 1.0 { Style::Good } else { Style::Bad };
        line.push(style, format!("  {}", target(slo, kept)));
    }
    line
}

fn tpot(moment: &Moment) -> String {
    match moment.requests.tpot_ms {
        None => "TPOT  not known yet".into(),
        Some([p50, p90, p99]) => format!("TPOT  p50 {}  p90 {}  p99 {} ms", digits(p50), digits(p90), digits(p99)),
    }
}

/// Three digits that matter.
fn digits(ms: f64) -> String {
    let decimals = match ms {
        ms if ms < 9.995 => 2,
        ms if ms < 99.95 => 1,
        _ => 0,
    };
    format!("{ms:.decimals$}")
}

/// Rounded down: only all is 100 %.
fn target(slo_tpot_ms: f64, kept_share: f64) -> String {
    format!("target {slo_tpot_ms} ms kept by {} %", (kept_share * 100.0).floor())
}

fn rates(moment: &Moment) -> Line {
    let mut line = Line::default();
    line.push(
        Style::Plain,
        format!(
            "{:.0} tokens/s  {} running  {} waiting  KV {:.0} %",
            moment.tokens_per_s,
            moment.running,
            moment.waiting,
            moment.kv_share * 100.0
        ),
    );
    if moment.preemptions > 0 {
        line.push(Style::Moving, format!("  {} preempted", moment.preemptions));
    }
    line
}

/// The same in one line, for where nothing can be redrawn.
pub fn progress(moment: &Moment, title: &str, slo_tpot_ms: Option<f64>) -> String {
    let lanes: Vec<String> =
        moment.lanes.iter().map(|lane| format!("{} {:.0} %", lane.name, lane.busy() * 100.0)).collect();
    let target = match (slo_tpot_ms, moment.requests.tpot_ms) {
        (Some(slo), Some(_)) => format!(" ({})", target(slo, moment.requests.kept_share)),
        _ => String::new(),
    };
    let busy = if lanes.len() <= 8 { lanes.join(", ") } else { others(&moment.lanes).text(false) };
    format!(
        "{title}: {:.1} s, {}, {}{target}, {}, busy: {busy}",
        moment.elapsed_s,
        done(moment),
        tpot(moment).replace("  ", " "),
        rates(moment).text(false).replace("  ", ", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use rally_engine::meter::RequestSample;

    fn moment(lanes: usize) -> Moment {
        let lane = |index: usize| LaneNow {
            name: format!("lane{index}"),
            compute: 0.6,
            transfer: 0.1,
            bubble: [0.0, 0.2, 0.004, 0.0, 0.096],
        };
        Moment {
            elapsed_s: 12.34,
            lanes: (0..lanes).map(lane).collect(),
            tokens_per_s: 3747.0,
            requests: RequestSample {
                open: 21,
                finished: 3,
                tokens: 100,
                tpot_ms: Some([0.754, 12.34, 123.4]),
                kept_share: 0.999,
            },
            running: 8,
            waiting: 13,
            kv_share: 0.25,
            preemptions: 2,
        }
    }

    fn plain(moment: &Moment, size: (usize, usize)) -> Vec<String> {
        draw(moment, "tiny", Some(50.0), size).iter().map(|line| line.text(false)).collect()
    }

    #[test]
    fn a_wide_terminal_shows_it_all() {
        let lines = plain(&moment(2), (24, 110));
        assert_eq!(
            lines,
            [
                "tiny  12.3 s  3 of 24 requests done",
                "lane0 ██████████████████████████████▓▓▓▓▓░░░░░░░░░░░░░░░  70 % busy, idle for ffn 20 %, host 10 %",
                "lane1 ██████████████████████████████▓▓▓▓▓░░░░░░░░░░░░░░░  70 % busy, idle for ffn 20 %, host 10 %",
                "TPOT  p50 0.75  p90 12.3  p99 123 ms  target 50 ms kept by 99 %",
                "3747 tokens/s  8 running  13 waiting  KV 25 %  2 preempted",
            ]
        );
    }

    #[test]
    fn nothing_ever_wraps_or_scrolls() {
        for lanes in [0, 1, 2, 70] {
            for rows in [1, 2, 3, 5, 24] {
                for columns in [1, 2, 10, 31, 32, 33, 50, 64, 65, 66, 80, 200] {
                    let lines = draw(&moment(lanes), "a title", Some(50.0), (rows, columns));
                    assert!(
                        lines.len() <= rows.saturating_sub(1).max(1),
                        "{lanes} lanes, {rows} rows: {}",
                        lines.len()
                    );
                    for line in &lines {
                        assert!(line.width() < columns, "{columns} columns: {line:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn lanes_that_find_no_room_are_summed_up() {
        let lines = plain(&moment(70), (10, 80));
        assert_eq!(lines.len(), 9);
        assert_eq!(lines[6], "and 65 lanes more, 70 to 70 % busy");
    }

    #[test]
    fn a_narrow_terminal_keeps_the_busy_share() {
        assert_eq!(plain(&moment(1), (24, 25))[1], "lane0 70 % busy");
        assert!(plain(&moment(1), (24, 70))[1].ends_with(" 70 % busy, idle for ffn 20 %, host 10 %"));
        assert_eq!(plain(&moment(1), (24, 45))[1], "lane0 ████████████████▓▓▓░░░░░░░░  70 % busy");
    }

    #[test]
    fn colours_are_there_only_if_wanted() {
        let lines = draw(&moment(1), "tiny", Some(50.0), (24, 80));
        assert!(lines.iter().any(|line| line.text(true).contains("\x1b[32m█")));
        assert!(lines.iter().all(|line| !line.text(false).contains('\x1b')));
    }

    #[test]
    fn without_a_terminal_it_is_one_line() {
        assert_eq!(
            progress(&moment(2), "tiny", Some(50.0)),
            "tiny: 12.3 s, 3 of 24 requests done, TPOT p50 0.75 p90 12.3 p99 123 ms (target 50 ms kept by 99 %), \
             3747 tokens/s, 8 running, 13 waiting, KV 25 %, 2 preempted, busy: lane0 70 %, lane1 70 %"
        );
    }
}
