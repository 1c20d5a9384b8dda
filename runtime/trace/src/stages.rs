//! Time by stage: how often, how long, how much.

use crate::recording::Recording;
use crate::window::Window;
use crate::work::Work;
use rally_graph::plan::TaskRole;
use rally_graph::stage_graph::StageIndex;
use serde::Serialize;
use std::collections::BTreeMap;

/// What the tasks of one stage, or of one part of a transfer, took, over all lanes, layers and micro-batches.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StageStats {
    /// Index of the stage.
    pub stage: StageIndex,
    /// Its id in the graph.
    pub id: String,
    /// Its kind.
    pub kind: String,
    /// Which part of it, for transfers; `Exchange` is also all later parts of a stage that is done in several.
    pub part: TaskRole,
    /// What it is.
    pub work: Work,
    /// Tasks that had rows.
    pub count: usize,
    /// Time of all of them.
    pub total_ns: u64,
    /// Mean.
    pub mean_ns: f64,
    /// Median.
    pub p50_ns: u64,
    /// 99th percentile.
    pub p99_ns: u64,
    /// Rows of all of them.
    pub rows: u64,
    /// Bytes of all of them.
    pub bytes: u64,
}

impl StageStats {
    /// Id and part, as people read it: `a2f send`, `expert_ffn later part`.
    pub fn label(&self) -> String {
        match self.part {
            TaskRole::Compute => self.id.clone(),
            TaskRole::Send => format!("{} send", self.id),
            TaskRole::Receive => format!("{} receive", self.id),
            TaskRole::Exchange if self.work.is_transfer() => format!("{} exchange", self.id),
            TaskRole::Exchange => format!("{} later part", self.id),
        }
    }
}

/// The stages of `window`, the most time first. A task counts where it starts.
pub fn stages(recording: &Recording<'_>, window: &Window) -> Vec<StageStats> {
    let mut groups: BTreeMap<(StageIndex, u8), Group> = BTreeMap::new();
    for lane in 0..recording.lanes.len() {
        let spans = recording.spans(lane);
        let first = spans.partition_point(|span| span.start_ns < window.from_ns);
        for span in spans[first..].iter().take_while(|span| span.start_ns < window.to_ns) {
            let template = recording.template(lane, span);
            let key = (template.stage, template.role as u8);
            let group = groups.entry(key).or_insert_with(|| Group::new(template.role, recording.work(lane, span)));
            group.durations_ns.push(span.end_ns - span.start_ns);
            group.rows += u64::from(span.rows);
            group.bytes += span.bytes;
        }
    }
    let mut stats: Vec<StageStats> =
        groups.into_iter().map(|((stage, _), group)| group.finish(recording, stage)).collect();
    stats.sort_by_key(|stats| std::cmp::Reverse(stats.total_ns));
    stats
}

struct Group {
    part: TaskRole,
    work: Work,
    durations_ns: Vec<u64>,
    rows: u64,
    bytes: u64,
}

impl Group {
    fn new(part: TaskRole, work: Work) -> Self {
        Self { part, work, durations_ns: Vec::new(), rows: 0, bytes: 0 }
    }

    fn finish(mut self, recording: &Recording<'_>, stage: StageIndex) -> StageStats {
        self.durations_ns.sort_unstable();
        let count = self.durations_ns.len();
        let total_ns: u64 = self.durations_ns.iter().sum();
        let label = &recording.plan.table.stages[stage];
        StageStats {
            stage,
            id: label.id.clone(),
            kind: label.kind.clone(),
            part: self.part,
            work: self.work,
            count,
            total_ns,
            mean_ns: total_ns as f64 / count as f64,
            p50_ns: percentile(&self.durations_ns, 0.5),
            p99_ns: percentile(&self.durations_ns, 0.99),
            rows: self.rows,
            bytes: self.bytes,
        }
    }
}

/// The smallest of `sorted` that at least a share of `share` of them does not exceed; 0 if there are none.
pub(crate) fn percentile(sorted: &[u64], share: f64) -> u64 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)
}
