//! Contenders side by side: one table, and what it says in words.
//!
//! Rounds are interleaved, so contenders are compared round by round: the ratio within a round is free of the machine's slower
//! drifts. Two are told apart where there are [`FEWEST_ROUNDS`] and the middle halves of their rounds do not overlap.

use super::contender::Part;
use super::result::{Measurement, mean};
use crate::table::Table;
use rally_load::statistics::{Spread, percentile};
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

    /// `a` against `b`.
    fn duel(self, a: &Measurement<'_>, b: &Measurement<'_>) -> Option<Duel> {
        let each = |measurement: &Measurement<'_>| measurement.each(|summary| self.of(summary));
        Duel::of(&each(a), &each(b), self)
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
    let footnotes = measurements.iter().filter_map(|measurement| {
        let why = measurement.rounds.measured.bound_unknown()?;
        Some(format!("– {}: overlap and bound are not known: {why}\n", measurement.name))
    });
    format!("{table}{}", footnotes.collect::<String>())
}

/// The row of a contender.
fn cells(measurement: &Measurement<'_>, first: &Measurement<'_>, merit: Merit) -> [String; 12] {
    let (summary, measured) = (&measurement.summary, &measurement.rounds.measured);
    let two_digits = |figure: Option<f64>| figure.map_or("–".into(), |figure| format!("{figure:.2}"));
    let busy: Vec<String> =
        measured.lanes.iter().map(|lane| format!("{} {:.0}", lane.name, lane.busy_share() * 100.0)).collect();
    [
        measurement.name.clone(),
        ranged(&measurement.each(Summary::output_throughput), 0),
        merit.duel(measurement, first).map_or("–".into(), |duel| format!("{:.2}", duel.ratio.median)),
        ranged(&measurement.each_mean(|summary| summary.tpot_ms), 2),
        two_digits(summary.tpot_ms.map(|latency| latency.p99)),
        two_digits(summary.ttft_ms.map(|latency| latency.median)),
        two_digits(summary.ttft_ms.map(|latency| latency.p99)),
        summary.request_goodput().map_or("–".into(), |goodput| format!("{goodput:.1}")),
        two_digits(measured.overlap_efficiency()),
        format!("{:.2}", measured.hidden_share()),
        two_digits(measured.bound_tpot_ms()),
        busy.join(", "),
    ]
}

/// Two rounds of anything differ; with three, the quartiles begin to say by how much.
const FEWEST_ROUNDS: usize = 3;
/// What a comparison makes if nobody says otherwise, and the least that is worth asking for.
pub const DEFAULT_ROUNDS: usize = 5;

/// Two contenders, held against each other.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Duel {
    /// By how much the first is better, by round.
    ratio: Spread,
    merit: Merit,
    /// The middle halves of their rounds do not overlap.
    apart: bool,
}

impl Duel {
    /// `a` and `b`: figures of their rounds, more is better.
    fn of(a: &[f64], b: &[f64], merit: Merit) -> Option<Self> {
        let ratios: Vec<f64> = a.iter().zip(b).filter(|(_, b)| **b > 0.0).map(|(a, b)| a / b).collect();
        let (ratio, a, b) = (Spread::of(&ratios)?, Quartiles::of(a)?, Quartiles::of(b)?);
        Some(Self { ratio, merit, apart: a.low > b.high || b.low > a.high })
    }

    fn is_settled(&self) -> bool {
        self.ratio.count >= FEWEST_ROUNDS && self.apart
    }

    /// `1.31 × tokens/s of sequential (1.28 to 1.35 over 5 rounds)`.
    fn words(&self, of: &str) -> String {
        let Spread { median, min, max, count, .. } = self.ratio;
        let range = match count {
            1 => "one round: no spread is known".into(),
            count => format!("{min:.2} to {max:.2} over {count} rounds"),
        };
        format!("{median:.2} × {} of {of} ({range})", self.merit.words())
    }

    /// What would tell them apart, if anything.
    fn ask(&self) -> String {
        format!("ask for --repeats {}", (2 * self.ratio.count).max(DEFAULT_ROUNDS))
    }
}

/// The middle half of some figures.
struct Quartiles {
    low: f64,
    high: f64,
}

impl Quartiles {
    fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        Some(Self { low: percentile(&sorted, 25.0)?, high: percentile(&sorted, 75.0)? })
    }
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
        && let Some(duel) = merit.duel(winner, second)
    {
        sentences.push(against(&winner.name, &second.name, &duel));
    }
    let undivided = measurements.iter().filter(|measurement| measurement.contender.part == Part::NoAfd);
    if let Some(undivided) = best_of(undivided, merit)
        && let Some(duel) = merit.duel(winner, undivided)
    {
        sentences.push(disaggregate(&winner.name, &duel));
    }
    sentences
}

fn against(winner: &str, second: &str, duel: &Duel) -> String {
    let said = duel.words(second);
    match duel.is_settled() {
        true => format!("{winner} is best: {said}."),
        false => format!("{winner} and {second} are not told apart: {said}; {}.", duel.ask()),
    }
}

fn disaggregate(winner: &str, duel: &Duel) -> String {
    let said = format!("{winner} has {}", duel.words("the undivided model on the same devices"));
    match (duel.is_settled(), duel.ratio.median >= 1.0) {
        (true, true) => format!("Disaggregation pays here: {said}."),
        (true, false) => format!("Do not disaggregate here: {said}."),
        (false, _) => format!("Whether to disaggregate is not told: {said}; {}.", duel.ask()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rounds of one that is compared with one whose rounds are 1.0, 1.01, 0.99, …
    #[track_caller]
    fn says(rounds: &[f64], sentence: impl Fn(&Duel) -> String, said: &[&str]) {
        let others = [1.0, 1.01, 0.99, 1.0, 1.0];
        let duel = Duel::of(rounds, &others[..rounds.len()], Merit::Throughput).expect("there are rounds");
        let sentence = sentence(&duel);
        assert!(said.iter().all(|said| sentence.contains(said)), "{rounds:?}: {sentence}");
    }

    #[test]
    fn the_answer_may_be_not_to_disaggregate() {
        let sentence = |duel: &Duel| disaggregate("ping_pong:3", duel);
        says(&[0.6, 0.7, 0.65], sentence, &["Do not disaggregate here: ping_pong:3 has 0.66 × tokens/s", "3 rounds"]);
        says(&[1.6, 1.7, 1.65], sentence, &["Disaggregation pays here"]);
        says(&[0.9, 1.1, 1.0], sentence, &["Whether to disaggregate is not told", "--repeats 6"]);
        says(&[2.0], sentence, &["Whether to disaggregate is not told", "no spread is known", "--repeats 5"]);
    }

    #[test]
    fn schedules_are_told_apart_by_three_rounds_whose_middle_halves_are_apart() {
        let sentence = |duel: &Duel| against("greedy", "sequential", duel);
        says(&[1.5, 1.6], sentence, &["greedy and sequential are not told apart: 1.5", "over 2 rounds", "--repeats 5"]);
        says(&[1.5, 1.6, 1.5], sentence, &["greedy is best: 1.5"]);
        // One round of five went wrong, on either side: the others are told apart all the same.
        says(&[1.5, 1.6, 0.5, 1.5, 1.6], sentence, &["greedy is best: 1.5", "0.51 to 1.60 over 5 rounds"]);
        says(&[1.5, 1.0, 0.99, 1.0, 1.6], sentence, &["not told apart", "--repeats 10"]);
    }
}
