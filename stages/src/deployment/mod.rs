//! From a graph file to a run: open and check the file, find the model, put the parts of a run together.

mod assemble;
mod open;

pub use assemble::{AssembleError, AssembleOptions, assemble, make_exact, planner_config};
pub use open::{Checked, Choices, Deployment, GraphError, check_graph};
