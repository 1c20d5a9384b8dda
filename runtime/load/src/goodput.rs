//! Goodput: requests a second that kept all their latency goals, written `tpot:50 ttft:2000` in milliseconds as in vLLM.

use crate::summary::RequestTiming;
use std::fmt;
use std::str::FromStr;

/// What a goal is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GoalKind {
    /// Time to the first token.
    Ttft,
    /// Mean time between tokens.
    Tpot,
    /// From arrival to the last token.
    E2el,
}

/// One latency goal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Goal {
    /// What it is about.
    pub kind: GoalKind,
    /// Most milliseconds.
    pub ms: f64,
}

/// Text that is no goal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no goal: expected `ttft`, `tpot` or `e2el`, a colon, and milliseconds above 0, as in `tpot:50`")]
pub struct GoalError(pub String);

impl FromStr for Goal {
    type Err = GoalError;

    fn from_str(text: &str) -> Result<Self, GoalError> {
        let error = || GoalError(text.into());
        let (name, ms) = text.split_once(':').ok_or_else(error)?;
        let kind = match name {
            "ttft" => GoalKind::Ttft,
            "tpot" => GoalKind::Tpot,
            "e2el" => GoalKind::E2el,
            _ => return Err(error()),
        };
        let ms = ms.parse().ok().filter(|ms: &f64| ms.is_finite() && *ms > 0.0).ok_or_else(error)?;
        Ok(Self { kind, ms })
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.kind {
            GoalKind::Ttft => "ttft",
            GoalKind::Tpot => "tpot",
            GoalKind::E2el => "e2el",
        };
        write!(formatter, "{name}:{}", self.ms)
    }
}

impl Goal {
    /// Whether a request kept it. A single token has no time between tokens and keeps every goal for it.
    pub fn kept_by(&self, timing: &RequestTiming) -> bool {
        let latency = match self.kind {
            GoalKind::Ttft => timing.ttft_ms(),
            GoalKind::Tpot => Some(timing.tpot_ms().unwrap_or(0.0)),
            GoalKind::E2el => timing.e2el_ms(),
        };
        latency.is_some_and(|latency| latency <= self.ms)
    }
}
