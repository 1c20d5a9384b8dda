//! From a graph file to a run: check the file and its model, open them, put the parts of a run together.

mod assemble;
mod check;
mod devices;
mod open;
mod runnable;

pub use assemble::{AssembleError, AssembleOptions, assemble, make_exact, planner_config, refuse_what_does_not_run};
pub use check::{Checked, Choices, check_graph, check_text};
pub use open::{Deployment, GraphError, with_costs};
#[cfg(feature = "cuda")]
pub use rally_cuda::machine::{Machines, launches_one_by_one};
