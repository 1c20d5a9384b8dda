//! Links on virtual time: what is sent leaves the lane free and is there later. A device's way out and its way in carry one thing
//! after the other, so transfers that share one wait for each other.

/// What sending takes once a task has made its rows ready.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transit {
    /// Ways that are taken, each for so many nanoseconds: numbers are the caller's, small, and what has the same number is shared.
    pub out: Vec<(usize, u64)>,
    /// Ways in at the other ends, likewise.
    pub into: Vec<(usize, u64)>,
    /// From the first byte's leaving to its being there.
    pub latency_ns: u64,
}

/// What is under way, and until when ways are taken.
#[derive(Default)]
pub(super) struct Links {
    /// By way.
    free_at: Vec<u64>,
    /// By lane: how many tasks it had completed with those that sent. Few at a time.
    under_way: Vec<Vec<u64>>,
}

impl Links {
    pub(super) fn new(lanes: usize) -> Self {
        Self { free_at: Vec::new(), under_way: vec![Vec::new(); lanes] }
    }

    /// Sends at `now`. Returns when all of it is there.
    pub(super) fn send(&mut self, lane: usize, done: u64, now: u64, transit: &Transit) -> u64 {
        self.under_way[lane].push(done);
        let begun = transit.out.iter().map(|(way, _)| self.free_at(*way)).fold(now, u64::max);
        let mut there_ns = begun + transit.latency_ns;
        for (way, ns) in &transit.out {
            self.take(*way, begun + ns);
            there_ns = there_ns.max(begun + ns + transit.latency_ns);
        }
        for (way, ns) in &transit.into {
            // What flows in while it flows out is there a latency later; a way that others have taken first makes it wait.
            let from = self.free_at(*way).max(begun + transit.latency_ns);
            self.take(*way, from + ns);
            there_ns = there_ns.max(from + ns);
        }
        there_ns
    }

    fn free_at(&self, way: usize) -> u64 {
        self.free_at.get(way).copied().unwrap_or(0)
    }

    fn take(&mut self, way: usize, until: u64) {
        if self.free_at.len() <= way {
            self.free_at.resize(way + 1, 0);
        }
        self.free_at[way] = until;
    }

    pub(super) fn deliver(&mut self, lane: usize, done: u64) {
        self.under_way[lane].retain(|other| *other != done);
    }

    /// Whether what `lane` sent with its task number `done` is not there yet.
    pub(super) fn is_under_way(&self, lane: usize, done: u64) -> bool {
        self.under_way[lane].contains(&done)
    }
}
