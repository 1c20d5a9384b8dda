//! Every operation of the plain kernels against the CPU's, on random inputs, with poisoned outputs that must be written and
//! nothing beside them. Without a card the processor stands in for one; `RALLY_CUDA=card` runs the same on a card.

use half::bf16;
use rally_cuda::machine::{Machine, Machines, read, write};
use rally_cuda::memory::{DeviceSlice, Plain};
use rally_cuda::mfa;
use rally_cuda::ops::{
    Choice, Chosen, HostMatrix, KvPages, Ops, Paged, REPORTED_AT_MOST, Routing, Sliced, Sorted, Stored, Weights,
    record_bytes,
};
use rally_kernels::activation::{axpy, swiglu_in_place};
use rally_kernels::attention::{AttentionScratch, mfa_attention_chunk};
use rally_kernels::dtype::StorageDtype;
use rally_kernels::kv::KvPool;
use rally_kernels::linear::linear;
use rally_kernels::matrix::{self, Matrix};
use rally_kernels::norm::rms_norm;
use rally_kernels::rope::RopeTable;
use rally_kernels::router::route;
use rally_kernels::sampling::{SamplingParams, SamplingScratch, log_prob, sample, top_log_probs, uniform};
use rally_kernels::team::Team;
use rally_kernels::wire;
use std::sync::Arc;

const FORMATS: [(Stored, StorageDtype); 3] =
    [(Stored::F32, StorageDtype::F32), (Stored::Bf16, StorageDtype::Bf16), (Stored::Fp8, StorageDtype::Fp8E4m3)];

/// Elements behind an output that must stay as they are.
const SLACK: usize = 64;

/// Kernels on one machine, and random numbers.
struct Bench {
    ops: Ops,
    state: u64,
}

impl Bench {
    fn new(seed: u64) -> Bench {
        let on_card = std::env::var("RALLY_CUDA").as_deref() == Ok("card");
        let machine = if on_card { Machines::Cards } else { Machines::StandIn }.open(0).expect("a machine");
        Bench { ops: Ops::new(machine).expect("the kernels compile"), state: seed }
    }

    fn machine(&self) -> &dyn Machine {
        &**self.ops.machine()
    }

    fn next(&mut self) -> u64 {
        // splitmix64.
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Uniform in -1 … 1.
    fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect()
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn put<T: Plain>(&self, values: &[T]) -> DeviceSlice<T> {
        let slice = self.machine().allocate(size_of_val(values)).and_then(|mut arena| arena.take(values.len()));
        let slice = slice.expect("memory");
        write(self.machine(), values, &slice).expect("written");
        slice
    }

    /// Room for `count` elements, poisoned, and what lies behind it.
    fn poisoned<T: Plain>(&self, count: usize) -> DeviceSlice<T> {
        let bytes = (count + SLACK) * size_of::<T>();
        let slice =
            self.machine().allocate(bytes).and_then(|mut arena| arena.take::<T>(count + SLACK)).expect("memory");
        self.machine().fill(&slice.as_bytes(), 0xff).expect("filled");
        slice
    }

    /// The first elements; the poison behind them must be there still.
    fn got<T: Plain + Default>(&self, slice: &DeviceSlice<T>) -> Vec<T> {
        let mut bytes = vec![0; slice.bytes()];
        read(self.machine(), &slice.as_bytes(), &mut bytes).expect("read");
        let count = slice.len() - SLACK;
        assert!(bytes[count * size_of::<T>()..].iter().all(|byte| *byte == 0xff), "written behind the output");
        let mut values = vec![T::default(); count];
        read(self.machine(), &slice.part(0, count), &mut values).expect("read");
        values
    }

    fn matrix(&mut self, stored: Stored, rows: usize, cols: usize) -> Matrix {
        let values = self.values(rows * cols);
        match stored {
            Stored::F32 => Matrix::from_f32(rows, cols, values),
            Stored::Bf16 => Matrix::from_bf16(rows, cols, values.iter().map(|value| bf16::from_f32(*value)).collect()),
            Stored::Fp8 => {
                let codes = values.iter().map(|value| rally_kernels::dtype::f32_to_e4m3(value * 400.0)).collect();
                let scales = self.values(rows.div_ceil(128) * cols.div_ceil(128));
                Matrix::from_fp8_block(rows, cols, codes, scales.iter().map(|scale| scale / 400.0).collect())
            }
        }
    }

    fn weights(&self, matrices: &[&Matrix]) -> Weights {
        let (rows, cols) = (matrices[0].rows(), matrices[0].cols());
        let each = |index: usize, take: &mut dyn FnMut(HostMatrix<'_>) -> Result<(), rally_cuda::CudaError>| {
            take(host(matrices[index]))
        };
        Weights::of(self.machine(), matrices.len(), rows, cols, each).expect("uploaded")
    }
}

fn host(matrix: &Matrix) -> HostMatrix<'_> {
    let (values, scales, stored) = match matrix.stored() {
        matrix::Stored::F32(values) => (rally_cuda::memory::bytes_of(values), &[][..], Stored::F32),
        matrix::Stored::Bf16(values) => (rally_cuda::memory::bytes_of(values), &[][..], Stored::Bf16),
        matrix::Stored::Fp8 { codes, scales } => (codes, scales, Stored::Fp8),
    };
    HostMatrix { rows: matrix.rows(), cols: matrix.cols(), stride: matrix.stride(), values, scales, stored }
}

/// ‖got − want‖ / ‖want‖ of each row of `width`; NaN never passes.
#[track_caller]
fn near(got: &[f32], want: &[f32], width: usize, bound: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (row, (got, want)) in got.chunks(width).zip(want.chunks(width)).enumerate() {
        let square = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
        let off = square(&mut got.iter().zip(want).map(|(a, b)| f64::from(*a) - f64::from(*b)));
        let norm = square(&mut want.iter().map(|b| f64::from(*b)));
        let error = (off / norm.max(1e-30)).sqrt();
        assert!(error <= bound, "{what}: row {row} is off by {error}");
    }
}

#[test]
fn products_and_their_gated_form() {
    let (mut bench, team) = (Bench::new(1), Team::serial());
    for (stored, _) in FORMATS {
        for (rows, inputs, outputs) in [(1, 128, 128), (3, 48, 72), (8, 192, 300), (21, 300, 131), (9, 1003, 5)] {
            let (w, up) = (bench.matrix(stored, outputs, inputs), bench.matrix(stored, outputs, inputs));
            let x = bench.values(rows * inputs);
            let (mut want, mut ups) = (vec![0.0; rows * outputs], vec![0.0; rows * outputs]);
            linear(&team, &x, rows, &w, &mut want);
            linear(&team, &x, rows, &up, &mut ups);
            let (on_device, y) = (bench.put(&x), bench.poisoned(rows * outputs));
            let (w, up) = (bench.weights(&[&w]), bench.weights(&[&up]));
            let what = format!("{stored:?} {rows}x{inputs}x{outputs}");
            bench.ops.matmul(&on_device, rows, &w, &y).expect("enqueued");
            let whole = bench.got(&y);
            near(&whole, &want, outputs, 2e-6, &what);
            // The last row alone has the same bits.
            let alone = bench.poisoned(outputs);
            bench.ops.matmul(&on_device.part((rows - 1) * inputs, inputs), 1, &w, &alone).expect("enqueued");
            assert_eq!(bench.got(&alone), whole[(rows - 1) * outputs..], "{what}: in company");
            swiglu_in_place(&mut want, &ups);
            let y = bench.poisoned(rows * outputs);
            bench.ops.gated(&on_device, rows, &w, &up, &y).expect("enqueued");
            near(&bench.got(&y), &want, outputs, 5e-6, &what);
        }
    }
}

#[test]
fn rows_are_looked_up_normed_and_added() {
    let mut bench = Bench::new(2);
    for (stored, _) in FORMATS {
        for (vocab, width) in [(17, 48), (300, 130), (5, 257)] {
            let table = bench.matrix(stored, vocab, width);
            let ids: Vec<i32> = (0..7).map(|_| bench.below(vocab) as i32).collect();
            let mut want = vec![0.0; 7 * width];
            for (id, row) in ids.iter().zip(want.chunks_mut(width)) {
                table.row_into(*id as usize, row);
            }
            let (weights, ids, out) = (bench.weights(&[&table]), bench.put(&ids), bench.poisoned(7 * width));
            bench.ops.embed(&weights, &ids, 7, &out).expect("enqueued");
            assert_eq!(bench.got(&out), want, "{stored:?} {vocab}x{width}");
        }
    }
    for width in [1, 31, 128, 7168] {
        let (x, weight) = (bench.values(5 * width), bench.values(width));
        let mut want = vec![0.0; 5 * width];
        rms_norm(&x, 5, &weight, 1e-5, &mut want);
        let (on_device, weight, out) = (bench.put(&x), bench.put(&weight), bench.poisoned(5 * width));
        bench.ops.rms_norm(&on_device, None, 5, &weight, 1e-5, &out).expect("enqueued");
        near(&bench.got(&out), &want, width, 1e-6, "rms_norm");
        let (ids, out) = (bench.put(&[4, 1]), bench.poisoned(2 * width));
        bench.ops.rms_norm(&on_device, Some(&ids), 2, &weight, 1e-5, &out).expect("enqueued");
        let chosen = [&want[4 * width..], &want[width..2 * width]].concat();
        near(&bench.got(&out), &chosen, width, 1e-6, "rms_norm of chosen rows");
        let sum: Vec<f32> = want.iter().map(|value| value + value).collect();
        let (to, from) = (bench.poisoned(5 * width), bench.put(&want));
        write(bench.machine(), &want, &to.part(0, 5 * width)).expect("written");
        bench.ops.add(&to, &from, 5, width).expect("enqueued");
        assert_eq!(bench.got(&to), sum);
    }
}

/// Sequences of one case: first position and rows of each.
fn attend(bench: &mut Bench, heads: usize, d: usize, page_tokens: usize, sequences: &[(usize, usize)], format: usize) {
    let (stored, dtype) = FORMATS[format];
    let team = Team::serial();
    let lengths = sequences.iter().map(|(first, rows)| (first + rows).div_ceil(page_tokens));
    let all_pages: usize = lengths.clone().sum::<usize>() + 3;
    // Pages in an order that is none.
    let mut numbers: Vec<i32> = (0..all_pages as i32).collect();
    (1..all_pages).rev().for_each(|last| numbers.swap(last, bench.below(last + 1)));
    let mut pool = KvPool::new(all_pages, page_tokens, d, d, dtype);
    let kv = KvPages::new(bench.machine(), all_pages, page_tokens, d, stored).expect("memory");
    let positions = sequences.iter().map(|(first, rows)| first + rows).max().unwrap_or(1);
    let mut rope = RopeTable::new(d, 1e4, positions);
    let mut table = Vec::new();
    for position in 0..positions {
        let angle = |pair: usize| position as f64 * 1e4f64.powf(-2.0 * pair as f64 / d as f64);
        table.extend((0..d / 2).map(|pair| angle(pair).cos() as f32));
        table.extend((0..d / 2).map(|pair| angle(pair).sin() as f32));
    }
    let table = bench.put(&table);
    let (mut first_page, mut want, mut scratch) = (0, Vec::new(), AttentionScratch::default());
    let pages_on_device = bench.put(&numbers);
    let mut got = Vec::new();
    for ((first, rows), length) in sequences.iter().zip(lengths) {
        // What is there already, and then the rows: as two calls, so that a chunk follows a chunk.
        for (start, count) in [(0, *first), (*first, *rows)].into_iter().filter(|(_, count)| *count > 0) {
            let (mut q, mut k) = (bench.values(count * heads * d), bench.values(count * d));
            let v = bench.values(count * d);
            let (q_there, k_there, v_there) = (bench.put(&q), bench.put(&k), bench.put(&v));
            let at = Paged {
                positions: bench.put(&(start..start + count).map(|p| p as i32).collect::<Vec<_>>()),
                first: bench.put(&vec![first_page as i32; count]),
                pages: pages_on_device.clone(),
            };
            let out = bench.poisoned(count * heads * d);
            let ops = &bench.ops;
            ops.rope_append(&q_there, &k_there, &v_there, &table, count, heads, &at, &kv).expect("enqueued");
            ops.attention(&q_there, count, heads, &at, &kv, &out).expect("enqueued");
            let pages: Vec<u32> = numbers[first_page..first_page + length].iter().map(|page| *page as u32).collect();
            for row in 0..count {
                let position = start + row;
                rope.apply(&mut q[row * heads * d..(row + 1) * heads * d], position);
                rope.apply(&mut k[row * d..(row + 1) * d], position);
                let (page, offset) = (pages[position / page_tokens], position % page_tokens);
                pool.write(page, offset, &k[row * d..(row + 1) * d], &v[row * d..(row + 1) * d]);
            }
            let mut answer = vec![0.0; count * heads * d];
            mfa_attention_chunk(&team, &q, count, heads, d, &pool, &pages, start + 1, &mut answer, &mut scratch);
            want.extend(answer);
            got.extend(bench.got(&out));
        }
        first_page += length;
    }
    near(&got, &want, d, 5e-6, &format!("{stored:?}, {heads} heads of {d}, pages of {page_tokens}"));
}

#[test]
fn attention_over_pages() {
    let mut bench = Bench::new(3);
    for format in 0..FORMATS.len() {
        attend(&mut bench, 4, 32, 16, &[(0, 1), (0, 40), (63, 3), (31, 1), (32, 1)], format);
        attend(&mut bench, 6, 48, 1, &[(5, 9), (0, 33)], format);
        attend(&mut bench, 2, 256, 64, &[(127, 2), (64, 1)], format);
        attend(&mut bench, 1, 512, 5, &[(11, 2)], format);
    }
}

/// Pages for the fast attention: the values' bytes stand where its kernel looks for them, and nothing else is written.
#[test]
fn fp8_values_are_turned_for_the_fast_attention() {
    let mut bench = Bench::new(8);
    let (rows, d, pages) = (70, 256, 3);
    let kv = KvPages::new(bench.machine(), pages, 64, d, Stored::Fp8).and_then(KvPages::for_mfa);
    let (kv, there) = kv.expect("pages as it takes them");
    let mfa::KvPages::Fp8 { v: there, scales, .. } = there else { panic!("fp8 pages") };
    bench.machine().fill(&there, 0xff).expect("filled");
    let (q, k, v) = (bench.values(rows * d), bench.values(rows * d), bench.values(rows * d));
    let table: Vec<f32> = (0..rows).flat_map(|_| [vec![1.0; d / 2], vec![0.0; d / 2]].concat()).collect();
    // The second page comes before the first.
    let numbers = [2, 0];
    let at = Paged {
        positions: bench.put(&(0..rows as i32).collect::<Vec<_>>()),
        first: bench.put(&vec![0; rows]),
        pages: bench.put(&numbers),
    };
    let (q, k, v_there, table) = (bench.put(&q), bench.put(&k), bench.put(&v), bench.put(&table));
    bench.ops.rope_append(&q, &k, &v_there, &table, rows, 1, &at, &kv).expect("enqueued");
    let mut want = vec![0xffu8; pages * 64 * d];
    for (row, values) in v.chunks(d).enumerate() {
        let scale = values.iter().fold(0f32, |most, value| most.max(value.abs())) / 448.0;
        let page = numbers[row / 64] as usize;
        for (element, value) in values.iter().enumerate() {
            let place = (page * d + element) * 64 + mfa::fp8_value_place(row % 64);
            want[place] = rally_kernels::dtype::f32_to_e4m3(value / scale);
        }
        let mut stored = [0.0];
        read(bench.machine(), &scales.part((page * 2 + 1) * 64 + row % 64, 1), &mut stored).expect("read");
        assert_eq!(stored[0], scale, "row {row}");
    }
    let mut got = vec![0; want.len()];
    read(bench.machine(), &there, &mut got).expect("read");
    assert!(got == want, "{} bytes differ", got.iter().zip(&want).filter(|(got, want)| got != want).count());
    let out = bench.poisoned(rows * d);
    assert!(
        bench.ops.attention(&q, rows, 1, &at, &kv, &out).is_err_and(|error| error.to_string().contains("mfa_decode"))
    );
}

#[test]
fn experts_are_chosen_sorted_computed_and_summed() {
    let (mut bench, team) = (Bench::new(4), Team::serial());
    for (experts, top_k, held, rows, renormalises) in [
        (5, 2, vec![0, 1, 2, 3, 4], 1, false),
        (8, 3, vec![2, 3, 7], 50, true),
        (48, 3, (0..48).collect(), 40, false),
        (6, 6, vec![5], 13, false),
    ] {
        let what = format!("{experts} experts, top {top_k}, {rows} rows");
        let (hidden, width) = (72, 40);
        let (u, logits) = (bench.values(rows * hidden), bench.values(rows * experts));
        let (mut ids, mut weights) = (vec![0u32; rows * top_k], vec![0.0; rows * top_k]);
        route(&logits, rows, experts, top_k, renormalises, &mut ids, &mut weights);
        let routing = Routing { ids: bench.poisoned(rows * top_k), weights: bench.poisoned(rows * top_k) };
        let logits = bench.put(&logits);
        bench.ops.route(&logits, rows, experts, top_k, renormalises, &routing).expect("enqueued");
        assert_eq!(bench.got(&routing.ids), ids.iter().map(|id| *id as i32).collect::<Vec<_>>(), "{what}");
        near(&bench.got(&routing.weights), &weights, top_k, 1e-6, &what);
        let block = |bench: &mut Bench, outputs, inputs| -> Vec<Matrix> {
            held.iter().map(|_| bench.matrix(Stored::Bf16, outputs, inputs)).collect()
        };
        let (gate, up) = (block(&mut bench, width, hidden), block(&mut bench, width, hidden));
        let down = block(&mut bench, hidden, width);
        let shared = bench.values(rows * hidden);
        let mut want = vec![0.0; rows * hidden];
        for (index, expert) in held.iter().enumerate() {
            let (mut g, mut h, mut out) = (vec![0.0; width], vec![0.0; width], vec![0.0; hidden]);
            for place in (0..rows * top_k).filter(|place| ids[*place] as usize == *expert) {
                let row = place / top_k;
                let x = &u[row * hidden..(row + 1) * hidden];
                linear(&team, x, 1, &gate[index], &mut g);
                linear(&team, x, 1, &up[index], &mut h);
                swiglu_in_place(&mut g, &h);
                linear(&team, &g, 1, &down[index], &mut out);
                axpy(weights[place], &out, &mut want[row * hidden..(row + 1) * hidden]);
            }
        }
        want.iter_mut().zip(&shared).for_each(|(y, shared)| *y += shared);
        let sorted = Sorted::new(bench.machine(), rows, top_k, experts, &held).expect("memory");
        let weights = |matrices: &[Matrix]| bench.weights(&matrices.iter().collect::<Vec<_>>());
        let (gate, up, down) = (weights(&gate), weights(&up), weights(&down));
        let (inner, answers) = (bench.poisoned(rows * top_k * width), bench.poisoned(rows * top_k * hidden));
        let (u, shared, y) = (bench.put(&u), bench.put(&shared), bench.poisoned(rows * hidden));
        let ops = &bench.ops;
        ops.sort_experts(&routing, rows, &sorted).expect("enqueued");
        ops.experts_up(&u, &sorted, rows, &gate, &up, &inner).expect("enqueued");
        ops.experts_down(&inner, &sorted, rows, &down, &answers).expect("enqueued");
        ops.sum_experts(&routing, &sorted, &answers, Some(&shared), rows, hidden, &y).expect("enqueued");
        near(&bench.got(&y), &want, hidden, 5e-6, &what);
    }
}

/// Rows as greedy, and with every filter alone and together; each drawn several times. Many logits are equal: they are rounded.
fn parameters(bench: &mut Bench) -> Vec<(SamplingParams, u64)> {
    let greedy = SamplingParams::default();
    let hot = SamplingParams { temperature: 0.8, ..greedy };
    let kinds = [
        greedy,
        hot,
        SamplingParams { top_k: 1, ..hot },
        SamplingParams { top_k: 40, ..hot },
        SamplingParams { top_k: u32::MAX, ..hot },
        SamplingParams { top_p: 0.3, ..hot },
        SamplingParams { top_p: 0.0, ..hot },
        SamplingParams { top_p: 0.95, temperature: 3.0, ..hot },
        SamplingParams { min_p: 0.1, ..hot },
        SamplingParams { min_p: 1.0, ..hot },
        SamplingParams { top_k: 25, top_p: 0.7, min_p: 0.02, temperature: 1.7, ..hot },
    ];
    let drawn = kinds.iter().flat_map(|kind| (0..9).map(|index| (*kind, index)));
    drawn.map(|(kind, index)| (SamplingParams { seed: bench.next(), ..kind }, index)).collect()
}

#[test]
fn tokens_are_those_that_the_cpu_chooses() {
    let (mut bench, mut scratch) = (Bench::new(7), SamplingScratch::new());
    let mut hot_tokens = std::collections::HashSet::new();
    for (vocab, steps) in [(1, 8.0), (31, 8.0), (1003, 16.0), (1024, 1e6), (5000, 1e6)] {
        let asked = parameters(&mut bench);
        let rows = asked.len();
        let logits: Vec<f32> =
            bench.values(rows * vocab).iter().map(|value| (value * 6.0 * steps).round() / steps).collect();
        let reported = |row: usize| (row % 4 != 3).then_some(row % (REPORTED_AT_MOST + 1));
        let choices: Vec<Choice> = asked
            .iter()
            .enumerate()
            .map(|(row, (how, index))| Choice {
                uniform: uniform(how.seed, *index),
                temperature: how.temperature,
                top_p: how.top_p,
                min_p: how.min_p,
                top_k: i32::try_from(how.top_k).unwrap_or(i32::MAX),
                reported: reported(row).map_or(-1, |most| most as i32),
                unused: 0,
            })
            .collect();
        let chosen = Chosen::new(bench.machine(), rows, vocab).expect("memory");
        let (there, choices) = (bench.put(&logits), bench.put(&choices));
        bench.ops.sample(&there, rows, vocab, &choices, true, &chosen).expect("enqueued");
        let (mut tokens, mut odds) = (vec![0; rows * 2], vec![0.0; rows * (REPORTED_AT_MOST + 1)]);
        let mut likely = vec![0; rows * REPORTED_AT_MOST];
        read(bench.machine(), &chosen.tokens, &mut tokens).expect("read");
        read(bench.machine(), &chosen.odds, &mut odds).expect("read");
        read(bench.machine(), &chosen.likely, &mut likely).expect("read");
        for (row, ((how, index), logits)) in asked.iter().zip(logits.chunks(vocab)).enumerate() {
            let want = sample(logits, how, *index, &mut scratch).expect("finite logits");
            assert_eq!(tokens[row * 2..row * 2 + 2], [want as i32, -1], "{vocab} tokens, row {row}: {how:?}");
            if how.temperature > 0.0 && vocab == 5000 {
                hot_tokens.insert(want);
            }
            let Some(most) = reported(row) else { continue };
            let odds = &odds[row * (REPORTED_AT_MOST + 1)..];
            let likely = &likely[row * REPORTED_AT_MOST..];
            let close = |got: f32, want: f32| assert!((got - want).abs() <= 2e-6 * want.abs().max(1.0), "{got} {want}");
            close(odds[0], log_prob(logits, want));
            for (place, (token, odd)) in top_log_probs(logits, most).into_iter().enumerate() {
                assert_eq!(likely[place], token as i32, "{vocab} tokens, row {row}, place {place}");
                close(odds[place + 1], odd);
            }
            assert!(most <= vocab || likely[vocab] == -1, "no more tokens than there are");
        }
    }
    assert!(hot_tokens.len() > 20, "draws differ");
}

#[test]
fn broken_logits_are_named_and_nothing_is_drawn_from_them() {
    let bench = Bench::new(8);
    let vocab = 3000;
    for (bad, at) in [(f32::NAN, 2999), (f32::INFINITY, 0), (f32::NEG_INFINITY, 1024)] {
        let mut logits = vec![1.0; 2 * vocab];
        (logits[vocab + at], logits[vocab + 2999]) = (bad, bad);
        let choice = Choice { temperature: 1.0, top_p: 0.5, reported: 20, ..Choice::default() };
        let chosen = Chosen::new(bench.machine(), 2, vocab).expect("memory");
        let (there, choices) = (bench.put(&logits), bench.put(&[choice; 2]));
        bench.ops.sample(&there, 2, vocab, &choices, true, &chosen).expect("enqueued");
        let mut tokens = [0; 4];
        read(bench.machine(), &chosen.tokens, &mut tokens).expect("read");
        assert_eq!((tokens[1], tokens[3]), (-1, at as i32));
    }
}

#[test]
fn wires_have_the_bits_of_the_cpu() {
    let mut bench = Bench::new(5);
    for (stored, dtype) in FORMATS {
        for (rows, width) in [(1, 128), (3, 130), (4, 37), (2, 512)] {
            let mut values = bench.values(rows * width);
            let special = [f32::NAN, f32::INFINITY, -0.0, 1e-40, 3e38, 448.0];
            values.iter_mut().zip(special).for_each(|(value, special)| *value = special);
            values[rows * width - 1] = 0.0;
            let mut want = vec![0u8; rows * record_bytes(stored, width)];
            wire::encode(dtype, &values, rows, width, &mut want);
            let (there, bytes) = (bench.put(&values), bench.poisoned::<u8>(want.len()));
            bench.ops.encode(&there, rows, width, stored, &bytes).expect("enqueued");
            assert_eq!(bench.got(&bytes), want, "{stored:?} {rows}x{width}");
            let mut back = vec![0.0; rows * width];
            wire::decode(dtype, &want, rows, width, &mut back);
            let decoded = bench.poisoned::<f32>(rows * width);
            bench.ops.decode(&bytes, rows, width, stored, &decoded).expect("enqueued");
            // Which of its NaNs a product gives is the machine's choice.
            let bit = |value: &f32| if value.is_nan() { f32::NAN.to_bits() } else { value.to_bits() };
            let bits = |values: &[f32]| values.iter().map(bit).collect::<Vec<_>>();
            assert_eq!(bits(&bench.got(&decoded)), bits(&back), "{stored:?} {rows}x{width}");
        }
    }
}

#[test]
fn runs_of_bytes_are_taken_as_they_are() {
    let mut bench = Bench::new(7);
    for lengths in [&[1][..], &[0, 5], &[2048, 4096, 7], &[2047, 0, 8], &[3, 5000, 12_345], &[16_384]] {
        for shift in [0, 1, 8] {
            let bytes: Vec<Vec<u8>> = lengths
                .iter()
                .map(|length| bench.values(length + shift).iter().map(|x| (x * 999.0) as i32 as u8).collect())
                .collect();
            let from: Vec<_> = bytes.iter().map(|bytes| bench.put(bytes)).collect();
            let to: Vec<_> = bytes.iter().map(|bytes| bench.poisoned::<u8>(bytes.len() + 8)).collect();
            let parts: Vec<_> = (0..lengths.len())
                .map(|part| (from[part].part(shift, lengths[part]), to[part].part(shift, lengths[part])))
                .collect();
            let parts: Vec<_> = parts.iter().map(|(from, to)| (from, to)).collect();
            bench.ops.take(&parts).expect("enqueued");
            for (part, length) in lengths.iter().enumerate() {
                let got = bench.got(&to[part]);
                assert_eq!(got[shift..shift + length], bytes[part][shift..], "{lengths:?} {shift}");
                // Nothing beside it.
                assert!(
                    got[..shift].iter().chain(&got[shift + length..]).all(|byte| *byte == 0xff),
                    "{lengths:?} {shift}"
                );
            }
        }
    }
    let (short, long) = (bench.put(&[0u8; 3]), bench.put(&[0u8; 4]));
    assert!(bench.ops.take(&[(&short, &long)]).is_err());
    assert!(bench.ops.take(&[(&short, &short); 4]).is_err());
}

#[test]
fn shapes_that_do_not_fit_are_refused_before_anything_is_launched() {
    let mut bench = Bench::new(6);
    let w = bench.matrix(Stored::F32, 4, 8);
    let (w, x, y) = (bench.weights(&[&w]), bench.put(&[0.0; 16]), bench.put(&[0.0; 7]));
    assert!(bench.ops.matmul(&x, 2, &w, &y).is_err_and(|error| error.to_string().contains("8 elements are needed, 7")));
    assert!(KvPages::new(bench.machine(), 1, 1, 513, Stored::F32).is_err());
    let machine: Arc<dyn Machine> = Arc::clone(bench.ops.machine());
    assert!(machine.kernels(&rally_cuda::source::MATMUL, &["no_such_kernel"]).is_err());
}

#[test]
fn slices_of_columns_and_their_sum() {
    let mut bench = Bench::new(31);
    for (rows, width, slices, most) in [(1, 7, 1, 1), (3, 37, 3, 5), (9, 1100, 8, 9), (2, 513, 2, 4)] {
        let x = bench.values(rows * width);
        let (of, out) = (Sliced { width, slices, most }, bench.poisoned::<f32>(most * width));
        bench.ops.slice_columns(&bench.put(&x), rows, of, &out).expect("enqueued");
        let got = bench.got(&out);
        for slice in 0..slices {
            let columns = cut(width, slices, slice);
            for row in 0..rows {
                let first = most * columns.start + row * columns.len();
                let want = &x[row * width + columns.start..row * width + columns.end];
                assert_eq!(&got[first..first + columns.len()], want, "slice {slice} of {slices}, row {row}");
            }
        }
        let parts = bench.values(slices * most * width);
        let before = bench.values(rows * width);
        let sum = bench.poisoned::<f32>(rows * width);
        write(bench.machine(), &before, &sum.part(0, rows * width)).expect("written");
        bench.ops.add_slices(&bench.put(&parts), rows, of, &sum).expect("enqueued");
        let part = |slice: usize, at: usize| parts[slice * most * width + at];
        let want = (0..rows * width).map(|at| before[at] + (1..slices).fold(part(0, at), |sum, s| sum + part(s, at)));
        assert_eq!(bench.got(&sum), want.collect::<Vec<_>>());
    }
}

/// The `index`-th of `parts` parts of `total`: the first ones have one more.
fn cut(total: usize, parts: usize, index: usize) -> std::ops::Range<usize> {
    let (base, more) = (total / parts, total % parts);
    let start = index * base + index.min(more);
    start..start + base + usize::from(index < more)
}
