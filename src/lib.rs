//! rally: a decode runtime for attention–FFN-disaggregated language models.
//!
//! This crate is a façade: it re-exports the crates that make up rally under short names, for the examples, the tests and
//! programs that embed rally. It owns no logic of its own.

#![forbid(unsafe_code)]

pub use rally_cli as cli;
pub use rally_cost as cost;
pub use rally_engine as engine;
pub use rally_graph as graph;
pub use rally_kernels as kernels;
pub use rally_load as load;
pub use rally_metrics as metrics;
pub use rally_predict as predict;
pub use rally_recommend as recommend;
pub use rally_schedule as schedule;
pub use rally_serve as serve;
pub use rally_stages as stages;
pub use rally_trace as trace;
