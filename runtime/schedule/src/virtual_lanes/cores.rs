//! Cores that lanes share, where there are fewer of them than lanes.

use std::collections::VecDeque;

/// Where a lane is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// It has nothing to do.
    Away,
    /// It waits for a core.
    Queued,
    /// It has one.
    OnCore,
}

/// Who has a core, and who waits for one.
pub(super) struct Cores {
    /// `None`: a core a lane.
    free: Option<usize>,
    places: Vec<Place>,
    queue: VecDeque<usize>,
}

impl Cores {
    pub(super) fn new(lanes: usize, cores: Option<usize>) -> Self {
        let free = cores.map(|cores| cores.max(1)).filter(|cores| *cores < lanes);
        Self { free, places: vec![Place::Away; lanes], queue: VecDeque::new() }
    }

    /// A lane has work. Whether it has a core for it; if not, it is queued once.
    pub(super) fn enter(&mut self, lane: usize) -> bool {
        let Some(free) = &mut self.free else { return true };
        match self.places[lane] {
            Place::OnCore => return true,
            Place::Queued => return false,
            Place::Away => {}
        }
        let has = *free > 0;
        if has {
            *free -= 1;
            self.places[lane] = Place::OnCore;
        } else {
            self.places[lane] = Place::Queued;
            self.queue.push_back(lane);
        }
        has
    }

    /// A lane has no work.
    pub(super) fn leave(&mut self, lane: usize) {
        if let Some(free) = &mut self.free
            && self.places[lane] == Place::OnCore
        {
            self.places[lane] = Place::Away;
            *free += 1;
        }
    }

    /// The next in the queue, if there is a core for it: it must ask again.
    pub(super) fn next(&mut self) -> Option<usize> {
        self.free.filter(|free| *free > 0)?;
        let next = self.queue.pop_front()?;
        self.places[next] = Place::Away;
        Some(next)
    }
}
