//! Weights from a seed that a device makes itself have the bits of those that the host makes, whatever part of a matrix is asked for.
//! Without a card the processor stands in for one; `RALLY_CUDA=card` runs the same on a card.
#![cfg(feature = "cuda")]

use rally_cuda::machine::{Machines, read};
use rally_cuda::memory::bytes_of;
use rally_cuda::ops::{Drawn, DrawnPart, Ops};
use rally_graph::model::WeightFormat;
use rally_kernels::matrix::{Matrix, Stored};
use rally_stages::checkpoint::{Part, RandomWeights, SharedWeights, WeightSource};
use std::sync::Arc;

/// Bytes and scales as they lie in memory.
fn of_host(matrix: &Matrix) -> (Vec<u8>, Vec<f32>) {
    match matrix.stored() {
        Stored::F32(values) => (bytes_of(values).to_vec(), Vec::new()),
        Stored::Bf16(values) => (bytes_of(values).to_vec(), Vec::new()),
        Stored::Fp8 { codes, scales } => (codes.to_vec(), scales.to_vec()),
    }
}

/// Parts of a `[rows, cols]` matrix; of an fp8 one on its tiles.
fn parts(rows: usize, cols: usize, tiled: bool) -> Vec<Part> {
    let mut parts = vec![
        Part::all(rows, cols),
        Part::rows(128..256, cols),
        Part::cols(rows, 128..cols),
        Part { rows: 128..rows, cols: 256..384 },
    ];
    if !tiled {
        parts.extend([Part { rows: 3..4, cols: 5..6 }, Part { rows: 1..131, cols: 7..1200 }]);
    }
    parts
}

#[test]
fn a_device_makes_the_bits_that_the_host_makes() {
    let on_card = std::env::var("RALLY_CUDA").as_deref() == Ok("card");
    let machine = if on_card { Machines::Cards } else { Machines::StandIn }.open(0).expect("a machine");
    let ops = Ops::new(machine).expect("the kernels compile");
    let name = "model.layers.4.moe.gate_proj.weight";
    for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Fp8Block] {
        let tiled = format == WeightFormat::Fp8Block;
        let shared = SharedWeights::new(Arc::new(RandomWeights::new(7, format)));
        let weights = shared.assembly();
        // Longer than what a warp makes of a row.
        let (rows, cols) = (300, 1290);
        for part in parts(rows, cols, tiled) {
            let experts = [5, 47];
            let hosts = experts.map(|expert| {
                let matrix = weights.expert_matrix(name, expert, 48, rows, cols, part.clone());
                of_host(&matrix.expect("random weights are always there"))
            });
            let rules = experts.map(|expert| {
                let rule = weights.rule(name, Some((expert, 48)), (rows, cols), &part).expect("it is a part");
                Drawn::from(rule.expect("random weights follow from a rule"))
            });
            let drawn_part = DrawnPart {
                whole_cols: cols,
                first_row: part.rows.start,
                first_col: part.cols.start,
                rows: part.rows.len(),
                cols: part.cols.len(),
            };
            let drawn = ops.draw(&rules, drawn_part).expect("there is room");
            let mut values = vec![0xaa; drawn.values().len()];
            let mut scales = vec![f32::NAN; drawn.scales().len()];
            read(&**ops.machine(), drawn.values(), &mut values).expect("kernels run");
            read(&**ops.machine(), drawn.scales(), &mut scales).expect("kernels run");
            let what = format!("{format:?} {rows}x{cols} {part}");
            assert!(values == hosts.iter().flat_map(|host| host.0.clone()).collect::<Vec<u8>>(), "{what}");
            assert_eq!(scales, hosts.iter().flat_map(|host| host.1.clone()).collect::<Vec<f32>>(), "{what}");
        }
    }
}

/// What cannot be read cannot be made either.
#[test]
fn a_rule_is_refused_where_a_matrix_is() {
    let weights = RandomWeights::new(7, WeightFormat::Fp8Block);
    let name = "model.layers.4.moe.gate_proj.weight";
    let both = |expert: usize, part: Part| {
        let matrix = weights.expert_matrix(name, expert, 48, 256, 256, part.clone()).map(|_| ());
        (matrix.map_err(|e| e.to_string()), weights.rule(name, Some((expert, 48)), (256, 256), &part).map(|_| ()))
    };
    for (expert, part) in [
        (48, Part::all(256, 256)),
        (0, Part::rows(0..257, 256)),
        (0, Part::rows(128..128, 256)),
        (0, Part::cols(256, 64..256)),
        (0, Part::rows(0..100, 256)),
    ] {
        let (matrix, rule) = both(expert, part);
        assert_eq!(matrix, rule.map_err(|e| e.to_string()));
        assert!(matrix.is_err());
    }
}
