//! Who is slow for the work it did: what a live metric and the analysis of a trace judge by.
//!
//! Devices do unequal amounts of work for the same rows (shards of experts; rows of other lengths), so times are held against
//! *effort*: rows, each counted once for every expert that worked on it here. Nothing here looks at plans or spans.

/// What is slower than others by this much is named: peers share caches, cores and hosts unequally.
pub const SLOW_BESIDE_OTHERS: f64 = 2.5;
/// Tasks that must have been seen of whatever is held against others of the same run.
pub const FEWEST_TASKS: u64 = 50;
/// Whatever is held against others must take this long at least: caches and clocks make more of a difference to what is shorter.
pub const SHORTEST_TASK_NS: f64 = 5_000.0;

/// Efforts that spread by less than this share of their mean say nothing of a line's slope that noise would not say as well.
const NARROW: f64 = 0.1;

/// Sums over tasks, enough for [`Line::through`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tasks {
    /// How many.
    pub count: f64,
    /// Their effort.
    pub effort: f64,
    /// The squares of it.
    pub effort_squared: f64,
    /// What they took, in nanoseconds.
    pub ns: f64,
    /// Effort times nanoseconds.
    pub effort_ns: f64,
}

impl Tasks {
    /// Takes `count` tasks of equal effort and time.
    pub fn add(&mut self, count: f64, effort: f64, ns: f64) {
        self.count += count;
        self.effort += count * effort;
        self.effort_squared += count * effort * effort;
        self.ns += count * ns;
        self.effort_ns += count * effort * ns;
    }

    /// Whether there were enough, and long enough ones, to be judged.
    pub fn are_enough(&self) -> bool {
        self.count >= FEWEST_TASKS as f64 && self.ns >= SHORTEST_TASK_NS * self.count
    }
}

/// Time as a function of effort: so much a task, and so much for each unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line {
    /// Nanoseconds of a task without effort, at least 0.
    pub task_ns: f64,
    /// Nanoseconds of each unit, at least 0.
    pub unit_ns: f64,
}

impl Line {
    /// The line through `tasks` by least squares; no part of it is negative. Through zero where all had about the same effort. `None`
    /// if there were none.
    pub fn through(tasks: &Tasks) -> Option<Self> {
        let Tasks { count, effort, effort_squared, ns, effort_ns } = *tasks;
        if count <= 0.0 {
            return None;
        }
        let spread = count * effort_squared - effort * effort;
        let together = count * effort_ns - effort * ns;
        if spread <= NARROW * NARROW * effort * effort {
            let unit_ns = if effort > 0.0 { ns / effort } else { 0.0 };
            return Some(Self { task_ns: if effort > 0.0 { 0.0 } else { ns / count }, unit_ns });
        }
        let unit_ns = together / spread;
        let task_ns = (ns - unit_ns * effort) / count;
        Some(match (task_ns < 0.0, unit_ns < 0.0) {
            (true, _) => Self { task_ns: 0.0, unit_ns: effort_ns / effort_squared },
            (_, true) => Self { task_ns: ns / count, unit_ns: 0.0 },
            _ => Self { task_ns, unit_ns },
        })
    }

    /// Nanoseconds of a task.
    pub fn at(&self, effort: f64) -> f64 {
        self.task_ns + self.unit_ns * effort
    }
}

/// Something that a device does, a stage's computing or its part of a transfer: what it took, and what it should have taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Held {
    /// Which; the same for all that a device does of one stage.
    pub stage: usize,
    /// In nanoseconds.
    pub actual_ns: f64,
    /// In nanoseconds.
    pub expected_ns: f64,
    /// Whether it alone is slow enough to be named.
    pub slow: bool,
}

/// Whether a device is slow, and not only the worst of its stages: what it does beside that one is slow as well.
pub fn device_is_slow(all: impl Iterator<Item = Held> + Clone, slow: f64) -> bool {
    let excess = |held: &Held| held.actual_ns - held.expected_ns;
    let Some(worst) = all.clone().filter(|held| held.slow).max_by(|a, b| excess(a).total_cmp(&excess(b))) else {
        return false;
    };
    let rest = all.filter(|held| held.stage != worst.stage);
    let (actual, expected) =
        rest.fold((0.0, 0.0), |(actual, expected), held| (actual + held.actual_ns, expected + held.expected_ns));
    expected > 0.0 && actual >= slow * expected
}

/// The lower one of two in the middle: half of all may be slow, and the others still show it.
pub fn lower_median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found_again_and_is_never_negative() {
        // Time of a task with this effort; what the line says at 100.
        let cases: [(&[(f64, f64)], f64); 6] = [
            (&[(2.0, 70.0), (4.0, 90.0), (8.0, 130.0)], 1050.0),
            // More effort for less time: the mean, whatever the effort.
            (&[(2.0, 90.0), (4.0, 70.0)], 80.0),
            // A line that would begin below zero begins at it.
            (&[(10.0, 10.0), (20.0, 40.0)], 180.0),
            // All alike: by the unit.
            (&[(5.0, 50.0), (5.0, 70.0)], 1200.0),
            // And nearly alike: what else there is may be noise.
            (&[(199.0, 410.0), (201.0, 390.0)], 200.0),
            (&[(0.0, 30.0)], 30.0),
        ];
        for (tasks, expected) in cases {
            let mut sums = Tasks::default();
            tasks.iter().for_each(|(effort, ns)| sums.add(3.0, *effort, *ns));
            let line = Line::through(&sums).expect("there are tasks");
            assert!((line.at(100.0) - expected).abs() < 1e-6, "{tasks:?}: {line:?}");
        }
        assert_eq!(Line::through(&Tasks::default()), None);
    }

    #[test]
    fn one_slow_stage_is_no_slow_device() {
        let held =
            |stage, actual_ns, expected_ns| Held { stage, actual_ns, expected_ns, slow: actual_ns > expected_ns };
        let all = [held(0, 30.0, 10.0), held(1, 10.0, 10.0), held(2, 12.0, 10.0)];
        assert!(!device_is_slow(all.iter().copied(), 2.5));
        let all = [held(0, 30.0, 10.0), held(1, 31.0, 10.0), held(2, 25.0, 10.0)];
        assert!(device_is_slow(all.iter().copied(), 2.5));
        assert!(!device_is_slow([held(0, 30.0, 10.0)].iter().copied(), 2.5), "nothing tells it from its stage");
    }
}
