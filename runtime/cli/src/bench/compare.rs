//! Contenders side by side: one table, and what it says in words.
//!
//! Rounds are interleaved, so contenders are compared round by round: the ratio within a round is free of the machine's slower
//! drifts. A difference counts where its sign is the same in every round.

use super::contender::Part;
use super::result::{Measurement, mean};
use crate::table::Table;
use rally_load::statistics::Spread;
use rally_load::summary::Summary;

/// What decides: how much comes out of a closed loop, how long a token takes where arrivals set what comes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merit {
    /// Generated tokens a second.
    Throughput,
    /// Mean time per output token.
    Tpot,
}

impl Merit {
    /// More is better.
    fn of(self, summary: &Summary) -> f64 {
        match self {
            Self::Throughput => summary.output_throughput(),
            Self::Tpot => match mean(summary.tpot_ms) {
                0.0 => 0.0,
                tpot_ms => 1.0 / tpot_ms,
            },
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Throughput => "tokens/s",
            Self::Tpot => "the speed of a token (1 / TPOT)",
        }
    }

    /// By how much `a` is better than `b`, by round; 1: alike.
    fn ratio(self, a: &Measurement<'_>, b: &Measurement<'_>) -> Option<Spread> {
        let pairs = a.rounds.summaries.iter().zip(&b.rounds.summaries);
        let ratios: Vec<f64> =
            pairs.map(|(a, b)| (self.of(a), self.of(b))).filter(|(_, b)| *b > 0.0).map(|(a, b)| a / b).collect();
        Spread::of(&ratios)
    }
}

/// A figure, and its range where it was measured several times.
fn ranged(values: &[f64], digits: usize) -> String {
    match Spread::of(values) {
        None => "–".into(),
        Some(spread) if spread.count == 1 => format!("{:.digits$}", spread.median),
        Some(spread) => format!("{:.digits$} ({:.digits$}–{:.digits$})", spread.median, spread.min, spread.max),
    }
}

/// One row a contender.
pub fn table(measurements: &[Measurement<'_>], merit: Merit) -> String {
    let first = &measurements[0];
    let against = match merit {
        Merit::Throughput => format!("× {}", first.name),
        Merit::Tpot => format!("speed × {}", first.name),
    };
    let mut table = Table::new(&[
        "",
        "tokens/s",
        &against,
        "TPOT ms",
        "p99",
        "TTFT ms",
        "p99",
        "goodput/s",
        "overlap",
        "hidden",
        "bound ms",
        "busy %",
    ]);
    for measurement in measurements {
        let cells = cells(measurement, first, merit);
        table.row(&cells.iter().map(String::as_str).collect::<Vec<_>>());
    }
    table.to_string()
}

/// The row of a contender.
fn cells(measurement: &Measurement<'_>, first: &Measurement<'_>, merit: Merit) -> [String; 12] {
    let (summary, measured) = (&measurement.summary, &measurement.rounds.measured);
    let ms = |latency: Option<f64>| latency.map_or("–".into(), |ms| format!("{ms:.2}"));
    let busy: Vec<String> =
        measured.lanes.iter().map(|lane| format!("{} {:.0}", lane.name, lane.busy_share() * 100.0)).collect();
    [
        measurement.name.clone(),
        ranged(&measurement.each(Summary::output_throughput), 0),
        merit.ratio(measurement, first).map_or("–".into(), |ratio| format!("{:.2}", ratio.median)),
        ranged(&measurement.each(|summary| mean(summary.tpot_ms)), 2),
        ms(summary.tpot_ms.map(|latency| latency.p99)),
        ms(summary.ttft_ms.map(|latency| latency.median)),
        ms(summary.ttft_ms.map(|latency| latency.p99)),
        summary.request_goodput().map_or("–".into(), |goodput| format!("{goodput:.1}")),
        format!("{:.2}", measured.overlap_efficiency()),
        format!("{:.2}", measured.hidden_share()),
        format!("{:.2}", measured.bound_tpot_ms()),
        busy.join(", "),
    ]
}

/// The best of `measurements` by the median of their rounds.
fn best_of<'m, 'a>(measurements: impl Iterator<Item = &'m Measurement<'a>>, merit: Merit) -> Option<&'m Measurement<'a>>
where
    'a: 'm,
{
    let score = |measurement: &Measurement<'_>| {
        Spread::of(&measurement.each(|summary| merit.of(summary))).map_or(0.0, |spread| spread.median)
    };
    measurements.max_by(|a, b| score(a).total_cmp(&score(b)))
}

/// The best of those that were asked about.
pub fn best<'m, 'a>(measurements: &'m [Measurement<'a>], merit: Merit) -> Option<&'m Measurement<'a>> {
    best_of(measurements.iter().filter(|measurement| measurement.contender.part == Part::Candidate), merit)
}

/// What the table says, in sentences.
pub fn verdict(measurements: &[Measurement<'_>], merit: Merit) -> Vec<String> {
    let mut sentences = Vec::new();
    let Some(winner) = best(measurements, merit) else { return sentences };
    let others = measurements.iter().filter(|other| other.contender.part == Part::Candidate);
    if let Some(second) = best_of(others.filter(|other| !std::ptr::eq(*other, winner)), merit)
        && let Some(ratio) = merit.ratio(winner, second)
    {
        sentences.push(against(&winner.name, &second.name, ratio, merit));
    }
    let undivided = measurements.iter().filter(|measurement| measurement.contender.part == Part::NoAfd);
    if let Some(undivided) = best_of(undivided, merit)
        && let Some(ratio) = merit.ratio(winner, undivided)
    {
        sentences.push(disaggregate(&winner.name, ratio, merit));
    }
    sentences
}

/// `(1.28 to 1.35 over 5 rounds)`.
fn range(ratio: Spread) -> String {
    match ratio.count {
        1 => "(one round: no spread is known)".into(),
        count => format!("({:.2} to {:.2} over {count} rounds)", ratio.min, ratio.max),
    }
}

/// Whether the sign is the same in every round, and there are several.
fn is_settled(ratio: Spread) -> bool {
    ratio.count > 1 && (ratio.min > 1.0 || ratio.max < 1.0)
}

fn against(winner: &str, second: &str, ratio: Spread, merit: Merit) -> String {
    let said = format!("{:.2} × {} of {second} {}", ratio.median, merit.words(), range(ratio));
    match is_settled(ratio) {
        true => format!("{winner} is best: {said}."),
        false => format!("{winner} and {second} are not told apart by these rounds: {said}."),
    }
}

fn disaggregate(winner: &str, ratio: Spread, merit: Merit) -> String {
    let said = format!(
        "{winner} has {:.2} × {} of the undivided model on the same devices {}",
        ratio.median,
        merit.words(),
        range(ratio)
    );
    match (is_settled(ratio), ratio.median >= 1.0) {
        (true, true) => format!("Disaggregation pays here: {said}."),
        (true, false) => format!("Do not disaggregate here: {said}."),
        (false, _) => format!("Whether to disaggregate is not decided by these rounds: {said}."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn says(ratios: &[f64], said: &str) {
        let ratio = Spread::of(ratios).expect("there are ratios");
        let sentence = disaggregate("ping_pong:3", ratio, Merit::Throughput);
        assert!(sentence.starts_with(said), "{sentence}");
    }

    #[test]
    fn the_answer_may_be_not_to_disaggregate() {
        says(&[0.6, 0.7, 0.65], "Do not disaggregate here: ping_pong:3 has 0.65 × tokens/s");
        says(&[1.6, 1.7, 1.65], "Disaggregation pays here");
        says(&[0.9, 1.1, 1.0], "Whether to disaggregate is not decided");
        says(&[2.0], "Whether to disaggregate is not decided");
    }
}
