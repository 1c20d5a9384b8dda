//! What one core can do at most: the ceilings that figures of kernels are set against. Measures the calling thread.

use std::hint::black_box;
use std::time::Instant;

use crate::isa::Isa;
use crate::memory::AlignedBuffer;
use crate::simd::{self, Kernel, LANES, Simd};

/// Multiply-adds in flight while measuring: latency (4 cycles) times two units, with room.
const CHAINS: usize = 12;

/// Multiply-adds of each chain per measurement: about 0.1 s of them in a few rounds.
const STEPS: usize = 200_000;

/// Fused multiply-adds per second of the calling thread on `isa`, best of `rounds`, as f32 operations (2 each).
pub fn flops_per_second(isa: Isa, rounds: usize) -> f64 {
    assert!(isa.is_available(), "this machine runs {isa:?}");
    let seconds = best(rounds, || black_box(simd::run(isa, MultiplyAdds)));
    (2 * CHAINS * STEPS * LANES) as f64 / seconds
}

/// Memory that [`ReadCeiling`] reads, kept so that it is filled once.
#[derive(Debug)]
pub struct ReadCeiling {
    memory: AlignedBuffer<f32>,
}

impl ReadCeiling {
    /// Allocates and writes `bytes`, in the same kind of memory as weights. Should exceed every cache several times.
    pub fn new(bytes: usize) -> ReadCeiling {
        let mut memory = AlignedBuffer::zeroed(bytes.next_multiple_of(4 * LANES * STREAMS) / 4);
        // Memory that nobody has written is one page of zeros, which the caches hold.
        memory.fill(1.0);
        ReadCeiling { memory }
    }

    /// Bytes per second at which the calling thread reads the memory, piece by piece: the best piece of `rounds`
    /// rounds. Pieces are short (16 MiB), so that on a machine with other work some are read undisturbed, and each
    /// has left the caches by the time its turn comes again.
    pub fn bytes_per_second(&self, isa: Isa, rounds: usize) -> f64 {
        assert!(isa.is_available(), "this machine runs {isa:?}");
        let pieces = || self.memory.chunks(PIECE.min(self.memory.len()));
        let rates = (0..rounds.max(1))
            .flat_map(|_| pieces())
            .map(|values| size_of_val(values) as f64 / best(1, || black_box(simd::run(isa, Sum { values }))));
        rates.fold(0.0, f64::max)
    }
}

fn best<T>(rounds: usize, mut work: impl FnMut() -> T) -> f64 {
    let once = |_| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    };
    (0..rounds.max(1)).map(once).fold(f64::INFINITY, f64::min)
}

/// Numbers of a piece: 16 MiB.
const PIECE: usize = 4 << 20;

struct MultiplyAdds;

impl Kernel for MultiplyAdds {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        // SAFETY: the machine has the set (the caller's promise).
        unsafe {
            let factor = S::splat(black_box(0.999));
            let mut sums = [S::splat(black_box(1.0)); CHAINS];
            for _ in 0..STEPS {
                for sum in &mut sums {
                    *sum = S::fma(*sum, factor, factor);
                }
            }
            sums.into_iter().map(|sum| S::reduce(sum)).sum()
        }
    }
}

/// Places read at once: the prefetchers follow each.
const STREAMS: usize = 8;

struct Sum<'a> {
    values: &'a [f32],
}

impl Kernel for Sum<'_> {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        let stream = self.values.len() / STREAMS / LANES * LANES;
        // SAFETY: the machine has the set; every load ends within a stream, and the streams within the slice.
        unsafe {
            let mut sums = [S::splat(0.0); STREAMS];
            for index in (0..stream).step_by(LANES) {
                for (number, sum) in sums.iter_mut().enumerate() {
                    *sum = S::add(*sum, S::load(self.values.as_ptr().add(number * stream + index)));
                }
            }
            sums.into_iter().map(|sum| S::reduce(sum)).sum()
        }
    }
}
