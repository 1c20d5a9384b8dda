//! Times of events on the host's clock. Owns the point where the two clocks were last held against each other.

use crate::device::Device;
use crate::error::CudaError;
use crate::stream::{Event, Stream};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// How long clocks run side by side before they are held against each other again: some ten parts in a million is what they may
/// differ by, and an event's time comes as milliseconds in 24 bits.
const RENEWED: Duration = Duration::from_secs(1);

/// What recording an event and waiting for it takes when nothing comes between, and how often that is hoped for.
const PROMPT: Duration = Duration::from_micros(30);
const TRIES: usize = 5;

#[derive(Debug)]
pub(crate) struct Timeline {
    /// Of its own, so that nothing else has to be done first.
    stream: Stream,
    anchor: Mutex<Anchor>,
}

/// An event and when it was.
#[derive(Debug)]
struct Anchor {
    event: Event,
    at: Instant,
}

/// By card, while anyone has it.
static OPEN: Mutex<Vec<(usize, Weak<Timeline>)>> = Mutex::new(Vec::new());

impl Timeline {
    /// The card's: one for all that is on it, so that what comes later there is later here.
    pub(crate) fn of(device: &Arc<Device>) -> Result<Arc<Timeline>, CudaError> {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|(_, timeline)| timeline.strong_count() > 0);
        let found =
            open.iter().find(|(card, _)| *card == device.address()).and_then(|(_, timeline)| timeline.upgrade());
        if let Some(timeline) = found {
            return Ok(timeline);
        }
        let (stream, event) = (Stream::new(device)?, Event::timed(device)?);
        let at = meet(&stream, &event)?;
        let timeline = Arc::new(Timeline { stream, anchor: Mutex::new(Anchor { event, at }) });
        open.push((device.address(), Arc::downgrade(&timeline)));
        Ok(timeline)
    }

    /// When an event that has been reached was.
    pub(crate) fn when(&self, event: &Event) -> Result<Instant, CudaError> {
        let mut anchor = self.anchor.lock().unwrap_or_else(PoisonError::into_inner);
        if anchor.at.elapsed() > RENEWED {
            anchor.at = meet(&self.stream, &anchor.event)?;
        }
        let us = event.us_since(&anchor.event)?;
        let distance = Duration::from_secs_f64(us.abs() * 1e-6);
        Ok(if us < 0.0 { anchor.at.checked_sub(distance).unwrap_or(anchor.at) } else { anchor.at + distance })
    }
}

/// Records `event` on an idle stream: it is between the moment before and the moment after.
fn meet(stream: &Stream, event: &Event) -> Result<Instant, CudaError> {
    let mut tries = 0;
    loop {
        let before = Instant::now();
        stream.record(event)?;
        event.synchronize()?;
        let took = before.elapsed();
        tries += 1;
        // A system that looked elsewhere meanwhile would put the card's clock behind.
        if took <= PROMPT || tries == TRIES {
            return Ok(before + took / 2);
        }
    }
}
