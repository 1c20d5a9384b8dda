//! A team of pinned threads that one operation may use, and how work is split over it. Schedules no operations.

use std::ops::Range;

use rayon::prelude::*;

use crate::isa::Isa;

/// Multiply-adds that take one core about as long as waking another (20 to 30 us).
const WORTH_WAKING: usize = 1 << 20;

/// Cores that the system's set of cores has room for; asking for one beyond panics.
const CORES_MAX: usize = 1024;

/// Parts a pool's thread gets on average, so that a thread that loses its core for a while holds up few outputs.
const PARTS_PER_THREAD: usize = 4;

/// The threads an operation runs on, and the instruction set it uses.
///
/// Work is split over outputs (columns, rows, heads) and never inside a sum, so results are bit-identical for any
/// number of threads.
#[derive(Debug)]
pub struct Team {
    pool: Option<rayon::ThreadPool>,
    isa: Isa,
}

impl Team {
    /// The calling thread alone.
    pub fn serial() -> Team {
        Team { pool: None, isa: Isa::detect() }
    }

    /// One thread pinned to each of `cores` if there are at least two, else the calling thread alone, which stays
    /// where its owner put it. A core that the machine lacks leaves its thread unpinned.
    ///
    /// Falls back to the calling thread when the system refuses more threads.
    pub fn pinned(cores: &[u32]) -> Team {
        let cores: Vec<usize> = cores.iter().map(|&core| core as usize).collect();
        if cores.len() < 2 {
            return Team::serial();
        }
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(cores.len())
            .thread_name(|index| format!("rally-team-{index}"))
            .start_handler(move |index| {
                if cores[index] < CORES_MAX {
                    core_affinity::set_for_current(core_affinity::CoreId { id: cores[index] });
                }
            })
            .build()
            .ok();
        Team { pool, isa: Isa::detect() }
    }

    /// The same team computing with `isa` instead of the fastest set; for tests and comparisons.
    ///
    /// # Panics
    ///
    /// If this machine cannot run `isa`.
    pub fn with_isa(self, isa: Isa) -> Team {
        assert!(isa.is_available(), "this machine runs {isa:?}");
        Team { isa, ..self }
    }

    /// Number of threads that work on an operation.
    pub fn threads(&self) -> usize {
        self.pool.as_ref().map_or(1, rayon::ThreadPool::current_num_threads)
    }

    /// The instruction set; the machine has it.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// How many parts [`Team::split`] makes at most.
    pub(crate) fn parts(&self) -> usize {
        if self.pool.is_some() { self.threads() * PARTS_PER_THREAD } else { 1 }
    }

    /// Calls `work(part, range)` for disjoint ranges that cover `0..total`; all but the last have a length divisible
    /// by `granule`, and parts are numbered below [`Team::parts`]. Few `multiply_adds` make one part.
    pub(crate) fn split(
        &self,
        total: usize,
        granule: usize,
        multiply_adds: usize,
        work: impl Fn(usize, Range<usize>) + Sync,
    ) {
        let granules = total.div_ceil(granule);
        let parts = if multiply_adds < WORTH_WAKING { 1 } else { self.parts().min(granules) };
        let range = |part: usize| {
            let start = (granules * part / parts * granule).min(total);
            start..(granules * (part + 1) / parts * granule).min(total)
        };
        match &self.pool {
            Some(pool) if parts > 1 => pool.install(|| {
                // Splitting by halves keeps the jobs on the stack: nothing is allocated.
                (0..parts).into_par_iter().with_max_len(1).for_each(|part| work(part, range(part)));
            }),
            _ => (0..parts).for_each(|part| work(part, range(part))),
        }
    }
}
