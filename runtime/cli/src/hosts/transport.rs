//! What carries the rows of an epoch: TCP, or NIXL where the graph says so, with the faults there are on purpose.

use super::Hosts;
use crate::error::{Blame, CliError};
use rally_graph::spec::TransportKind;
use rally_graph::stage_graph::StageGraph;
use rally_transport::Transport;
use rally_transport::nixl::Engine;
use rally_transport::tcp::Tcp;
use std::collections::BTreeSet;
use std::sync::Arc;

/// NIXL, and the transfers whose rows it carries, by their number among stages.
pub(super) struct OverNixl {
    engine: Engine,
    edges: BTreeSet<u16>,
}

impl OverNixl {
    /// What `graph` asks for on the host at `address`. To be called before this process has threads of its own.
    pub(super) fn of(graph: &StageGraph, address: &str) -> Result<Option<Self>, CliError> {
        let over = |index: &usize| graph.stages[*index].spec.transport == Some(TransportKind::Nixl);
        let edges: Vec<usize> = (0..graph.stages.len()).filter(over).collect();
        let Some(first) = edges.first() else { return Ok(None) };
        let id = &graph.stages[*first].id;
        let engine = Engine::open(address).map_err(|why| {
            CliError::Mistake(format!(
                "transfer `{id}` goes over `nixl`: {why}; `\"transport\": \"tcp\"` needs nothing"
            ))
        })?;
        Ok(Some(Self { engine, edges: edges.into_iter().map(|index| index as u16).collect() }))
    }
}

impl Hosts {
    /// An epoch's transport over connections that went through the handshake.
    pub(super) fn transport(&self, links: Tcp) -> Result<Arc<dyn Transport>, CliError> {
        let transport: Arc<dyn Transport> = match self.nixl.as_deref() {
            Some(OverNixl { engine, edges }) => engine.transport(self.own, links, edges.clone()).or_failure()?,
            None => Arc::new(links),
        };
        match &self.faults {
            Some(faults) => faults.wrap(transport).or_failure(),
            None => Ok(transport),
        }
    }
}
