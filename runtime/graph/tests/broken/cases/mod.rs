//! The table: an edit of a good graph, and every diagnostic that must follow, in order. One file a subject.

mod dataflow;
mod devices;
mod form;
mod limits;

use super::common::{ONE_DEVICE, STEP3, TINY};
use super::{Case, case};

const ATTENTION: &str = r#"{ "kind": "mfa_attention", "on": "attn", "kv_dtype": "bf16" },"#;
const ROUTER: &str = r#"{ "kind": "router",        "on": "attn", "on_layers": "moe" },"#;
const A2F: &str = r#"{ "kind": "transfer", "id": "a2f", "from": "attn", "to": "ffn", "dtype": "fp8_e4m3" },"#;
const EXPERTS: &str = r#"{ "kind": "expert_ffn",    "on": "ffn",  "on_layers": "moe" },"#;
const DENSE: &str = r#"{ "kind": "dense_ffn",     "on": "ffn",  "on_layers": "dense" },"#;
const F2A: &str = r#"{ "kind": "transfer", "id": "f2a", "from": "ffn", "to": "attn", "dtype": "bf16" },"#;
const COMBINE: &str = r#"{ "kind": "combine",       "on": "attn" }"#;
const EMBED: &str = r#"{ "kind": "embed", "on": "attn" },"#;
const SAMPLING: &str = r#"{ "kind": "sampling", "on": "attn" }"#;
const SCHEDULE: &str = r#"{ "policy": "ping_pong", "micro_batches": 3 }"#;
const EXPERT_SHARD: &str = r#""shard": { "experts": 2, "tensor": 8 }"#;

/// All of it.
pub(super) fn cases() -> impl Iterator<Item = &'static Case> {
    [form::CASES, dataflow::CASES, devices::CASES, limits::CASES].into_iter().flatten()
}
