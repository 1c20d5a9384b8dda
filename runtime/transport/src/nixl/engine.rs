//! NIXL in this process: its library, and agents.

use super::NixlError;
use super::over_nixl::OverNixl;
use crate::handshake::random_u64;
use crate::tcp::Tcp;
use crate::transport::{Peer, Transport};
use nixl_sys::{Agent, AgentConfig, Params};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::ToSocketAddrs;
use std::sync::Arc;

/// Its name where the system's loader looks.
const LIBRARY: &str = "libnixl_capi.so";
/// What a lost peer makes of the log is an event here, told once; without these each library tells it in its own words as well.
const QUIET: [(&str, &str); 2] = [("NIXL_LOG_LEVEL", "FATAL"), ("UCX_LOG_LEVEL", "fatal")];
/// How UCX goes on loopback unless its variables say otherwise. They are the way to tell it: NIXL's own takes one value for each. Not by
/// way of another process' memory (cma, cuda_ipc): nothing would stop a write that comes when the slot is gone. UCX's module for InfiniBand
/// ends a process in a segmentation fault where its libraries are not the system's.
const LOOPBACK: [(&str, &str); 3] = [("UCX_NET_DEVICES", "lo"), ("UCX_TLS", "tcp,cuda_copy"), ("UCX_MODULES", "^ib")];

/// NIXL, ready to make agents.
#[derive(Debug)]
pub struct Engine(());

pub(super) fn failed<T>(what: &'static str, result: Result<T, nixl_sys::NixlError>) -> Result<T, NixlError> {
    result.map_err(|error| NixlError::Call { what, why: error.to_string() })
}

impl Engine {
    /// Loads NIXL for the host at `address`, and tries it. To be called before this process has threads of its own.
    ///
    /// # Errors
    /// What is missing.
    pub fn open(address: &str) -> Result<Self, NixlError> {
        let local = is_loopback(address);
        let given = |name: &str| std::env::var_os(name).is_some();
        if !local && !given("UCX_NET_DEVICES") {
            return Err(NixlError::NoDevices { address: address.into() });
        }
        let library = std::env::var_os(super::LIBRARY_VARIABLE).unwrap_or_else(|| OsString::from(LIBRARY));
        let of_loopback = LOOPBACK.into_iter().filter(|_| local);
        let environment = QUIET.into_iter().chain(of_loopback).collect::<Vec<_>>();
        rally_ffi::nixl::load(&library, &environment).map_err(|why| NixlError::NoLibrary { why })?;
        let engine = Self(());
        // The first one takes half a second, which no epoch is to wait for.
        engine.agent("rally")?;
        Ok(engine)
    }

    /// An agent of this name. It polls only when it is told to: a thread of NIXL's own takes a core for itself.
    pub(super) fn agent(&self, name: &str) -> Result<Agent, NixlError> {
        let config = AgentConfig { enable_prog_thread: false, ..AgentConfig::default() };
        let agent = failed("making a NIXL agent", Agent::new_configured(name, &config))?;
        let params = failed("configuring UCX", Params::from(std::iter::empty::<(&str, &str)>()))?;
        failed("starting NIXL's UCX backend", agent.create_backend("UCX", &params))?;
        Ok(agent)
    }

    /// A transport for one epoch, of host `own`: rows of `edges` go over NIXL, all else over `links`.
    ///
    /// # Errors
    /// NIXL has no agent to give.
    pub fn transport(&self, own: Peer, links: Tcp, edges: BTreeSet<u16>) -> Result<Arc<dyn Transport>, NixlError> {
        let fault = |error: &dyn ToString| NixlError::Call { what: "drawing a number", why: error.to_string() };
        let name = format!("rally {own} {:016x}", random_u64().map_err(|error| fault(&error))?);
        Ok(Arc::new(OverNixl::new(self.agent(&name)?, links, edges)))
    }
}

/// Whether an address is none but this machine's own.
fn is_loopback(address: &str) -> bool {
    let found = address.to_socket_addrs().map(|found| found.collect::<Vec<_>>()).unwrap_or_default();
    !found.is_empty() && found.iter().all(|address| address.ip().is_loopback())
}
