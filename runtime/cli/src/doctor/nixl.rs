//! What `rally doctor` says of NIXL.

use super::Finding;
use rally_transport::nixl::{Engine, NixlError};

pub(super) fn finding() -> Finding {
    let (state, found, meaning) = match Engine::open("127.0.0.1:0") {
        Ok(_) => ("ok", "its library, and UCX".into(), "rows between hosts can go over `nixl`".into()),
        Err(error @ NixlError::NotBuilt) => ("missing", "not built in".into(), error.to_string()),
        Err(error) => ("missing", "not found".into(), error.to_string()),
    };
    Finding { item: "nixl", state, found, meaning }
}
