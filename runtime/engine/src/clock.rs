//! The clock of a run.

#[cfg(miri)]
use interpreted::Clock;
#[cfg(not(miri))]
use quanta::Clock;
use std::time::{Duration, Instant};

/// Nanoseconds since a run began, on one clock for all its lanes.
///
/// Reading the clock is most of what a span costs. The processor's own counter, where it runs evenly and alike on all cores, is
/// read in half the time of a call that the system answers; elsewhere it is that call. Against the system's clock it drifts by
/// what the counter's rate was misjudged by at the start of the process, some millionths.
#[derive(Clone, Debug)]
pub struct RunClock {
    clock: Clock,
    raw: u64,
    started: Instant,
}

impl RunClock {
    /// The run begins now.
    pub fn start() -> Self {
        let clock = Clock::new();
        Self { raw: clock.raw(), clock, started: Instant::now() }
    }

    /// Since the run began, in nanoseconds.
    #[inline]
    pub fn now_ns(&self) -> u64 {
        self.clock.delta_as_nanos(self.raw, self.clock.raw())
    }

    /// The same as a moment of the system's clock.
    pub fn now(&self) -> Instant {
        self.started + Duration::from_nanos(self.now_ns())
    }

    /// When the run began, on the system's clock.
    pub fn started(&self) -> Instant {
        self.started
    }
}

/// Where code is interpreted there is no processor to ask.
#[cfg(miri)]
mod interpreted {
    use std::time::Instant;

    #[derive(Clone, Debug)]
    pub(super) struct Clock(Instant);

    impl Clock {
        pub(super) fn new() -> Self {
            Self(Instant::now())
        }

        pub(super) fn raw(&self) -> u64 {
            self.0.elapsed().as_nanos() as u64
        }

        pub(super) fn delta_as_nanos(&self, from: u64, to: u64) -> u64 {
            to.saturating_sub(from)
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn it_goes_as_the_systems_clock_does() {
        let clock = RunClock::start();
        let mut before_ns = 0;
        for _ in 0..50 {
            std::thread::sleep(Duration::from_millis(1));
            let at_least = clock.started().elapsed().as_nanos() as f64;
            let now_ns = clock.now_ns();
            let at_most = clock.started().elapsed().as_nanos() as f64;
            // The two are not started in the same instant, and go 1 ‰ apart at most.
            let slack = |ns: f64| ns / 1e3 + 20e3;
            assert!(now_ns as f64 >= at_least - slack(at_least), "{now_ns} ns, after {at_least}");
            assert!(now_ns as f64 <= at_most + slack(at_most) + 1e6, "{now_ns} ns, before {at_most}");
            assert!(now_ns > before_ns);
            before_ns = now_ns;
        }
    }
}
