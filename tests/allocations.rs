//! The hot path allocates nothing: what is left in a steady run is the event channel, one block for 31 events.
//!
//! A test of its own in a program of its own: the count is of the whole process.

mod support;

use rally::engine::RunEvent;
use rally::engine::schedule::batch::{SequenceRequest, TokenDetail};
use rally::stages::checkpoint::RandomWeights;
use rally::stages::deployment::AssembleOptions;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
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
    let asks = (0..SEQUENCES as u32).map(|id| Ask::greedy(&[id; 20], TOKENS_EACH));
    let requests = asks.enumerate().map(|(id, ask)| {
        let detail = TokenDetail { logprobs: None, logits: false };
        SequenceRequest { detail, ..request(id as u64, &ask) }
    });
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
    // The split layout learns costs, the other does not.
    for (policy, split, micro_batches) in [("sequential", false, 1), ("ping_pong", true, 3)] {
        for dtype in ["f32", "fp8_e4m3"] {
            let layout = Layout { policy, split, micro_batches, a2f: dtype, kv: dtype, ..Layout::default() };
            let counted = allocations(&layout, split);
            println!("{policy}:{micro_batches} {dtype}: {counted} allocations for {COUNTED_TOKENS} tokens");
            // On a busy machine the lanes may have come to their end while the count was read; one allocation a step would
            // still be some 200 more.
            let most = SEQUENCES * TOKENS_EACH / 31 + 20;
            assert!(counted <= most, "{layout:?}: {counted} allocations for {COUNTED_TOKENS} tokens");
        }
    }
}
