//! Rows over NIXL and over TCP alike: what is sent arrives in its slot; what is lost, late, garbled or stuck is told. NIXL's library must
//! be there (`RALLY_NIXL`).

#[path = "support/slots.rs"]
mod slots;

use rally_transport::nixl::Engine;
use rally_transport::nixl::announce::{Announcement, Aside, RemotePlace};
use rally_transport::tcp::Tcp;
use rally_transport::{Direction, Event, Polled, Registration, SlotKey, SlotMemory, Stamp, Transport, TransportError};
use slots::Bytes;
use std::collections::BTreeSet;
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, LazyLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Nothing here takes longer.
const SOON: Duration = Duration::from_secs(20);
const EDGE: u16 = 3;

/// Loaded by whichever test comes first, before any of them makes an agent.
static ENGINE: LazyLock<Engine> =
    LazyLock::new(|| Engine::open("127.0.0.1:0").unwrap_or_else(|error| panic!("rows cannot go over NIXL: {error}")));

#[derive(Clone, Copy, Debug)]
enum Kind {
    Tcp,
    Nixl,
}

const BOTH: [Kind; 2] = [Kind::Tcp, Kind::Nixl];

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port can be had");
    let near = TcpStream::connect(listener.local_addr().expect("it listens")).expect("it listens");
    (near, listener.accept().expect("someone came").0)
}

fn key(micro_batch: u16, direction: Direction) -> SlotKey {
    let (from, to) = if direction == Direction::Out { (0, 1) } else { (1, 0) };
    SlotKey { edge: EDGE, micro_batch, from, to, leg: 0 }
}

/// One of two hosts, which are 0 and 1. Its lanes are polled, each by a thread.
struct Host {
    transport: Arc<dyn Transport>,
    peer: usize,
    events: Receiver<Event>,
    lanes: Vec<JoinHandle<()>>,
}

impl Host {
    fn new(kind: Kind, own: usize, stream: TcpStream, slots: Vec<Registration>) -> Self {
        let transport = transport(kind, own, stream);
        transport.register(slots);
        Self::poll(transport, own, |_| true)
    }

    /// Polls those lanes that are to be.
    fn poll(transport: Arc<dyn Transport>, own: usize, polled: fn(usize) -> bool) -> Self {
        let (sender, events) = channel();
        let lane = |lane: usize| {
            let (transport, sender) = (Arc::clone(&transport), sender.clone());
            let sink = move |event| drop(sender.send(event));
            std::thread::spawn(move || while transport.poll(lane, &mut |event| sink(event)) == Polled::Again {})
        };
        let lanes = (0..transport.lanes()).filter(|index| polled(*index)).map(lane).collect();
        Self { transport, peer: 1 - own, events, lanes }
    }

    fn next(&self) -> Event {
        self.events.recv_timeout(SOON).expect("something happens")
    }

    /// What it is told until its lanes end.
    fn rest(self) -> Vec<Event> {
        let events = self.events.iter().collect();
        self.lanes.into_iter().for_each(|lane| lane.join().expect("no lane panics"));
        events
    }
}

fn transport(kind: Kind, own: usize, stream: TcpStream) -> Arc<dyn Transport> {
    let mut links = Tcp::default();
    links.add(1 - own, stream).expect("it is connected");
    match kind {
        Kind::Tcp => Arc::new(links),
        Kind::Nixl => ENGINE.transport(own, links, BTreeSet::from([EDGE])).expect("there are agents"),
    }
}

/// Host 0 sends from `out` to `into` on host 1.
fn two(kind: Kind, out: &Arc<Bytes>, into: &Arc<Bytes>) -> (Host, Host) {
    let (near, far) = pair();
    let slot = |peer, direction, memory: &Arc<Bytes>| {
        vec![Registration { key: key(1, Direction::Out), peer, direction, memory: Arc::clone(memory) as _ }]
    };
    let sender = Host::new(kind, 0, near, slot(1, Direction::Out, out));
    (sender, Host::new(kind, 1, far, slot(0, Direction::In, into)))
}

fn fill(memory: &Bytes, seed: u64) {
    memory.parts().1.iter_mut().flatten().enumerate().for_each(|(i, byte)| *byte = (i as u64 * 7 + seed) as u8);
}

#[test]
fn rows_arrive_in_their_slot_as_they_were_and_then_all_is_done() {
    for kind in BOTH {
        for out in [Bytes::new(64), Bytes::without_place(64)] {
            let into = Bytes::new(64);
            let (sender, receiver) = two(kind, &out, &into);
            for (step, rows, routed) in
                [(0, 0, false), (1, 64, true), (2, 3, false), (3, 1, true), (4, 1, true), (5, 0, true)]
            {
                fill(&out, step);
                let stamp = Stamp { step, layer: 2, rows, routed };
                sender.transport.post(0, stamp);
                assert_eq!(receiver.next(), Event::Arrived { slot: 0, stamp }, "{kind:?}");
                let lengths = out.lengths(&stamp).expect("it fits");
                let (sent, got) = (out.parts(), into.parts());
                assert_eq!(got.0, stamp);
                for (part, length) in lengths.into_iter().enumerate() {
                    assert_eq!(sent.1[part][..length], got.1[part][..length], "{kind:?}, step {step}, part {part}");
                }
            }
            sender.transport.send(1, b"and then".to_vec());
            sender.transport.finish();
            receiver.transport.finish();
            assert_eq!(
                receiver.rest(),
                [Event::Message { peer: 0, bytes: b"and then".to_vec() }, Event::Done { peer: 0 }]
            );
            assert_eq!(sender.rest(), [Event::Done { peer: 1 }], "{kind:?}");
        }
    }
}

/// A megabyte each way in eight slots, in whatever order they come; all of it is there before the end is told.
#[test]
fn all_that_was_posted_is_there_before_the_end_is_told() {
    for kind in BOTH {
        let rows = 10_000;
        let ((near, far), count) = (pair(), 8);
        let memories: Vec<[Arc<Bytes>; 2]> = (0..2 * count).map(|_| [Bytes::new(rows), Bytes::new(rows)]).collect();
        let slots = |own: usize| -> Vec<Registration> {
            let slot = |(index, ends): (usize, &[Arc<Bytes>; 2])| {
                let forth = index < count;
                let key = key(index as u16, if forth { Direction::Out } else { Direction::In });
                let direction = if forth == (own == 0) { Direction::Out } else { Direction::In };
                Registration { key, peer: 1 - own, direction, memory: Arc::clone(&ends[own]) as _ }
            };
            memories.iter().enumerate().map(slot).collect()
        };
        let hosts = [Host::new(kind, 0, near, slots(0)), Host::new(kind, 1, far, slots(1))];
        let stamp = Stamp { step: 1, layer: 0, rows: rows as u32, routed: true };
        for (index, ends) in memories.iter().enumerate() {
            let own = usize::from(index >= count);
            fill(&ends[own], index as u64);
            hosts[own].transport.post(index, stamp);
        }
        hosts.iter().for_each(|host| host.transport.finish());
        for (own, host) in hosts.into_iter().enumerate() {
            let peer = host.peer;
            let mut events = host.rest();
            assert_eq!(events.pop(), Some(Event::Done { peer }), "{kind:?}");
            assert_eq!(events.len(), count, "{kind:?}: {events:?}");
            for event in events {
                let Event::Arrived { slot, .. } = event else { panic!("{kind:?}: {event:?}") };
                assert_eq!((slot < count), own == 1);
                assert!(memories[slot][0].parts().1 == memories[slot][1].parts().1, "{kind:?}, slot {slot}");
            }
        }
    }
}

#[test]
fn rows_that_come_again_or_late_change_nothing() {
    for kind in BOTH {
        let (out, into) = (Bytes::new(8), Bytes::new(8));
        let (sender, receiver) = two(kind, &out, &into);
        let stamp = |step, layer| Stamp { step, layer, rows: 2, routed: false };
        fill(&out, 3);
        sender.transport.post(0, stamp(3, 1));
        assert_eq!(receiver.next(), Event::Arrived { slot: 0, stamp: stamp(3, 1) });
        let first = into.parts().1[0].clone();
        fill(&out, 4);
        for late in [stamp(3, 1), stamp(3, 0), stamp(2, 9), Stamp { rows: 8, ..stamp(0, 0) }] {
            sender.transport.post(0, late);
        }
        assert_eq!(receiver.events.recv_timeout(Duration::from_millis(50)), Err(RecvTimeoutError::Timeout), "{kind:?}");
        assert_eq!(into.parts().1[0], first, "{kind:?}: the slot is as it was");
        sender.transport.post(0, stamp(4, 0));
        assert_eq!(receiver.next(), Event::Arrived { slot: 0, stamp: stamp(4, 0) });
        assert_ne!(into.parts().1[0], first);
        [&sender, &receiver].iter().for_each(|host| host.transport.finish());
        assert_eq!((receiver.rest(), sender.rest()), (vec![Event::Done { peer: 0 }], vec![Event::Done { peer: 1 }]));
    }
}

#[test]
fn what_is_garbled_on_its_way_is_recognised() {
    for kind in BOTH {
        for chosen in [0, 77, 300, u64::MAX] {
            let (sender, receiver) = two(kind, &Bytes::new(8), &Bytes::new(8));
            sender.transport.damage(1, chosen);
            sender.transport.post(0, Stamp { step: 1, layer: 0, rows: 2, routed: true });
            let events = receiver.rest();
            let [Event::Down { peer: 0, error }] = events.as_slice() else {
                panic!("{kind:?}, bit {chosen}: {events:?}")
            };
            assert!(error.to_string().contains("check sum"), "{kind:?}, bit {chosen}: {error}");
            assert!(matches!(sender.rest().as_slice(), [Event::Down { peer: 1, .. }]));
        }
    }
}

#[test]
fn a_peer_that_ends_without_a_word_is_down_and_so_is_one_that_is_given_up() {
    for kind in BOTH {
        let (sender, receiver) = two(kind, &Bytes::new(8), &Bytes::new(8));
        sender.transport.peer_down(1, "for the test");
        assert!(matches!(sender.rest().as_slice(), [Event::Down { peer: 1, error: TransportError::GivenUp(_) }]));
        // Nothing was sent: the connection ends with the host's last lane.
        let events = receiver.rest();
        assert!(matches!(events.as_slice(), [Event::Down { peer: 0, .. }]), "{kind:?}: {events:?}");
    }
}

/// What was said before the end is heard, although whoever said it gives up at once.
#[test]
fn last_words_are_heard() {
    for kind in BOTH {
        for _ in 0..10 {
            let (out, into) = (Bytes::new(1000), Bytes::new(1000));
            let (sender, receiver) = two(kind, &out, &into);
            sender.transport.post(0, Stamp { step: 1, layer: 0, rows: 1000, routed: true });
            sender.transport.send(1, b"it has failed".to_vec());
            sender.transport.finish();
            sender.transport.peer_down(1, "the run has failed here");
            let heard = Event::Message { peer: 0, bytes: b"it has failed".to_vec() };
            let events = std::iter::from_fn(|| receiver.events.recv_timeout(SOON).ok());
            assert!(events.take(2).any(|event| event == heard), "{kind:?}");
            receiver.transport.finish();
            drop((sender.rest(), receiver.rest()));
        }
    }
}

/// Signs of life come, but nobody polls NIXL there: a write never ends by itself.
#[test]
fn a_peer_that_takes_no_rows_is_given_up() {
    let (near, far) = pair();
    let slot = |peer, direction, memory| vec![Registration { key: key(1, Direction::Out), peer, direction, memory }];
    let sender = Host::new(Kind::Nixl, 0, near, slot(1, Direction::Out, Bytes::new(100_000) as _));
    let stuck = transport(Kind::Nixl, 1, far);
    stuck.register(slot(0, Direction::In, Bytes::new(100_000) as _));
    let stuck = Host::poll(stuck, 1, |lane| lane == 0);
    let began = Instant::now();
    sender.transport.post(0, Stamp { step: 1, layer: 0, rows: 100_000, routed: false });
    let events = sender.rest();
    let [Event::Down { peer: 1, error }] = events.as_slice() else { panic!("{events:?}") };
    assert!(error.to_string().contains("taken nothing for 2000 ms"), "{error}");
    assert!(began.elapsed() < SOON);
    drop(stuck.rest());
}

/// A peer with the key that says what no rally says.
#[test]
fn announcements_that_cannot_be_are_refused() {
    let announced = |bytes: Vec<u8>| {
        let (near, far) = pair();
        let out = Registration {
            key: key(1, Direction::Out),
            peer: 1,
            direction: Direction::Out,
            memory: Bytes::new(8) as _,
        };
        let sender = Host::new(Kind::Nixl, 0, near, vec![out]);
        let mut other = Tcp::default();
        other.add(0, far).expect("it is connected");
        other.register(Vec::new());
        other.send(0, bytes);
        sender.transport.post(0, Stamp { step: 1, layer: 0, rows: 8, routed: false });
        let events = sender.rest();
        let [Event::Down { peer: 1, error }] = events.as_slice() else { panic!("{events:?}") };
        error.to_string()
    };
    let said = announced(vec![0xff]);
    assert!(said.contains("makes no sense"), "{said}");
    let said = announced(Aside::Announced(Announcement::default()).encode());
    assert!(said.contains("NIXL cannot read what it announced"), "{said}");
    // A real agent whose slot is none, or too small.
    let agent = |slots: Vec<(SlotKey, RemotePlace)>| {
        let (near, far) = pair();
        let real = Host::new(Kind::Nixl, 1, near, Vec::new());
        let mut ear = Tcp::default();
        ear.add(1, far).expect("it is connected");
        ear.register(Vec::new());
        let bytes = ear.receive(1, Duration::from_secs(10)).expect("it announces itself");
        let Some(Ok(Aside::Announced(announcement))) = Aside::decode(&bytes) else { panic!("it is an announcement") };
        let said = announced(Aside::Announced(Announcement { slots, ..announcement }).encode());
        drop(ear);
        drop(real.rest());
        said
    };
    let said = agent(Vec::new());
    assert!(said.contains("it has no slot"), "{said}");
    let said = agent(vec![(key(1, Direction::Out), RemotePlace { card: None, parts: [(4096, 95), (0, 0), (0, 0)] })]);
    assert!(said.contains("less room"), "{said}");
}
