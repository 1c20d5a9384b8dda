//! The answer as a picture: throughput and cost against time per token, cost against context, attention to FFN, micro-batches.

use super::{Answer, Question};
use crate::chart::plane::{Axis, Plane, from_zero};
use crate::chart::{Canvas, Form};
use crate::error::{Blame, CliError};
use rally_recommend::finalists::{Finalist, Finalists};
use rally_recommend::pipeline::{Layout, Outcome};
use rally_recommend::search::Candidate;
use rally_recommend::sweeps;

/// Hues of what is by arithmetic, on virtual lanes, and undivided.
const ARITHMETIC: f64 = 217.0;
const UNDIVIDED: f64 = 25.0;

pub(super) fn draw(question: &Question, answer: &Answer, form: Form) -> Result<String, CliError> {
    let mut canvas = Canvas::new();
    let pool: Vec<String> = question.pool.iter().map(|pool| format!("{} {}", pool.count, pool.hardware.name)).collect();
    let (model, pool) = (&question.workload.model.name, pool.join(" and "));
    let target_ms = question.tpot_s * 1e3;
    canvas.note(&format!("{model} on at most {pool}, {target_ms} ms a token. {}", question.basis()));
    against_time(&mut canvas, question, answer);
    if let Some(best) = answer.best() {
        contexts(&mut canvas, question)?;
        ratios(&mut canvas, question, best)?;
        micro_batches(&mut canvas, question, best)?;
    }
    canvas.note(
        "Blue points: simulated on virtual lanes, named where there is room, the best first. Orange: the target, and what is undivided. Lines are arithmetic.",
    );
    Ok(canvas.finish(&format!("rally recommend: {model} on {pool}"), form))
}

fn whole(value: f64) -> String {
    format!("{value:.0}")
}

fn cents(value: f64) -> String {
    format!("{value:.2}")
}

/// The simulated ones, each once.
fn simulated(answer: &Answer) -> Vec<&Finalist> {
    let Some(finals) = &answer.finals else { return Vec::new() };
    let mut all: Vec<&Finalist> = Vec::new();
    for finalist in finals.best.iter().chain(&finals.finalists).chain(&finals.front) {
        if !all.iter().any(|other| other.simulated == finalist.simulated) {
            all.push(finalist);
        }
    }
    all
}

fn against_time(canvas: &mut Canvas, question: &Question, answer: &Answer) {
    type Of = (&'static str, fn(f64) -> String, fn(&Candidate) -> f64, fn(&Finalist) -> f64);
    let found = &answer.found;
    let figures: [(&str, &[Candidate], Of); 2] = [
        (
            "throughput against time per token",
            &found.throughput_front,
            (
                "tokens a second",
                whole,
                |candidate| candidate.outcome.tokens_per_s,
                |finalist| finalist.simulated.tokens_per_s,
            ),
        ),
        (
            "cost against time per token",
            &found.cost_front,
            (
                "USD per million tokens",
                cents,
                |candidate| candidate.outcome.usd_per_mtok(),
                |finalist| finalist.simulated.usd_per_mtok(),
            ),
        ),
    ];
    let shown = simulated(answer);
    let target_ms = question.tpot_s * 1e3;
    for (title, front, (y_title, written, of_candidate, of_finalist)) in figures {
        canvas.title(title);
        // Quicker ones cost a multiple and would flatten the rest.
        let least = found.cost_front.last().map_or(f64::INFINITY, |best| best.outcome.usd_per_mtok());
        let near = |candidate: &&Candidate| candidate.outcome.usd_per_mtok() <= 4.0 * least;
        let line: Vec<(f64, f64)> = (front.iter().filter(near))
            .map(|candidate| (candidate.outcome.tpot_s * 1e3, of_candidate(candidate)))
            .collect();
        let points: Vec<(f64, f64)> =
            shown.iter().map(|finalist| (finalist.simulated.tpot_s * 1e3, of_finalist(finalist))).collect();
        let undivided = found.undivided.map(|(_, undivided)| {
            let y = if y_title.starts_with("USD") { undivided.usd_per_mtok() } else { undivided.tokens_per_s };
            (undivided.tpot_s * 1e3, y)
        });
        let all = || line.iter().chain(&points).chain(&undivided);
        let x = from_zero(all().map(|place| place.0).chain([target_ms]));
        let y = from_zero(all().map(|place| place.1));
        let x = Axis { title: "ms a token", range: x, logarithmic: false, written: whole };
        let y = Axis { title: y_title, range: y, logarithmic: false, written };
        let mut plane = Plane::on(canvas, x, y);
        plane.upright(canvas, target_ms, "target");
        let named: Vec<((f64, f64), String)> = (shown.iter().zip(points.iter().copied()))
            .map(|(finalist, place)| {
                let Layout { devices, micro_batches, .. } = finalist.candidate.outcome.layout;
                let layout = finalist.candidate.outcome.layout.name();
                (place, format!("{layout} of {devices}, {micro_batches} µ-batches"))
            })
            .collect();
        plane.crowd(canvas, "bar", &named);
        if let Some(place) = undivided {
            plane.point(canvas, "other", place, "undivided");
        }
        plane.line(canvas, ARITHMETIC, &line, "arithmetic");
    }
}

fn contexts(canvas: &mut Canvas, question: &Question) -> Result<(), CliError> {
    canvas.title("cost against context, by arithmetic: the best of the pool at each");
    let found = sweeps::contexts(&question.workload, &question.pool, question.tpot_s).or_mistake()?;
    let line = |of: fn(&sweeps::AtContext) -> Option<f64>| -> Vec<(f64, f64)> {
        found.iter().filter_map(|at| Some((at.context as f64, of(at)?))).collect()
    };
    let (apart, undivided) = (line(|at| at.disaggregated), line(|at| at.undivided));
    let (first, last) = (sweeps::CONTEXTS[0] as f64, sweeps::CONTEXTS[sweeps::CONTEXTS.len() - 1] as f64);
    let written = |tokens: f64| format!("{:.0}K", tokens / 1024.0);
    let x = Axis { title: "context, tokens", range: (first, last), logarithmic: true, written };
    let y = from_zero(apart.iter().chain(&undivided).map(|place| place.1));
    let y = Axis { title: "USD per million tokens", range: y, logarithmic: false, written: cents };
    let mut plane = Plane::on(canvas, x, y);
    plane.line(canvas, ARITHMETIC, &apart, "apart");
    plane.line(canvas, UNDIVIDED, &undivided, "undivided");
    Ok(())
}

fn ratios(canvas: &mut Canvas, question: &Question, best: &Candidate) -> Result<(), CliError> {
    let layout = &best.outcome.layout;
    canvas.title(&format!(
        "attention instances of {} to FFN instances, {} micro-batches, by arithmetic",
        layout.devices, layout.micro_batches
    ));
    let found = sweeps::ratios(&question.workload, question.on(best), layout, question.tpot_s).or_mistake()?;
    let place = |(attention, outcome): &(u32, Outcome)| (f64::from(*attention), outcome.tgs());
    let lines: Vec<(u32, Vec<(f64, f64)>)> =
        found.iter().map(|of| (of.ffn, of.by_attention.iter().map(place).collect())).collect();
    let all = || lines.iter().flat_map(|(_, line)| line);
    let x = from_zero(all().map(|place| place.0));
    let y = from_zero(all().map(|place| place.1));
    let x = Axis { title: "attention instances", range: x, logarithmic: false, written: whole };
    let y = Axis { title: "tokens a second and accelerator", range: y, logarithmic: false, written: whole };
    let mut plane = Plane::on(canvas, x, y);
    for (index, (ffn, line)) in lines.iter().enumerate() {
        let hue = 360.0 * index as f64 / lines.len() as f64;
        plane.line(canvas, hue, line, &format!("{ffn} F"));
    }
    plane.point(canvas, "bar", (f64::from(layout.attention), best.outcome.tgs()), &layout.name());
    Ok(())
}

fn micro_batches(canvas: &mut Canvas, question: &Question, best: &Candidate) -> Result<(), CliError> {
    canvas
        .title(&format!("{}: micro-batches, each with the rows that arithmetic gives it", best.outcome.layout.name()));
    let (workload, pool) = (&question.workload, &question.pool);
    let found = sweeps::micro_batches(workload, question.on(best), best, question.tpot_s).or_mistake()?;
    let line: Vec<(f64, f64)> = found
        .iter()
        .map(|candidate| (f64::from(candidate.outcome.layout.micro_batches), candidate.outcome.tgs()))
        .collect();
    let mut points = Vec::new();
    if let Some(finalists) = Finalists::new(workload, pool, question.tpot_s) {
        for (candidate, (x, _)) in found.iter().zip(&line) {
            let simulated = finalists.simulated(candidate, "ping_pong").or_mistake()?.simulated;
            points.push(((*x, simulated.tgs()), format!("{:.0} ms", simulated.tpot_s * 1e3)));
        }
    }
    let x = from_zero(line.iter().map(|place| place.0));
    let y = from_zero(line.iter().chain(points.iter().map(|(place, _)| place)).map(|place| place.1));
    let x = Axis { title: "micro-batches", range: x, logarithmic: false, written: whole };
    let y = Axis { title: "tokens a second and accelerator", range: y, logarithmic: false, written: whole };
    let mut plane = Plane::on(canvas, x, y);
    plane.crowd(canvas, "bar", &points);
    plane.line(canvas, ARITHMETIC, &line, "arithmetic");
    Ok(())
}
