//! A digest that a person reads: where the step went, what bounds it, and the one change most likely to help. At most
//! [`MOST_LINES`] lines.

use crate::analysis::Analysis;
use crate::path::PathShares;
use crate::recording::Recording;
use crate::replan::replan;
use crate::stragglers::stragglers;
use crate::window::Window;
use crate::work::{Cause, Side, Work};

/// Most lines of a digest.
pub const MOST_LINES: usize = 20;
/// Lanes that get a line each; of more, only the first ones.
const MOST_LANES: usize = 8;
/// Stages that are told.
const MOST_STAGES: usize = 4;
/// A change that promises less is not worth telling: runs differ by as much among themselves.
const WORTH_TRYING: f64 = 0.03;
/// If more of the critical path than this is want of work, no change of the deployment can be judged.
const TOO_LIGHT: f64 = 0.8;

/// The digest of a recording, a line each, without line ends. Empty if nothing was run. `cores`: how many the lanes shared, if they
/// were real.
pub fn digest(recording: &Recording<'_>, cores: Option<usize>) -> Vec<String> {
    let window = Window::settled(recording);
    if window.count == 0 {
        return Vec::new();
    }
    let analysis = Analysis::of(recording, window);
    let mut lines = Vec::new();
    let settled = analysis.window.count >= Window::FEWEST_STEPS;
    lines.push(step_line(&analysis));
    if settled {
        lines.push(bound_line(&analysis));
    }
    lines.extend(lane_lines(&analysis));
    if settled {
        lines.push(stage_line(&analysis));
        lines.extend(transfer_line(&analysis));
        let slow = stragglers(recording, &analysis.window, None);
        lines.extend(slow.iter().take(2).map(|straggler| format!("slow    {}", straggler.describe(recording))));
        lines.push(format!("try     {}", advice(recording, &analysis, cores)));
    }
    lines
}

fn step_line(analysis: &Analysis) -> String {
    let shares = &analysis.path.shares;
    let steps = match analysis.window.count {
        1 => "1 step".to_owned(),
        count => format!("mean of {count} steps"),
    };
    let parts = parts(shares).into_iter().filter(|(_, ns)| *ns * 200 >= shares.length_ns().max(1));
    let parts: Vec<String> = parts.map(|(name, ns)| format!("{name} {}", percent(ns, shares.length_ns()))).collect();
    format!("step    {} ({steps}); its critical path: {}", ms(analysis.step_ms()), parts.join(", "))
}

/// Names and times of the path's parts, the longest first.
fn parts(shares: &PathShares) -> Vec<(&'static str, u64)> {
    let mut parts: Vec<_> = Work::ALL.iter().map(|work| (work.name(), shares.of(*work))).collect();
    parts.push(("host", shares.host_ns));
    parts.push(("no work", shares.admission_ns));
    parts.sort_by_key(|(_, ns)| std::cmp::Reverse(*ns));
    parts
}

fn bound_line(analysis: &Analysis) -> String {
    let overlap = &analysis.overlap;
    let hidden = match sides(analysis).len() {
        0 | 1 => String::new(),
        _ => format!(", {:.0} % of the other side's work hidden", overlap.hidden_share * 100.0),
    };
    format!(
        "bound   by {}; lane {} alone needs {} a step: overlap efficiency {:.2}{hidden}",
        bound_by(analysis),
        analysis.lanes[overlap.busiest].name,
        ms(overlap.bound_tpot_ms),
        overlap.efficiency,
    )
}

/// What most of the critical path is.
fn bound_by(analysis: &Analysis) -> &'static str {
    match parts(&analysis.path.shares)[0].0 {
        "host" => "bubbles (planning and handing over)",
        "no work" => "want of work",
        work => work,
    }
}

fn lane_lines(analysis: &Analysis) -> Vec<String> {
    let width = analysis.lanes.iter().map(|lane| lane.name.chars().count()).max().unwrap_or(0);
    let mut lines = Vec::new();
    for (index, lane) in analysis.lanes.iter().take(MOST_LANES).enumerate() {
        let mut causes: Vec<(Cause, u64)> = Cause::ALL.iter().map(|cause| (*cause, lane.bubble(*cause))).collect();
        causes.sort_by_key(|(_, ns)| std::cmp::Reverse(*ns));
        let wall = lane.busy_ns + lane.bubbles_ns();
        let told = causes
            .iter()
            .filter(|(_, ns)| *ns * 200 > wall)
            .map(|(cause, ns)| format!("{} {}", idle(*cause), percent(*ns, wall)));
        let told: Vec<String> = told.collect();
        let idle = if told.is_empty() { String::new() } else { format!("; idle: {}", told.join(", ")) };
        let head = if index == 0 { "lanes" } else { "" };
        lines.push(format!("{head:<7} {:<width$} {:>4} busy{idle}", lane.name, percent(lane.busy_ns, wall)));
    }
    if analysis.lanes.len() > MOST_LANES {
        lines.push(format!("        and {} more lanes", analysis.lanes.len() - MOST_LANES));
    }
    lines
}

fn idle(cause: Cause) -> &'static str {
    match cause {
        Cause::Attention => "waiting for A",
        Cause::Ffn => "waiting for F",
        Cause::Transfer => "for a transfer",
        Cause::Admission => "no work",
        Cause::Host => "host",
    }
}

fn stage_line(analysis: &Analysis) -> String {
    let busy: u64 = analysis.stages.iter().map(|stats| stats.total_ns).sum();
    let told = analysis.stages.iter().take(MOST_STAGES).map(|stats| {
        let (mean, p99) = (us(stats.mean_ns), us(stats.p99_ns as f64));
        format!("{} {} (mean {mean}, p99 {p99})", stats.label(), percent(stats.total_ns, busy))
    });
    format!("work    {}", told.collect::<Vec<_>>().join(", "))
}

fn transfer_line(analysis: &Analysis) -> Option<String> {
    let transfers = &analysis.transfers;
    let total = transfers.a_to_f_ns + transfers.f_to_a_ns;
    let a_step = |ns: u64| ms(ns as f64 / 1e6 / analysis.window.count as f64);
    (total > 0).then(|| {
        let kilobytes = transfers.sent_bytes as f64 / 1e3 / analysis.window.count as f64;
        let exposed = a_step(transfers.exposed_ns);
        // Virtual lanes send times and no bytes.
        let bytes = if kilobytes > 0.0 { format!("; {kilobytes:.1} kB a step") } else { String::new() };
        format!("moved   {} a step in transfers, {exposed} of it exposed{bytes}", a_step(total))
    })
}

/// The change that promises most, with what it promises.
fn advice(recording: &Recording<'_>, analysis: &Analysis, cores: Option<usize>) -> String {
    let shares = &analysis.path.shares;
    let idle = shares.admission_ns as f64 / shares.length_ns().max(1) as f64;
    if idle > TOO_LIGHT {
        return format!(
            "more load: {:.0} % of the time there was no work, the load is too light to say what would help",
            idle * 100.0
        );
    }
    let offers = [
        schedule_offer(recording, analysis),
        ratio_offer(analysis).filter(|_| cores.is_none_or(|cores| analysis.lanes.len() < cores)),
        balance_offer(recording, analysis),
        cores.and_then(|cores| cores_offer(analysis, cores)),
    ];
    let best = offers.into_iter().flatten().max_by(|a, b| a.gain.total_cmp(&b.gain));
    match best.filter(|offer| offer.gain >= WORTH_TRYING) {
        Some(offer) => offer.text,
        None => nothing_to_try(analysis, cores),
    }
}

struct Offer {
    /// Share of the step that it promises to save.
    gain: f64,
    text: String,
}

fn schedule_offer(recording: &Recording<'_>, analysis: &Analysis) -> Option<Offer> {
    let replan = replan(recording, &analysis.window)?;
    let best = replan.candidates.first()?;
    let gain = 1.0 - best.step_ms / replan.now_ms;
    let text = format!(
        "--schedule {}: about {} a step, {:.0} % less (simulated with these times)",
        best.schedule,
        ms(analysis.step_ms() * best.step_ms / replan.now_ms),
        gain * 100.0
    );
    Some(Offer { gain, text })
}

/// A core for every lane, where they take turns on fewer.
fn cores_offer(analysis: &Analysis, cores: usize) -> Option<Offer> {
    let shares = &analysis.path.shares;
    let gain = shares.host_ns as f64 / shares.length_ns().max(1) as f64;
    let lanes = analysis.lanes.len();
    let text = format!(
        "a core for every lane, or fewer devices: {lanes} lanes share {cores} cores, and {:.0} % of the step is waking and waiting \
         for a core",
        gain * 100.0
    );
    (lanes > cores).then_some(Offer { gain, text })
}

/// The sides that have lanes, with how many, and the busiest lane's time.
fn sides(analysis: &Analysis) -> Vec<(Side, usize, u64)> {
    let side = |side: Side| {
        let busy: Vec<u64> = analysis.lanes.iter().filter(|lane| lane.side == side).map(|lane| lane.busy_ns).collect();
        busy.iter().max().map(|most| (side, busy.len(), *most))
    };
    [Side::Attention, Side::Ffn].into_iter().filter_map(side).collect()
}

/// One more device for the side that has more work, if the other side has time for it.
fn ratio_offer(analysis: &Analysis) -> Option<Offer> {
    let sides = sides(analysis);
    let [(_, a_lanes, a_busy), (_, f_lanes, f_busy)] = sides[..] else { return None };
    let (more, lanes, most, least) =
        if a_busy > f_busy { ("attention", a_lanes, a_busy, f_busy) } else { ("FFN", f_lanes, f_busy, a_busy) };
    let then = (most as f64 * lanes as f64 / (lanes + 1) as f64).max(least as f64);
    // Lanes of other hosts are not seen from here.
    if least == 0 {
        return None;
    }
    // What the busier side saves shows in the step only as far as the step consists of it.
    let gain = (most as f64 - then) / analysis.window.wall_ns() as f64;
    let (a, f) = if more == "attention" { (a_lanes + 1, f_lanes) } else { (a_lanes, f_lanes + 1) };
    let times = most as f64 / least.max(1) as f64;
    let text = format!(
        "another A:F ratio, {a}:{f}: a lane of {more} works {times:.1} times as long as one of the other side; \
         about {:.0} % off the step, if the work divides",
        gain * 100.0
    );
    Some(Offer { gain, text })
}

/// Even lanes within a group.
fn balance_offer(recording: &Recording<'_>, analysis: &Analysis) -> Option<Offer> {
    let lanes = &recording.plan.table.lanes;
    let busiest = analysis.overlap.busiest;
    let group: Vec<usize> = (0..lanes.len()).filter(|lane| lanes[*lane].group == lanes[busiest].group).collect();
    let busy = |lane: &usize| analysis.lanes[*lane].busy_ns;
    let mean = group.iter().map(busy).sum::<u64>() as f64 / group.len() as f64;
    let gain = (busy(&busiest) as f64 - mean) / analysis.window.wall_ns() as f64;
    let text = format!(
        "balance: `{}` works {:.1} times as long as the mean of its group; even shares save about {:.0} % of the step",
        lanes[busiest].name,
        busy(&busiest) as f64 / mean.max(1.0),
        gain * 100.0
    );
    Some(Offer { gain, text })
}

fn nothing_to_try(analysis: &Analysis, cores: Option<usize>) -> String {
    let lane = &analysis.lanes[analysis.overlap.busiest];
    let stage = analysis.stages.iter().find(|stats| stats.work.is_transfer() == (lane.transfer_ns * 2 > lane.busy_ns));
    let stage = stage.map(|stats| format!("; `{}` is the most of it", stats.id)).unwrap_or_default();
    if lane.busy_share() > 0.8 {
        format!("nothing in the schedule: `{}` hardly ever rests, so its stages must get faster{stage}", lane.name)
    } else if let Some(cores) = cores.filter(|cores| analysis.lanes.len() > *cores) {
        let lanes = analysis.lanes.len();
        format!(
            "nothing in the schedule: {lanes} lanes share {cores} cores, so the load is too light to say what each lane is short of"
        )
    } else {
        "nothing in the schedule: tasks are short against planning and handing over; larger batches use the lanes better".into()
    }
}

fn percent(part: u64, whole: u64) -> String {
    format!("{:.0} %", part as f64 * 100.0 / whole.max(1) as f64)
}

fn ms(ms: f64) -> String {
    if ms < 1.0 { format!("{ms:.3} ms") } else { format!("{ms:.2} ms") }
}

fn us(ns: f64) -> String {
    let us = ns / 1e3;
    if us < 10.0 { format!("{us:.1} µs") } else { format!("{us:.0} µs") }
}
