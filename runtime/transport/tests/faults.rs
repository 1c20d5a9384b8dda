//! Faults on purpose, over real connections: each does what it says, to the events it says, and to the same ones again.

use proptest::prelude::*;
use rally_transport::faults::{FaultPlan, Faults, PlanError, ProcessFault};
use rally_transport::tcp::Tcp;
use rally_transport::transport::PARTS;
use rally_transport::{Direction, Event, Polled, Registration, SlotKey, SlotMemory, Stamp, Transport, TransportError};
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

const EDGE: u16 = 3;

/// A slot of one row of 8 bytes.
struct Row(Mutex<[u8; 8]>);

impl Row {
    fn new(value: u64) -> Arc<Self> {
        Arc::new(Self(Mutex::new(value.to_le_bytes())))
    }

    fn bytes(&self) -> MutexGuard<'_, [u8; 8]> {
        self.0.lock().expect("nobody panics with it")
    }

    fn value(&self) -> u64 {
        u64::from_le_bytes(*self.bytes())
    }

    fn set(&self, value: u64) {
        *self.bytes() = value.to_le_bytes();
    }
}

impl SlotMemory for Row {
    fn lengths(&self, stamp: &Stamp) -> Option<[usize; PARTS]> {
        (stamp.rows == 1).then_some([8, 0, 0])
    }

    fn read(&self, _: &Stamp, take: &mut dyn FnMut([&[u8]; PARTS]) -> io::Result<()>) -> io::Result<()> {
        take([&*self.bytes(), &[], &[]])
    }

    fn write(&self, _: &Stamp, fill: &mut dyn FnMut([&mut [u8]; PARTS]) -> io::Result<()>) -> io::Result<()> {
        fill([&mut *self.bytes(), &mut [], &mut []])
    }
}

fn hosts() -> Vec<String> {
    vec!["a0".into(), "f0".into()]
}

fn plan(faults: &Value) -> FaultPlan {
    let text = json!({ "version": 1, "seed": 7, "faults": faults }).to_string();
    FaultPlan::parse(&text, &hosts(), &BTreeSet::from(["a2f".to_owned()])).expect("it is a plan")
}

/// `a0` with faults, and `f0` without; a slot for each of two micro-batches.
struct World {
    faulty: Arc<dyn Transport>,
    plain: Tcp,
    out: [Arc<Row>; 2],
    into: [Arc<Row>; 2],
    happened: Arc<Mutex<Vec<ProcessFault>>>,
}

fn world(faults: &Value) -> World {
    let happened: Arc<Mutex<Vec<ProcessFault>>> = Arc::default();
    let noted = Arc::clone(&happened);
    let process = move |fault| noted.lock().expect("nobody panics with it").push(fault);
    let edges = HashMap::from([(EDGE, "a2f".to_owned())]);
    let faults = Arc::new(Faults::new(plan(faults), (hosts(), 0), edges, &[], Box::new(process)));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port can be had");
    let near = TcpStream::connect(listener.local_addr().expect("it listens")).expect("it listens");
    let far = listener.accept().expect("someone came").0;
    let (mut sender, mut plain) = (Tcp::default(), Tcp::default());
    sender.add(1, near).expect("it is connected");
    plain.add(0, far).expect("it is connected");
    let faulty = faults.wrap(Arc::new(sender)).expect("a thread can be had");
    let (out, into) = ([Row::new(0), Row::new(0)], [Row::new(0), Row::new(0)]);
    let slots = |rows: &[Arc<Row>; 2], peer: usize, direction: Direction| {
        let slot = |(micro_batch, row): (u16, &Arc<Row>)| {
            let key = SlotKey { edge: EDGE, micro_batch, from: 0, to: 1, leg: 0 };
            Registration { key, peer, direction, memory: Arc::clone(row) as _ }
        };
        (0..).zip(rows).map(slot).collect()
    };
    faulty.register(slots(&out, 1, Direction::Out));
    plain.register(slots(&into, 0, Direction::In));
    World { faulty, plain, out, into, happened }
}

impl World {
    /// Sends `value` as the rows of a micro-batch, and then has something else in the slot, as a lane would.
    fn post(&self, micro_batch: usize, step: u64, value: u64) {
        self.out[micro_batch].set(value);
        self.faulty.post(micro_batch, Stamp { step, layer: 0, rows: 1, routed: false });
    }

    fn next(&self) -> Event {
        let mut got = None;
        while got.is_none() {
            if self.plain.poll(0, &mut |event| got = Some(event)) == Polled::Ended {
                break;
            }
        }
        got.expect("there was an event")
    }

    /// Which rows come until the end, as (micro-batch, step, value).
    fn rows(&self) -> Vec<(usize, u64, u64)> {
        self.faulty.finish();
        let mut rows = Vec::new();
        loop {
            match self.next() {
                Event::Arrived { slot, stamp } => rows.push((slot, stamp.step, self.into[slot].value())),
                Event::Done { .. } => return rows,
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn without_a_fault_for_it_nothing_happens() {
    let world = world(&json!([{ "fault": "drop", "edge": "a2f", "steps": "5.." }, { "fault": "drop", "from": "f0" }]));
    (0..5).for_each(|step| world.post(0, step, step));
    assert_eq!(world.next(), Event::Arrived { slot: 0, stamp: Stamp { step: 0, layer: 0, rows: 1, routed: false } });
    // Nothing holds the others up; what is in the slot by then is the receiver's business.
    let steps: Vec<u64> = world.rows().into_iter().map(|(_, step, _)| step).collect();
    assert_eq!(steps, [1, 2, 3, 4]);
}

#[test]
fn what_is_dropped_never_comes() {
    let world = world(
        &json!([{ "fault": "drop", "steps": 1, "micro_batch": 0 }, { "fault": "drop", "edge": "control", "steps": 0 }]),
    );
    for step in 0..3 {
        world.post(0, step, step);
        world.post(1, step, step);
    }
    world.faulty.send(1, vec![1]);
    let came: BTreeSet<(usize, u64)> = world.rows().into_iter().map(|(slot, step, _)| (slot, step)).collect();
    assert_eq!(came, BTreeSet::from([(0, 0), (0, 2), (1, 0), (1, 1), (1, 2)]));
}

/// The slot has been filled anew before they leave.
#[test]
fn what_is_late_is_what_was_sent() {
    let world = world(&json!([{ "fault": "delay", "ms": 30, "times": 1 }]));
    let began = Instant::now();
    world.post(0, 0, 111);
    world.out[0].set(999);
    world.post(1, 0, 222);
    let rows = world.rows();
    assert!(began.elapsed() >= Duration::from_millis(30), "{:?}", began.elapsed());
    assert_eq!(rows, [(1, 0, 222), (0, 0, 111)], "what was not delayed overtook it");
}

#[test]
fn what_comes_twice_comes_once_to_who_listens() {
    let world = world(&json!([{ "fault": "duplicate" }, { "fault": "duplicate", "micro_batch": 1, "ms": 5 }]));
    world.post(0, 0, 1);
    world.post(1, 0, 2);
    world.faulty.send(1, vec![9]);
    world.faulty.finish();
    let (mut rows, mut messages) = (Vec::new(), 0);
    loop {
        match world.next() {
            Event::Arrived { slot, .. } => rows.push((slot, world.into[slot].value())),
            Event::Message { .. } => messages += 1,
            _ => break,
        }
    }
    rows.sort_unstable();
    assert_eq!(
        (rows, messages),
        (vec![(0, 1), (1, 2)], 2),
        "rows are known by their step; messages by whoever reads them"
    );
}

#[test]
fn what_is_reordered_comes_in_another_order_the_same_every_time() {
    let order = || {
        let world = world(&json!([{ "fault": "reorder", "ms": 400, "edge": "a2f" }]));
        (0..2).for_each(|micro_batch| world.post(micro_batch, 0, 7));
        world.rows()
    };
    let first = order();
    assert_eq!((first.len(), order()), (2, first));
}

#[test]
fn what_is_corrupted_is_noticed() {
    let world = world(&json!([{ "fault": "corrupt", "steps": 1 }]));
    world.post(0, 0, 5);
    world.post(0, 1, 6);
    assert!(matches!(world.next(), Event::Arrived { .. }));
    world.faulty.finish();
    assert!(matches!(world.next(), Event::Down { .. }), "a changed bit was let through");
}

/// Not even a sign of life gets through, in one direction; what waits comes at last.
#[test]
fn a_way_that_is_cut_is_silent_until_it_heals() {
    let world = world(&json!([{ "fault": "partition", "from": "a0", "to": "f0", "steps": 1, "ms": 500 }]));
    world.post(0, 0, 5);
    assert!(matches!(world.next(), Event::Arrived { .. }));
    let began = Instant::now();
    world.post(0, 1, 6);
    world.post(1, 1, 7);
    world.faulty.send(1, vec![1]);
    assert!(matches!(world.next(), Event::Arrived { slot: 0, .. }));
    assert!(began.elapsed() >= Duration::from_millis(500), "{:?}", began.elapsed());
    assert!(matches!(world.next(), Event::Arrived { slot: 1, .. }));
    assert!(matches!(world.next(), Event::Message { .. }));
}

#[test]
fn a_way_that_stays_cut_is_given_up_by_the_other_end() {
    let world = world(&json!([{ "fault": "partition", "from": "a0", "to": "f0" }]));
    let began = Instant::now();
    world.post(0, 0, 5);
    let Event::Down { error: TransportError::Silent(_), .. } = world.next() else { panic!("it was not silent") };
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
}

#[test]
fn a_process_meets_its_own_faults_once() {
    let world = world(&json!([
        { "fault": "kill", "host": "f0" },
        { "fault": "stop", "host": "a0", "steps": "1..", "ms": 3 },
        { "fault": "restart", "host": "a0", "steps": 2, "ms": 4 },
        { "fault": "slow", "host": "a0", "ms": 5 },
    ]));
    let began = Instant::now();
    (0..4).for_each(|step| world.post(0, step, step));
    assert!(began.elapsed() >= Duration::from_millis(20), "{:?}", began.elapsed());
    let restart = ProcessFault::Restart { after: Duration::from_millis(4), spent: vec![0, 1, 1, 3] };
    let happened = world.happened.lock().expect("nobody panics with it");
    assert_eq!(*happened, [ProcessFault::Stop(Duration::from_millis(3)), restart]);
}

#[test]
fn plans_that_cannot_be_say_what_would_be_right() {
    let said = |plan: &Value| {
        let edges = BTreeSet::from(["a2f".to_owned()]);
        FaultPlan::parse(&plan.to_string(), &hosts(), &edges).expect_err("it cannot be").to_string()
    };
    let fault = |fault: Value| said(&json!({ "version": 1, "faults": [fault] }));
    for (said, what) in [
        (said(&json!({ "version": 2, "faults": [] })), "version 2 of fault plans is not known"),
        (said(&json!({ "version": 1, "faults": [], "sed": 1 })), "unknown field `sed`"),
        (fault(json!({ "fault": "explode" })), "unknown variant `explode`"),
        (fault(json!({ "fault": "kill" })), "faults[0] (`kill`): it needs a `host`"),
        (fault(json!({ "fault": "kill", "host": "f9" })), "the graph has no host `f9`, but a0, f0"),
        (fault(json!({ "fault": "drop", "host": "f0" })), "it has `from` and `to`"),
        (fault(json!({ "fault": "drop", "edge": "f2f" })), "the graph has no transfer `f2f`, but a2f, control"),
        (fault(json!({ "fault": "delay" })), "it needs `ms`"),
        (fault(json!({ "fault": "drop", "ms": 1 })), "`ms` is not its key"),
        (fault(json!({ "fault": "delay", "ms": -1 })), "expected 0 to"),
        (fault(json!({ "fault": "drop", "share": 0 })), "expected a number above 0"),
        (fault(json!({ "fault": "drop", "steps": "9..4" })), "expected a step, or a range"),
        (fault(json!({ "fault": "partition", "from": "a0" })), "it needs `from` and `to`"),
    ] {
        assert!(said.contains(what), "{said} should say {what}");
    }
    assert!(matches!(FaultPlan::parse("{", &[], &BTreeSet::new()), Err(PlanError::Syntax(_))));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// A share hits its share, and which events are hit follows from plan and seed alone.
    #[test]
    fn the_same_plan_hits_the_same_events(seed: u64, percent in 5..60u64) {
        let hit = || {
            let share = percent as f64 / 100.0;
            let mut plan = plan(&json!([{ "fault": "restart", "host": "a0", "ms": 0, "share": share, "times": 1_000_000 }]));
            plan.seed = seed;
            let hits: Arc<Mutex<Vec<u64>>> = Arc::default();
            let (noted, now) = (Arc::clone(&hits), Arc::new(Mutex::new(0)));
            let at = Arc::clone(&now);
            let process = move |_| noted.lock().expect("nobody panics").push(*at.lock().expect("nobody panics"));
            let edges = HashMap::from([(EDGE, "a2f".to_owned())]);
            let faults = Arc::new(Faults::new(plan, (hosts(), 0), edges, &[], Box::new(process)));
            let faulty = faults.wrap(Arc::new(Tcp::default())).expect("a thread can be had");
            for message in 0..2000 {
                *now.lock().expect("nobody panics") = message;
                faulty.send(1, Vec::new());
            }
            hits.lock().expect("nobody panics").clone()
        };
        let first = hit();
        let share = first.len() as f64 / 2000.0 - percent as f64 / 100.0;
        prop_assert!(share.abs() < 0.06, "{share}");
        prop_assert_eq!(first, hit());
    }
}
