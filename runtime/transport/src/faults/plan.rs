//! The plan of faults: its JSON, its checks, and which events it hits.

use crate::transport::SlotKey;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeSet;
use std::time::Duration;

/// Messages between hosts that are no rows: steps, samples, ends. Their step is their number on their way, from 0 in each epoch.
pub const CONTROL: &str = "control";
/// Most milliseconds of anything: an hour.
const MOST_MS: f64 = 3_600_000.0;

/// What goes wrong in a run.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FaultPlan {
    /// Its schema, for editors.
    #[serde(rename = "$schema", default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<String>,
    /// Version of this form: 1.
    pub version: u32,
    /// What is drawn is drawn from it.
    #[serde(default)]
    pub seed: u64,
    /// All that goes wrong.
    pub faults: Vec<Fault>,
}

/// What happens to an event, or to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// It never arrives.
    Drop,
    /// It arrives `ms` later. What is sent after it, and not delayed, overtakes it.
    Delay,
    /// It arrives twice, the second time `ms` later (0 unless given).
    Duplicate,
    /// It arrives up to `ms` later, a drawn part of it: what is sent within that time comes in another order.
    Reorder,
    /// A bit of its rows or words changes on the way.
    Corrupt,
    /// From this event on nothing gets from `from` to `to` for `ms`, signs of life included, and then all of it at once, as TCP would have
    /// it; without `ms` nothing ever again. The other direction works.
    Partition,
    /// The process of `host` ends, as with `kill -9`.
    Kill,
    /// The process of `host` stands still for `ms`, as with `kill -STOP`.
    Stop,
    /// A lane of `host` stands still for `ms` before it sends rows.
    Slow,
    /// The process of `host` ends, and begins anew `ms` later with the same arguments.
    Restart,
}

/// Steps, first to last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepRange {
    /// The first.
    pub first: u64,
    /// The last; included.
    pub last: u64,
}

impl Serialize for StepRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}..{}", self.first, self.last))
    }
}

impl<'de> Deserialize<'de> for StepRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            One(u64),
            Range(String),
        }
        let text = match Written::deserialize(deserializer)? {
            Written::One(step) => return Ok(Self { first: step, last: step }),
            Written::Range(text) => text,
        };
        let (first, last) = text.split_once("..").unwrap_or((&text, &text));
        let last = if last.is_empty() { Ok(u64::MAX) } else { last.parse() };
        match (first.parse(), last) {
            (Ok(first), Ok(last)) if first <= last => Ok(Self { first, last }),
            _ => Err(serde::de::Error::custom(format!(
                "steps `{text}`: expected a step, or a range such as \"4..9\" or \"4..\""
            ))),
        }
    }
}

/// One thing that goes wrong. What a key would choose by, and is not given, is all of it.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// What.
    pub fault: FaultKind,
    /// The host whose process it happens to; of `kill`, `stop`, `slow`, `restart`.
    pub host: Option<String>,
    /// The transfer by its id, or `control`.
    pub edge: Option<String>,
    /// The host that sends.
    pub from: Option<String>,
    /// The host that is sent to.
    pub to: Option<String>,
    /// Steps, counted from 0 in each membership epoch: a number, `"4..9"` or `"4.."`.
    pub steps: Option<StepRange>,
    /// The layer.
    pub layer: Option<u32>,
    /// The micro-batch.
    pub micro_batch: Option<u16>,
    /// Share of the events that it hits, above 0 and at most 1.
    pub share: Option<f64>,
    /// How often it happens at most, in the life of the process; once for `partition`, `kill`, `stop`, `restart`.
    pub times: Option<u64>,
    /// Milliseconds.
    pub ms: Option<f64>,
}

/// What is wrong with a plan.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// No JSON of a plan.
    #[error("{0}")]
    Syntax(String),
    /// Another version.
    #[error("version {0} of fault plans is not known; this is version 1")]
    Version(u32),
    /// A fault with a key too few or too many, or a value that cannot be.
    #[error("faults[{index}] (`{kind}`): {what}")]
    Fault {
        /// Which.
        index: usize,
        /// Its kind.
        kind: String,
        /// What is wrong.
        what: String,
    },
}

impl FaultKind {
    /// Whether it happens to a process.
    pub fn is_of_host(self) -> bool {
        matches!(self, Self::Kill | Self::Stop | Self::Slow | Self::Restart)
    }

    /// As in the file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Delay => "delay",
            Self::Duplicate => "duplicate",
            Self::Reorder => "reorder",
            Self::Corrupt => "corrupt",
            Self::Partition => "partition",
            Self::Kill => "kill",
            Self::Stop => "stop",
            Self::Slow => "slow",
            Self::Restart => "restart",
        }
    }
}

impl FaultPlan {
    /// A plan for a graph with these hosts and transfers.
    ///
    /// # Errors
    /// [`PlanError`], with what would have been right.
    pub fn parse(text: &str, hosts: &[String], edges: &BTreeSet<String>) -> Result<Self, PlanError> {
        let plan: Self = serde_json::from_str(text).map_err(|error| PlanError::Syntax(error.to_string()))?;
        if plan.version != 1 {
            return Err(PlanError::Version(plan.version));
        }
        for (index, fault) in plan.faults.iter().enumerate() {
            let kind = fault.fault.name().into();
            fault.check(hosts, edges).map_err(|what| PlanError::Fault { index, kind, what })?;
        }
        Ok(plan)
    }
}

/// Something that a host sends.
#[derive(Clone, Copy, Debug)]
pub struct Sent<'a> {
    /// Rows: the transfer's id and the slot. A message if there is none.
    pub edge: Option<(&'a str, SlotKey)>,
    /// The host that sends.
    pub from: &'a str,
    /// The host that is sent to.
    pub to: &'a str,
    /// Step; of a message its number on its way.
    pub step: u64,
    /// Layer.
    pub layer: u32,
    /// Membership epoch in the sender's process, from 0.
    pub epoch: u64,
}

/// Spreads the bits of a word.
fn mixed(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// A number from 0 to 1 out of 64 bits.
pub fn share_of(drawn: u64) -> f64 {
    (drawn >> 11) as f64 / (1u64 << 53) as f64
}

impl Sent<'_> {
    /// The same for the same event and fault, whenever it happens: 64 bits that look random.
    fn drawn(&self, seed: u64, fault: usize) -> u64 {
        let key = self.edge.map_or(u64::MAX, |(_, key)| {
            let [edge, micro_batch, from, to] = [key.edge, key.micro_batch, key.from, key.to].map(u64::from);
            edge << 48 | micro_batch << 32 | from << 16 | to
        });
        let leg = self.edge.map_or(0, |(_, key)| u64::from(key.leg));
        let ends = [self.from, self.to].into_iter().flat_map(str::bytes).map(u64::from);
        let words = [fault as u64, key, leg, self.step, u64::from(self.layer), self.epoch].into_iter().chain(ends);
        words.fold(seed, |state, word| mixed(state.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ mixed(word)))
    }
}

impl FaultPlan {
    /// Whether the fault of this index is meant for an event; a number drawn for the two of them. How often it has happened is not
    /// asked.
    pub fn meets(&self, index: usize, sent: &Sent<'_>) -> Option<u64> {
        let fault = self.faults.get(index)?;
        let is = |name: &Option<String>, host: &str| name.as_ref().is_none_or(|name| name == host);
        let edge = match (&fault.edge, &sent.edge) {
            (None, _) => true,
            (Some(edge), None) => edge == CONTROL,
            (Some(edge), Some((id, _))) => edge == id,
        };
        let within = match &sent.edge {
            Some((_, key)) => {
                fault.micro_batch.is_none_or(|micro_batch| micro_batch == key.micro_batch)
                    && fault.layer.is_none_or(|layer| layer == sent.layer)
            }
            None => fault.micro_batch.is_none() && fault.layer.is_none(),
        };
        let steps = fault.steps.is_none_or(|steps| (steps.first..=steps.last).contains(&sent.step));
        let ends = is(&fault.host, sent.from) && is(&fault.from, sent.from) && is(&fault.to, sent.to);
        if !(edge && within && steps && ends) {
            return None;
        }
        let drawn = sent.drawn(self.seed, index);
        (share_of(drawn) < fault.share.unwrap_or(1.0)).then(|| mixed(drawn))
    }
}

impl Fault {
    /// `ms` as a time.
    pub fn time(&self) -> Option<Duration> {
        self.ms.map(|ms| Duration::from_secs_f64(ms * 1e-3))
    }

    /// How often it happens at most.
    pub fn most(&self) -> u64 {
        use FaultKind::{Kill, Partition, Restart, Stop};
        let once = matches!(self.fault, Partition | Kill | Stop | Restart);
        self.times.unwrap_or(if once { 1 } else { u64::MAX })
    }

    fn check(&self, hosts: &[String], edges: &BTreeSet<String>) -> Result<(), String> {
        use FaultKind::{Delay, Partition, Reorder, Restart, Slow, Stop};
        let known = |key: &str, name: &Option<String>| match name {
            Some(name) if !hosts.contains(name) => {
                Err(format!("{key}: the graph has no host `{name}`, but {}", hosts.join(", ")))
            }
            _ => Ok(()),
        };
        known("host", &self.host)?;
        known("from", &self.from)?;
        known("to", &self.to)?;
        match &self.edge {
            Some(edge) if edge != CONTROL && !edges.contains(edge) => {
                let edges: Vec<&str> = edges.iter().map(String::as_str).chain([CONTROL]).collect();
                return Err(format!("edge: the graph has no transfer `{edge}`, but {}", edges.join(", ")));
            }
            _ => {}
        }
        match (self.fault.is_of_host(), &self.host) {
            (true, None) => return Err("it needs a `host`".into()),
            (false, Some(_)) => return Err("`host` is not its key; it has `from` and `to`".into()),
            _ => {}
        }
        if self.fault == Partition && (self.from.is_none() || self.to.is_none()) {
            return Err("it needs `from` and `to`".into());
        }
        let timed = matches!(self.fault, Delay | Reorder | Stop | Slow | Restart);
        match self.ms {
            None if timed => return Err("it needs `ms`".into()),
            Some(ms) if !(0.0..=MOST_MS).contains(&ms) => return Err(format!("ms {ms}: expected 0 to {MOST_MS}")),
            Some(_) if !timed && !matches!(self.fault, Partition | FaultKind::Duplicate) => {
                return Err("`ms` is not its key".into());
            }
            _ => {}
        }
        match self.share {
            Some(share) if !(share > 0.0 && share <= 1.0) => {
                Err(format!("share {share}: expected a number above 0, at most 1"))
            }
            _ => Ok(()),
        }
    }
}
