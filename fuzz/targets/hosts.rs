//! What comes over a connection, of any bytes: a handshake that nobody without the key gets through, frames for slots that are there
//! or not, messages. What can be read is written as it was read.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rally_engine::hosts::messages::{Bounds, Message};
use rally_engine::schedule::planner::PlannerConfig;
use rally_transport::frame::{Frame, HEADER_BYTES, seal};
use rally_transport::handshake::{Claims, Hash, HostRole, initiate, respond};
use rally_transport::key::SharedKey;
use rally_transport::link::read_frame;
use rally_transport::nixl::announce::Aside;
use std::io::{self, Cursor, Read, Write};

/// Reads what it was given, and takes all that is written.
struct Wire<'a>(Cursor<&'a [u8]>);

impl Read for Wire<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.read(bytes)
    }
}

impl Write for Wire<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

const BOUNDS: Bounds = Bounds {
    planner: PlannerConfig {
        micro_batches: 3,
        devices: 2,
        sequences: 8,
        sequences_per_device: 4,
        rows_per_device: 8,
        rows_per_micro_batch: 16,
        prefill_chunk: 4,
        pages_per_device: 32,
        page_tokens: 4,
        max_positions: 128,
    },
    vocab: 16,
};

fuzz_target!(|bytes: &[u8]| {
    let key = SharedKey::new(b"nobody can guess this key").expect("it is long enough");
    let claims = Claims {
        host: "f0".into(),
        to: "a0".into(),
        role: HostRole::Worker,
        version: "0.1.0".into(),
        plan: Hash::default(),
        model: Hash::default(),
        epoch: 1,
        incarnation: 2,
    };
    assert!(respond(&mut Wire(Cursor::new(bytes)), &key, &claims).is_err());
    assert!(initiate(&mut Wire(Cursor::new(bytes)), &key, &claims).is_err());
    let written_as_read = |frame: &Frame| assert_eq!(Frame::decode(&frame.encode()).as_ref(), Ok(frame));
    let mut reader = bytes;
    while let Ok(frame) = read_frame(&mut reader, |frame, _| Ok(frame)) {
        written_as_read(&frame);
    }
    // No fuzzer guesses a check sum.
    for mut header in bytes.as_chunks::<HEADER_BYTES>().0.iter().copied() {
        seal(&mut header);
        if let Ok(frame) = Frame::decode(&header) {
            written_as_read(&frame);
        }
    }
    if let Some(Ok(aside)) = Aside::decode(bytes) {
        assert_eq!(aside.encode(), bytes);
    }
    if let Ok(message) = Message::decode(bytes, &BOUNDS) {
        // Floats that are no numbers are equal to nothing: their bytes are.
        let again = message.encode();
        let read = Message::decode(&again, &BOUNDS).expect("what was written can be read");
        assert_eq!(read.encode(), again);
        if let Message::Planned { batch, .. } = message {
            assert_eq!(batch.groups.iter().map(|group| group.rows).sum::<usize>(), batch.rows);
            assert!(batch.groups.iter().all(|group| group.pages.end <= batch.pages.len()));
        }
    }
});
