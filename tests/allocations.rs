//! The hot path allocates nothing, events included: between two tokens of a steady run the whole process takes no memory.
//!
//! A test of its own in a program of its own, for the count is of the process. The run makes fewer events than the engine has
//! room for unread, so a reader that is held up on a busy machine costs nothing either.

mod support;

use rally::engine::RunEvent;
use rally::engine::schedule::batch::{SequenceRequest, TokenDetail};
use rally::stages::checkpoint::RandomWeights;
use rally::stages::deployment::AssembleOptions;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use std::time::Duration;
use support::{Ask, Layout, request, small_shape, start_with};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const SEQUENCES: usize = 8;
const TOKENS_EACH: usize = 400;
/// By then prompts are read and buffers that grow with use have grown.
const WARM_TOKENS: usize = SEQUENCES * 100;
const COUNTED_TOKENS: usize = SEQUENCES * 200;

fn allocations(layout: &Layout, learn: bool) -> usize {
    let weights = RandomWeights::new(3, small_shape().weight_format);
    let options = AssembleOptions { learn, ..AssembleOptions::default() };
    let engine = start_with(&layout.spec(), &small_shape(), &weights, options);
    if learn {
        engine.reuse_prefixes();
    }
    let asks = (0..SEQUENCES as u32).map(|id| Ask::greedy(&[id; 20], TOKENS_EACH));
    let requests = asks.enumerate().map(|(id, ask)| {
        let detail = TokenDetail { logprobs: None, logits: false };
        SequenceRequest { detail, ..request(id as u64, &ask) }
    });
    // A reader that sleeps is remembered by the channel, which makes room for it the first time.
    let early = engine.events().recv_timeout(Duration::from_millis(1));
    assert!(early.is_err(), "nothing has happened yet");
    engine.submit(requests).expect("the requests fit");
    let (mut tokens, mut region, mut counted) = (0, Region::new(ALLOCATOR), 0);
    while tokens < WARM_TOKENS + COUNTED_TOKENS {
        match engine.events().recv().expect("the run goes on") {
            RunEvent::Token(_) => tokens += 1,
            RunEvent::Failed(error) => panic!("{error}"),
            RunEvent::Admitted(..) | RunEvent::Finished(..) => {}
        }
        match tokens {
            WARM_TOKENS => region.reset(),
            _ => counted = region.change().allocations + region.change().reallocations,
        }
    }
    counted
}

#[test]
fn a_steady_step_allocates_nothing() {
    // The split layout learns costs and reuses prefixes, the other does neither.
    for (policy, split, micro_batches) in [("sequential", false, 1), ("ping_pong", true, 3)] {
        for dtype in ["f32", "fp8_e4m3"] {
            let layout = Layout { policy, split, micro_batches, a2f: dtype, kv: dtype, ..Layout::default() };
            let counted = allocations(&layout, split);
            println!("{policy}:{micro_batches} {dtype}: {counted} allocations for {COUNTED_TOKENS} tokens");
            assert_eq!(counted, 0, "{layout:?}: allocations for {COUNTED_TOKENS} tokens");
        }
    }
}
