//! Slots and pages of running sequences: admission, growth, preemption, retirement.
//!
//! Age decides. A sequence may have pages that no older one lacks; if there are none, the youngest of the device gives all of
//! its own back and queues again, in front. Pages come back only at the plan call of the micro-batch that a sequence is in: until
//! then rows of it may be in flight. Whoever lacks pages meanwhile has a *claim*, which younger ones and admissions leave alone,
//! so the oldest running sequence of a device waits at most until every micro-batch was planned once.
//!
//! A sequence that queues again may find that younger ones run on, on other devices or in places it has lost. It waits
//! for them like anyone else, until it is the oldest of all that live: then younger ones make *way* for it, one after
//! the other at their own plan calls, until it has a place. So the oldest of all stands still for a few rounds of plan
//! calls at most, on any number of devices, and everyone is the oldest some day: alone, every accepted sequence fits.

use super::reuse::Reuse;
use super::sequence::{Leaving, Running, Sequence};
use super::types::PlannerEvent;
use super::{DeviceState, StepPlanner};
use std::cmp::Reverse;

/// What admission knows of the devices. Counted once for all that are admitted at a plan call.
#[derive(Debug, Default)]
pub(super) struct Rooms {
    /// Pages, by device: those its sequences lack, and one for each that is going to grow.
    wanted: Vec<usize>,
    /// The devices, most free pages first.
    order: Vec<usize>,
}

/// How asking for pages ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Growth {
    /// The pages are there.
    Ready,
    /// They are on their way.
    Waits,
    /// It was itself the youngest, and has left.
    Left,
}

/// Where the oldest of all goes when it waits in the queue, and what it needs there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Way {
    /// `arrival` of the one who waits.
    arrival: u64,
    device: usize,
    pages: usize,
}

impl DeviceState {
    fn take_back(&mut self, running: &mut Running, page_tokens: usize) {
        running.cache(&mut self.pages, page_tokens);
        self.pages.give_back(&mut running.pages, running.shared);
        self.free_slots.push(running.slot);
    }
}

impl StepPlanner {
    /// Takes back the pages of members that have ended or must leave, and caches what was read. Out of the way of a step in which nobody does.
    #[inline(never)]
    pub(super) fn release(&mut self, micro_batch: usize) {
        self.cache_what_was_read(micro_batch);
        // At once: taken out one by one, each would move all that stand behind it.
        let Self { running, devices, ids, config, .. } = self;
        running.retain_mut(|running| {
            let goes = running.micro_batch == micro_batch && running.ended;
            if goes {
                devices[running.device].take_back(running, config.page_tokens);
                ids.remove(&running.sequence.request.id);
            }
            !goes
        });
        self.claimed = self.running.iter().any(|running| running.claim > 0);
        let mut index = 0;
        while index < self.running.len() {
            let running = &self.running[index];
            let (ours, leaving) = (running.micro_batch == micro_batch, running.leaving);
            if ours && (leaving == Leaving::Surely || (leaving == Leaving::IfNeeded && self.is_needed(index))) {
                self.preempt_now(index);
            } else {
                if ours {
                    self.running[index].leaving = Leaving::No;
                }
                index += 1;
            }
        }
        let stirs = |running: &Running| running.ended || running.leaving != Leaving::No || running.claim > 0;
        let reads = self.reuse.as_ref().is_some_and(Reuse::is_reading);
        self.stirred = reads || self.running.iter().any(stirs);
    }

    /// Whether older sequences lack pages that a running one holds.
    fn is_needed(&self, index: usize) -> bool {
        let device = self.running[index].device;
        self.devices[device].pages.free() < self.older_claims(index, device)
    }

    /// Pages of a device that sequences older than a running one lack.
    fn older_claims(&self, index: usize, device: usize) -> usize {
        let way = self.way.filter(|way| way.device == device).map_or(0, |way| way.pages);
        way + if self.claimed { claims(&self.running[..index], device) } else { 0 }
    }

    /// Removes a running sequence and frees its slot and pages.
    fn take_back(&mut self, index: usize) -> Sequence {
        let mut running = self.running.remove(index);
        self.devices[running.device].take_back(&mut running, self.config.page_tokens);
        running.sequence
    }

    fn preempt_now(&mut self, index: usize) {
        let sequence = self.take_back(index);
        self.queue_again(sequence);
    }

    /// A sequence that has lost its place waits for another one.
    pub(super) fn queue_again(&mut self, mut sequence: Sequence) {
        sequence.preempted_at = Some(sequence.generated.len());
        self.preemptions += 1;
        self.level_for = 0;
        // In front: whoever runs was submitted before all that never ran.
        let place = self.waiting.partition_point(|waiting| waiting.arrival < sequence.arrival);
        self.waiting.insert(place, sequence);
    }

    /// Gets the pages for the next decode row of a running sequence, at the plan call of its micro-batch.
    #[inline]
    pub(super) fn grow(&mut self, index: usize) -> Growth {
        let running = &mut self.running[index];
        let lacks = running.lacks(self.config.page_tokens);
        running.claim = 0;
        if lacks == 0 { Growth::Ready } else { self.grow_by(index, lacks) }
    }

    #[inline(never)]
    fn grow_by(&mut self, index: usize, lacks: usize) -> Growth {
        let (device, micro_batch) = (self.running[index].device, self.running[index].micro_batch);
        let wanted = lacks + self.older_claims(index, device);
        loop {
            let free = self.devices[device].pages.free();
            if free >= wanted {
                let taken = self.devices[device].pages.take(lacks, &mut self.running[index].pages);
                debug_assert!(taken, "{free} pages are free and {lacks} are asked for");
                return Growth::Ready;
            }
            let coming = self.devices[device].pages.freed_by(leavers(&self.running, device));
            if free + coming >= wanted {
                self.claim(index, lacks);
                return Growth::Waits;
            }
            let stays = |r: &Running| r.device == device && !r.ended && r.leaving == Leaving::No;
            match self.running.iter().rposition(stays) {
                Some(youngest) if youngest > index && self.running[youngest].micro_batch != micro_batch => {
                    self.running[youngest].leaving = Leaving::IfNeeded;
                    self.stir();
                }
                // Its rows of this step are not planned yet: sequences are asked oldest first.
                Some(youngest) if youngest > index => self.preempt_now(youngest),
                // Younger ones leave first, or they would stay while it queues.
                _ if leavers(&self.running[index + 1..], device).next().is_some() => {
                    self.claim(index, lacks);
                    return Growth::Waits;
                }
                _ => {
                    self.preempt_now(index);
                    return Growth::Left;
                }
            }
        }
    }

    fn claim(&mut self, index: usize, pages: usize) {
        self.running[index].claim = pages;
        self.claimed = true;
        self.stirred = true;
    }

    /// Admits from the front of the queue while there is room. First come, first served: a sequence that does not fit yet is
    /// not overtaken. The oldest of all makes room for itself.
    #[inline(never)]
    pub(super) fn admit(&mut self, planned_now: usize, events: &mut Vec<PlannerEvent>) {
        loop {
            self.admit_where_room(planned_now, events);
            if !self.make_way(planned_now) {
                return;
            }
        }
    }

    fn admit_where_room(&mut self, planned_now: usize, events: &mut Vec<PlannerEvent>) {
        if self.waiting.is_empty() || self.running.len() >= self.config.sequences {
            return;
        }
        self.count_loads();
        self.count_rooms();
        while self.running.len() < self.config.sequences
            && self.waiting.front().is_some_and(|next| self.has_time_for(next))
            && let Some((device, micro_batch)) = self.place_of_next(planned_now)
            && let Some(mut sequence) = self.waiting.pop_front()
        {
            let cached = self.prefix_of_next(device).0 * self.config.page_tokens;
            if !sequence.announced {
                let of_prompt = cached.min(sequence.request.prompt.len());
                events.push(PlannerEvent::Admitted { sequence: sequence.request.id, cached_tokens: of_prompt });
                sequence.announced = true;
                if let Some(reuse) = &mut self.reuse {
                    reuse.count(sequence.known_tokens(), cached);
                }
            }
            let read = self.read_already(sequence.known_tokens(), cached);
            self.count_new(&sequence, read, micro_batch, device);
            self.start(sequence, device, micro_batch);
        }
    }

    /// Counts what every device's sequences still want, and orders devices by their free pages.
    fn count_rooms(&mut self) {
        let Self { rooms, devices, running, .. } = self;
        rooms.wanted.clear();
        rooms.wanted.resize(devices.len(), 0);
        for running in running.iter().filter(|running| !running.ended) {
            rooms.wanted[running.device] += running.claim + usize::from(running.grows());
        }
        rooms.order.clear();
        rooms.order.extend(0..devices.len());
        rooms.order.sort_unstable_by_key(|device| (Reverse(devices[*device].pages.free()), *device));
    }

    /// `device` has one more that is about to grow, or not, and fewer free pages.
    fn count_started(&mut self, device: usize, grows: bool) {
        let Self { rooms, devices, .. } = self;
        rooms.wanted[device] += usize::from(grows);
        let key = |device: usize| (Reverse(devices[device].pages.free()), device);
        if let Some(from) = rooms.order.iter().position(|other| *other == device) {
            let behind = rooms.order[from + 1..].partition_point(|other| key(*other) < key(device));
            rooms.order[from..=from + behind].rotate_left(1);
        }
    }

    /// Device and micro-batch for the front of the queue. Of devices that can have it, the one with most free pages; each page
    /// that it need not read there counts as one more.
    fn place_of_next(&mut self, planned_now: usize) -> Option<(usize, usize)> {
        self.find_prefix_of_next();
        let next = self.waiting.front()?;
        let pages = next.known_tokens().div_ceil(self.config.page_tokens);
        let oldest = self.is_oldest(next);
        let fits = |device: &usize| {
            let state = &self.devices[*device];
            // Everyone there, the new one too, can grow by a page before someone has to leave. Nobody's wish stops the
            // oldest.
            let others = if oldest { 0 } else { self.rooms.wanted[*device] + usize::from(pages < next.final_pages) };
            let (_, held) = self.prefix_of_next(*device);
            !state.away && !state.free_slots.is_empty() && state.pages.free() + held >= pages + others
        };
        let candidates = self.rooms.order.iter().copied().filter(fits);
        let mut places = candidates.filter_map(|device| Some((device, self.cheapest(device, planned_now)?)));
        if self.reuse.is_none() {
            return places.next();
        }
        places.min_by_key(|(device, _)| Reverse(self.devices[*device].pages.free() + self.prefix_of_next(*device).0))
    }

    fn is_oldest(&self, waiting: &Sequence) -> bool {
        let oldest = self.running.iter().find(|running| !running.ended);
        oldest.is_none_or(|running| waiting.arrival < running.sequence.arrival)
    }

    /// If the oldest of all waits in the queue, preempts those of `planned_now` that stand in its way. Returns whether
    /// someone left.
    fn make_way(&mut self, planned_now: usize) -> bool {
        let Some(next) = self.waiting.front().filter(|next| self.is_oldest(next)) else {
            self.way = None;
            return false;
        };
        let (arrival, pages) = (next.arrival, next.known_tokens().div_ceil(self.config.page_tokens));
        let devices = self.config.devices;
        let device = match self.way.filter(|way| way.arrival == arrival) {
            // It has begun to leave: whoever went there went for this.
            Some(way) => way.device,
            None => {
                let there: Vec<usize> = (0..devices).filter(|device| !self.devices[*device].away).collect();
                let leavers = |device: &usize| self.in_the_way(*device, pages).len();
                // With all of them away nobody runs who could leave.
                let Some(device) = there.into_iter().min_by_key(leavers) else { return false };
                device
            }
        };
        self.way = Some(Way { arrival, device, pages });
        let leavers = self.in_the_way(device, pages);
        let now = leavers.into_iter().find(|index| self.running[*index].micro_batch == planned_now);
        now.inspect(|index| self.preempt_now(*index)).is_some()
    }

    /// Who must leave for a sequence with `pages` to have a place on `device`: its youngest, as many as it takes; and
    /// if it has none left, but the others fill a limit that all devices share, the youngest of them.
    fn in_the_way(&mut self, device: usize, pages: usize) -> Vec<usize> {
        let Self { config, running, devices, .. } = self;
        let goes = |r: &Running| r.ended || r.leaving == Leaving::Surely;
        let staying = |index: &usize| !goes(&running[*index]);
        let on_device = |index: &usize| running[*index].device == device;
        let youngest_first = || (0..running.len()).rev().filter(staying);
        let own = youngest_first().filter(on_device);
        let mut candidates = own.chain(youngest_first().filter(|index| !on_device(index)));
        let mut left: Vec<usize> = (0..running.len()).filter(|index| !staying(index)).collect();
        let already = left.len();
        loop {
            let stays = |(index, r): (usize, &Running)| (!left.contains(&index)).then_some((r.home, r.device));
            let members = || running.iter().enumerate().filter_map(stays);
            let pool = &mut devices[device].pages;
            let freed = pool.freed_by(left.iter().filter(|i| on_device(i)).map(|i| running[*i].held()));
            let free = pool.free();
            let has_row = |m: &usize| {
                members().filter(|at| *at == (*m, device)).count() < config.rows_per_device
                    && members().filter(|at| at.0 == *m).count() < config.rows_per_micro_batch
            };
            let fits = free + freed >= pages
                && members().filter(|at| at.1 == device).count() < config.sequences_per_device
                && members().count() < config.sequences
                && (0..config.micro_batches).any(|m| has_row(&m));
            match candidates.next() {
                Some(next) if !fits => left.push(next),
                _ => return left.split_off(already),
            }
        }
    }

    fn start(&mut self, mut sequence: Sequence, device: usize, micro_batch: usize) {
        let state = &mut self.devices[device];
        let slot = state.free_slots.pop().expect("admission checked that a slot is free");
        let prefill = sequence.known_tokens();
        // All it may ever need at once, so that a steady step allocates nothing.
        let mut pages = Vec::with_capacity(sequence.final_pages);
        sequence.generated.reserve_exact(sequence.most - sequence.generated.len());
        // Before others are taken, which may be idle ones.
        if let Some(reuse) = &self.reuse {
            reuse.hold(device, &mut state.pages, &mut pages);
        }
        let shared = pages.len();
        let taken = state.pages.take(prefill.div_ceil(self.config.page_tokens) - shared, &mut pages);
        assert!(taken, "admission checked that the pages are free");
        let planned = sequence.generated.len();
        let prefilled = self.read_already(prefill, shared * self.config.page_tokens);
        self.count_started(device, pages.len() < sequence.final_pages);
        // Oldest first, always.
        let place = self.running.partition_point(|running| running.sequence.arrival < sequence.arrival);
        let running = Running {
            sequence,
            device,
            slot,
            micro_batch,
            home: micro_batch,
            fresh: true,
            pages,
            shared,
            prefill,
            prefilled,
            planned,
            // Behind those that have read already: a stream of short prompts must not hold a long one up.
            prefill_turn: self.prefill_turns,
            claim: 0,
            leaving: Leaving::No,
            ended: false,
            told: false,
        };
        self.running.insert(place, running);
        self.level_for = 0;
    }
}

/// Pages that sequences of a device lack.
fn claims(running: &[Running], device: usize) -> usize {
    running.iter().filter(|running| running.device == device && !running.ended).map(|running| running.claim).sum()
}

/// Pages of those on a device that leave when micro-batches are planned next.
fn leavers(running: &[Running], device: usize) -> impl Iterator<Item = (&[u32], usize)> + Clone {
    let leaves = move |r: &&Running| r.device == device && (r.ended || r.leaving != Leaving::No);
    running.iter().filter(leaves).map(Running::held)
}
