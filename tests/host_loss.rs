//! Hosts that die as with `kill -9` at seeded moments: whoever it is, and whether it comes back or not, every request ends with the
//! tokens and logits of the undisturbed run.
//!
//! `RALLY_KILLS=200` kills so many; the second test command does.

#[path = "support/binary.rs"]
mod binary;
#[path = "support/draw.rs"]
mod draw;
#[path = "support/hosts.rs"]
mod hosts;

use draw::{draw, number};
use hosts::{Deployment, Divided, Process};
use std::time::{Duration, Instant};

/// Who dies, and what becomes of it.
#[derive(Clone, Copy, Debug)]
struct Case {
    attention: usize,
    ffn: usize,
    divided: Divided,
    /// Hosts that may die, indices into the deployment's.
    victims: (usize, usize),
    /// It is started again at once.
    back: bool,
}

/// Those of one deployment stand beside each other.
const CASES: [Case; 4] = [
    // A replica takes over.
    Case { attention: 2, ffn: 2, divided: Divided::Replicas, victims: (2, 3), back: false },
    // It comes back to a run that goes on.
    Case { attention: 2, ffn: 2, divided: Divided::Replicas, victims: (1, 3), back: true },
    // Attention goes to the hosts that are left.
    Case { attention: 3, ffn: 2, divided: Divided::Replicas, victims: (1, 2), back: false },
    // Nobody else has those experts.
    Case { attention: 2, ffn: 2, divided: Divided::Experts, victims: (1, 3), back: true },
];

impl Case {
    fn shape(&self) -> (usize, usize, bool) {
        (self.attention, self.ffn, matches!(self.divided, Divided::Experts))
    }
}

#[derive(Default)]
struct Times {
    /// From the kill to the coordinator's word that the host is lost.
    known_ms: Vec<f64>,
    /// From then to the next token, and the time per token of the run, where a replica took over.
    stood_ms: Vec<(f64, f64)>,
    /// Kills that came after the run's last step.
    too_late: usize,
}

/// A deployment that is used for many kills: its workers outlive the runs.
struct Scene {
    deployment: Deployment,
    workers: Vec<Process>,
    requests: std::path::PathBuf,
    undisturbed: Duration,
    case: Case,
}

impl Scene {
    fn new(case: Case) -> Self {
        let deployment = Deployment::new(case.attention, case.ffn, case.divided);
        let requests = deployment.requests(6, 40);
        deployment.run_alone(&requests, "alone");
        let workers = deployment.workers();
        let run = deployment.run(&requests, "undisturbed", &[]);
        workers[0].says("a run begins");
        let begun = Instant::now();
        run.says("tokens/s");
        let undisturbed = begun.elapsed();
        run.good_end();
        deployment.assert_same("alone", "undisturbed");
        Self { deployment, workers, requests, undisturbed, case }
    }

    fn kill_one(&mut self, seed: u64, times: &mut Times) {
        let Self { deployment, workers, case, .. } = self;
        let (first, last) = case.victims;
        let victim = first + draw(seed, 1, (last - first + 1) as u64) as usize;
        let host = deployment.hosts[victim].clone();
        workers.iter().for_each(|worker| drop(worker.everything()));
        let run = deployment.run(&self.requests, "disturbed", &[]);
        workers[victim - 1].says("a run begins");
        let span = self.undisturbed.as_millis() as u64;
        std::thread::sleep(Duration::from_millis(draw(seed, 2, span.max(1))));
        workers[victim - 1].kill();
        let killed = Instant::now();
        let known = run.says_or_ends(&format!("host `{host}` is lost"));
        if known {
            times.known_ms.push(killed.elapsed().as_secs_f64() * 1e3);
        } else {
            times.too_late += 1;
        }
        if case.back {
            workers[victim - 1] = deployment.worker(&host);
        }
        let said = run.good_end();
        deployment.assert_same("alone", "disturbed");
        if known && !case.back && victim >= case.attention {
            let stood =
                said.lines().find_map(|line| line.split("stood_ms=").nth(1)?.split_whitespace().next()?.parse().ok());
            times.stood_ms.extend(stood.map(|stood: f64| (stood, deployment.tpot_ms("disturbed"))));
        }
        if !case.back {
            workers[victim - 1] = deployment.worker(&host);
        }
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[test]
fn whoever_is_killed_no_token_changes() {
    let kills = number("RALLY_KILLS", 6);
    let cases = CASES.len() as u64;
    let mut times = Times::default();
    let mut scene: Option<Scene> = None;
    for (index, case) in CASES.into_iter().enumerate() {
        let same = scene.take().filter(|scene| scene.case.shape() == case.shape());
        let scene = scene.insert(same.map_or_else(|| Scene::new(case), |scene| Scene { case, ..scene }));
        for seed in (0..kills).filter(|seed| seed % cases == index as u64) {
            let began = Instant::now();
            scene.kill_one(seed, &mut times);
            println!("seed {seed}: {case:?}, {:.1} s", began.elapsed().as_secs_f64());
        }
    }
    let worst = |values: &[f64]| values.iter().copied().fold(f64::NAN, f64::max);
    let over = |(stood, tpot): &(f64, f64)| stood - 2.0 * tpot;
    let (known, stood) = (median(times.known_ms.iter().copied()), median(times.stood_ms.iter().map(|(ms, _)| *ms)));
    println!(
        "{kills} kills, {} after the last step; a loss was known after {known:.1} ms (median), {:.1} ms (worst)",
        times.too_late,
        worst(&times.known_ms)
    );
    println!(
        "with a replica the next token came {stood:.1} ms after that (median); beyond two steps: {:.1} ms (median), {:.1} ms (worst)",
        median(times.stood_ms.iter().map(over)),
        worst(&times.stood_ms.iter().map(over).collect::<Vec<_>>()),
    );
    assert!(times.too_late as u64 * 2 <= kills, "most kills hit a run that was over");
    // The bounds hold for the median of many: others use the processor as well.
    if kills >= 30 {
        assert!(known <= 50.0, "a loss is known within 50 ms");
    }
    if kills >= 100 {
        let beyond = median(times.stood_ms.iter().map(over));
        assert!(beyond <= 100.0, "a replica takes over within two steps and 100 ms");
    }
}
