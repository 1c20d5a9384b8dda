//! Work of one machine behind that of another, with nothing but marks between them. Without a card the processor stands in for two;
//! `RALLY_CUDA=card` runs the same on cards.

use rally_cuda::machine::{Machine, Machines, copy, read, write};
use rally_cuda::memory::DeviceSlice;
use rally_cuda::ops::{HostMatrix, Ops, Stored, Weights};
use std::sync::Arc;
use std::time::Instant;

fn machine(index: usize) -> Arc<dyn Machine> {
    let on_card = std::env::var("RALLY_CUDA").as_deref() == Ok("card");
    if on_card { Machines::Cards } else { Machines::StandIn }.open(index).expect("a machine")
}

fn room(machine: &dyn Machine, count: usize) -> DeviceSlice<f32> {
    machine.allocate(count * 4).and_then(|mut arena| arena.take(count)).expect("memory")
}

/// Products that take a while, and at the end of them as many ones.
struct Work {
    ops: Ops,
    identity: Weights,
    from: DeviceSlice<f32>,
    to: DeviceSlice<f32>,
}

const WIDTH: usize = 128;
const ROWS: usize = 16;

impl Work {
    fn new(machine: Arc<dyn Machine>) -> Work {
        let mut values = vec![0.0f32; WIDTH * WIDTH];
        (0..WIDTH).for_each(|i| values[i * WIDTH + i] = 1.0);
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let (rows, cols, stride, stored) = (WIDTH, WIDTH, WIDTH, Stored::F32);
        let host = HostMatrix { rows, cols, stride, values: &bytes, scales: &[], stored };
        let identity = Weights::one(&*machine, host).expect("uploaded");
        let (from, to) = (room(&*machine, ROWS * WIDTH), room(&*machine, ROWS * WIDTH));
        Work { ops: Ops::new(machine).expect("the kernels compile"), identity, from, to }
    }

    fn machine(&self) -> &dyn Machine {
        &**self.ops.machine()
    }

    /// `to` becomes all `value`, after a long way.
    fn enqueue(&self, value: f32) {
        write(self.machine(), &vec![value; ROWS * WIDTH], &self.from).expect("written");
        for _ in 0..20 {
            self.ops.matmul(&self.from, ROWS, &self.identity, &self.to).expect("enqueued");
            self.ops.matmul(&self.to, ROWS, &self.identity, &self.from).expect("enqueued");
        }
        self.ops.matmul(&self.from, ROWS, &self.identity, &self.to).expect("enqueued");
    }
}

#[test]
fn what_waits_for_a_mark_sees_all_that_was_before_it() {
    let (work, other) = (Work::new(machine(0)), machine(1));
    let (there, back) = (room(&*other, ROWS * WIDTH), other.mark().expect("a mark"));
    let done = work.machine().mark().expect("a mark");
    // Never recorded: nothing to wait for.
    other.wait_for(&done).expect("enqueued");
    assert!(done.is_reached().expect("no fault"));
    for round in 0..12 {
        let value = round as f32;
        // What was copied is not overwritten before it was.
        work.machine().wait_for(&back).expect("enqueued");
        work.enqueue(value);
        work.machine().record(&done).expect("recorded");
        other.wait_for(&done).expect("enqueued");
        copy(&*other, &work.to, work.machine().place(), &there).expect("enqueued");
        other.record(&back).expect("recorded");
        let mut got = vec![-1.0; ROWS * WIDTH];
        if round % 3 == 0 {
            read(&*other, &there, &mut got).expect("read");
            assert!(got.iter().all(|got| *got == value), "round {round}");
        }
    }
    back.wait().expect("no fault");
    assert!(done.is_reached().expect("no fault") && back.is_reached().expect("no fault"));
    let mut got = vec![-1.0; ROWS * WIDTH];
    read(&*other, &there, &mut got).expect("read");
    assert!(got.iter().all(|got| *got == 11.0), "the last round");
}

#[test]
fn times_of_marks_are_the_hosts() {
    let work = Work::new(machine(0));
    let (begin, end) = (work.machine().mark().expect("a mark"), work.machine().mark().expect("a mark"));
    for _ in 0..3 {
        let before = Instant::now();
        work.machine().record(&begin).expect("recorded");
        work.enqueue(1.0);
        work.machine().record(&end).expect("recorded");
        end.wait().expect("no fault");
        let after = Instant::now();
        let (from, to) = (work.machine().when(&begin).expect("reached"), work.machine().when(&end).expect("reached"));
        // The two clocks are held together to a few microseconds.
        let slack = std::time::Duration::from_micros(50);
        assert!(before <= from + slack && from < to && to <= after + slack, "{before:?} {from:?} {to:?} {after:?}");
    }
}

#[test]
fn captured_kernels_do_the_same_again_and_nothing_while_they_are_captured() {
    let work = Work::new(machine(0));
    let put = |value: f32, to: &DeviceSlice<f32>| {
        write(work.machine(), &vec![value; ROWS * WIDTH], to).expect("written");
    };
    let got = || {
        let mut got = vec![-1.0; ROWS * WIDTH];
        read(work.machine(), &work.to, &mut got).expect("read");
        got
    };
    put(3.0, &work.from);
    put(0.0, &work.to);
    let twice = work.machine().capture(&mut || {
        work.ops.matmul(&work.from, ROWS, &work.identity, &work.to)?;
        work.ops.add(&work.to, &work.from, ROWS, WIDTH)
    });
    let twice = twice.expect("kernels can be captured");
    assert!(got().iter().all(|got| *got == 0.0), "a capture does nothing yet");
    for value in [3.0, 5.0] {
        put(value, &work.from);
        twice.launch().expect("enqueued");
        assert!(got().iter().all(|got| *got == 2.0 * value), "the memory as it is at each replay");
    }
    // What a replay would not do again is refused, and nothing is left of the attempt.
    let refused = work.machine().capture(&mut || write(work.machine(), &[1.0], &work.to.part(0, 1)));
    assert!(refused.is_err_and(|error| error.to_string().contains("captured")));
    put(7.0, &work.from);
    twice.launch().expect("enqueued");
    assert!(got().iter().all(|got| *got == 14.0));
}

#[test]
fn memory_comes_out_of_what_was_reserved() {
    let machine = machine(0);
    let bytes = |slice: &DeviceSlice<u8>| slice.address();
    machine.reserve(1024).expect("memory");
    let take = |count: usize| machine.allocate(count).and_then(|mut arena| arena.take::<u8>(count)).expect("memory");
    let (first, second, third, beyond) = (take(100), take(512), take(1), take(500));
    assert_eq!([bytes(&second) - bytes(&first), bytes(&third) - bytes(&first)], [256, 768]);
    assert!(bytes(&beyond).abs_diff(bytes(&first)) >= 1024 - 500, "what is not there comes from elsewhere");
    write(&*machine, &[7u8; 500], &beyond).expect("written");
    write(&*machine, &[1u8; 100], &first).expect("written");
    let mut got = [0u8; 500];
    read(&*machine, &beyond, &mut got).expect("read");
    assert_eq!(got, [7u8; 500]);
}
