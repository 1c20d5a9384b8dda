//! When nothing moves any more although every host shows signs of life: a lane hangs, or something was lost on its way.
//!
//! A lane that waits cannot know why: who should answer may wait for a third host, and that one for a fourth. So it is the coordinator
//! that looks, at what each host shows of its lanes: as long as a task is completed anywhere, whatever is late will come. Once none has
//! been for several times the longest that was usual, a host with a lane that has been at one task all the while is to blame; if there
//! is none, everybody waits, and what they wait for will never come.

use rally_transport::{Peer, Pulse};
use std::time::{Duration, Instant};

/// No standstill before this. Beyond the two seconds after which a host that shows no sign of life is given up, so that one that was
/// stopped is told as that; and far beyond what two busy cores take to come back to a lane, or a disk to weights that are read for the
/// first time.
pub const STANDSTILL: Duration = Duration::from_secs(5);
/// Between two looks: signs of life come as often.
pub(crate) const LOOK: Duration = Duration::from_millis(100);
/// Who has not looked for so long was stopped itself, and judges nobody by that time.
const ABSENT: Duration = Duration::from_secs(1);
/// Nothing moves if nothing has for so many times the longest that was usual. It is a longest already, of single tasks and ways: what
/// it misses is how much longer the largest step takes than those before it.
const PATIENCE: u32 = 4;

/// A lane of the host that looks has so many times as long: there is nobody to go on without it, so that to give it up is to end the
/// run, and a first task may be as long as the weights it reads are large.
const OWN: u32 = 6;

/// For how long nothing may move; over all epochs of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    least: Duration,
    /// Nothing moved for so long, and then something did.
    longest: Duration,
}

impl Patience {
    pub(crate) fn new(least: Duration) -> Self {
        Self { least, longest: Duration::ZERO }
    }

    fn limit(&self) -> Duration {
        self.least.max(self.longest.saturating_mul(PATIENCE))
    }
}

/// Nothing moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standstill {
    pub(crate) waited: Duration,
    /// The host with a lane that has been at one task; none if all lanes wait.
    pub(crate) host: Option<Peer>,
}

/// What was seen of a host.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    pulse: Option<Pulse>,
    /// Since when a lane of it is at a task and none was completed.
    at_one_task: Option<Instant>,
}

/// Looks at all hosts of an epoch.
pub(crate) struct Watch {
    hosts: Vec<Seen>,
    /// The host that looks.
    own: Peer,
    /// Since when nothing moves.
    since: Instant,
    looked: Instant,
}

impl Watch {
    /// `own` of so many hosts looks.
    pub(crate) fn new(hosts: usize, own: Peer, now: Instant) -> Self {
        Self { hosts: vec![Seen::default(); hosts], own, since: now, looked: now }
    }

    /// Whether a look is due.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.looked) >= LOOK
    }

    /// A look at the hosts' pulses. `busy`: there is something to do, so that something should move.
    pub(crate) fn look(
        &mut self,
        now: Instant,
        pulse_of: impl Fn(Peer) -> Option<Pulse>,
        busy: bool,
        patience: &mut Patience,
    ) -> Option<Standstill> {
        let mut moves = false;
        for (host, seen) in self.hosts.iter_mut().enumerate() {
            let pulse = pulse_of(host);
            let done = |pulse: Option<Pulse>| pulse.map(|pulse| pulse.done);
            let moved = done(pulse) != done(seen.pulse);
            let working = pulse.is_some_and(|pulse| pulse.working > 0);
            seen.at_one_task = (working && !moved).then(|| seen.at_one_task.unwrap_or(now));
            seen.pulse = pulse;
            moves |= moved;
        }
        let was_absent = now.saturating_duration_since(self.looked) >= ABSENT;
        self.looked = now;
        let waited = now.saturating_duration_since(self.since);
        if moves || !busy || was_absent {
            if moves && busy && !was_absent {
                patience.longest = patience.longest.max(waited);
            }
            self.since = now;
            return None;
        }
        if waited < patience.limit() {
            return None;
        }
        // At half of it: what it shows is older than what happens, and a lane that wakes to look on is seen at work for a moment.
        let at_one_task = |host: Peer| Some((now.saturating_duration_since(self.hosts[host].at_one_task?), host));
        let hangs = |(time, _): &(Duration, Peer)| *time >= waited / 2;
        let others = (0..self.hosts.len()).filter(|host| *host != self.own).filter_map(at_one_task);
        let other = others.max().filter(hangs).map(|(_, host)| host);
        let host = other.or_else(|| at_one_task(self.own).filter(hangs).map(|(_, host)| host));
        if host == Some(self.own) && waited < patience.limit().saturating_mul(OWN) {
            return None;
        }
        if other.is_some() {
            // It may have been at work after all: the next time it has twice as long, or it would never get through.
            patience.least = patience.limit().saturating_mul(2);
        }
        Some(Standstill { waited, host })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: Duration = Duration::from_secs(5);

    /// Hosts on a clock of their own.
    struct World {
        watch: Watch,
        patience: Patience,
        now: Instant,
        pulses: Vec<Option<Pulse>>,
        busy: bool,
    }

    impl World {
        fn new(hosts: usize) -> Self {
            let now = Instant::now();
            let pulses = vec![Some(Pulse { done: 1, working: 0 }); hosts];
            Self { watch: Watch::new(hosts, 0, now), patience: Patience::new(LEAST), now, pulses, busy: true }
        }

        /// Looks until nothing moves or `time` is over.
        fn stands(&mut self, time: Duration) -> Option<Standstill> {
            let until = self.now + time;
            while self.now < until {
                self.now += LOOK;
                let pulses = &self.pulses;
                let found = self.watch.look(self.now, |host| pulses[host], self.busy, &mut self.patience);
                if found.is_some() {
                    return found;
                }
            }
            None
        }

        fn moves(&mut self, host: Peer) {
            if let Some(pulse) = &mut self.pulses[host] {
                pulse.done += 1;
            }
        }

        fn works(&mut self, host: Peer, working: u32) {
            if let Some(pulse) = &mut self.pulses[host] {
                pulse.working = working;
            }
        }
    }

    #[test]
    fn who_is_at_one_task_all_the_while_is_to_blame_and_nobody_where_all_wait() {
        let mut world = World::new(3);
        world.works(2, 1);
        let found = world.stands(LEAST * 2).expect("nothing moves");
        assert_eq!(found.host, Some(2));
        assert!(found.waited >= LEAST && found.waited < LEAST + LOOK * 3, "{found:?}");
        let mut world = World::new(3);
        assert_eq!(world.stands(LEAST * 2).map(|found| found.host), Some(None));
        // Seen at work for a moment, again and again, as lanes are that wake to look.
        let mut world = World::new(2);
        let mut found = None;
        for look in 0..100 {
            world.works(1, u32::from(look % 3 == 0));
            found = found.or(world.stands(LOOK));
        }
        assert_eq!(found.map(|found| found.host), Some(None));
    }

    #[test]
    fn as_long_as_anything_moves_or_nobody_has_anything_to_do_nothing_stands() {
        let mut world = World::new(2);
        world.works(0, 1);
        for _ in 0..20 {
            assert_eq!(world.stands(LEAST - LOOK * 2), None);
            world.moves(1);
        }
        let mut world = World::new(2);
        world.busy = false;
        assert_eq!(world.stands(LEAST * 20), None);
        world.busy = true;
        assert_eq!(world.stands(LEAST - LOOK * 2), None, "it counts from when there was something to do");
    }

    #[test]
    fn what_takes_long_is_waited_for_longer_and_who_was_blamed_has_more_time() {
        let mut world = World::new(1);
        assert_eq!(world.stands(LEAST - LOOK * 2), None);
        world.moves(0);
        assert_eq!(world.stands(LOOK), None);
        let usual = LEAST - LOOK * 2;
        assert_eq!(world.stands(usual * PATIENCE - LOOK), None, "four times what was usual");
        assert_eq!(world.stands(LOOK * 2).map(|found| found.host), Some(None));
        let mut world = World::new(2);
        world.works(1, 1);
        let waits: Vec<Duration> = (0..4)
            .map(|_| {
                world.watch = Watch::new(2, 0, world.now);
                world.stands(LEAST * 100).expect("nothing moves").waited
            })
            .collect();
        assert!(waits.windows(2).all(|pair| pair[1] > pair[0] + pair[0] / 2), "{waits:?}");
    }

    #[test]
    fn a_lane_of_the_host_that_looks_has_longer() {
        let mut world = World::new(2);
        world.works(0, 1);
        let found = world.stands(LEAST * 20).expect("nothing moves");
        assert_eq!(found.host, Some(0));
        assert!(found.waited >= LEAST * OWN && found.waited < LEAST * OWN + LOOK * 3, "{found:?}");
        // Another one that hangs as well is given up before.
        let mut world = World::new(2);
        (0..2).for_each(|host| world.works(host, 1));
        assert_eq!(world.stands(LEAST * 2).map(|found| found.host), Some(Some(1)));
    }

    #[test]
    fn who_was_stopped_itself_blames_nobody() {
        let mut world = World::new(2);
        world.works(1, 1);
        assert_eq!(world.stands(LEAST - LOOK * 2), None);
        world.now += LEAST * 10;
        assert_eq!(world.stands(LEAST - LOOK * 2), None);
        assert!(world.stands(LEAST).is_some());
    }

    #[test]
    fn hosts_that_show_nothing_are_not_blamed() {
        let mut world = World::new(2);
        world.pulses[1] = None;
        assert_eq!(world.stands(LEAST * 2).map(|found| found.host), Some(None));
    }
}
