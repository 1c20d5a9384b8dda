//! Three times the load that a target allows, for a minute, on real lanes and through HTTP.
//!
//! First what there is room for: closed loops of ever more clients, each with the lengths of the load. The target is the p99 TPOT of
//! [`TARGET_AT`] of them, and the capacity the most tokens a second of those that keep it. Then an open loop: most requests come
//! from one address in bursts, and together are [`TIMES`] the capacity; a second address asks evenly for [`LIGHT`] of it, and must not
//! starve. `RALLY_TRACE=azure.csv` takes arrivals and lengths from a trace: its times are stretched to the rate wanted, prompts are an
//! eighth and answers half as long, since the tiny model's sequences are shorter than the trace's.

use crate::clients::{Client, on_this_thread, request};
use crate::rig::{How, MODEL, Served, model, open, parts};
use rally::load::arrival::ArrivalProcess;
use rally::load::statistics::percentile;
use rally::load::synthetic::RandomLengths;
use rally::load::trace_file::{TraceFormat, TraceOptions, read};
use rally::load::{Load, LoadLimits, LoadRequest};
use rally::serve::Waiting;
use rally::stages::deployment::Deployment;
use serde_json::json;
use std::cell::{Cell, RefCell};
use std::io::BufReader;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Instant, sleep_until};

const CLOSED: [usize; 7] = [4, 8, 16, 24, 32, 48, 64];
const TARGET_AT: usize = 32;
const CLOSED_S: f64 = 5.0;
const SECONDS: usize = 60;
const TIMES: f64 = 3.0;
const LIGHT: f64 = 0.1;
const SEED: u64 = 7;
/// Shape of the gaps' gamma distribution: the squared variation is four times a Poisson process's.
const BURSTINESS: f64 = 0.25;
const HEAVY_FROM: [u8; 4] = [127, 0, 0, 1];
const LIGHT_FROM: [u8; 4] = [127, 0, 0, 2];
/// The defaults of `rally serve`.
const WAITING: Waiting = Waiting { most: 1024, longest: Duration::from_secs(60) };

/// What became of a request.
#[derive(Clone, Copy, Debug, Default)]
struct Outcome {
    light: bool,
    status: u16,
    tokens: usize,
    /// Seconds since the load began: when it was due, its first and its last token, and the longest time without one between.
    due_s: f64,
    first_s: f64,
    last_s: f64,
    longest_gap_s: f64,
}

impl Outcome {
    fn tpot_s(&self) -> Option<f64> {
        (self.status == 200 && self.tokens > 1).then(|| (self.last_s - self.first_s) / (self.tokens - 1) as f64)
    }
}

pub fn run() {
    let load_s = crate::size("RALLY_SECONDS", SECONDS) as f64;
    let deployment = open("tiny-ping-pong.json");
    let vocab = deployment.shape.vocab as u32;
    let lengths = lengths(&deployment, 20_000);
    println!("overload: closed loops of {CLOSED_S} s:");
    let closed: Vec<(usize, f64, f64)> = CLOSED
        .iter()
        .map(|clients| {
            let how = How { keep_tpot_s: None, waiting: Some(WAITING) };
            let served = Served::start(parts(&deployment), model(&deployment), how);
            let outcomes = on_this_thread(closed_loop(served.address(), &lengths, *clients, vocab));
            served.server.drain(Duration::ZERO);
            let (p99_s, tokens_per_s) = (p99(&outcomes), tokens(&outcomes, |_| true) / end_s(&outcomes));
            println!("  {clients:3} clients: {tokens_per_s:7.0} tokens/s, p99 TPOT {:.2} ms", p99_s * 1e3);
            (*clients, p99_s, tokens_per_s)
        })
        .collect();
    let target_s = closed.iter().find(|(clients, ..)| *clients == TARGET_AT).map_or(0.0, |(_, p99_s, _)| *p99_s);
    let kept = closed.iter().filter(|(_, p99_s, _)| *p99_s <= target_s);
    let capacity = kept.map(|(.., tokens_per_s)| *tokens_per_s).fold(0.0, f64::max);

    let mean = lengths.iter().map(|one| one.output_tokens as f64).sum::<f64>() / lengths.len() as f64;
    let load = Load { requests: arrivals(lengths, TIMES * capacity / mean, load_s), max_concurrency: None };
    let light = even(&load, LIGHT * capacity / mean, load_s);
    println!(
        "  target {:.2} ms: {capacity:.0} tokens/s; {} requests in {load_s} s of {:.1} times that, and {} more, evenly, of {LIGHT} times",
        target_s * 1e3,
        load.requests.len(),
        load.output_tokens() as f64 / load_s / capacity,
        light.len(),
    );
    let how = How { keep_tpot_s: Some(target_s), waiting: Some(WAITING) };
    let served = Served::start(parts(&deployment), model(&deployment), how);
    let outcomes = on_this_thread(open_loop(served.address(), load.requests, light, vocab));
    served.server.drain(Duration::ZERO);
    tell(&outcomes, target_s, capacity);
}

fn tell(outcomes: &[Outcome], target_s: f64, capacity: f64) {
    let is_good = |one: &Outcome| one.tpot_s().is_none_or(|tpot_s| tpot_s <= target_s);
    let (worst, seconds) = (p99(outcomes), end_s(outcomes));
    let goodput = tokens(outcomes, is_good) / seconds;
    let verdict = |good: bool| if good { "within" } else { "MISSED" };
    println!(
        "  p99 TPOT of those let in {:.2} ms, {:.3} of the target; bar 1.1: {}",
        worst * 1e3,
        worst / target_s,
        verdict(worst <= 1.1 * target_s)
    );
    println!(
        "  goodput {goodput:.0} of {:.0} tokens/s until the last token at {seconds:.1} s, {:.3} of the capacity; bar 0.9: {}",
        tokens(outcomes, |_| true) / seconds,
        goodput / capacity,
        verdict(goodput >= 0.9 * capacity)
    );
    for (name, light) in [("the many", false), ("the one that asks for little", true)] {
        let of: Vec<&Outcome> = outcomes.iter().filter(|one| one.light == light).collect();
        let with = |status: u16| of.iter().filter(|one| one.status == status).count();
        let wait = of.iter().filter(|one| one.status == 200).map(|one| one.first_s - one.due_s).fold(0.0, f64::max);
        let gap = of.iter().map(|one| one.longest_gap_s).fold(0.0, f64::max);
        println!(
            "  {name}: {} asked, {} answered, {} told to come again (429), {} otherwise; longest wait for a first token {wait:.2} s, \
             longest time without a token {gap:.3} s",
            of.len(),
            with(200),
            with(429),
            of.len() - with(200) - with(429),
        );
    }
    let light: Vec<&Outcome> = outcomes.iter().filter(|one| one.light).collect();
    let answered = light.iter().filter(|one| one.status == 200).count();
    println!(
        "  no starvation: {answered} of the {} that asked for little; bar all: {}",
        light.len(),
        verdict(answered == light.len())
    );
}

fn p99(outcomes: &[Outcome]) -> f64 {
    let mut tpots: Vec<f64> = outcomes.iter().filter_map(Outcome::tpot_s).collect();
    tpots.sort_by(f64::total_cmp);
    percentile(&tpots, 99.0).unwrap_or(0.0)
}

fn tokens(outcomes: &[Outcome], of: impl Fn(&Outcome) -> bool) -> f64 {
    outcomes.iter().filter(|one| of(one)).map(|one| one.tokens as f64).sum()
}

fn end_s(outcomes: &[Outcome]) -> f64 {
    outcomes.iter().map(|one| one.last_s).fold(0.0, f64::max)
}

/// Lengths of the load, of a trace if one is named; arrivals as there, or none.
fn lengths(deployment: &Deployment, count: usize) -> Vec<LoadRequest> {
    let limits = LoadLimits { total_tokens: deployment.shape.max_positions / 2 };
    let requests = match std::env::var_os("RALLY_TRACE") {
        None => RandomLengths { input_len: 100, output_len: 100, range_ratio: 0.8 }.requests(count, SEED),
        Some(file) => {
            let file = Path::new(&file);
            let ending = file.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
            let format = TraceFormat::of_ending(ending).expect("a trace ends in .csv or .jsonl");
            let trace = BufReader::new(std::fs::File::open(file).expect("the trace can be opened"));
            let options = TraceOptions { most: Some(count), ..TraceOptions::default() };
            let shorter = |mut one: LoadRequest| {
                one.prompt_tokens = one.prompt_tokens.div_ceil(8);
                one.output_tokens = one.output_tokens.div_ceil(2);
                one
            };
            read(trace, format, options).expect("the trace can be read").into_iter().map(shorter).collect()
        }
    };
    let mut load = Load { requests, max_concurrency: None };
    load.clip(limits);
    load.requests
}

/// So many of them that they come at this rate for the time of the load: as in the trace, or in bursts.
fn arrivals(mut requests: Vec<LoadRequest>, per_s: f64, load_s: f64) -> Vec<LoadRequest> {
    let count = (per_s * load_s) as usize;
    // A short trace begins anew.
    let short = requests.len();
    let last_s = requests.last().map_or(0.0, |one| one.arrival_s);
    for index in short..count {
        let again = requests[index - short];
        requests.push(LoadRequest { arrival_s: again.arrival_s + last_s, ..again });
    }
    requests.truncate(count);
    match requests.last().map(|one| one.arrival_s).filter(|last_s| *last_s > 0.0) {
        Some(last_s) => requests.iter_mut().for_each(|one| one.arrival_s *= load_s / last_s),
        None => ArrivalProcess { rate: per_s, burstiness: BURSTINESS }.schedule(&mut requests, SEED),
    }
    requests
}

/// Requests of the same lengths, one after the other at even distances.
fn even(load: &Load, per_s: f64, load_s: f64) -> Vec<LoadRequest> {
    let at =
        |index: usize| LoadRequest { arrival_s: index as f64 / per_s, ..load.requests[index % load.requests.len()] };
    (0..(per_s * load_s) as usize).map(at).collect()
}

fn body(one: LoadRequest, index: usize, vocab: u32) -> Vec<u8> {
    let prompt: Vec<u32> = (0..one.prompt_tokens).map(|place| (place * 7 + index * 13) as u32 % vocab).collect();
    let body = json!({
        "model": MODEL, "prompt": prompt, "max_tokens": one.output_tokens, "temperature": 0, "stream": true, "ignore_eos": true,
    });
    request("/v1/completions", &body.to_string())
}

/// Has a request answered. `began`: of the load.
async fn ask(client: &mut Client, body: &[u8], (began, due_s, light): (Instant, f64, bool)) -> Outcome {
    let mut outcome = Outcome { due_s, light, ..Outcome::default() };
    let see = |piece: &[u8]| {
        let events = piece.windows(13).filter(|window| window == b"finish_reason").count();
        let now_s = began.elapsed().as_secs_f64();
        if events > 0 && outcome.tokens == 0 {
            outcome.first_s = now_s;
        } else if events > 0 {
            outcome.longest_gap_s = outcome.longest_gap_s.max(now_s - outcome.last_s);
        }
        if events > 0 {
            outcome.last_s = now_s;
        }
        outcome.tokens += events;
    };
    outcome.status = client.ask(body, see).await.unwrap_or(0);
    outcome
}

/// `clients` that each ask anew as soon as they are answered.
async fn closed_loop(server: SocketAddr, lengths: &[LoadRequest], clients: usize, vocab: u32) -> Vec<Outcome> {
    let (next, outcomes) = (Rc::new(Cell::new(0)), Rc::new(RefCell::new(Vec::new())));
    let began = Instant::now();
    let lengths: Rc<[LoadRequest]> = lengths.into();
    let all = LocalSet::new();
    for _ in 0..clients {
        let (next, outcomes, lengths) = (Rc::clone(&next), Rc::clone(&outcomes), Rc::clone(&lengths));
        all.spawn_local(async move {
            let mut client = Client::connect(server).await.expect("the server listens");
            while began.elapsed().as_secs_f64() < CLOSED_S {
                let index = next.replace(next.get() + 1);
                let body = body(lengths[index % lengths.len()], index, vocab);
                let outcome = ask(&mut client, &body, (began, began.elapsed().as_secs_f64(), false)).await;
                outcomes.borrow_mut().push(outcome);
            }
        });
    }
    all.await;
    outcomes.take()
}

/// Each request when it is due, on a connection that is free or new.
async fn open_loop(server: SocketAddr, heavy: Vec<LoadRequest>, light: Vec<LoadRequest>, vocab: u32) -> Vec<Outcome> {
    let outcomes = Rc::new(RefCell::new(Vec::with_capacity(heavy.len() + light.len())));
    let began = Instant::now();
    let all = LocalSet::new();
    for (requests, own, light) in [(heavy, HEAVY_FROM, false), (light, LIGHT_FROM, true)] {
        let outcomes = Rc::clone(&outcomes);
        all.spawn_local(async move {
            let free: Rc<RefCell<Vec<Client>>> = Rc::default();
            let mut open = Vec::new();
            for (index, one) in requests.into_iter().enumerate() {
                let body = body(one, index, vocab);
                sleep_until(began + Duration::from_secs_f64(one.arrival_s)).await;
                let (free, outcomes) = (Rc::clone(&free), Rc::clone(&outcomes));
                open.push(spawn_local(async move {
                    let connect = || async { Client::connect_from(own, server).await.expect("the server listens") };
                    let kept = free.borrow_mut().pop();
                    let was_kept = kept.is_some();
                    let mut client = match kept {
                        Some(client) => client,
                        None => connect().await,
                    };
                    let mut outcome = ask(&mut client, &body, (began, one.arrival_s, light)).await;
                    // The server may close what nobody used for long just as it is used again: clients then ask anew.
                    if was_kept && outcome.status == 0 && outcome.tokens == 0 {
                        client = connect().await;
                        outcome = ask(&mut client, &body, (began, one.arrival_s, light)).await;
                    }
                    if outcome.status != 0 {
                        free.borrow_mut().push(client);
                    }
                    outcomes.borrow_mut().push(outcome);
                }));
            }
            for one in open {
                one.await.expect("clients do not panic");
            }
        });
    }
    all.await;
    outcomes.take()
}
