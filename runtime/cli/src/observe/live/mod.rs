//! `--live`: a thread that looks at a run's figures and shows them.

mod moment;
mod view;

use super::screen;
use moment::History;
use rally_engine::figures::RunFigures;
use rally_engine::meter::RequestMeter;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Between two drawings: fast enough to look alive, slow enough to cost a lane's core nothing that shows.
const REDRAW: Duration = Duration::from_millis(125);
/// Between two lines where nothing can be redrawn.
const LINE: Duration = Duration::from_secs(2);

/// What is shown.
pub struct Subject {
    /// Which run it is.
    pub title: String,
    /// Target of the graph.
    pub slo_tpot_ms: Option<f64>,
    /// What lanes and planner say.
    pub figures: Arc<RunFigures>,
    /// What the owner of the run has seen.
    pub meter: Arc<Mutex<RequestMeter>>,
}

/// Shows a run until it is dropped; then once more, for good.
pub struct LiveView {
    /// Dropped, it ends the thread.
    going: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl LiveView {
    /// Starts to show `subject`. Without a thread to be had there is no view, and the run goes on.
    pub fn start(subject: Subject) -> Option<Self> {
        let (going, ended) = mpsc::channel();
        let redraws = screen::can_redraw();
        let mut history = History::new(subject.figures.sample());
        let show = move || {
            let period = if redraws { REDRAW } else { LINE };
            while ended.recv_timeout(period) == Err(RecvTimeoutError::Timeout) {
                show(&subject, &mut history, redraws);
            }
            show(&subject, &mut history, redraws);
            screen::keep();
        };
        match std::thread::Builder::new().name("live view".into()).spawn(show) {
            Ok(thread) => Some(Self { going: Some(going), thread: Some(thread) }),
            Err(error) => {
                tracing::warn!(%error, "there is no live view");
                None
            }
        }
    }
}

impl Drop for LiveView {
    fn drop(&mut self) {
        drop(self.going.take());
        if let Some(thread) = self.thread.take() {
            // A panic of its own was printed when it happened; the run does not depend on it.
            let _ = thread.join();
        }
    }
}

fn show(subject: &Subject, history: &mut History, redraws: bool) {
    let requests = subject.meter.lock().unwrap_or_else(PoisonError::into_inner).sample();
    let moment = history.add(subject.figures.sample(), requests);
    if redraws {
        let (rows, columns) = screen::size();
        let lines = view::draw(&moment, &subject.title, subject.slo_tpot_ms, (rows, columns));
        let colours = screen::wants_colours();
        let drawn: Vec<(String, usize)> = lines.iter().map(|line| (line.text(colours), line.width())).collect();
        screen::draw(&drawn);
    } else {
        eprintln!("{}", view::progress(&moment, &subject.title, subject.slo_tpot_ms));
    }
}
