//! Whether a stage finds its weights near by: another micro-batch has just used them on the same lane.

use rally_graph::kinds::Role;
use rally_graph::plan::{TaskId, TaskTable};

/// What a lane has done, as far as its caches remember it.
#[derive(Clone, Debug, Default)]
pub struct NearBy {
    /// Layer of the last stage with weights worth naming.
    layer: Option<usize>,
    /// Counts how often that changed.
    turn: u64,
    /// By stage: layer and turn in which it was done last.
    last: Vec<Option<(Option<usize>, u64)>>,
}

impl NearBy {
    /// The lane begins `task`, which has rows. Whether it has done the same stage of the same layer, and since then no attention, FFN or
    /// sampling of another.
    pub fn begin(&mut self, table: &TaskTable, task: TaskId) -> bool {
        let template = &table.tasks[task];
        if !template.computes() || template.part > 0 {
            return false;
        }
        let heavy = matches!(table.stages[template.stage].role, Role::Attention | Role::Ffn | Role::Sampling);
        if heavy && self.layer != template.layer {
            self.layer = template.layer;
            self.turn += 1;
        }
        self.last.resize(table.stages.len(), None);
        let now = Some((template.layer, self.turn));
        template.layer.is_some() && std::mem::replace(&mut self.last[template.stage], now) == now
    }
}
