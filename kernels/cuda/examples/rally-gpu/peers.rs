//! Several cards: what a copy between them takes by its size, and sums of parts on several cards by NCCL against copies and additions.

use rally_cuda::CudaError;
use rally_cuda::machine::{Machine, Machines, Mark, copy};
use rally_cuda::memory::DeviceSlice;
use rally_cuda::nccl::{self, Fabric, Number, PartAt};
use rally_cuda::ops::{Ops, Stored, record_bytes};
use rally_cuda::shares::Wanted;
use std::sync::Arc;
use std::time::Instant;

const HIDDEN: usize = 7168;
/// Times that a thing is done for one figure.
const TIMES: usize = 40;

struct Card {
    machine: Arc<dyn Machine>,
    ops: Ops,
    room: DeviceSlice<u8>,
    other: DeviceSlice<u8>,
    mark: Mark,
}

const ROOM: usize = 256 << 20;

impl Card {
    fn open(card: usize) -> Result<Card, CudaError> {
        let wanted = [Wanted { card: Some(card), sms: None }];
        let machine = Machines::Cards.open_all(&wanted).map_err(|(_, error)| error)?.remove(0);
        let room = |byte| -> Result<DeviceSlice<u8>, CudaError> {
            let slice = machine.allocate(ROOM)?.take(ROOM)?;
            machine.fill(&slice, byte)?;
            Ok(slice)
        };
        let (room, other, mark) = (room(0)?, room(0)?, machine.mark()?);
        Ok(Card { ops: Ops::new(Arc::clone(&machine))?, machine, room, other, mark })
    }

    fn wait(&self) -> Result<(), CudaError> {
        self.machine.record(&self.mark)?;
        self.mark.wait()
    }
}

/// Microseconds of one of [`TIMES`], the best of five goes.
fn time(cards: &[Card], mut once: impl FnMut(usize) -> Result<(), CudaError>) -> Result<f64, CudaError> {
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        cards.iter().try_for_each(Card::wait)?;
        let begun = Instant::now();
        (0..TIMES).try_for_each(&mut once)?;
        cards.iter().try_for_each(Card::wait)?;
        best = best.min(begun.elapsed().as_secs_f64() * 1e6 / TIMES as f64);
    }
    Ok(best)
}

/// Prints what `count` cards do.
pub fn run(count: usize) -> Result<bool, CudaError> {
    let cards = (0..count).map(Card::open).collect::<Result<Vec<_>, _>>()?;
    println!(
        "{} cards, NCCL {}",
        cards.len(),
        nccl::version().map_or_else(|why| why.to_string(), |v| format!("{v:?}"))
    );
    if let [from, to, ..] = &cards[..] {
        links(&cards, from, to)?;
    }
    match Fabric::over(&(0..count).collect::<Vec<_>>()) {
        Ok(fabric) => sums(&cards, &fabric),
        Err(why) => {
            println!("no sums by NCCL: {why}");
            Ok(true)
        }
    }
}

/// Copies by size: one behind the other, and there and back with a mark between, as rows cross an edge.
fn links(cards: &[Card], from: &Card, to: &Card) -> Result<(), CudaError> {
    for size in [0, 4 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20, 256 << 20] {
        let size: usize = size;
        let at = |slice: &DeviceSlice<u8>| slice.part(0, size);
        let take = |taker: &Card, giver: &Card| {
            copy(&*taker.machine, &at(&giver.room), giver.machine.place(), &at(&taker.other))
        };
        let stream = time(cards, |_| take(to, from))?;
        let here = time(cards, |_| take(to, to))?;
        let back = time(cards, |_| {
            for (giver, taker) in [(from, to), (to, from)] {
                giver.machine.record(&giver.mark)?;
                taker.machine.wait_for(&giver.mark)?;
                take(taker, giver)?;
            }
            Ok(())
        })?;
        let by_kernel = match size > 0 && to.machine.reads(from.machine.place())? {
            true => time(cards, |_| to.ops.take(&[(&at(&from.room), &at(&to.other))]))?,
            false => f64::NAN,
        };
        println!(
            "copy {:>9} bytes: {stream:.1} us between cards ({:.1} GB/s), {here:.1} us on one ({:.1} GB/s); one way with a mark {:.1} us; by a kernel {by_kernel:.1} us",
            size,
            size as f64 / stream / 1e3,
            size as f64 / here / 1e3,
            back / 2.0
        );
    }
    Ok(())
}

/// Sums of rows of 7168: every card has a part, the first gets the sum.
fn sums(cards: &[Card], fabric: &Fabric) -> Result<bool, CudaError> {
    let mut right = true;
    for (stored, number) in [(Stored::F32, Number::F32), (Stored::Bf16, Number::Bf16)] {
        for rows in [1, 16, 64, 128, 256, 512, 1024, 2048] {
            let bytes = rows * record_bytes(stored, HIDDEN);
            let root = &cards[0];
            let (sum, part) = (
                root.other.part(0, rows * HIDDEN * 4).cast::<f32>(),
                root.other.part(128 << 20, rows * HIDDEN * 4).cast::<f32>(),
            );
            let wire = root.other.part(64 << 20, bytes);
            for (index, card) in cards.iter().enumerate() {
                let numbers = card.other.part(0, rows * HIDDEN * 4).cast::<f32>();
                card.machine.fill(&numbers.as_bytes(), 0x3c + index as u8)?;
                if stored == Stored::F32 {
                    copy(&*card.machine, &numbers.as_bytes(), card.machine.place(), &card.room.part(0, bytes))?;
                } else {
                    card.ops.encode(&numbers, rows, HIDDEN, stored, &card.room.part(0, bytes))?;
                }
                card.wait()?;
            }
            // As a lane takes parts over: each copied, decoded, added.
            let copies = |_| {
                for (index, card) in cards.iter().enumerate() {
                    let to = if index == 0 { &sum } else { &part };
                    let there = card.machine.place();
                    if stored == Stored::F32 {
                        copy(&*root.machine, &card.room.part(0, bytes), there, &to.as_bytes())?;
                    } else {
                        copy(&*root.machine, &card.room.part(0, bytes), there, &wire)?;
                        root.ops.decode(&wire, rows, HIDDEN, stored, to)?;
                    }
                    if index > 0 {
                        root.ops.add(&sum, &part, rows, HIDDEN)?;
                    }
                }
                Ok(())
            };
            let by_copies = time(cards, copies)?;
            let by_kernels = time(cards, |_| {
                for (index, card) in cards.iter().enumerate() {
                    let to = if index == 0 { &sum } else { &part };
                    let from = card.room.part(0, bytes);
                    if stored == Stored::F32 {
                        root.ops.take(&[(&from, &to.as_bytes())])?;
                    } else {
                        root.ops.take(&[(&from, &wire)])?;
                        root.ops.decode(&wire, rows, HIDDEN, stored, to)?;
                    }
                    if index > 0 {
                        root.ops.add(&sum, &part, rows, HIDDEN)?;
                    }
                }
                Ok(())
            })?;
            let want = first(root, &sum)?;
            let (_, main) = root.machine.card().expect("a card");
            let parts: Vec<PartAt> =
                cards.iter().enumerate().map(|(card, of)| PartAt { card, rows: of.room.as_bytes() }).collect();
            let by_nccl = time(cards, |_| {
                let to = if stored == Stored::F32 { sum.as_bytes() } else { wire.clone() };
                fabric.sum(main, 0, &parts, &to, number)?;
                if stored == Stored::F32 { Ok(()) } else { root.ops.decode(&wire, rows, HIDDEN, stored, &sum) }
            })?;
            let got = first(root, &sum)?;
            let off = ((got - want) / want).abs();
            right &= off <= 1e-2;
            println!(
                "sum {stored:?} {rows} rows ({bytes} bytes a card): copies {by_copies:.1} us, kernels {by_kernels:.1} us, NCCL {by_nccl:.1} us; {got:e} against {want:e}"
            );
        }
    }
    Ok(right)
}

fn first(card: &Card, numbers: &DeviceSlice<f32>) -> Result<f32, CudaError> {
    let mut one = [0.0];
    rally_cuda::machine::read(&*card.machine, &numbers.part(5, 1), &mut one)?;
    Ok(one[0])
}
