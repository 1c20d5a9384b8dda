//! The comparison as a picture: tokens per second with their range, time per token against its bound, both against each other with the
//! target, lanes busy and idle.

use super::result::Measurement;
use crate::chart::plane::{Axis, Plane, from_zero};
use crate::chart::{BARS, Canvas, Form, LINE, LONGEST, ROW};
use rally_load::goodput::{Goal, GoalKind};
use rally_load::statistics::Spread;
use rally_load::summary::Summary;

const LANE: f64 = 16.0;
/// Where figures begin, beside the longest bar.
const BESIDE: f64 = BARS + LONGEST + 12.0;

/// Draws `measurements` under `heading`, with the verdict below.
pub fn draw(
    measurements: &[Measurement<'_>],
    heading: &[String],
    goals: &[Goal],
    verdict: &[String],
    form: Form,
) -> String {
    let mut canvas = Canvas::new();
    heading.iter().for_each(|line| canvas.note(line));
    throughput(&mut canvas, measurements);
    tpot(&mut canvas, measurements);
    against_time(&mut canvas, measurements, goals);
    lanes(&mut canvas, measurements);
    canvas.top += LINE / 2.0;
    verdict.iter().for_each(|line| canvas.note(line));
    canvas.finish("rally bench: schedules side by side", form)
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
    draw_bars(canvas, &bars);
}

fn tpot(canvas: &mut Canvas, measurements: &[Measurement<'_>]) {
    canvas.title("time per output token, ms (orange: what a step could take by its stages' times)");
    let bars: Vec<Bar> = measurements
        .iter()
        .filter_map(|measurement| {
            let spread = Spread::of(&measurement.each_mean(|summary| summary.tpot_ms))?;
            let bound = measurement.rounds.measured.bound_tpot_ms();
            Some(Bar { name: measurement.name.clone(), spread, bound, digits: 3 })
        })
        .collect();
    draw_bars(canvas, &bars);
}

/// Each contender's medians, and the time per token that was to be kept. One alone has nothing to be held against.
fn against_time(canvas: &mut Canvas, measurements: &[Measurement<'_>], goals: &[Goal]) {
    let place = |measurement: &Measurement<'_>| {
        let ms = Spread::of(&measurement.each_mean(|summary| summary.tpot_ms))?.median;
        Some((ms, Spread::of(&measurement.each(Summary::output_throughput))?.median, measurement.name.clone()))
    };
    let places: Vec<(f64, f64, String)> = measurements.iter().filter_map(place).collect();
    if places.len() < 2 {
        return;
    }
    canvas.title("output tokens per second against time per output token");
    let target = goals.iter().find(|goal| goal.kind == GoalKind::Tpot).map(|goal| goal.ms);
    // A target many times what is measured would press everything into a corner.
    let most = places.iter().map(|(ms, ..)| *ms).fold(0.0, f64::max);
    let shown = target.filter(|target| *target <= 4.0 * most);
    let written = |value: f64| if value < 10.0 { format!("{value:.1}") } else { format!("{value:.0}") };
    let x = from_zero(places.iter().map(|(ms, ..)| *ms).chain(shown));
    let y = from_zero(places.iter().map(|(_, rate, _)| *rate));
    let x = Axis { title: "ms a token", range: x, logarithmic: false, written };
    let y = Axis { title: "tokens a second", range: y, logarithmic: false, written };
    let mut plane = Plane::on(canvas, x, y);
    if let Some(ms) = shown {
        plane.upright(canvas, ms, "target");
    }
    for (ms, rate, name) in &places {
        plane.point(canvas, "bar", (*ms, *rate), name);
    }
    if let Some(target) = target.filter(|_| shown.is_none()) {
        canvas.note(&format!("The target, {target} ms, is far to the right."));
    }
}

fn lanes(canvas: &mut Canvas, measurements: &[Measurement<'_>]) {
    canvas.title("lanes, share of time busy");
    for measurement in measurements {
        for lane in &measurement.rounds.measured.lanes {
            draw_share(canvas, &format!("{} · {}", measurement.name, lane.name), lane.busy_share());
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

fn draw_bars(canvas: &mut Canvas, bars: &[Bar]) {
    let most = bars.iter().map(|bar| bar.spread.max.max(bar.bound.unwrap_or(0.0))).fold(0.0, f64::max);
    let scale = if most > 0.0 { LONGEST / most } else { 0.0 };
    for bar in bars {
        let (top, middle, digits) = (canvas.top + 4.0, canvas.top + ROW / 2.0, bar.digits);
        let Spread { median, min, max, count, .. } = bar.spread;
        canvas.name(&bar.name, middle);
        let width = median * scale;
        let height = ROW - 8.0;
        canvas.bar("bar", BARS, top, width, height);
        if count > 1 {
            let (from, to) = (BARS + min * scale, BARS + max * scale);
            canvas.line("range", (from, middle), (to, middle));
        }
        if let Some(bound) = bar.bound {
            let x = BARS + bound * scale;
            let (y1, y2) = (top - 2.0, top + height + 2.0);
            canvas.line("bound", (x, y1), (x, y2));
        }
        let range = if count > 1 { format!(" ({min:.digits$}–{max:.digits$})") } else { String::new() };
        canvas.text("figure", BESIDE, middle + 4.0, &format!("{median:.digits$}{range}"));
        canvas.top += ROW;
    }
}

fn draw_share(canvas: &mut Canvas, name: &str, share: f64) {
    let (top, middle) = (canvas.top + 2.0, canvas.top + LANE / 2.0);
    let (busy, height) = (LONGEST * share.clamp(0.0, 1.0), LANE - 4.0);
    canvas.name(name, middle);
    canvas.bar("idle", BARS, top, LONGEST, height);
    canvas.bar("busy", BARS, top, busy, height);
    canvas.text("figure", BESIDE, middle + 4.0, &format!("{:.0} %", share * 100.0));
    canvas.top += LANE;
}
