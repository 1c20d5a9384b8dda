//! Custom orders: the pattern of one layer, as `schedule.order` writes it, unrolled into lane orders over all layers.
//!
//! A pattern is read like the body of a pipelined loop over the layers. Along a micro-batch's dataflow a turn that stands
//! *before* the turn it follows works on the layer of the round before. So `combine:0, mfa_attention:0` is: combine layer
//! l − 1, then attention of layer l; and in the first round it combines the last layer of the step before, which joins the end
//! of a step with the next beginning ([`Turn::behind`]).
//!
//! * A stage that a layer does not have is skipped there.
//! * A transfer that is not named follows its stage: a send goes behind the turn before it, a receive before the turn after
//!   it. A name stands for both where a device does both.
//! * Stages before the layers go before the micro-batch's first turn of the first layer, stages after the layers behind its
//!   last turn of the last one; they are not named.

use crate::plan::{LaneTasks, TaskId, TaskRole, TaskTable, Turn};
use crate::source::join;
use crate::stage_graph::{Payload, Section, StageIndex};
use indexmap::IndexMap;
use std::collections::HashMap;

/// Per device or group the turns of one layer, `stage:micro_batch` each.
pub type CustomOrder = IndexMap<String, Vec<String>>;

/// Why a pattern gives no lane orders.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// A lane with work in the layers and no pattern.
    #[error("`order` says nothing about `{lane}`: every device of the layers needs a pattern")]
    NoPattern {
        /// The lane.
        lane: String,
    },
    /// A turn that cannot be read.
    #[error("`{turn}` in the order of `{key}` is no turn; expected `stage:micro_batch`, such as `mfa_attention:0`")]
    BadTurn {
        /// Device or group.
        key: String,
        /// Where in the pattern.
        index: usize,
        /// The text.
        turn: String,
    },
    /// A stage that has no work on the lane.
    #[error("`{turn}` in the order of `{key}`: no such stage runs there in the layers")]
    UnknownStage {
        /// Device or group.
        key: String,
        /// Where in the pattern.
        index: usize,
        /// The text.
        turn: String,
    },
    /// A micro-batch that does not exist.
    #[error("`{turn}` in the order of `{key}`: there are {micro_batches} micro-batches, counted from 0")]
    OutOfRange {
        /// Device or group.
        key: String,
        /// Where in the pattern.
        index: usize,
        /// The text.
        turn: String,
        /// How many there are.
        micro_batches: usize,
    },
    /// A turn that is there twice.
    #[error("`{turn}` is in the order of `{key}` twice")]
    Twice {
        /// Device or group.
        key: String,
        /// Where in the pattern the second one is.
        index: usize,
        /// The text.
        turn: String,
    },
    /// A turn that is not there.
    #[error("the order of `{key}` lacks `{turn}`: every stage of the device has one turn for each micro-batch")]
    Missing {
        /// Device or group.
        key: String,
        /// What is missing.
        turn: String,
    },
    /// A turn that could only run after the next layer has begun.
    #[error("the order of `{key}` takes the stages of micro-batch {micro_batch} against the dataflow at `{turn}`")]
    Backwards {
        /// Device or group.
        key: String,
        /// Where in the pattern.
        index: usize,
        /// The turn.
        turn: String,
        /// Its micro-batch.
        micro_batch: usize,
    },
}

impl OrderError {
    /// JSON pointer of the place, in a graph file.
    pub fn pointer(&self) -> String {
        let order = "/schedule/order";
        match self {
            Self::NoPattern { .. } => order.into(),
            Self::Missing { key, .. } => join(order, key),
            Self::BadTurn { key, index, .. }
            | Self::UnknownStage { key, index, .. }
            | Self::OutOfRange { key, index, .. }
            | Self::Twice { key, index, .. }
            | Self::Backwards { key, index, .. } => join(&join(order, key), &index.to_string()),
        }
    }
}

/// The lane orders that `order` means, one a lane of `table`.
pub fn expand(table: &TaskTable, order: &CustomOrder, micro_batches: usize) -> Result<Vec<Vec<Turn>>, OrderError> {
    table.lanes.iter().map(|lane| Lane::new(table, lane, order, micro_batches)?.turns()).collect()
}

/// Pointer of the pattern's entry that gave `turn` its place on `lane`: the turn itself, else the whole pattern.
pub fn pointer_of(table: &TaskTable, order: &CustomOrder, lane: usize, turn: &Turn) -> String {
    let Some((key, pattern)) = pattern_of(order, &table.lanes[lane]) else { return "/schedule/order".into() };
    let text = format!("{}:{}", table.stages[table.tasks[turn.task].stage].id, turn.micro_batch);
    let at = join("/schedule/order", key);
    pattern.iter().position(|entry| *entry == text).map_or(at.clone(), |index| join(&at, &index.to_string()))
}

fn pattern_of<'a>(order: &'a CustomOrder, lane: &LaneTasks) -> Option<(&'a String, &'a Vec<String>)> {
    order.get_key_value(&lane.name).or_else(|| order.get_key_value(&lane.group))
}

/// A lane and its pattern.
struct Lane<'a> {
    table: &'a TaskTable,
    tasks: &'a [TaskId],
    key: &'a str,
    pattern: &'a [String],
    /// Where each turn stands.
    places: HashMap<(StageIndex, usize), usize>,
    micro_batches: usize,
    /// Layers of the model, on whichever lane.
    layers: usize,
}

/// A turn with its place: round, place in the pattern, then the step before first, then dataflow.
type Placed = (usize, usize, bool, TaskId, usize);

impl<'a> Lane<'a> {
    fn new(
        table: &'a TaskTable,
        lane: &'a LaneTasks,
        order: &'a CustomOrder,
        micro_batches: usize,
    ) -> Result<Self, OrderError> {
        let in_layers = lane.tasks.iter().any(|task| table.tasks[*task].layer.is_some());
        let (key, pattern) = match pattern_of(order, lane) {
            Some((key, pattern)) => (key.as_str(), pattern.as_slice()),
            None if in_layers => return Err(OrderError::NoPattern { lane: lane.name.clone() }),
            None => (lane.name.as_str(), &[][..]),
        };
        let layers = table.tasks.iter().filter_map(|task| task.layer).max().map_or(0, |last| last + 1);
        let places = HashMap::new();
        let mut made = Self { table, tasks: &lane.tasks, key, pattern, places, micro_batches, layers };
        made.read()?;
        made.expect_whole()?;
        Ok(made)
    }

    fn read(&mut self) -> Result<(), OrderError> {
        for (index, text) in self.pattern.iter().enumerate() {
            let (key, turn) = (self.key.to_owned(), text.clone());
            let parts = text.rsplit_once(':').and_then(|(stage, m)| Some((stage, m.parse::<usize>().ok()?)));
            let Some((id, micro_batch)) = parts else { return Err(OrderError::BadTurn { key, index, turn }) };
            let stage = self.table.stages.iter().position(|stage| stage.id == id && stage.section == Section::Layers);
            let runs = |tasks: &[TaskId], stage| tasks.iter().any(|task| self.table.tasks[*task].stage == stage);
            // A stage that no layer of this model has is legal; one that runs elsewhere is not.
            let elsewhere = |stage| self.table.tasks.iter().any(|task| task.stage == stage);
            let stage = match stage {
                Some(stage) if runs(self.tasks, stage) || !elsewhere(stage) => stage,
                _ => return Err(OrderError::UnknownStage { key, index, turn }),
            };
            if micro_batch >= self.micro_batches {
                return Err(OrderError::OutOfRange { key, index, turn, micro_batches: self.micro_batches });
            }
            if self.places.insert((stage, micro_batch), index).is_some() {
                return Err(OrderError::Twice { key, index, turn });
            }
        }
        Ok(())
    }

    fn expect_whole(&self) -> Result<(), OrderError> {
        let computes = |task: &&TaskId| {
            let task = &self.table.tasks[**task];
            task.layer.is_some() && task.role == TaskRole::Compute
        };
        for task in self.tasks.iter().filter(computes) {
            let stage = self.table.tasks[*task].stage;
            for micro_batch in 0..self.micro_batches {
                if !self.places.contains_key(&(stage, micro_batch)) {
                    let turn = format!("{}:{micro_batch}", self.table.stages[stage].id);
                    return Err(OrderError::Missing { key: self.key.into(), turn });
                }
            }
        }
        Ok(())
    }

    fn turns(&self) -> Result<Vec<Turn>, OrderError> {
        let mut placed: Vec<Placed> = Vec::with_capacity(self.tasks.len() * self.micro_batches);
        for micro_batch in 0..self.micro_batches {
            self.place(micro_batch, &mut placed)?;
        }
        placed.sort_unstable();
        let turn = |(_, _, level, task, micro_batch): Placed| Turn { task, micro_batch, behind: !level };
        Ok(placed.into_iter().map(turn).collect())
    }

    fn place(&self, micro_batch: usize, placed: &mut Vec<Placed>) -> Result<(), OrderError> {
        let layer_of = |task: &TaskId| self.table.tasks[*task].layer;
        let (mut before, mut after) = (Vec::new(), Vec::new());
        let first = placed.len();
        for same_layer in self.tasks.chunk_by(|a, b| layer_of(a) == layer_of(b)) {
            match layer_of(&same_layer[0]) {
                Some(layer) => self.place_layer(layer, same_layer, micro_batch, placed)?,
                None if placed.len() == first => before.extend(same_layer),
                None => after.extend(same_layer),
            }
        }
        // Dataflow order, so the first and the last placed are the micro-batch's first and last turn. A lane without layers
        // serves micro-batches one after the other.
        let alone = (0, micro_batch, true, 0, micro_batch);
        let begin = placed.get(first).copied().unwrap_or(alone);
        let end = placed.last().filter(|_| placed.len() > first).copied().unwrap_or(alone);
        placed.extend(before.into_iter().map(|task: TaskId| (begin.0, begin.1, begin.2, task, micro_batch)));
        placed.extend(after.into_iter().map(|task: TaskId| (end.0, end.1, end.2, task, micro_batch)));
        Ok(())
    }

    fn place_layer(
        &self,
        layer: usize,
        tasks: &[TaskId],
        micro_batch: usize,
        placed: &mut Vec<Placed>,
    ) -> Result<(), OrderError> {
        let places: Vec<usize> = (0..tasks.len()).map(|index| self.place_of(tasks, index, micro_batch)).collect();
        let mut rounds = 0;
        for (index, task) in tasks.iter().enumerate() {
            rounds += usize::from(index > 0 && places[index] < places[index - 1]);
            if rounds > 1 || (rounds == 1 && places[index] > places[0]) {
                let turn = self.pattern.get(places[index]).cloned().unwrap_or_default();
                let key = self.key.to_owned();
                return Err(OrderError::Backwards { key, index: places[index], turn, micro_batch });
            }
            let level = layer + rounds < self.layers;
            let round = if level { layer + rounds } else { layer + rounds - self.layers };
            placed.push((round, places[index], level, *task, micro_batch));
        }
        Ok(())
    }

    /// Place of a task in the pattern: its own turn's, or that of the turn it follows.
    fn place_of(&self, tasks: &[TaskId], index: usize, micro_batch: usize) -> usize {
        let named = |task: &TaskId| self.places.get(&(self.table.tasks[*task].stage, micro_batch)).copied();
        let next = || tasks[index..].iter().find_map(named);
        let previous = || tasks[..=index].iter().rev().find_map(named);
        let found = match self.table.tasks[tasks[index]].role {
            TaskRole::Compute => named(&tasks[index]),
            TaskRole::Send => previous().or_else(next),
            TaskRole::Receive => next().or_else(previous),
            // A further part of a stage stands where the stage does.
            TaskRole::Exchange if self.table.tasks[tasks[index]].part > 0 => named(&tasks[index]),
            // A rail's exchange belongs to the FFN: after it with y, before it with u.
            TaskRole::Exchange if self.table.tasks[tasks[index]].payload == Payload::Output => previous().or_else(next),
            TaskRole::Exchange => next().or_else(previous),
        };
        // A layer without a stage of this lane: where the micro-batch's first turn would be; and a pattern that says nothing
        // of it at all belongs to a device that only hands on.
        let of_micro_batch = self.places.iter().filter(|((_, m), _)| *m == micro_batch).map(|(_, place)| *place).min();
        found.or(of_micro_batch).unwrap_or(micro_batch)
    }
}
