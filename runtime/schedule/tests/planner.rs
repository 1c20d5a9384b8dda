//! The step planner under random traffic on toy devices that remember what was written where: limits kept, pages never shared,
//! every row sees its own sequence's past and nothing else, preempted sequences go on where they were, everyone is answered,
//! every page comes back.

mod cases;
mod world;

use cases::cases;
use proptest::prelude::*;
use rally_schedule::batch::DeviceBatch;
use rally_schedule::pages::PageAllocator;
use rally_schedule::planner::{FinishReason, PlannerConfig, StepPlanner, SubmitError};
use world::{World, request};

prop_compose! {
    fn configs()(
        micro_batches in 1usize..7, devices in 1usize..4, sequences in 1usize..12, rows in 1usize..24,
        prefill_chunk in 1usize..9, pages_per_device in 4u32..40, page_tokens in 1usize..9,
    ) -> PlannerConfig {
        PlannerConfig {
            micro_batches, devices, sequences, sequences_per_device: sequences.div_ceil(devices),
            rows_per_device: rows.div_ceil(devices), rows_per_micro_batch: rows,
            prefill_chunk, pages_per_device, page_tokens, max_positions: 64,
        }
    }
}

/// When a sequence comes, how long it is, and the steps after that at which it is cancelled and preempted.
#[derive(Clone, Debug)]
struct Arrival {
    at: usize,
    prompt: usize,
    most: usize,
    cancel: Option<usize>,
    preempt: Option<usize>,
}

fn arrivals() -> impl Strategy<Value = Vec<Arrival>> {
    let event = || prop::option::weighted(0.3, 0usize..40);
    let arrival = (0usize..60, 1usize..30, 1usize..30, event(), event());
    let arrival = arrival.prop_map(|(at, prompt, most, cancel, preempt)| Arrival { at, prompt, most, cancel, preempt });
    prop::collection::vec(arrival, 1..40)
}

/// Runs to the end; returns how many were preempted.
fn traffic(config: PlannerConfig, stop_at: u64, arrivals: &[Arrival]) -> u64 {
    let mut world = World::new(config, stop_at);
    let all_pages = world.planner.free_pages();
    let mut step = 0;
    while step < 100 || !world.planner.is_idle() {
        assert!(step < 100_000, "someone is never answered: {:?}", world.seen);
        for (id, arrival) in arrivals.iter().enumerate() {
            let id = id as u64;
            if arrival.at == step {
                world.submit(id, arrival.prompt, arrival.most);
            }
            if arrival.preempt.is_some_and(|after| arrival.at + after == step) {
                world.preempt(id);
            }
            if arrival.cancel.is_some_and(|after| arrival.at + after == step) {
                world.cancel(id);
            }
        }
        world.step(step % config.micro_batches);
        step += 1;
    }
    assert_eq!(world.planner.free_pages(), all_pages);
    assert!(world.seen.values().all(|seen| seen.finished.is_some()));
    world.planner.preemptions()
}

proptest! {
    #![proptest_config(cases(1024))]

    #[test]
    fn everyone_is_answered_and_every_page_comes_back(
        config in configs(), stop_at in 2u64..40, arrivals in arrivals(),
    ) {
        traffic(config, stop_at, &arrivals);
    }

    /// Hardly more pages than the longest sequence needs: somebody is preempted nearly all the time.
    #[test]
    fn tiny_page_pools_only_cost_time(
        config in configs(), spare in 0u32..3, arrivals in arrivals(),
    ) {
        let pages_per_device = 59u32.div_ceil(config.page_tokens as u32) + spare;
        let mut arrivals = arrivals;
        arrivals.iter_mut().for_each(|arrival| arrival.at /= 4);
        traffic(PlannerConfig { pages_per_device, ..config }, 1000, &arrivals);
    }
}

proptest! {
    #![proptest_config(cases(512))]

    /// With a time per token to keep, sequences go to more and fewer micro-batches: they only come at other times.
    #[test]
    fn other_numbers_of_micro_batches_lose_nobody(
        config in configs(), stop_at in 2u64..40, arrivals in arrivals(), fixed in 0.0f64..1.0, row in 0.0f64..0.1, target_s in 0.01f64..8.0,
        losses in losses(),
    ) {
        let mut world = World::new(config, stop_at);
        world.step_s = (fixed, row);
        world.planner.keep_tpot(target_s);
        let all_pages = world.planner.free_pages();
        let mut step = 0;
        while step < 200 || !world.planner.is_idle() {
            prop_assert!(step < 100_000, "someone is never answered: {:?}", world.seen);
            for (id, arrival) in arrivals.iter().enumerate().filter(|(_, arrival)| 3 * arrival.at == step) {
                world.submit(id as u64, arrival.prompt, 2 * arrival.most);
            }
            for (_, device, _) in losses.iter().filter(|(at, ..)| 3 * *at == step) {
                world.lose(device % config.devices, false);
            }
            world.step(step % config.micro_batches);
            prop_assert!((1..=config.micro_batches).contains(&world.planner.micro_batches_in_use()));
            step += 1;
        }
        prop_assert_eq!(world.planner.free_pages(), all_pages);
        prop_assert!(world.seen.values().all(|seen| seen.finished.is_some()));
    }
}

/// Twelve sequences of a step that takes as long for all of them: they end up in one micro-batch, and nobody stands still on the way.
#[test]
fn whoever_moves_to_other_micro_batches_has_a_row_every_second_round() {
    let config = PlannerConfig {
        pages_per_device: 4096,
        page_tokens: 16,
        max_positions: 4096,
        sequences: 12,
        sequences_per_device: 12,
        rows_per_device: 24,
        rows_per_micro_batch: 24,
        ..small()
    };
    let mut world = World::new(config, u64::MAX);
    world.step_s = (0.01, 0.0);
    world.planner.keep_tpot(0.05);
    (0..12).for_each(|id| world.submit(id, 3, 2000));
    let mut seen = [0; 4];
    // Before anything is tried again.
    for _ in 0..600 {
        world.steps(1);
        seen[world.planner.micro_batches_in_use()] += 1;
    }
    assert!(seen[2] > 0 && world.planner.micro_batches_in_use() == 1, "{seen:?}");
    let rows = world.batches.iter().map(|batches| batches[0].rows).collect::<Vec<_>>();
    assert_eq!(rows, [12, 0, 0]);
    assert!(world.longest_silence < 2 * 3, "{} plan calls without a row", world.longest_silence);
}

/// Steps at which a device loses what it has, and whether it stays away for a while.
fn losses() -> impl Strategy<Value = Vec<(usize, usize, bool)>> {
    prop::collection::vec((0usize..80, 0usize..4, any::<bool>()), 1..6)
}

proptest! {
    #![proptest_config(cases(1024))]

    /// Whatever devices lose, and whoever is away: everyone is answered with the same tokens, and nobody runs where nothing is.
    #[test]
    fn devices_that_lose_what_they_have_only_cost_time(
        config in configs(), stop_at in 2u64..40, arrivals in arrivals(), losses in losses(),
    ) {
        let mut world = World::new(config, stop_at);
        let (all_pages, mut away) = (world.planner.free_pages(), vec![false; config.devices]);
        let mut step = 0;
        while step < 200 || !world.planner.is_idle() {
            prop_assert!(step < 100_000, "someone is never answered: {:?}", world.seen);
            for (id, arrival) in arrivals.iter().enumerate().filter(|(_, arrival)| arrival.at == step) {
                world.submit(id as u64, arrival.prompt, arrival.most);
            }
            for (_, device, leaves) in losses.iter().filter(|(at, ..)| *at == step) {
                let device = device % config.devices;
                let others = (0..config.devices).any(|other| other != device && !away[other]);
                away[device] = *leaves && others;
                world.lose(device, away[device]);
            }
            if step == 150 {
                world.begin_epoch();
                (0..config.devices).for_each(|device| world.planner.has_device(device));
                away.fill(false);
            }
            world.step(step % config.micro_batches);
            for device in (0..config.devices).filter(|device| away[*device]) {
                prop_assert!(world.batches[step % config.micro_batches][device].rows == 0, "rows where nobody is");
            }
            step += 1;
        }
        prop_assert_eq!(world.planner.free_pages(), all_pages);
        prop_assert!(world.seen.values().all(|seen| seen.finished.is_some()));
    }
}

fn small() -> PlannerConfig {
    PlannerConfig {
        micro_batches: 3,
        devices: 1,
        sequences: 8,
        sequences_per_device: 8,
        rows_per_device: 8,
        rows_per_micro_batch: 8,
        prefill_chunk: 4,
        pages_per_device: 8,
        page_tokens: 4,
        max_positions: 100,
    }
}

#[test]
fn three_prompts_take_three_micro_batches() {
    let mut world = World::new(small(), 1000);
    (0..3).for_each(|id| world.submit(id, 3, 5));
    (0..3).for_each(|m| world.step(m));
    let members = |m: usize| world.batches[m][0].groups.iter().map(|group| group.sequence).collect::<Vec<_>>();
    assert_eq!([members(0), members(1), members(2)], [[0], [1], [2]]);
}

#[test]
fn a_prompt_that_is_taken_as_read_has_its_pages_and_reads_its_last_token() {
    for (pretended, reads) in [(0, 0), (5, 5), (8, 8), (9, 8), (1000, 8)] {
        let mut planner = StepPlanner::new(small());
        planner.pretend_read(pretended);
        planner.submit(request(0, 9, 4)).expect("it fits");
        let (mut batches, mut events) = (vec![DeviceBatch::default()], Vec::new());
        planner.plan(0, &mut batches, &mut events);
        let group = &batches[0].groups[0];
        // Chunks are of four rows, and nine tokens have three pages of four.
        assert_eq!((group.first_position, group.rows), (reads, 4.min(9 - reads)), "{pretended}");
        assert_eq!(group.pages.len(), 3, "{pretended}");
        assert_eq!(group.sample.is_some(), reads + group.rows == 9, "{pretended}");
    }
}

#[test]
fn what_can_never_run_is_refused_with_the_numbers() {
    let planner = StepPlanner::new(small());
    let refusal = |prompt, most| planner.accepts(&request(0, prompt, most)).expect_err("it cannot run");
    assert_eq!(refusal(0, 1), SubmitError::EmptyPrompt);
    assert_eq!(refusal(1, 0), SubmitError::NoTokens);
    assert_eq!(refusal(100, 1), SubmitError::TooLong { prompt: 100, max_positions: 100 });
    // 20 + 14 tokens, the last of which is never fed back, on 8 pages of 4.
    assert_eq!(refusal(20, 14), SubmitError::NeverFits { tokens: 33, capacity: 32 });
    assert_eq!(planner.accepts(&request(0, 20, 13)), Ok(()));
    // A sum that would not fit a number is no panic.
    assert!(matches!(refusal(20, usize::MAX), SubmitError::NeverFits { .. }));
}

/// Eight pages of 4: two sequences of 8 + 17 tokens need six each, and start with two.
fn two_that_outgrow_the_device() -> World {
    let mut world = World::new(small(), 1000);
    (0..2).for_each(|id| world.submit(id, 8, 17));
    world
}

#[test]
fn the_youngest_is_preempted_and_goes_on_where_it_was() {
    let mut world = two_that_outgrow_the_device();
    world.steps(1000);
    assert_eq!(world.planner.preemptions(), 1);
    assert_eq!((world.seen[&0].restarts, world.seen[&1].restarts), (0, 1));
    assert!(world.seen.values().all(|seen| seen.tokens == 17 && seen.finished == Some(FinishReason::Length)));
}

#[test]
fn a_preempted_sequence_overtakes_those_that_never_ran() {
    let mut world = two_that_outgrow_the_device();
    while world.planner.preemptions() == 0 {
        world.steps(1);
    }
    world.submit(2, 4, 1);
    while world.seen[&2].tokens == 0 {
        world.steps(1);
    }
    assert_eq!(world.seen[&1].restarts, 1, "the older one came first");
}

/// Waiting, reading its prompt, decoding, preempted: whoever is cancelled leaves at once, and nothing of it is left.
#[test]
fn a_sequence_is_cancelled_in_every_phase() {
    let phases: [fn(&World) -> bool; 4] = [
        |world| world.seen[&1].next_position == 0,
        |world| (1..8).contains(&world.seen[&1].next_position),
        |world| world.seen[&1].tokens > 2,
        |world| world.planner.preemptions() == 1 && world.planner.waiting() == 1,
    ];
    for (phase, reached) in phases.iter().enumerate() {
        let mut world = two_that_outgrow_the_device();
        while !reached(&world) {
            world.steps(1);
        }
        world.cancel(1);
        let tokens = world.seen[&1].tokens;
        world.steps(1000);
        assert!(world.planner.is_idle(), "phase {phase}");
        assert_eq!(world.seen[&1].finished, Some(FinishReason::Cancelled));
        assert_eq!((world.seen[&0].tokens, world.seen[&1].tokens), (17, tokens));
        assert_eq!(world.planner.free_pages(), 8);
    }
}

/// A device without room sends a sequence to one that has some.
#[test]
fn a_preempted_sequence_may_go_on_elsewhere() {
    let config = PlannerConfig { devices: 2, sequences_per_device: 4, rows_per_device: 4, ..small() };
    let mut world = World::new(config, 1000);
    // Devices 0, 1, 0: the third outgrows device 0, and device 1 is empty by then.
    [(0, 8, 20), (1, 8, 4), (2, 8, 17)].into_iter().for_each(|(id, prompt, most)| world.submit(id, prompt, most));
    world.steps(6);
    assert_eq!([0, 1, 2].map(|id| world.seen[&id].device), [0, 1, 0]);
    world.steps(1000);
    assert_eq!(world.seen[&2].restarts, 1);
    assert_eq!(world.seen[&2].device, 1);
    assert_eq!(world.seen[&2].tokens, 17);
}

/// Three long prompts arrive while one sequence decodes: it gets its row in every step, and they share the chunk.
#[test]
fn prompts_share_a_chunk_and_leave_decoding_its_pace() {
    let config = PlannerConfig { micro_batches: 1, pages_per_device: 100, prefill_chunk: 6, ..small() };
    let mut world = World::new(config, 1000);
    world.submit(0, 1, 60);
    world.step(0);
    (1..4).for_each(|id| world.submit(id, 40, 1));
    for step in 1..=20 {
        world.step(0);
        let groups = &world.batches[0][0].groups;
        let rows = |id| groups.iter().find(|group| group.sequence == id).map(|group| group.rows);
        assert_eq!([0, 1, 2, 3].map(rows), [Some(1), Some(2), Some(2), Some(2)], "step {step}");
    }
    world.step(0);
    assert_eq!(world.batches[0][0].rows, 1, "all three have ended together");
}

/// With more prompts than rows of prefill, each has its turn.
#[test]
fn no_prompt_starves() {
    let config = PlannerConfig { micro_batches: 1, pages_per_device: 100, prefill_chunk: 2, ..small() };
    let mut world = World::new(config, 1000);
    world.submit(0, 1, 60);
    world.step(0);
    (1..6).for_each(|id| world.submit(id, 20, 1));
    for round in 1..=4 {
        (0..5).for_each(|_| world.step(0));
        let read = |id: u64| world.seen[&id].next_position;
        assert_eq!([1, 2, 3, 4, 5].map(read), [2 * round; 5]);
    }
}

/// One prompt of one token a step, always: before newcomers were put behind those that read, the long prompt never got
/// on.
#[test]
fn a_stream_of_short_prompts_does_not_hold_a_long_one_up() {
    let config = PlannerConfig { micro_batches: 1, pages_per_device: 100, prefill_chunk: 1, ..small() };
    let mut world = World::new(config, 1000);
    world.submit(0, 1, 90);
    world.step(0);
    world.submit(1, 20, 1);
    for id in 2..80 {
        world.submit(id, 1, 1);
        world.step(0);
    }
    // Eight are there at once: it has at least every eighth row.
    assert!(world.seen[&1].next_position >= 78 / 8, "{:?}", world.seen[&1]);
}

/// Whoever asks at every step, for everyone: each leaves again and again, and gets its answer all the same.
#[test]
fn preempting_everyone_at_every_step_starves_nobody() {
    for devices in 1..4 {
        let config = PlannerConfig { devices, sequences_per_device: 4, rows_per_device: 4, ..small() };
        let mut world = World::new(config, 1000);
        (0..12).for_each(|id| world.submit(id, 4 + id as usize, 8));
        for _ in 0..20_000 {
            (0..12).for_each(|id| _ = world.preempt(id));
            world.steps(1);
        }
        assert!(world.planner.is_idle(), "{devices} devices: {:?}", world.seen);
        // Once while it reads its prompt at first, and once for each token but the last.
        assert!(world.seen.values().all(|seen| seen.tokens == 8 && (3..=8).contains(&seen.restarts)));
    }
}

#[test]
fn who_was_preempted_is_left_alone_until_its_next_token() {
    let mut world = World::new(PlannerConfig { micro_batches: 1, ..small() }, 1000);
    world.submit(0, 12, 3);
    assert!(!world.preempt(0), "it queues");
    world.steps(1);
    assert!(world.preempt(0), "it reads");
    assert!(world.preempt(0), "asked twice before it left: once");
    world.steps(1);
    assert_eq!(world.planner.preemptions(), 1);
    assert!(!world.preempt(0), "it reads again");
    while world.seen[&0].tokens == 0 {
        world.steps(1);
    }
    assert!(world.preempt(0), "it has got further");
    world.steps(20);
    assert_eq!((world.seen[&0].tokens, world.planner.preemptions()), (3, 2));
}

/// Two devices, a place on each: the oldest was preempted, and whoever has taken its place makes way.
#[test]
fn the_oldest_takes_a_place_from_the_youngest() {
    let config = PlannerConfig { devices: 2, sequences: 2, sequences_per_device: 1, ..small() };
    let mut world = World::new(config, 1000);
    [(0, 6, 20), (1, 6, 20), (2, 6, 20)].into_iter().for_each(|(id, prompt, most)| world.submit(id, prompt, most));
    world.steps(9);
    assert!(world.preempt(0));
    let before = (world.seen[&1].tokens, world.seen[&2].tokens);
    world.steps(9);
    assert!(world.seen[&0].restarts == 1 && world.seen[&0].next_position > 0, "it has a place again");
    assert!(world.seen[&1].tokens > before.0, "who is older than the youngest went on");
    world.steps(1000);
    assert!(world.planner.is_idle());
}

#[test]
fn an_id_is_taken_until_its_sequence_is_gone() {
    let mut planner = StepPlanner::new(PlannerConfig { micro_batches: 1, sequences: 1, ..small() });
    let (mut batches, mut events) = (vec![DeviceBatch::default()], Vec::new());
    let submit = |planner: &mut StepPlanner, id| planner.submit(request(id, 3, 5));
    assert_eq!((submit(&mut planner, 1), submit(&mut planner, 2)), (Ok(()), Ok(())));
    assert_eq!(submit(&mut planner, 2), Err(SubmitError::DuplicateId(2)), "queued");
    planner.cancel(2, &mut events);
    assert_eq!(submit(&mut planner, 2), Ok(()), "cancelled in the queue");
    planner.plan(0, &mut batches, &mut events);
    planner.preempt(1);
    planner.cancel(1, &mut events);
    assert_eq!(submit(&mut planner, 1), Err(SubmitError::DuplicateId(1)), "its rows are in flight");
    planner.plan(0, &mut batches, &mut events);
    assert_eq!(submit(&mut planner, 1), Ok(()), "gone");
}

/// A list of four billion pages took 16 GB and 20 s.
#[test]
fn pages_cost_nothing_before_they_are_used() {
    let (mut pages, mut first, mut second) = (PageAllocator::new(u32::MAX), Vec::new(), Vec::new());
    assert!(pages.take(2, &mut first) && pages.take(2, &mut second));
    assert_eq!((&first[..], &second[..], pages.free()), (&[0, 1][..], &[2, 3][..], u32::MAX as usize - 4));
    pages.give_back(&mut first);
    assert!(pages.take(3, &mut first), "those that came back, then others");
    assert_eq!(first, [0, 1, 4]);
    assert!(!pages.take(u32::MAX as usize, &mut second), "more than there are");
    assert_eq!((second, pages.free()), (vec![2, 3], u32::MAX as usize - 5));
}
