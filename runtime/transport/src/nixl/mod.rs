//! The transport over NIXL: rows are written by one host into the slots of another, over whatever UCX finds between the two (RDMA, shared
//! memory, TCP). Words stay on the TCP connections that went through the handshake, and so do signs of life.
//!
//! NIXL authenticates nobody. What it takes to write into a host, its agent's metadata and the addresses of its slots, goes over those
//! connections (`announce.rs`), once an epoch. An agent lives for one epoch and has a name that no other one has: with it goes all that
//! a peer of an earlier epoch could still write.
//!
//! Without the feature `nixl` there is [`Engine::open`], and it says so.

pub mod announce;
#[cfg(feature = "nixl")]
mod engine;
#[cfg(feature = "nixl")]
mod lane;
#[cfg(feature = "nixl")]
mod over_nixl;
#[cfg(feature = "nixl")]
mod way;
#[cfg(feature = "nixl")]
mod writes;

#[cfg(feature = "nixl")]
pub use engine::Engine;
#[cfg(not(feature = "nixl"))]
pub use without::Engine;

/// Names NIXL's library where the system's loader would not find it.
pub const LIBRARY_VARIABLE: &str = "RALLY_NIXL";

/// Why rows cannot go over NIXL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NixlError {
    /// Built without it.
    #[error("this rally was built without it (`cargo build --release --features nixl`, which needs g++ and libclang)")]
    NotBuilt,
    /// Its library is not there.
    #[error(
        "its library is missing ({why}): install it (`pip install --no-deps nixl-cu12==1.5.1`) and name its `libnixl_capi.so` in \
         {LIBRARY_VARIABLE}"
    )]
    NoLibrary {
        /// What the system's loader said.
        why: String,
    },
    /// Rows would come in by every interface of this machine.
    #[error(
        "UCX would listen on every interface of this machine: name those that rows may take in UCX_NET_DEVICES (such as `mlx5_0:1` \
         or `eth0`; the address of this host is {address})"
    )]
    NoDevices {
        /// The host's address in the graph.
        address: String,
    },
    /// A call failed. NIXL says no more than that.
    #[error("{what} failed: {why}")]
    Call {
        /// What was to be done.
        what: &'static str,
        /// What NIXL said.
        why: String,
    },
}

#[cfg(not(feature = "nixl"))]
mod without {
    use super::NixlError;
    use crate::tcp::Tcp;
    use crate::transport::{Peer, Transport};
    use std::collections::BTreeSet;
    use std::convert::Infallible;
    use std::sync::Arc;

    /// There is none in this build.
    #[derive(Debug)]
    pub struct Engine(Infallible);

    impl Engine {
        /// # Errors
        /// [`NixlError::NotBuilt`].
        pub fn open(_address: &str) -> Result<Self, NixlError> {
            Err(NixlError::NotBuilt)
        }

        /// As with the feature.
        ///
        /// # Errors
        /// None: nobody has an engine.
        pub fn transport(&self, _: Peer, _: Tcp, _: BTreeSet<u16>) -> Result<Arc<dyn Transport>, NixlError> {
            match self.0 {}
        }
    }
}
