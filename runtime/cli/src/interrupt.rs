//! Ctrl-C and SIGTERM as messages to a run loop.

use crate::error::{Blame, CliError};
use crossbeam::channel::{Receiver, bounded};
use std::sync::atomic::{AtomicBool, Ordering};

/// Set once there is something worth keeping.
static ASKS: AtomicBool = AtomicBool::new(false);

/// The channel on which an interrupt arrives. Before [`begin_work`], and the second time, one ends the process at once.
pub fn channel() -> Result<Receiver<()>, CliError> {
    let (sender, receiver) = bounded(1);
    // That the first message was taken off the channel says nothing about how far the run loop has come with it.
    let mut asked = false;
    let handler = move || {
        if !ASKS.load(Ordering::Acquire) || std::mem::replace(&mut asked, true) || sender.try_send(()).is_err() {
            std::process::exit(130);
        }
    };
    ctrlc::set_handler(handler).or_failure()?;
    Ok(receiver)
}

/// From here on an interrupt is a message.
pub fn begin_work() {
    ASKS.store(true, Ordering::Release);
}
