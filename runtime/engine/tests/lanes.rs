//! Lanes, slots and planner with toy stages: small integers instead of a model, so that every fault shows as a wrong token.

use proptest::prelude::*;
use rally_engine::schedule::batch::{GroupInput, SamplingParams, SequenceRequest, TokenDetail};
use rally_engine::schedule::planner::{FinishReason, PlannerConfig, SubmitError};
use rally_engine::schedule::policy::{PingPong, Policy, Sequential};
use rally_engine::stage::{Sample, Stage, StageError, TaskContext};
use rally_engine::{DeviceParts, Engine, EngineError, EngineParts, RunEvent, Widths};
use rally_graph::kinds::{KindRegistry, Role};
use rally_graph::model::{LayerKind, ModelShape, WeightFormat};
use rally_graph::plan::{Plan, TaskTable, Turn};
use rally_graph::spec::DeploymentSpec;
use rally_graph::stage_graph::StageGraph;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

const LAYERS: usize = 3;
const HIDDEN: usize = 4;

/// What the toy model computes from one token to the next; also the reference.
fn next_token(token: u32, position: usize) -> u32 {
    let mut x = token as f32;
    for layer in 0..LAYERS {
        let u = x + position as f32 + layer as f32;
        let y = (u * 3.0) % 101.0;
        x = (x + y) % 997.0;
    }
    x as u32
}

fn reference(prompt: &[u32], tokens: usize) -> Vec<u32> {
    let mut out = Vec::new();
    let mut last = *prompt.last().expect("prompts are not empty");
    for index in 0..tokens {
        last = next_token(last, prompt.len() - 1 + index);
        out.push(last);
    }
    out
}

#[derive(Clone, Copy, PartialEq)]
enum Toy {
    Embed,
    Attention,
    Ffn,
    Combine,
    Sampling,
}

#[derive(Clone, Copy, PartialEq)]
enum Misdeed {
    None,
    Fail,
    Panic,
}

struct ToyStage {
    toy: Toy,
    calls: usize,
    misdeed: (usize, Misdeed),
}

impl Stage for ToyStage {
    fn run(&mut self, task: &mut TaskContext<'_>) -> Result<(), StageError> {
        self.calls += 1;
        if self.calls == self.misdeed.0 {
            match self.misdeed.1 {
                Misdeed::None => {}
                Misdeed::Fail => return Err(StageError::Other("told to fail".into())),
                Misdeed::Panic => panic!("told to panic"),
            }
        }
        match self.toy {
            Toy::Embed => embed(task),
            Toy::Attention => rows(task, |task, row, position| {
                task.values.u[row * HIDDEN] = task.values.x[row * HIDDEN] + position as f32 + task.layer as f32;
            }),
            Toy::Ffn => {
                for row in 0..task.values.rows {
                    task.values.y[row * HIDDEN] = (task.values.u[row * HIDDEN] * 3.0) % 101.0;
                }
            }
            Toy::Combine => rows(task, |task, row, _| {
                let x = &mut task.values.x[row * HIDDEN];
                *x = (*x + task.values.y[row * HIDDEN]) % 997.0;
            }),
            Toy::Sampling => sample(task),
        }
        Ok(())
    }
}

fn rows(task: &mut TaskContext<'_>, mut each: impl FnMut(&mut TaskContext<'_>, usize, usize)) {
    for group in task.batch.groups.clone() {
        for (i, row) in group.row_range().enumerate() {
            each(task, row, group.first_position + i);
        }
    }
}

fn embed(task: &mut TaskContext<'_>) {
    for group in &task.batch.groups {
        for row in group.row_range() {
            let token = match group.input {
                GroupInput::Given => task.batch.token_ids[row],
                GroupInput::LastSampled => task.last_tokens[group.slot],
            };
            task.values.x[row * HIDDEN] = token as f32;
        }
    }
}

fn sample(task: &mut TaskContext<'_>) {
    for group in task.batch.groups.iter().filter(|group| group.sample.is_some()) {
        let token = task.values.x[(group.first_row + group.rows - 1) * HIDDEN] as u32;
        task.last_tokens[group.slot] = token;
        task.samples.push(Sample { sequence: group.sequence, token, logprobs: None, logits: None });
    }
}

fn shape() -> ModelShape {
    ModelShape {
        family: "toy".into(),
        hidden: HIDDEN,
        vocab: 1000,
        heads: 1,
        head_dim: 2,
        query_rank: 1,
        dense_width: 1,
        expert_width: 1,
        shared_width: 1,
        experts: 1,
        top_k: 1,
        norm_expert_weight: false,
        layers: vec![LayerKind::Dense; LAYERS],
        rms_norm_eps: 1e-5,
        rope_theta: 1e4,
        max_positions: 4096,
        tie_word_embeddings: false,
        eos_token_ids: Vec::new(),
        weight_format: WeightFormat::F32,
    }
}

fn graph(attention: usize, split: bool) -> StageGraph {
    let ffn = if split { "f" } else { "a" };
    let mut layers = vec![serde_json::json!({ "kind": "mfa_attention", "on": "a" })];
    let transfer =
        |id: &str, from: &str, to: &str| serde_json::json!({ "kind": "transfer", "id": id, "from": from, "to": to });
    if split {
        layers.push(transfer("a2f", "a", "f"));
    }
    layers.push(serde_json::json!({ "kind": "dense_ffn", "on": ffn }));
    if split {
        layers.push(transfer("f2a", "f", "a"));
    }
    layers.push(serde_json::json!({ "kind": "combine", "on": "a" }));
    let spec: DeploymentSpec = serde_json::from_value(serde_json::json!({
        "version": 1, "name": "toy", "model": "none",
        "devices": if split {
            serde_json::json!({ "a": { "backend": "cpu", "count": attention }, "f": { "backend": "cpu" } })
        } else {
            serde_json::json!({ "a": { "backend": "cpu", "count": attention } })
        },
        "stages": [{ "kind": "embed", "on": "a" }, { "layers": layers }, { "kind": "sampling", "on": "a" }],
        "limits": { "sequences": 8, "rows_per_micro_batch": 8, "prefill_chunk": 4, "kv_tokens": 512, "page_tokens": 8 },
        "schedule": { "policy": "ping_pong", "micro_batches": 3 },
    }))
    .expect("the toy graph is well formed");
    StageGraph::build(&spec, &shape(), KindRegistry::shared()).expect("the toy graph unrolls")
}

struct Setup {
    attention: usize,
    split: bool,
    policy: Box<dyn Policy>,
    micro_batches: usize,
    prefill_chunk: usize,
    rows: usize,
    /// Which stage misbehaves at which call.
    misdeed: Option<(Toy, usize, Misdeed)>,
}

impl Setup {
    fn simple(policy: Box<dyn Policy>, micro_batches: usize) -> Self {
        Self { attention: 1, split: true, policy, micro_batches, prefill_chunk: 4, rows: 8, misdeed: None }
    }

    fn parts(&self) -> EngineParts {
        let graph = Arc::new(graph(self.attention, self.split));
        let table = TaskTable::new(&graph);
        let orders = self.policy.orders(&table, self.micro_batches);
        let plan = Arc::new(Plan::compile(table, self.micro_batches, &orders).expect("built-in policies make plans"));
        let mut devices: Vec<DeviceParts> = graph.devices.iter().map(|_| DeviceParts::default()).collect();
        for (index, stage) in graph.stages.iter().enumerate() {
            let toy = match stage.kind.as_str() {
                "embed" => Toy::Embed,
                "mfa_attention" => Toy::Attention,
                "dense_ffn" => Toy::Ffn,
                "combine" => Toy::Combine,
                _ => Toy::Sampling,
            };
            for device in &stage.devices {
                let misdeed = self.misdeed.filter(|(other, ..)| *other == toy);
                let misdeed = misdeed.map_or((0, Misdeed::None), |(_, call, misdeed)| (call, misdeed));
                devices[*device].stages.insert(index, Box::new(ToyStage { toy, calls: 0, misdeed }));
            }
        }
        let planner = PlannerConfig {
            micro_batches: self.micro_batches,
            devices: self.attention,
            sequences: 8,
            sequences_per_device: 8,
            rows_per_device: self.rows,
            rows_per_micro_batch: self.rows * self.attention,
            prefill_chunk: self.prefill_chunk,
            pages_per_device: 1 << 14,
            page_tokens: 8,
            max_positions: 1 << 20,
        };
        let attention = graph.devices_of_role(Role::Embed);
        let widths = Widths { hidden: HIDDEN, top_k: 1 };
        EngineParts { graph, plan, planner, widths, devices, attention, spans_per_lane: 64, probe: None }
    }
}

fn request(id: u64, prompt: Vec<u32>, tokens: usize) -> SequenceRequest {
    SequenceRequest {
        id,
        prompt: Arc::from(prompt),
        max_new_tokens: tokens,
        stop_token_ids: Arc::from([]),
        sampling: SamplingParams::default(),
        detail: TokenDetail::default(),
    }
}

/// Tokens and finish reasons by sequence, or the failure. Nothing here may take long: a hang is a failed test.
fn run(setup: &Setup, requests: Vec<SequenceRequest>) -> Result<BTreeMap<u64, (Vec<u32>, FinishReason)>, EngineError> {
    let engine = Engine::start(setup.parts()).expect("threads can be had");
    let mut open = requests.len();
    engine.submit(requests).expect("the requests fit");
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut tokens: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
    let mut done = BTreeMap::new();
    while open > 0 {
        match engine.events().recv_deadline(deadline).expect("no hang") {
            RunEvent::Admitted(..) => {}
            RunEvent::Token(report) => {
                let list = tokens.entry(report.sample.sequence).or_default();
                assert_eq!(report.index as usize, list.len(), "tokens come in order");
                list.push(report.sample.token);
            }
            RunEvent::Finished(id, reason, _) => {
                assert!(done.insert(id, (tokens.remove(&id).unwrap_or_default(), reason)).is_none(), "finished twice");
                open -= 1;
            }
            RunEvent::Failed(error) => return Err(error),
        }
    }
    engine.close();
    let report = engine.join();
    assert!(report.lanes.iter().all(|lane| lane.busy_ns <= lane.active_ns));
    Ok(done)
}

fn policy(ping_pong: bool) -> Box<dyn Policy> {
    if ping_pong { Box::new(PingPong) } else { Box::new(Sequential) }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the layout, the policy, the number of micro-batches, the chunk, and who else is there: the same tokens.
    #[test]
    fn tokens_do_not_depend_on_the_schedule(
        attention in 1usize..4, split: bool, ping_pong: bool, micro_batches in 1usize..7, prefill_chunk in 1usize..9,
        rows in 1usize..9, prompts in prop::collection::vec((prop::collection::vec(0u32..900, 1..20), 1usize..12), 1..16),
    ) {
        let setup = Setup {
            attention, split, policy: policy(ping_pong), micro_batches, prefill_chunk, rows, misdeed: None,
        };
        let requests = prompts.iter().enumerate().map(|(i, (prompt, tokens))| request(i as u64, prompt.clone(), *tokens));
        let done = run(&setup, requests.collect()).expect("nothing fails here");
        for (i, (prompt, tokens)) in prompts.iter().enumerate() {
            let (got, reason) = &done[&(i as u64)];
            prop_assert_eq!(got, &reference(prompt, *tokens));
            prop_assert_eq!(*reason, FinishReason::Length);
        }
    }

    /// A stage that fails or panics ends the run with its name, whichever stage and call it is; no lane is left.
    #[test]
    fn a_failing_stage_ends_the_run(
        which in 0usize..5, call in 1usize..30, panics: bool, ping_pong: bool, micro_batches in 1usize..4,
    ) {
        let toy = [Toy::Embed, Toy::Attention, Toy::Ffn, Toy::Combine, Toy::Sampling][which];
        let misdeed = if panics { Misdeed::Panic } else { Misdeed::Fail };
        let mut setup = Setup::simple(policy(ping_pong), micro_batches);
        setup.misdeed = Some((toy, call, misdeed));
        let requests = (0..6).map(|i| request(i, vec![1, 2, 3], 40)).collect();
        match run(&setup, requests).expect_err("the misdeed comes before the end") {
            EngineError::Stage { source, .. } => prop_assert_eq!(source, StageError::Other("told to fail".into())),
            EngineError::LanePanicked { message, .. } => prop_assert_eq!(message, "told to panic"),
            other => prop_assert!(false, "unexpected failure {}", other),
        }
    }
}

#[test]
fn a_stop_token_ends_a_sequence_and_counts() {
    let want = reference(&[5], 10);
    let mut asked = request(0, vec![5], 10);
    asked.stop_token_ids = Arc::from([want[3]]);
    let first = want.iter().position(|token| *token == want[3]).expect("it is there");
    let done = run(&Setup::simple(Box::new(PingPong), 2), vec![asked]).expect("nothing fails here");
    assert_eq!(done[&0], (want[..=first].to_vec(), FinishReason::Stop));
}

#[test]
fn a_cancelled_sequence_ends_and_others_go_on() {
    let setup = Setup::simple(Box::new(PingPong), 3);
    let engine = Engine::start(setup.parts()).expect("threads can be had");
    engine.submit([request(0, vec![1], 100_000), request(1, vec![2], 30)]).expect("the requests fit");
    let mut tokens = Vec::new();
    let mut finished = Vec::new();
    while finished.len() < 2 {
        match engine.events().recv_timeout(Duration::from_secs(20)).expect("no hang") {
            RunEvent::Token(report) if report.sample.sequence == 0 => {
                assert!(finished.iter().all(|(id, _)| *id != 0), "a surplus token was reported");
                if report.index == 4 {
                    engine.handle().cancel(0);
                }
            }
            RunEvent::Token(report) => tokens.push(report.sample.token),
            RunEvent::Finished(id, reason, _) => finished.push((id, reason)),
            RunEvent::Admitted(..) => {}
            RunEvent::Failed(error) => panic!("{error}"),
        }
    }
    finished.sort_by_key(|(id, _)| *id);
    assert_eq!(finished, [(0, FinishReason::Cancelled), (1, FinishReason::Length)]);
    assert_eq!(tokens, reference(&[2], 30));
    engine.close();
    engine.join();
}

#[test]
fn an_idle_engine_wakes_for_late_work_and_drops_cleanly() {
    let engine = Engine::start(Setup::simple(Box::new(PingPong), 3).parts()).expect("threads can be had");
    for round in 0..3 {
        // Longer than the spin, so that the lanes have parked.
        std::thread::sleep(Duration::from_millis(5));
        engine.submit([request(round, vec![7, 8], 3)]).expect("the request fits");
        loop {
            match engine.events().recv_timeout(Duration::from_secs(20)).expect("no hang") {
                RunEvent::Finished(id, ..) if id == round => break,
                RunEvent::Failed(error) => panic!("{error}"),
                _ => {}
            }
        }
    }
    drop(engine);
}

/// The first lane runs all but its first segment a cycle late; the other lanes do not, and so wait for its next cycle.
struct FirstLaneLags;

impl Policy for FirstLaneLags {
    fn name(&self) -> String {
        "first_lane_lags".into()
    }

    fn orders(&self, table: &TaskTable, micro_batches: usize) -> Vec<Vec<Turn>> {
        let mut orders = Sequential.orders(table, micro_batches);
        let first = table.segments(0)[0].len();
        let (head, tail) = table.lanes[0].tasks.split_at(first);
        let turn = |task: &usize, micro_batch, behind| Turn { task: *task, micro_batch, behind };
        orders[0] = (0..micro_batches)
            .flat_map(|m| {
                let late = tail.iter().map(move |task| turn(task, m, true));
                late.chain(head.iter().map(move |task| turn(task, m, false)))
            })
            .collect();
        orders
    }
}

/// A run used to hang at its end: the FFN lane waited for a cycle that the attention lane no longer began.
#[test]
fn lanes_a_cycle_apart_end_together() {
    for (attention, micro_batches) in [(1, 1), (1, 3), (2, 1), (2, 2)] {
        let setup = Setup { attention, ..Setup::simple(Box::new(FirstLaneLags), micro_batches) };
        let done =
            run(&setup, (0..5).map(|id| request(id, vec![id as u32; 6], 20)).collect()).expect("nothing fails here");
        for id in 0..5 {
            assert_eq!(done[&id].0, reference(&[id as u32; 6], 20));
        }
    }
}

/// Accepted, it would never have been answered.
#[test]
fn what_comes_after_the_close_is_refused() {
    let engine = Engine::start(Setup::simple(Box::new(PingPong), 2).parts()).expect("threads can be had");
    let handle = engine.handle();
    engine.close();
    assert_eq!(handle.submit(request(0, vec![1], 1)), Err(SubmitError::Closed));
    engine.join();
    assert_eq!(handle.submit(request(0, vec![1], 1)), Err(SubmitError::Closed));
}
