//! Who is slow beside its siblings, as a run's figures tell: the same judgement as the analysis of a trace, on sums instead of
//! spans.

use super::{LaneFigures, RunFigures, Series};
use rally_metrics::{AtomicHistogram, Exposition, StragglerCause, names};
use rally_schedule::straggler::{Held, Line, SLOW_BESIDE_OTHERS, Tasks, device_is_slow, lower_median};
use std::sync::atomic::{AtomicU64, Ordering};

/// Sums over the tasks of one series, beside those of its histogram of durations. Written by its lane alone.
#[derive(Debug, Default)]
pub(super) struct Efforts {
    effort: AtomicU64,
    effort_squared: AtomicU64,
    effort_ns: AtomicU64,
}

impl Efforts {
    pub(super) fn record(&self, effort: u64, ns: u64) {
        super::add(&self.effort, effort);
        super::add(&self.effort_squared, effort * effort);
        super::add(&self.effort_ns, effort * ns);
    }

    fn read(&self, durations: &AtomicHistogram) -> Tasks {
        let read = |cell: &AtomicU64| cell.load(Ordering::Relaxed) as f64;
        let (count, ns) = durations.totals();
        Tasks {
            count: count as f64,
            effort: read(&self.effort),
            effort_squared: read(&self.effort_squared),
            ns: ns as f64,
            effort_ns: read(&self.effort_ns),
        }
    }
}

/// What stands for all stages together in a label.
const ALL_STAGES: &str = "all";

impl LaneFigures {
    fn tasks(&self, place: usize) -> Tasks {
        self.efforts[place].read(&self.durations[place])
    }

    fn tasks_of(&self, series: Series) -> Option<Tasks> {
        Some(self.tasks(self.series.iter().position(|other| *other == series)?))
    }
}

impl RunFigures {
    /// What the lane did of `series`, and what its siblings would have taken for it. `None`: nobody to hold it against.
    fn held(&self, lane: &LaneFigures, series: Series, tasks: &Tasks) -> Option<Held> {
        let (Series::Stage { stage, .. } | Series::Transfer { stage }) = series;
        let expected = |other: Tasks| {
            // Where a row is a row everywhere, fewer of them may well take as long as more.
            let least = if self.uneven[stage] { 0.0 } else { other.effort / other.count };
            let effort = (tasks.effort / tasks.count.max(1.0)).max(least);
            Some(Line::through(&other)?.at(effort) * tasks.count)
        };
        let siblings = self.lanes.iter().filter(|other| other.group == lane.group && other.name != lane.name);
        let expected_ns = lower_median(siblings.filter_map(|other| expected(other.tasks_of(series)?)).collect())?;
        let slow = tasks.are_enough() && tasks.ns >= SLOW_BESIDE_OTHERS * expected_ns;
        Some(Held { stage, actual_ns: tasks.ns, expected_ns, slow })
    }

    /// One line for each stage and transfer of a device, and one for the device: how many times as long as its siblings it takes, if
    /// that one is what is slow, else 0.
    pub(super) fn write_stragglers(&self, page: &mut Exposition<'_>) {
        page.gauge(&names::STRAGGLER, |samples| {
            for lane in &self.lanes {
                let held: Vec<Held> = lane
                    .series
                    .iter()
                    .enumerate()
                    .filter_map(|(place, series)| self.held(lane, *series, &lane.tasks(place)))
                    .collect();
                let device = device_is_slow(held.iter().copied(), SLOW_BESIDE_OTHERS);
                let ratio = |named: bool, of: &mut dyn Iterator<Item = &Held>| {
                    let sums = of.fold((0.0, 0.0), |sum, held| (sum.0 + held.actual_ns, sum.1 + held.expected_ns));
                    if named && sums.1 > 0.0 { sums.0 / sums.1 } else { 0.0 }
                };
                samples
                    .push(&[&lane.device, ALL_STAGES, StragglerCause::Device.name()], ratio(device, &mut held.iter()));
                for stage in 0..self.stages.len() {
                    let Some(cause) = lane.series.iter().find_map(|series| match series {
                        Series::Stage { stage: own, .. } if *own == stage => Some(StragglerCause::Stage),
                        Series::Transfer { stage: own } if *own == stage => Some(StragglerCause::Transfer),
                        _ => None,
                    }) else {
                        continue;
                    };
                    let mut own = held.iter().filter(|held| held.stage == stage);
                    let named = !device && own.clone().any(|held| held.slow);
                    samples.push(&[&lane.device, &self.stages[stage], cause.name()], ratio(named, &mut own));
                }
            }
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::clock::RunClock;
    use crate::toy::{Setup, policy};
    use rally_metrics::Identity;
    use rally_schedule::planner::StepPlanner;

    /// Effort and time of a task of this stage on `a.1`, of one that has `effort` and takes `ns` on its sibling.
    type Change = fn(stage: &str, effort: u64, ns: u64) -> (u64, u64);

    /// The lines of a page that name somebody, after 100 tasks of everything.
    fn named(change: Change) -> Vec<String> {
        let parts = Setup { attention: 2, ..Setup::simple(policy(true), 2) }.parts();
        let planner = StepPlanner::new(parts.planner);
        let experts = vec![0; parts.plan.lanes.len()];
        let mut figures = RunFigures::new(RunClock::start(), &parts.plan, &parts.graph, &planner, &experts);
        // As if its devices did unequal work for the same rows.
        let combine = figures.stages.iter().position(|stage| stage == "combine").expect("there is one");
        figures.uneven[combine] = true;
        for lane in &figures.lanes {
            for (place, series) in lane.series.iter().enumerate() {
                let (Series::Stage { stage, .. } | Series::Transfer { stage }) = *series;
                for task in 0..100 {
                    let effort = 4 + task % 5;
                    let ns = 1_000 + 2_000 * effort;
                    let (effort, ns) = match lane.name.as_str() {
                        "a.1" => change(&figures.stages[stage], effort, ns),
                        _ => (effort, ns),
                    };
                    lane.efforts[place].record(effort, ns);
                    lane.durations[place].record(ns);
                }
            }
        }
        let identity = Identity::new("toy");
        let mut page = Exposition::new(&identity);
        figures.write_stragglers(&mut page);
        let text = page.into_text();
        let series = text.lines().filter_map(|line| line.strip_prefix("rally_straggler"));
        series.filter(|line| !line.ends_with(" 0")).map(str::to_owned).collect()
    }

    #[test]
    fn who_is_slow_for_the_work_it_did_is_named() {
        let cases: [(&str, Change, &[&str]); 6] = [
            ("nobody", |_, effort, ns| (effort, ns), &[]),
            (
                "a stage",
                |stage, effort, ns| (effort, if stage == "mfa_attention" { 3 * ns } else { ns }),
                &["{device=\"a.1\",stage=\"mfa_attention\",cause=\"stage\"} 3"],
            ),
            (
                "a transfer",
                |stage, effort, ns| (effort, if stage == "a2f" { 3 * ns } else { ns }),
                &["{device=\"a.1\",stage=\"a2f\",cause=\"transfer\"} 3"],
            ),
            ("a device", |_, effort, ns| (effort, 3 * ns), &["{device=\"a.1\",stage=\"all\",cause=\"device\"} 3"]),
            ("more work", |_, effort, _| (4 * effort, 1_000 + 8_000 * effort), &[]),
            (
                "less work, and slow all the same",
                |stage, effort, ns| {
                    if stage == "combine" { (effort / 4, 3 * (1_000 + 2_000 * (effort / 4))) } else { (effort, ns) }
                },
                &["{device=\"a.1\",stage=\"combine\",cause=\"stage\"} 3"],
            ),
        ];
        for (what, change, expected) in cases {
            let found = named(change);
            assert_eq!(found.len(), expected.len(), "{what}: {found:?}");
            for (line, expected) in found.iter().zip(expected) {
                let split = |line: &str| {
                    let (labels, value) = line.rsplit_once(' ').expect("a value");
                    (labels.to_owned(), value.parse::<f64>().expect("a number"))
                };
                let ((labels, ratio), (wanted, about)) = (split(line), split(expected));
                assert!(labels == wanted && (ratio - about).abs() < 0.05, "{what}: {line}, not {expected}");
            }
        }
    }
}
