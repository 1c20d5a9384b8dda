//! Faults at any moment of any run: a stage that fails or panics, one that leaves values a send chokes on with the slot in its hands,
//! numbers that are none, a panic in a probe and in the bookkeeping under the planner's lock, an owner who goes away. Each ends
//! in the error that names it, with all lanes joined in time, and the process starts the next run as if nothing had been.
//!
//! One test in a program of its own: it counts the process's threads, and one of the faults sits behind a global recorder.

mod support;

use proptest::prelude::*;
use rally::engine::exchange::ExchangeSize;
use rally::engine::schedule::batch::DeviceBatch;
use rally::engine::schedule::planner::SubmitError;
use rally::engine::stage::{Probe, Stage, StageError, TaskContext};
use rally::engine::values::Values;
use rally::engine::{Engine, EngineError, EngineParts, RunEvent};
use rally::stages::checkpoint::RandomWeights;
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};
use support::{Answer, Ask, Layout, answers, config, layouts, parts, request, small_shape, start};

/// Nothing may take longer than this to be told or to end.
const SOON: Duration = Duration::from_secs(5);

const TOLD: &str = "told to";

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    StageFails,
    StagePanics,
    /// What the stage leaves is too short: the next to read it panics; a send does with the slot locked.
    ValuesGone,
    NotANumber,
    ProbePanics,
    OwnerLeaves,
}

const FAULTS: [Fault; 6] = [
    Fault::StageFails,
    Fault::StagePanics,
    Fault::ValuesGone,
    Fault::NotANumber,
    Fault::ProbePanics,
    Fault::OwnerLeaves,
];

/// Goes off at the n-th time it is asked.
#[derive(Debug)]
struct Fuse {
    left: AtomicUsize,
    blown: AtomicBool,
}

impl Fuse {
    fn new(times: usize) -> Arc<Self> {
        Arc::new(Self { left: AtomicUsize::new(times), blown: AtomicBool::new(false) })
    }

    fn burn(&self) -> bool {
        let blows = self.left.fetch_sub(1, Ordering::Relaxed) == 1;
        self.blown.fetch_or(blows, Ordering::AcqRel);
        blows
    }

    fn has_blown(&self) -> bool {
        self.blown.load(Ordering::Acquire)
    }
}

struct Faulty {
    inner: Box<dyn Stage>,
    fault: Fault,
    fuse: Arc<Fuse>,
}

impl Stage for Faulty {
    fn run(&mut self, task: &mut TaskContext<'_>) -> Result<(), StageError> {
        let blows = self.fuse.burn();
        match self.fault {
            Fault::StageFails if blows => return Err(StageError::Other(format!("{TOLD} fail"))),
            Fault::StagePanics if blows => panic!("{TOLD} panic"),
            _ => self.inner.run(task)?,
        }
        let Values { x, u, y, .. } = task.values;
        match self.fault {
            Fault::ValuesGone if blows => [x, u, y].map(Vec::clear).map(drop),
            Fault::NotANumber if blows => [x, u, y].map(|values| values.fill(f32::NAN)).map(drop),
            _ => [(); 3],
        };
        Ok(())
    }

    fn exchanges(&self) -> Vec<ExchangeSize> {
        self.inner.exchanges()
    }

    fn routed_experts(&self) -> usize {
        self.inner.routed_experts()
    }
}

struct PanickingProbe(Arc<Fuse>);

impl Probe for PanickingProbe {
    fn after(&self, _stage: &str, _layer: Option<usize>, _batch: &DeviceBatch, _values: &Values) {
        assert!(!self.0.burn(), "{TOLD} panic in a probe");
    }
}

/// Ends the process if something takes longer than [`SOON`], and says what it was: a hang cannot be caught from within.
struct Watchdog {
    begin: Sender<String>,
    end: Sender<()>,
}

impl Watchdog {
    fn new() -> Self {
        let ((begin, begins), (end, ends)) = (channel(), channel());
        std::thread::spawn(move || Self::watch(&begins, &ends));
        Self { begin, end }
    }

    fn watch(begins: &Receiver<String>, ends: &Receiver<()>) {
        for what in begins {
            if ends.recv_timeout(SOON) == Err(RecvTimeoutError::Timeout) {
                eprintln!("after {SOON:?} still not over: {what}");
                std::process::abort();
            }
        }
    }

    fn within<T>(&self, what: String, work: impl FnOnce() -> T) -> T {
        self.begin.send(what).expect("the watchdog lives as long as the process");
        let done = work();
        self.end.send(()).expect("the watchdog lives as long as the process");
        done
    }
}

/// Threads of this process; on systems that do not say, as many as always.
fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}

static WATCHDOG: LazyLock<Watchdog> = LazyLock::new(|| {
    // A thousand panics that were asked for would hide the one that was not.
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !std::thread::current().name().is_some_and(|name| name.starts_with("lane ")) {
            usual(panic);
        }
    }));
    Watchdog::new()
});

/// One run to its end or its failure.
struct Run {
    engine: Engine,
    fault: Fault,
    fuse: Arc<Fuse>,
    /// Stage and lane that the fault was put into.
    stage: String,
    lane: String,
}

impl Run {
    fn start(layout: &Layout, fault: Fault, place: prop::sample::Index, times: usize) -> Self {
        let (fuse, weights) = (Fuse::new(times), RandomWeights::new(3, small_shape().weight_format));
        let probe =
            (fault == Fault::ProbePanics).then(|| Arc::new(PanickingProbe(Arc::clone(&fuse))) as Arc<dyn Probe>);
        let mut parts = parts(&layout.spec(), &small_shape(), &weights, probe);
        let (stage, lane) = break_one(&mut parts, fault, place, &fuse);
        Self { engine: Engine::start(parts).expect("threads can be had"), fault, fuse, stage, lane }
    }

    /// Answers of all requests, or the failure; nothing where the owner left.
    fn listen(&self, asks: &[Ask]) -> Option<Result<Vec<Answer>, EngineError>> {
        let mut answers = vec![Answer::default(); asks.len()];
        while answers.iter().any(|answer| answer.finish.is_none()) {
            if self.fault == Fault::OwnerLeaves && self.fuse.burn() {
                return None;
            }
            match self.engine.events().recv_timeout(SOON).expect("something happens soon") {
                RunEvent::Admitted(..) => {}
                RunEvent::Token(report) => {
                    let sample = report.sample;
                    let answer = &mut answers[sample.sequence as usize];
                    answer.tokens.push(sample.token);
                    answer.logits.push(sample.logits.expect("logits were asked for"));
                }
                RunEvent::Finished(id, reason, _) => answers[id as usize].finish = Some(reason),
                RunEvent::Failed(error) => return Some(Err(error)),
            }
        }
        Some(Ok(answers))
    }

    /// Whether the failure says what was done to the run.
    fn names_it(&self, error: &EngineError) -> bool {
        let panicked = |here: bool, text: &str| {
            matches!(error, EngineError::LanePanicked { lane, message }
                if (!here || *lane == self.lane) && message.contains(text))
        };
        match self.fault {
            Fault::StageFails => matches!(error, EngineError::Stage { stage, source: StageError::Other(text), .. }
                if *stage == self.stage && text.starts_with(TOLD)),
            Fault::StagePanics => panicked(true, TOLD),
            Fault::ValuesGone => panicked(true, ""),
            Fault::NotANumber => {
                matches!(error, EngineError::Stage { source: StageError::NonFiniteLogits { .. }, .. })
            }
            Fault::ProbePanics => panicked(false, TOLD),
            Fault::OwnerLeaves => false,
        }
    }
}

/// Puts the fault into one stage of one device. Returns the names of both.
fn break_one(parts: &mut EngineParts, fault: Fault, place: prop::sample::Index, fuse: &Arc<Fuse>) -> (String, String) {
    let mut places: Vec<(usize, usize)> = Vec::new();
    for (device, of_device) in parts.devices.iter().enumerate() {
        places.extend(of_device.stages.keys().map(|stage| (device, *stage)));
    }
    places.sort_unstable();
    let (device, stage) = *place.get(&places);
    let stages = &mut parts.devices[device].stages;
    if matches!(fault, Fault::StageFails | Fault::StagePanics | Fault::ValuesGone | Fault::NotANumber) {
        let inner = stages.remove(&stage).expect("it is one of them");
        stages.insert(stage, Box::new(Faulty { inner, fault, fuse: Arc::clone(fuse) }));
    }
    (parts.graph.stages[stage].id.clone(), parts.graph.devices[device].name.clone())
}

fn asks() -> impl Strategy<Value = Vec<Ask>> {
    let ask = (prop::collection::vec(0u32..64, 1..16), 4usize..20);
    prop::collection::vec(ask.prop_map(|(prompt, tokens)| Ask::greedy(&prompt, tokens)), 2..8)
}

thread_local! {
    /// Runs by how they ended: failed, finished for all that, left.
    static ENDS: Cell<[usize; 3]> = const { Cell::new([0; 3]) };
}

fn count(end: usize) {
    ENDS.with(|ends| {
        let mut counts = ends.get();
        counts[end] += 1;
        ends.set(counts);
    });
}

proptest! {
    #![proptest_config(config(64, 6))]

    fn a_fault_ends_cleanly(
        layout in layouts(4, 40..80), fault in prop::sample::select(FAULTS.to_vec()), place: prop::sample::Index,
        times in 1usize..24, asks in asks(),
    ) {
        let what = format!("{fault:?} after {times} at {place:?} in {layout:?}");
        let watchdog = &*WATCHDOG;
        let threads_before = threads();
        let run = Run::start(&layout, fault, place, times);
        let handle = run.engine.handle();
        // A fault may be quicker than the owner.
        let submitted = run.engine.submit(asks.iter().enumerate().map(|(id, ask)| request(id as u64, ask)));
        prop_assert!(submitted.is_ok() || run.fuse.has_blown(), "{what}: {submitted:?}");
        match run.listen(&asks) {
            Some(Err(error)) => {
                prop_assert!(run.fuse.has_blown() && run.names_it(&error), "{}: {}", what, error);
                count(0);
            }
            Some(Ok(answers)) => {
                // The moment never came, or came when nobody looked any more: then it hurt nobody.
                let hurts = matches!(fault, Fault::StageFails | Fault::StagePanics | Fault::ProbePanics);
                prop_assert!(!run.fuse.has_blown() || !hurts, "{what}");
                prop_assert!(answers.iter().zip(&asks).all(|(answer, ask)| answer.tokens.len() == ask.tokens), "{what}");
                count(1);
            }
            None => count(2),
        }
        watchdog.within(what.clone(), || drop(run));
        prop_assert_eq!(handle.submit(request(99, &asks[0])), Err(SubmitError::Closed));
        let deadline = Instant::now() + SOON;
        // The system forgets a thread a moment after it was joined.
        while threads() > threads_before && Instant::now() < deadline {
            std::thread::yield_now();
        }
        prop_assert_eq!(threads(), threads_before, "{} left a thread", what);
        let weights = RandomWeights::new(3, small_shape().weight_format);
        let again = watchdog.within(format!("the run after {what}"), || {
            answers(start(&layout.spec(), &small_shape(), &weights, None), &asks[..1])
        });
        prop_assert_eq!(again[0].tokens.len(), asks[0].tokens, "the run after {}", what);
    }
}

#[test]
fn faults_end_cleanly() {
    a_fault_ends_cleanly();
    let [failed, finished, left] = ENDS.with(Cell::get);
    println!("{failed} runs failed by name, {finished} finished before the fault, {left} were left by their owner");
    assert!(failed > finished && left > 0, "most faults must come to pass");
}
