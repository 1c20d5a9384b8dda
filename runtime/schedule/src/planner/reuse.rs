//! Prefix reuse: a sequence does not read what another one has read before it on the same device.
//!
//! Whole pages are shared (`prefix.rs`). What a sequence has read is cached at the plan call behind the step that read it, when all
//! rows of it are stored; what it has generated, when it gives its pages back. So a step in which everyone decodes does nothing
//! here. At admission a sequence holds the cached pages that it begins with, and reads from the first position that they
//! lack; its last known token it always reads, for something must be sampled after it.
//!
//! A row's K and V follow from the tokens up to its position alone, whatever batch or chunk computes them: so reuse changes no
//! bit, as far as the kernels keep to that. On CPUs they do.

use super::StepPlanner;
use super::sequence::{Running, Sequence};
use crate::prefix::{KnownTokens, PagePool};

/// What the planner knows of prefixes beside the pages.
#[derive(Debug)]
pub(super) struct Reuse {
    /// By micro-batch: `arrival` of those that read in the step in flight.
    reads: Vec<Vec<u64>>,
    /// By device: what the front of the queue would find there.
    found: Vec<Found>,
    queries: u64,
    hits: u64,
}

/// Cached pages that a sequence begins with on one device.
#[derive(Clone, Debug, Default)]
struct Found {
    /// `arrival` of the sequence, and the [`PagePool::version`] that was searched: while both are the same, so are the pages.
    of: (u64, u64),
    pages: Vec<u32>,
}

impl Reuse {
    fn new(micro_batches: usize, devices: usize) -> Self {
        let (reads, found) = (vec![Vec::new(); micro_batches], vec![Found::default(); devices]);
        Self { reads, found, queries: 0, hits: 0 }
    }

    /// Takes note of a sequence that reads in the step that is planned.
    pub(super) fn reads(&mut self, micro_batch: usize, arrival: u64) {
        self.reads[micro_batch].push(arrival);
    }

    /// Whether there is something to cache once a step is over.
    pub(super) fn is_reading(&self) -> bool {
        self.reads.iter().any(|arrivals| !arrivals.is_empty())
    }

    /// Takes note of a sequence that is let in for the first time: tokens it brings, and those it need not read.
    pub(super) fn count(&mut self, tokens: usize, found: usize) {
        self.queries += tokens as u64;
        self.hits += found as u64;
    }

    /// A device has nothing any more of what it had, and `lost` have queued again.
    pub(super) fn forget(&mut self, device: usize, lost: &[Running]) {
        self.found[device] = Found::default();
        // Wherever they go next, they have not read there what they had read.
        let is_lost = |arrival: &u64| lost.iter().any(|running| running.sequence.arrival == *arrival);
        self.reads.iter_mut().for_each(|reads| reads.retain(|arrival| !is_lost(arrival)));
    }

    pub(super) fn found(&self, device: usize) -> &[u32] {
        &self.found[device].pages
    }

    /// The pages that a sequence about to start holds on `device`, to be its own from now on.
    pub(super) fn hold(&self, device: usize, pool: &mut PagePool, pages: &mut Vec<u32>) {
        pool.hold(self.found(device));
        pages.extend_from_slice(self.found(device));
    }
}

impl StepPlanner {
    /// Shares pages among sequences that begin alike, from now on.
    pub fn reuse_prefixes(&mut self) {
        let config = self.config;
        self.devices.iter_mut().for_each(|device| device.pages.share(config.page_tokens));
        self.reuse.get_or_insert_with(|| Reuse::new(config.micro_batches, config.devices));
    }

    /// Takes the first `tokens` tokens of every sequence that comes as read, all but its last one at most: for whoever measures long
    /// contexts and sees to it that something stands in the KV pages. What is generated then means nothing.
    pub fn pretend_read(&mut self, tokens: usize) {
        self.pretended = tokens;
    }

    /// Tokens of a sequence with `known` ones that it need not read where `cached` are cached.
    pub(super) fn read_already(&self, known: usize, cached: usize) -> usize {
        cached.max(self.pretended.min(known.saturating_sub(1)))
    }

    /// Tokens that sequences have brought, since prefixes are reused.
    pub fn prefix_queries(&self) -> u64 {
        self.reuse.as_ref().map_or(0, |reuse| reuse.queries)
    }

    /// Of them, those that were not read, since they were cached.
    pub fn prefix_hits(&self) -> u64 {
        self.reuse.as_ref().map_or(0, |reuse| reuse.hits)
    }

    /// Free pages that hold what some sequence may begin with, over all devices.
    pub fn cached_pages(&self) -> usize {
        self.devices.iter().map(|device| device.pages.idle()).sum()
    }

    /// Caches what was read in the step of `micro_batch` that is over.
    pub(super) fn cache_what_was_read(&mut self, micro_batch: usize) {
        let Self { reuse: Some(reuse), running, devices, config, .. } = self else { return };
        for arrival in reuse.reads[micro_batch].drain(..) {
            if let Ok(index) = running.binary_search_by_key(&arrival, |running| running.sequence.arrival) {
                let running = &mut running[index];
                running.cache(&mut devices[running.device].pages, config.page_tokens);
            }
        }
    }

    /// Looks on every device for what the front of the queue begins with.
    pub(super) fn find_prefix_of_next(&mut self) {
        let Self { reuse: Some(reuse), waiting, devices, config, .. } = self else { return };
        let Some(next) = waiting.front() else { return };
        // All but the last known token.
        let most = (next.known_tokens() - 1) / config.page_tokens;
        for (found, device) in reuse.found.iter_mut().zip(devices) {
            let of = (next.arrival, device.pages.version());
            if found.of != of {
                found.of = of;
                device.pages.find(next.known(), most, &mut found.pages);
            }
        }
    }

    /// Pages that the front of the queue finds on `device`, and how many of them others hold.
    pub(super) fn prefix_of_next(&self, device: usize) -> (usize, usize) {
        let Some(reuse) = &self.reuse else { return (0, 0) };
        let found = reuse.found(device);
        (found.len(), self.devices[device].pages.held(found))
    }
}

impl Sequence {
    fn known(&self) -> KnownTokens<'_> {
        KnownTokens { prompt: &self.request.prompt, generated: &self.generated }
    }
}

impl Running {
    /// Positions whose keys and values are stored, while no row of it is in flight.
    fn stored(&self) -> usize {
        // The last token has not been fed back.
        if self.prefilling() { self.prefilled } else { self.sequence.request.prompt.len() + self.planned - 1 }
    }

    /// Caches its full pages, while no row of it is in flight.
    pub(super) fn cache(&mut self, pool: &mut PagePool, page_tokens: usize) {
        let full = self.stored() / page_tokens;
        pool.enter(self.sequence.known(), &mut self.pages, &mut self.shared, full);
    }
}
