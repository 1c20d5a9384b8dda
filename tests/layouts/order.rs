//! The order in which parts of y are summed, and where the sum rounds: with parts for which both can be seen.

use super::support::{Ask, Layout, Places, answers, small_shape};
use rally::engine::Engine;
use rally::engine::schedule::batch::DeviceBatch;
use rally::engine::schedule::policy::Schedule;
use rally::engine::stage::{Probe, Stage, StageError, TaskContext};
use rally::engine::values::Values;
use rally::graph::kinds::KindRegistry;
use rally::graph::model::{LayerKind, ModelShape};
use rally::graph::stage_graph::StageGraph;
use rally::stages::checkpoint::RandomWeights;
use rally::stages::deployment::{AssembleOptions, assemble};
use rally::stages::kinds::StageRegistry;
use std::sync::{Arc, Mutex};

/// Stands in for the dense FFN of one device: the same y for every row.
struct Constant(f32);

impl Stage for Constant {
    fn run(&mut self, task: &mut TaskContext<'_>) -> Result<(), StageError> {
        task.values.y.fill(self.0);
        Ok(())
    }
}

/// What `combine` adds.
#[derive(Default)]
struct Sums(Mutex<Vec<f32>>);

impl Probe for Sums {
    fn after(&self, stage: &str, _layer: Option<usize>, _batch: &DeviceBatch, values: &Values) {
        if stage == "combine" {
            self.0.lock().expect("no panic").extend(&values.y[..values.rows * values.widths.hidden]);
        }
    }
}

/// Runs an FFN whose devices, two in each of two groups, give `parts` (again in the second copy, if there is one).
#[track_caller]
fn check(parts: [f32; 4], f2a: &'static str, want: f32) {
    for (copies, rail) in [(1, false), (1, true), (2, false), (2, true)] {
        let f = vec![2; 2 * copies];
        let places = Places { a: vec![2], f, expert: [2, 2, copies], dense: [4, copies], rail, ..Places::default() };
        let layout = Layout { places: Some(places), f2a, ..Layout::default() };
        let shape = ModelShape { layers: vec![LayerKind::Dense], ..small_shape() };
        let spec = layout.spec();
        let graph = StageGraph::build(&spec, &shape, KindRegistry::shared()).expect("the graph unrolls");
        let mut registry = StageRegistry::builtin();
        registry.register(
            "dense_ffn",
            Box::new(move |context| {
                let index = context.stage.devices.iter().position(|device| *device == context.device);
                Ok(Box::new(Constant(parts[index.expect("a stage is made for its devices") % 4])))
            }),
        );
        let sums = Arc::new(Sums::default());
        let options = AssembleOptions { probe: Some(sums.clone()), ..AssembleOptions::default() };
        let schedule = Schedule::from_spec(&spec.schedule).expect("the policy runs");
        let weights = RandomWeights::new(3, shape.weight_format);
        let parts = assemble(&spec, graph, &shape, &weights, &schedule, &registry, options);
        let engine = Engine::start(parts.unwrap_or_else(|error| panic!("{error}"))).expect("threads can be had");
        answers(engine, &[Ask::greedy(&[1, 2, 3], 3), Ask::greedy(&[4], 2)]);
        let sums = sums.0.lock().expect("no panic");
        assert!(!sums.is_empty() && sums.iter().all(|sum| *sum == want), "copies {copies}, rail {rail}: {}", sums[0]);
    }
}

#[test]
fn devices_are_summed_within_their_group_first() {
    // One after the other they would give 1.
    check([1e8, 1.0, -1e8, 1.0], "f32", 0.0);
}

#[test]
fn devices_of_a_group_are_summed_in_order_of_groups() {
    check([1.0, 2.0, 4.0, 8.0], "f32", 15.0);
    check([1e8, -1e8, 3.0, 0.5], "f32", 3.5);
}

#[test]
fn a_groups_sum_is_rounded_as_the_edge_rounds() {
    // 257 lies half way between two numbers of bf16 and goes to the even one; unrounded the sum would be 1.
    check([256.0, 1.0, -256.0, 0.0], "bf16", 0.0);
}
