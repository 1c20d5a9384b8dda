//! Frames and rows over real connections: what is sent arrives in its slot, and what cannot be ends the connection and names why.

#[path = "support/slots.rs"]
mod slots;

use proptest::prelude::*;
use rally_transport::frame::{Frame, FrameError, HEADER_BYTES, seal};
use rally_transport::link::DEADLINE;
use rally_transport::tcp::Tcp;
use rally_transport::{
    Direction, Event, Polled, Pulse, Registration, SlotKey, SlotMemory, Stamp, Transport, TransportError,
};
use slots::Bytes;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port can be had");
    let near = TcpStream::connect(listener.local_addr().expect("it listens")).expect("it listens");
    (near, listener.accept().expect("someone came").0)
}

fn key(micro_batch: u16) -> SlotKey {
    SlotKey { edge: 3, micro_batch, from: 0, to: 1, leg: 0 }
}

fn one(stream: TcpStream, direction: Direction, memory: &Arc<Bytes>) -> Tcp {
    let mut tcp = Tcp::default();
    tcp.add(5, stream).expect("it is connected");
    tcp.register(vec![Registration { key: key(1), peer: 5, direction, memory: Arc::clone(memory) as _ }]);
    tcp
}

/// The next event that is one.
fn next(tcp: &Tcp) -> Event {
    let mut got = None;
    while got.is_none() {
        if tcp.poll(0, &mut |event| got = Some(event)) == Polled::Ended {
            break;
        }
    }
    got.expect("there was an event")
}

#[test]
fn rows_arrive_in_their_slot_as_they_were() {
    let (near, far) = pair();
    let (out, into) = (Bytes::new(8), Bytes::new(8));
    let (sender, receiver) = (one(near, Direction::Out, &out), one(far, Direction::In, &into));
    for (step, rows, routed) in [(0, 0, false), (1, 8, true), (2, 3, false), (3, 1, true)] {
        out.parts().1.iter_mut().flatten().enumerate().for_each(|(i, byte)| *byte = (i as u64 * 7 + step) as u8);
        let stamp = Stamp { step, layer: 2, rows, routed };
        sender.post(0, stamp);
        assert_eq!(next(&receiver), Event::Arrived { slot: 0, stamp });
        let lengths = out.lengths(&stamp).expect("it fits");
        let (sent, got) = (out.parts(), into.parts());
        assert_eq!(got.0, stamp);
        for (part, length) in lengths.into_iter().enumerate() {
            assert_eq!(sent.1[part][..length], got.1[part][..length], "step {step}, part {part}");
        }
    }
    sender.send(5, b"and then".to_vec());
    sender.finish();
    assert_eq!(next(&receiver), Event::Message { peer: 5, bytes: b"and then".to_vec() });
    assert_eq!(next(&receiver), Event::Done { peer: 5 });
    assert_eq!(receiver.poll(0, &mut |_| ()), Polled::Ended);
}

#[test]
fn rows_that_come_again_or_late_change_nothing() {
    let (near, far) = pair();
    let (out, into) = (Bytes::new(8), Bytes::new(8));
    let (sender, receiver) = (one(near, Direction::Out, &out), one(far, Direction::In, &into));
    let stamp = |step, layer| Stamp { step, layer, rows: 2, routed: false };
    let post = |byte: u8, stamp: Stamp| {
        out.parts().1[0].fill(byte);
        sender.post(0, stamp);
        // Behind it, so that the rows are out before they change.
        sender.send(5, vec![byte]);
        let mut arrived = Vec::new();
        loop {
            match next(&receiver) {
                Event::Message { bytes, .. } if bytes == [byte] => return arrived,
                event => arrived.push(event),
            }
        }
    };
    assert_eq!(post(1, stamp(3, 1)), [Event::Arrived { slot: 0, stamp: stamp(3, 1) }]);
    for (byte, late) in [(2, stamp(3, 1)), (3, stamp(3, 0)), (4, stamp(2, 9)), (5, Stamp { rows: 8, ..stamp(0, 0) })] {
        assert_eq!(post(byte, late), [], "{late:?} is no news");
        let parts = into.parts();
        assert_eq!((parts.0, parts.1[0][0]), (stamp(3, 1), 1), "the slot is as it was");
    }
    assert_eq!(post(6, stamp(4, 0)), [Event::Arrived { slot: 0, stamp: stamp(4, 0) }]);
    assert_eq!(into.parts().1[0][0], 6);
}

#[track_caller]
fn ends_with(bytes: &[u8], wanted: &TransportError) {
    let (mut near, far) = pair();
    let receiver = one(far, Direction::In, &Bytes::new(8));
    near.write_all(bytes).expect("it is taken");
    drop(near);
    assert_eq!(next(&receiver), Event::Down { peer: 5, error: wanted.clone() });
    assert_eq!(receiver.poll(0, &mut |_| panic!("it was told already")), Polled::Ended);
}

#[test]
fn frames_that_cannot_be_end_the_connection_and_say_why() {
    let rows = |key: SlotKey, rows: u32, bytes: u32| {
        let stamp = Stamp { step: 0, layer: 0, rows, routed: false };
        Frame::Rows { key, stamp, bytes }.encode()
    };
    let bad = |error: FrameError| TransportError::BadFrame(error);
    ends_with(&[0xff; HEADER_BYTES], &bad(FrameError::Garbled));
    let sealed = |mut header: [u8; HEADER_BYTES]| {
        seal(&mut header);
        header
    };
    ends_with(&sealed([0xff; HEADER_BYTES]), &bad(FrameError::Kind([0xff; 4])));
    ends_with(&rows(key(2), 0, 0), &bad(FrameError::Slot(key(2))));
    let reverse = SlotKey { from: 1, to: 0, ..key(1) };
    ends_with(&rows(reverse, 0, 0), &bad(FrameError::Slot(reverse)));
    ends_with(&rows(key(1), 9, 108), &bad(FrameError::Length { key: key(1), rows: 9, bytes: 108 }));
    ends_with(&rows(key(1), 2, 25), &bad(FrameError::Length { key: key(1), rows: 2, bytes: 25 }));
    ends_with(&rows(key(1), u32::MAX, 8), &bad(FrameError::Length { key: key(1), rows: u32::MAX, bytes: 8 }));
    let mut long = Frame::Message { bytes: 1 }.encode();
    long[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    ends_with(&sealed(long), &bad(FrameError::TooLong(u32::MAX)));
    ends_with(&rows(key(1), 2, 24), &bad(FrameError::Length { key: key(1), rows: 2, bytes: 24 }));
    ends_with(&Frame::Message { bytes: 7 }.encode(), &bad(FrameError::Garbled));
    // In the middle of a header, of rows, of a message.
    ends_with(&rows(key(1), 2, 32)[..9], &TransportError::Closed);
    ends_with(&rows(key(1), 2, 32), &TransportError::Closed);
    ends_with(&[&Frame::Message { bytes: 100 }.encode()[..], &[1; 99]].concat(), &TransportError::Closed);
}

/// One bit of anything that is sent, turned over on the way: it is noticed, and ends the connection.
#[test]
fn what_is_garbled_on_its_way_is_recognised() {
    let sent = |garble: Option<usize>| {
        let ((near, mut wire), (mut onward, far)) = (pair(), pair());
        let out = Bytes::new(8);
        out.parts().1.iter_mut().flatten().enumerate().for_each(|(i, byte)| *byte = (i * 7 + 1) as u8);
        let sender = one(near, Direction::Out, &out);
        sender.post(0, Stamp { step: 1, layer: 0, rows: 2, routed: true });
        sender.send(5, b"and then".to_vec());
        sender.finish();
        let mut bytes = Vec::new();
        wire.read_to_end(&mut bytes).expect("it ends");
        if let Some(bit) = garble {
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        onward.write_all(&bytes).expect("it is taken");
        drop(onward);
        let receiver = one(far, Direction::In, &Bytes::new(8));
        let mut events = vec![next(&receiver)];
        while !matches!(events.last(), Some(Event::Down { .. } | Event::Done { .. })) {
            events.push(next(&receiver));
        }
        (bytes.len(), events)
    };
    let (length, whole) = sent(None);
    assert_eq!(whole.len(), 3, "rows, a message, and the end");
    for bit in (0..length * 8).step_by(7) {
        let (_, events) = sent(Some(bit));
        assert!(matches!(events.last(), Some(Event::Down { .. })), "bit {bit}: {events:?}");
        let good = &events[..events.len() - 1];
        assert_eq!(good, &whole[..good.len()], "bit {bit}: what is told before is what was sent");
    }
}

/// Whatever bit of a header changes, the kind, the length, the check sum: it is refused as soon as the header is there. Nobody waits
/// for bytes that it announces and that never come.
#[test]
fn a_header_that_was_changed_is_refused_at_once() {
    let stamp = Stamp { step: 1, layer: 0, rows: 2, routed: true };
    let (rows, began) = (Frame::Rows { key: key(1), stamp, bytes: 48 }.encode(), Instant::now());
    let headers = [rows, Frame::Message { bytes: 20 }.encode(), Frame::Ping(Pulse::default()).encode()];
    let mut connections = 0;
    for (header, bit) in headers.into_iter().flat_map(|header| (0..HEADER_BYTES * 8).map(move |bit| (header, bit))) {
        let mut changed = header;
        changed[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(Frame::decode(&changed), Err(FrameError::Garbled), "bit {bit} of {header:?}");
        if bit % 11 != 0 {
            continue;
        }
        connections += 1;
        let (mut near, far) = pair();
        let receiver = one(far, Direction::In, &Bytes::new(8));
        near.write_all(&changed).expect("it is taken");
        // The connection stays open, and nothing follows.
        assert_eq!(next(&receiver), Event::Down { peer: 5, error: FrameError::Garbled.into() }, "bit {bit}");
    }
    let each = began.elapsed() / connections;
    assert!(each < DEADLINE / 20, "{each:?}");
}

/// Signs of life say how it is with the lanes of who sends them.
#[test]
fn signs_of_life_carry_a_pulse() {
    let (near, far) = pair();
    let sender = one(near, Direction::Out, &Bytes::new(1));
    let receiver = one(far, Direction::In, &Bytes::new(1));
    assert_eq!(receiver.pulse_of(5), None, "none has come");
    let pulse = Pulse { done: u64::MAX - 5, working: 3 };
    sender.show(Arc::new(move || pulse));
    let began = Instant::now();
    while receiver.pulse_of(5) != Some(pulse) {
        receiver.poll(0, &mut |event| panic!("nothing was sent: {event:?}"));
        assert!(began.elapsed() < DEADLINE, "{:?}", receiver.pulse_of(5));
    }
    assert_eq!(sender.pulse_of(7), None, "nobody is connected to it");
}

/// Whoever lives and never says what is due holds nobody up for ever.
#[test]
fn a_peer_that_is_mute_is_waited_for_no_longer_than_asked() {
    let (near, far) = pair();
    let (_mute, receiver) = (one(near, Direction::Out, &Bytes::new(1)), one(far, Direction::In, &Bytes::new(1)));
    let (began, patience) = (Instant::now(), Duration::from_millis(300));
    assert_eq!(receiver.receive(5, patience), Err(TransportError::Mute(300)));
    assert!(began.elapsed() >= patience && began.elapsed() < DEADLINE, "{:?}", began.elapsed());
}

#[test]
fn a_slot_in_use_is_told() {
    let (mut near, far) = pair();
    let memory = Bytes::new(8);
    let receiver = one(far, Direction::In, &memory);
    let held = memory.parts();
    let stamp = Stamp { rows: 1, ..Stamp::default() };
    near.write_all(&Frame::Rows { key: key(1), stamp, bytes: 20 }.encode()).expect("it is taken");
    assert_eq!(next(&receiver), Event::Down { peer: 5, error: TransportError::SlotBusy });
    drop(held);
}

/// A stopped process keeps its connection and says nothing: only the missing signs of life tell.
#[test]
fn silence_is_noticed_and_signs_of_life_are_heard() {
    let ((silent, far), (near, alive)) = (pair(), pair());
    let (deserted, kept) = (one(far, Direction::In, &Bytes::new(1)), one(alive, Direction::In, &Bytes::new(1)));
    let living = one(near, Direction::Out, &Bytes::new(1));
    let began = Instant::now();
    let error = TransportError::Silent(DEADLINE.as_millis());
    assert_eq!(next(&deserted), Event::Down { peer: 5, error });
    assert!(began.elapsed() >= DEADLINE && began.elapsed() < DEADLINE * 4, "{:?}", began.elapsed());
    // Nothing was read here meanwhile; pings are there, and what is said comes behind them.
    living.send(5, vec![1]);
    assert_eq!(next(&kept), Event::Message { peer: 5, bytes: vec![1] });
    drop(silent);
}

proptest! {
    #[test]
    fn every_frame_reads_as_it_was_written(
        parts in any::<[u16; 4]>(), leg: u8, step: u64, layer: u32, rows: u32, routed: bool, bytes: u32,
    ) {
        let [edge, micro_batch, from, to] = parts;
        let key = SlotKey { edge, micro_batch, from, to, leg };
        let frame = Frame::Rows { key, stamp: Stamp { step, layer, rows, routed }, bytes };
        prop_assert_eq!(Frame::decode(&frame.encode()), Ok(frame));
    }

    #[test]
    fn every_pulse_reads_as_it_was_written(done: u64, working: u32) {
        let frame = Frame::Ping(Pulse { done, working });
        prop_assert_eq!(Frame::decode(&frame.encode()), Ok(frame));
    }

    #[test]
    fn no_header_makes_it_panic(kind in 0u8..6, rest in any::<[u8; HEADER_BYTES - 1]>(), zeros in any::<bool>()) {
        // A header that has its check sum, or nobody would look further; many are of a kind there is.
        let mut header = [0; HEADER_BYTES];
        header[0] = kind;
        let said = if zeros { 16 } else { 1 };
        header[said..].copy_from_slice(&rest[said - 1..]);
        seal(&mut header);
        if let Ok(frame) = Frame::decode(&header) {
            prop_assert_eq!(Frame::decode(&frame.encode()), Ok(frame));
        }
    }
}
