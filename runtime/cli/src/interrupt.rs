//! Ctrl-C and SIGTERM as messages to a run loop.

use crate::error::{Blame, CliError};
use crossbeam::channel::{Receiver, bounded};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Set once there is something worth keeping.
static ASKS: AtomicBool = AtomicBool::new(false);

/// What comes so soon after the first is the same one again: `timeout` and some shells signal a process and then its group.
const SAME_ONE: Duration = Duration::from_millis(250);

/// The channel on which an interrupt arrives. Before [`begin_work`], and the second time, one ends the process at once.
pub fn channel() -> Result<Receiver<()>, CliError> {
    let (sender, receiver) = bounded(1);
    // That the first message was taken off the channel says nothing about how far the run loop has come with it.
    let mut asked = None;
    let handler = move || {
        let now = Instant::now();
        match asked {
            _ if !ASKS.load(Ordering::Acquire) => std::process::exit(130),
            None if sender.try_send(()).is_ok() => asked = Some(now),
            Some(first) if is_same(first, now) => {}
            _ => std::process::exit(130),
        }
    };
    ctrlc::set_handler(handler).or_failure()?;
    Ok(receiver)
}

fn is_same(first: Instant, now: Instant) -> bool {
    now.duration_since(first) < SAME_ONE
}

/// From here on an interrupt is a message.
pub fn begin_work() {
    ASKS.store(true, Ordering::Release);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `timeout -s INT 60 rally bench …` lost all that was measured: it signals twice.
    #[test]
    fn an_interrupt_that_comes_twice_at_once_is_one() {
        let first = Instant::now();
        for (later_ms, same) in [(0, true), (1, true), (249, true), (250, false), (60_000, false)] {
            assert_eq!(is_same(first, first + Duration::from_millis(later_ms)), same, "{later_ms} ms");
        }
    }
}
