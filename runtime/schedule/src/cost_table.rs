//! The cost table: how long each stage takes on a device, measured over a grid of rows and of what else its time depends on.
//!
//! `rally profile` writes it; [`CostTable::seconds`] answers for any number of rows between and beyond the measured ones, and
//! [`CostTable::stage_costs`] is what the policy `greedy` orders by. Nothing here reads a file or a clock.

use crate::costs::StageCosts;
use rally_graph::plan::{TaskRole, TaskTemplate};
use rally_graph::spec::WireDtype;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Version of the format.
pub const VERSION: u32 = 1;

/// Costs of the stages of one deployment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CostTable {
    /// [`VERSION`].
    pub version: u32,
    /// What it was measured on; for people.
    pub machine: Value,
    /// Of which model.
    pub model: Value,
    /// Of which graph file.
    pub graph: Value,
    /// By stage, part and device group.
    pub stages: Vec<StageCost>,
}

/// What a stage's time depends on beside its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CostAxis {
    /// Nothing.
    None,
    /// Positions that each row attends to.
    Context,
    /// Experts of the device that any row is routed to.
    Experts,
}

/// A part of a stage's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CostPart {
    /// The work of a stage that computes; of one that is done in several parts, the first.
    Compute,
    /// The second part: the heads' slice of a split output projection, or the experts at home and what others lent.
    Second,
    /// The third part: the sum of a split output projection, and what follows it.
    Third,
    /// Encoding rows for the wire.
    Send,
    /// Decoding them.
    Receive,
    /// Handing rows on inside a group, on rails.
    Exchange,
    /// Of a stage that ends a step: what the host does until the next step is planned. Rows are those of the step that ended.
    Plan,
}

impl CostPart {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Compute, Self::Second, Self::Third, Self::Send, Self::Receive, Self::Exchange, Self::Plan];

    /// The parts of a stage that computes, in order: a plan has no stage of more.
    pub const OF_STAGE: [Self; 3] = [Self::Compute, Self::Second, Self::Third];

    /// Index of the part, as in [`TaskTemplate::part`](rally_graph::plan::TaskTemplate::part).
    pub fn index(self) -> usize {
        Self::OF_STAGE.iter().position(|part| *part == self).unwrap_or(0)
    }

    /// The same as a plan names it; `None` for what is no task.
    pub fn role(self) -> Option<TaskRole> {
        match self {
            Self::Compute => Some(TaskRole::Compute),
            Self::Second | Self::Third | Self::Exchange => Some(TaskRole::Exchange),
            Self::Send => Some(TaskRole::Send),
            Self::Receive => Some(TaskRole::Receive),
            Self::Plan => None,
        }
    }

    /// Which part of its stage a task does.
    pub fn of(task: &TaskTemplate) -> Self {
        match task.role {
            TaskRole::Send => Self::Send,
            TaskRole::Receive => Self::Receive,
            TaskRole::Exchange if !task.computes() => Self::Exchange,
            TaskRole::Compute | TaskRole::Exchange => Self::OF_STAGE.get(task.part).copied().unwrap_or(Self::Third),
        }
    }

    /// Its word, as in the file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Compute => "compute",
            Self::Second => "second",
            Self::Third => "third",
            Self::Send => "send",
            Self::Receive => "receive",
            Self::Exchange => "exchange",
            Self::Plan => "plan",
        }
    }
}

/// Measured costs of one part of a stage on one device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageCost {
    /// Id in the graph.
    pub stage: String,
    /// Its kind.
    pub kind: String,
    /// Which part of its work.
    pub part: CostPart,
    /// The device it was measured on: the first of its group.
    pub device: String,
    /// Whether the device had just done the same stage in the same layer for another micro-batch, whose weights it then finds near by.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub warm: bool,
    /// What `along` counts.
    pub axis: CostAxis,
    /// Experts the device holds; 0 where that does not matter.
    pub experts: usize,
    /// Share of all experts that a row is routed to; 0 where that does not matter.
    pub routed_share: f64,
    /// Inner columns of each of these experts that the device holds, or columns of an output projection that is divided; 0 where that does
    /// not matter.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub width: usize,
    /// Whether the device has a shared expert to do beside them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shared: bool,
    /// Multiprocessors that the device has of its card; 0: all of them, or it has none.
    #[serde(default, skip_serializing_if = "no_share")]
    pub sms: u32,
    /// What keys and values are kept in, of attention.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_dtype: Option<WireDtype>,
    /// Ascending in rows, then in `along`.
    pub points: Vec<CostPoint>,
}

fn no_share(multiprocessors: &u32) -> bool {
    *multiprocessors == 0
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// One point of the grid.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CostPoint {
    /// Rows of the task.
    pub rows: usize,
    /// Context of each row, or experts hit; 0 without an axis.
    pub along: usize,
    /// Seconds: the mean, where what took more than three times the median counts as that long. Layers differ, so the median would be
    /// one of them; a step is as long as all its tasks, the slower ones too; and what the system interrupts says nothing of the stage.
    pub seconds: f64,
    /// Mean seconds.
    pub mean_s: f64,
    /// 10th percentile.
    pub p10_s: f64,
    /// 90th percentile.
    pub p90_s: f64,
    /// Times it was run.
    pub samples: usize,
}

/// What a task works on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TaskSize {
    /// Rows.
    pub rows: usize,
    /// Mean positions that a row attends to.
    pub context: f64,
    /// Experts hit; `None`: as many as even routing would hit.
    pub experts: Option<f64>,
}

/// Text that is no cost table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CostTableError {
    /// Not this form.
    #[error("it is no cost table: {0}")]
    Form(String),
    /// A version from elsewhere.
    #[error(
        "it is a cost table of version {0}, and this program reads version {VERSION}: measure again with `rally profile`"
    )]
    Version(u32),
    /// A stage that cannot be used.
    #[error("stage `{stage}`: {fault}")]
    Stage {
        /// Its id.
        stage: String,
        /// What is wrong.
        fault: &'static str,
    },
}

impl CostTable {
    /// Reads and checks what [`CostTable::to_json`] wrote.
    ///
    /// # Errors
    /// [`CostTableError`] for any other text, with what is wrong.
    pub fn from_json(text: &str) -> Result<Self, CostTableError> {
        let value: Value = serde_json::from_str(text).map_err(|error| CostTableError::Form(error.to_string()))?;
        if let Some(version) = value["version"].as_u64().filter(|version| *version != u64::from(VERSION)) {
            return Err(CostTableError::Version(u32::try_from(version).unwrap_or(u32::MAX)));
        }
        let table: Self = serde_json::from_value(value).map_err(|error| CostTableError::Form(error.to_string()))?;
        table.stages.iter().try_for_each(StageCost::check)?;
        Ok(table)
    }

    /// The table as text.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a table has text keys and finite numbers")
    }

    /// Seconds of a part of a stage whose weights come from afar: on `device` if it was measured there, else on any; `None` where it
    /// never was.
    pub fn seconds(&self, stage: &str, part: CostPart, device: &str, size: TaskSize) -> Option<f64> {
        let here = |cost: &&StageCost| cost.stage == stage && cost.part == part;
        let there = |warm: bool| self.stages.iter().filter(here).filter(move |cost| cost.warm == warm);
        let on_device = |warm: bool| there(warm).find(|cost| cost.device == device);
        let found =
            on_device(false).or_else(|| there(false).next()).or_else(|| on_device(true)).or_else(|| there(true).next());
        found.map(|cost| cost.seconds(size))
    }

    /// What `greedy` orders by: every stage at the measured numbers of rows, each of which attends to `context` positions, with
    /// experts hit as even routing hits them.
    pub fn stage_costs(&self, context: f64) -> StageCosts {
        let mut costs = StageCosts::assumed();
        // What comes from afar replaces what does not.
        let of = |warm: bool| self.stages.iter().filter(move |cost| cost.warm == warm);
        for cost in of(true).chain(of(false)) {
            let Some(role) = cost.part.role() else { continue };
            for rows in cost.rows() {
                let seconds = cost.seconds(TaskSize { rows, context, experts: None });
                costs.set_part(&cost.kind, role, cost.part.index(), rows, seconds);
            }
        }
        costs
    }
}

impl StageCost {
    fn check(&self) -> Result<(), CostTableError> {
        let fault = |fault| Err(CostTableError::Stage { stage: self.stage.clone(), fault });
        let ascending = |pair: &[CostPoint]| (pair[0].rows, pair[0].along) < (pair[1].rows, pair[1].along);
        if self.points.is_empty() {
            return fault("it has no points");
        }
        if !self.points.windows(2).all(ascending) {
            return fault("its points do not ascend in rows and `along`");
        }
        if self.points.iter().any(|point| point.rows == 0) {
            return fault("a point has no rows");
        }
        match self.points.iter().any(|point| !point.seconds.is_finite() || point.seconds < 0.0) {
            true => fault("a point's seconds are no time"),
            false => Ok(()),
        }
    }

    /// Numbers of rows it was measured with, ascending.
    pub fn rows(&self) -> Vec<usize> {
        let mut rows: Vec<usize> = self.points.iter().map(|point| point.rows).collect();
        rows.dedup();
        rows
    }

    /// Seconds of a task: linear between the nearest measured points, first along the axis, then in rows. Beyond the largest it
    /// goes on as between the last two and never falls; below the smallest it stays. No rows take no time.
    pub fn seconds(&self, size: TaskSize) -> f64 {
        if size.rows == 0 {
            return 0.0;
        }
        let along = match self.axis {
            CostAxis::None => 0.0,
            CostAxis::Context => size.context,
            CostAxis::Experts => size.experts.unwrap_or_else(|| self.even_experts(size.rows)),
        };
        let lines = self.points.chunk_by(|a, b| a.rows == b.rows);
        let by_rows: Vec<(f64, f64)> = lines
            .map(|line| {
                let points: Vec<(f64, f64)> = line.iter().map(|point| (point.along as f64, point.seconds)).collect();
                (line[0].rows as f64, interpolate(&points, along))
            })
            .collect();
        interpolate(&by_rows, size.rows as f64)
    }

    /// Experts of this device that `rows` rows hit where routing is even: an expert is missed by all with (1 − share)^rows.
    fn even_experts(&self, rows: usize) -> f64 {
        self.experts as f64 * (1.0 - (1.0 - self.routed_share).powf(rows as f64))
    }
}

/// On the line between the neighbours of `at`; `points` ascend and are not empty.
fn interpolate(points: &[(f64, f64)], at: f64) -> f64 {
    let above = points.partition_point(|point| point.0 < at);
    let (first, last) = (points[0], points[points.len() - 1]);
    if above == 0 {
        return first.1;
    }
    let line = |(x0, y0): (f64, f64), (x1, y1): (f64, f64)| y0 + (y1 - y0) * (at - x0) / (x1 - x0);
    match points.get(above) {
        Some(upper) => line(points[above - 1], *upper),
        // More work takes no less time, whatever noise says.
        None if points.len() > 1 => line(points[points.len() - 2], last).max(last.1),
        None => last.1,
    }
}
