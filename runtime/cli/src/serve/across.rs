//! Serving over several hosts: a run whose host is lost or comes back goes on with another engine.

use crate::error::CliError;
use crate::hosts::{Break, LookOut, Meeting};
use crossbeam::channel::{Receiver, Sender, bounded};
use rally_engine::{Engine, EngineParts};
use rally_metrics::{Exporter, Identity};
use rally_serve::{Revive, Why};

/// What every engine of a server is told.
#[derive(Clone)]
pub struct EachEngine {
    pub exporter: Exporter,
    pub identity: Identity,
    /// The time per token to keep to, in seconds.
    pub keep_tpot_s: Option<f64>,
    pub reuse_prefixes: bool,
}

impl EachEngine {
    /// To be called once for an engine, when it has begun.
    pub fn begins(&self, engine: &Engine) {
        self.exporter.watch(engine.figures(), self.identity.clone());
        if let Some(target_s) = self.keep_tpot_s {
            engine.keep_tpot(target_s);
        }
        if self.reuse_prefixes {
            engine.reuse_prefixes();
        }
    }
}

/// The hosts, and who looks for those that are away.
pub struct Across {
    meeting: Meeting,
    look_out: Option<LookOut>,
    each: EachEngine,
    stop_waiting: Sender<()>,
    stopped: Receiver<()>,
}

impl Across {
    /// The first engine.
    pub fn begin(
        mut meeting: Meeting,
        parts: EngineParts,
        interrupts: &Receiver<()>,
        each: &EachEngine,
    ) -> Result<(Engine, Self), CliError> {
        let (engine, _) = meeting.begin((parts, None), interrupts)?;
        let (stop_waiting, stopped) = bounded(1);
        Ok((engine, Self { meeting, look_out: None, each: each.clone(), stop_waiting, stopped }))
    }

    /// Who sends something here ends a wait for hosts.
    pub fn stop_waiting(&self) -> Sender<()> {
        self.stop_waiting.clone()
    }

    fn try_revive(&mut self, engine: Engine, why: Break) -> Result<Engine, CliError> {
        self.look_out = None;
        let paused = self.meeting.pause(engine, why)?;
        let (engine, _) = self.meeting.begin(paused, &self.stopped)?;
        self.each.begins(&engine);
        Ok(engine)
    }
}

impl Revive for Across {
    fn breaks(&mut self) -> Receiver<usize> {
        let look_out = self.look_out.insert(self.meeting.look_out());
        look_out.returned.clone()
    }

    fn revive(&mut self, engine: Engine, why: Why) -> Result<Engine, String> {
        let why = match why {
            Why::Failed(error) => Break::Failed(error),
            Why::Returned(host) => Break::Returned(host),
        };
        self.try_revive(engine, why).map_err(|error| error.to_string())
    }
}
