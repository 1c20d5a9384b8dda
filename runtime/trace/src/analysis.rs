//! Where the time of a window went: lanes, bubbles by cause, critical path, stages, transfers, overlap.

use crate::bubbles::bubbles;
use crate::overlap::overlap;
use crate::path::{CriticalPath, critical_path};
use crate::recording::Recording;
use crate::stages::{StageStats, stages};
use crate::window::Window;
use crate::work::{Cause, Side, Work};
use serde::Serialize;

/// Everything that is asked about a window.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Analysis {
    /// The window.
    pub window: Window,
    /// By lane, in the plan's order.
    pub lanes: Vec<LaneTimes>,
    /// The chain of tasks that the window's length is made of.
    #[serde(serialize_with = "shares_of_path")]
    pub path: CriticalPath,
    /// By stage and part, the most time first.
    pub stages: Vec<StageStats>,
    /// What crossed the cut.
    pub transfers: Transfers,
    /// Measured against possible.
    pub overlap: Overlap,
}

/// A lane's time in a window: `busy_ns` and all of `bubble_ns` add up to the window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LaneTimes {
    /// Name of the lane.
    pub name: String,
    /// Where it stands.
    pub side: Side,
    /// In tasks that had rows.
    pub busy_ns: u64,
    /// Of `busy_ns`, in sends, receives and exchanges.
    pub transfer_ns: u64,
    /// Without a task, by cause, in the order of [`Cause::ALL`].
    pub bubble_ns: [u64; 5],
}

impl LaneTimes {
    /// Bubbles for this cause.
    pub fn bubble(&self, cause: Cause) -> u64 {
        self.bubble_ns[cause.index()]
    }

    /// All bubbles.
    pub fn bubbles_ns(&self) -> u64 {
        self.bubble_ns.iter().sum()
    }

    /// Share of the window spent in tasks, 0 to 1.
    pub fn busy_share(&self) -> f64 {
        self.busy_ns as f64 / (self.busy_ns + self.bubbles_ns()).max(1) as f64
    }
}

/// Time and bytes of transfers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Transfers {
    /// Of A→F, over all lanes.
    pub a_to_f_ns: u64,
    /// Of F→A, over all lanes.
    pub f_to_a_ns: u64,
    /// Transfer time on the critical path: what the window would be shorter by if transfers took none (at most).
    pub exposed_ns: u64,
    /// Bytes put on edges.
    pub sent_bytes: u64,
}

/// How near a window came to what its stage times allow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Overlap {
    /// The lane with the most work.
    pub busiest: usize,
    /// That work, and the filling and draining that no order avoids where the window holds the run's begin or end.
    pub bound_ns: u64,
    /// What it took, less the busiest lane's want of work.
    pub measured_ns: u64,
    /// The bound as milliseconds a step.
    pub bound_tpot_ms: f64,
    /// Bound / measured, 0 to 1.
    pub efficiency: f64,
    /// Of the work beside the busiest side's, the share that ran while another side ran. `sequential` hides nothing: 0.
    pub hidden_share: f64,
}

impl Analysis {
    /// Analyses `window`.
    pub fn of(recording: &Recording<'_>, window: Window) -> Self {
        let lanes: Vec<LaneTimes> =
            (0..recording.lanes.len()).map(|lane| lane_times(recording, lane, &window)).collect();
        let path = critical_path(recording, &window);
        let stages = stages(recording, &window);
        let total = |work: Work| stages.iter().filter(|stats| stats.work == work).map(|stats| stats.total_ns).sum();
        let sent = |stats: &&StageStats| stats.part == rally_graph::plan::TaskRole::Send;
        let transfers = Transfers {
            a_to_f_ns: total(Work::AToF),
            f_to_a_ns: total(Work::FToA),
            exposed_ns: path.shares.a_to_f_ns + path.shares.f_to_a_ns,
            sent_bytes: stages.iter().filter(sent).map(|stats| stats.bytes).sum(),
        };
        let busy: Vec<u64> = lanes.iter().map(|lane| lane.busy_ns).collect();
        let idle: Vec<u64> = lanes.iter().map(|lane| lane.bubble(Cause::Admission)).collect();
        let overlap = overlap(recording, &window, &busy, &idle);
        Self { window, lanes, path, stages, transfers, overlap }
    }

    /// Time of a step.
    pub fn step_ms(&self) -> f64 {
        self.window.step_ms()
    }
}

fn lane_times(recording: &Recording<'_>, lane: usize, window: &Window) -> LaneTimes {
    let (mut busy_ns, mut transfer_ns) = (0, 0);
    for span in recording.spans(lane) {
        let from_ns = span.start_ns.max(window.from_ns);
        let ns = span.end_ns.min(window.to_ns).saturating_sub(from_ns);
        busy_ns += ns;
        if recording.work(lane, span).is_transfer() {
            transfer_ns += ns;
        }
    }
    let mut bubble_ns = [0; 5];
    for bubble in bubbles(recording, lane, window) {
        bubble_ns[bubble.cause.index()] += bubble.to_ns - bubble.from_ns;
    }
    LaneTimes { name: recording.lanes[lane].name.clone(), side: recording.side(lane), busy_ns, transfer_ns, bubble_ns }
}

fn shares_of_path<S: serde::Serializer>(path: &CriticalPath, serializer: S) -> Result<S::Ok, S::Error> {
    path.shares.serialize(serializer)
}
