//! The transport that does what a plan of faults says to a real one.

use super::copies::Copies;
use super::later::{Action, Later};
use super::plan::{CONTROL, Fault, FaultKind, FaultPlan, Sent, share_of};
use crate::transport::{
    Direction, Event, Peer, Polled, Pulse, Registration, SlotKey, Stamp, Transport, TransportError,
};
use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Something that happens to this process. `spent` is how often each fault of the plan has happened: a process that begins anew goes
/// on from there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProcessFault {
    /// It ends, as with `kill -9`.
    Kill,
    /// It stands still.
    Stop(Duration),
    /// It ends and begins anew after this time.
    Restart {
        /// After this time.
        after: Duration,
        /// How often each fault has happened.
        spent: Vec<u64>,
    },
}

/// A plan's part on one host, for the life of its process.
pub struct Faults {
    plan: FaultPlan,
    own: Peer,
    /// Names of all hosts.
    hosts: Vec<String>,
    /// Ids of transfers, by their number in keys.
    edges: HashMap<u16, String>,
    /// By fault, how often it has happened.
    spent: Vec<AtomicU64>,
    epochs: AtomicU64,
    process: Box<dyn Fn(ProcessFault) + Send + Sync>,
}

impl Faults {
    /// `hosts` are all hosts' names, `own` is this one; `edges` are the ids of transfers by their number in slot keys. `spent` is how
    /// often each fault has happened already. `process` does to this process what is to be done to it.
    pub fn new(
        plan: FaultPlan,
        (hosts, own): (Vec<String>, Peer),
        edges: HashMap<u16, String>,
        spent: &[u64],
        process: Box<dyn Fn(ProcessFault) + Send + Sync>,
    ) -> Self {
        let count = |index: usize| AtomicU64::new(spent.get(index).copied().unwrap_or(0));
        let spent = (0..plan.faults.len()).map(count).collect();
        Self { plan, own, hosts, edges, spent, epochs: AtomicU64::new(0), process }
    }

    /// `inner` with faults, for one membership epoch.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn wrap(self: &Arc<Self>, inner: Arc<dyn Transport>) -> io::Result<Arc<dyn Transport>> {
        Ok(Arc::new(Faulty {
            later: Later::start(Arc::clone(&inner))?,
            inner,
            epoch: self.epochs.fetch_add(1, Ordering::Relaxed),
            faults: Arc::clone(self),
            slots: OnceLock::new(),
            messages: (0..self.hosts.len()).map(|_| AtomicU64::new(0)).collect(),
            parted: (0..self.hosts.len()).map(|_| Mutex::new(Way::Open)).collect(),
        }))
    }

    /// How often each fault of the plan has happened.
    pub fn spent(&self) -> Vec<u64> {
        self.spent.iter().map(|spent| spent.load(Ordering::Relaxed)).collect()
    }

    /// The faults that an event meets, each with a number drawn for it.
    fn of(&self, sent: &Sent<'_>) -> Vec<(&Fault, u64)> {
        let mut met = Vec::new();
        for (index, fault) in self.plan.faults.iter().enumerate() {
            let Some(drawn) = self.plan.meets(index, sent) else { continue };
            let below = |count: u64| (count < fault.most()).then(|| count + 1);
            if self.spent[index].fetch_update(Ordering::Relaxed, Ordering::Relaxed, below).is_ok() {
                tell(index, fault, sent);
                met.push((fault, drawn));
            }
        }
        met
    }

    fn process(&self, fault: &Fault) {
        let time = fault.time().unwrap_or_default();
        match fault.fault {
            FaultKind::Kill => (self.process)(ProcessFault::Kill),
            FaultKind::Stop => (self.process)(ProcessFault::Stop(time)),
            FaultKind::Slow => std::thread::sleep(time),
            _ => {
                (self.process)(ProcessFault::Restart { after: time, spent: self.spent() });
            }
        }
    }
}

fn tell(index: usize, fault: &Fault, sent: &Sent<'_>) {
    let Sent { edge, from, to, step, layer, epoch } = sent;
    let (edge, micro_batch) = edge.map_or((CONTROL, 0), |(edge, key)| (edge, key.micro_batch));
    tracing::info!(index, fault = fault.fault.name(), edge, from, to, micro_batch, step, layer, epoch, "a fault");
}

/// So long after a way has healed all that waited for it is on its way.
const HEALED: Duration = Duration::from_secs(1);

/// The way to a peer.
#[derive(Clone, Copy)]
enum Way {
    Open,
    /// Nothing gets there before.
    Closed(Instant),
    /// Nothing gets there.
    Cut,
}

/// A slot that was registered.
struct Slot {
    key: SlotKey,
    peer: Peer,
    /// Its copies and their own number, if it goes out.
    copies: Option<(Arc<Copies>, usize)>,
}

struct Faulty {
    inner: Arc<dyn Transport>,
    later: Later,
    faults: Arc<Faults>,
    epoch: u64,
    /// By slot that was registered.
    slots: OnceLock<Vec<Slot>>,
    /// By host, messages sent.
    messages: Vec<AtomicU64>,
    /// By host.
    parted: Vec<Mutex<Way>>,
}

/// What becomes of something that is sent.
#[derive(Default)]
struct Fate {
    lost: bool,
    late: Duration,
    /// Not before, and behind all that waits for the same.
    held: Option<Instant>,
    /// A second one, so much later than the first.
    again: Option<Duration>,
    /// A bit changes; which, is drawn.
    corrupt: Option<u64>,
}

impl Fate {
    /// When each of what arrives is sent, if not now.
    fn times(&self) -> impl Iterator<Item = Option<Instant>> + use<> {
        let (now, held) = (Instant::now(), self.held);
        let at = move |late: Duration| held.max((!late.is_zero()).then(|| now + late));
        let first = (!self.lost).then(|| at(self.late));
        first.into_iter().chain(self.again.map(|again| at(self.late + again)))
    }

    /// What is done to the transport for one arrival.
    fn with_damage(&self, peer: Peer, action: Action) -> impl Iterator<Item = Action> + use<> {
        self.corrupt.map(|chosen| Action::Damage(peer, chosen)).into_iter().chain([action])
    }
}

impl Faulty {
    fn way(&self, to: Peer) -> MutexGuard<'_, Way> {
        self.parted[to].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what meets this process, and says what becomes of the event. `None`: nothing happens to it.
    fn fate(&self, to: Peer, edge: Option<SlotKey>, (step, layer): (u64, u32)) -> Option<Fate> {
        let Faults { hosts, own, edges, .. } = &*self.faults;
        let named = |key: SlotKey| (edges.get(&key.edge).map_or("", String::as_str), key);
        let (from, edge) = (&hosts[*own], edge.map(named));
        let met = self.faults.of(&Sent { edge, from, to: &hosts[to], step, layer, epoch: self.epoch });
        let mut fate = Fate::default();
        for (fault, drawn) in &met {
            let time = fault.time().unwrap_or_default();
            match fault.fault {
                FaultKind::Drop => fate.lost = true,
                FaultKind::Delay => fate.late += time,
                FaultKind::Reorder => fate.late += time.mul_f64(share_of(*drawn)),
                FaultKind::Duplicate => fate.again = Some(time),
                FaultKind::Corrupt => fate.corrupt = Some(*drawn),
                FaultKind::Partition => self.part(to, fault.time()),
                FaultKind::Kill | FaultKind::Stop | FaultKind::Slow | FaultKind::Restart => self.faults.process(fault),
            }
        }
        let mut way = self.way(to);
        match *way {
            Way::Closed(until) if until + HEALED < Instant::now() => *way = Way::Open,
            Way::Closed(until) => fate.held = Some(until),
            Way::Cut => (fate.lost, fate.again) = (true, None),
            Way::Open => {}
        }
        (!met.is_empty() || !matches!(*way, Way::Open)).then_some(fate)
    }

    fn part(&self, to: Peer, time: Option<Duration>) {
        self.inner.hush(to, true);
        let mut way = self.way(to);
        *way = match time {
            None => Way::Cut,
            Some(time) => {
                let until = Instant::now() + time;
                self.later.at(Some(until), [Action::Hush(to, false)]);
                Way::Closed(until)
            }
        };
    }
}

impl Transport for Faulty {
    fn register(&self, mut slots: Vec<Registration>) {
        let count = slots.len();
        let mut twins = Vec::new();
        let known = slots.iter().map(|slot| {
            let copies = (slot.direction == Direction::Out).then(|| {
                let (copies, twin) = Copies::beside(slot);
                twins.push(twin);
                (copies, count + twins.len() - 1)
            });
            Slot { key: slot.key, peer: slot.peer, copies }
        });
        let fresh = self.slots.set(known.collect()).is_ok();
        assert!(fresh, "slots are registered once an epoch, and a transport lives for one");
        slots.extend(twins);
        self.inner.register(slots);
    }

    fn post(&self, slot: usize, stamp: Stamp) {
        let Some(Slot { key, peer, copies: Some((copies, twin)) }) = self.slots.get().and_then(|slots| slots.get(slot))
        else {
            return;
        };
        let fate = self.fate(*peer, Some(*key), (stamp.step, stamp.layer));
        let Some(fate) = fate else { return self.inner.post(slot, stamp) };
        for at in fate.times() {
            match copies.take(&stamp) {
                Ok(()) => self.later.at(at, fate.with_damage(*peer, Action::Post(*twin, stamp))),
                Err(error) => self.inner.peer_down(*peer, &error.to_string()),
            }
        }
    }

    fn send(&self, peer: Peer, message: Vec<u8>) {
        let Some(count) = self.messages.get(peer) else { return };
        let fate = self.fate(peer, None, (count.fetch_add(1, Ordering::Relaxed), 0));
        let Some(fate) = fate else { return self.inner.send(peer, message) };
        for at in fate.times() {
            self.later.at(at, fate.with_damage(peer, Action::Send(peer, message.clone())));
        }
    }

    fn receive(&self, peer: Peer, patience: Duration) -> Result<Vec<u8>, TransportError> {
        self.inner.receive(peer, patience)
    }

    fn finish(&self) {
        self.later.finish();
    }

    fn lanes(&self) -> usize {
        self.inner.lanes()
    }

    fn poll(&self, lane: usize, sink: &mut dyn FnMut(Event)) -> Polled {
        self.inner.poll(lane, sink)
    }

    fn silent_for(&self, peer: Peer) -> Option<Duration> {
        self.inner.silent_for(peer)
    }

    fn show(&self, pulse: Arc<dyn Fn() -> Pulse + Send + Sync>) {
        self.inner.show(pulse);
    }

    fn pulse_of(&self, peer: Peer) -> Option<Pulse> {
        self.inner.pulse_of(peer)
    }

    fn peer_down(&self, peer: Peer, why: &str) {
        self.inner.peer_down(peer, why);
    }

    fn hush(&self, peer: Peer, hushed: bool) {
        self.inner.hush(peer, hushed);
    }

    fn damage(&self, peer: Peer, chosen: u64) {
        self.inner.damage(peer, chosen);
    }
}
