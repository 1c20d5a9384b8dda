//! How many cases a property test draws, and from which seed: the same ones every time unless the environment says
//! otherwise.

use proptest::test_runner::{Config, RngSeed};

/// `count` cases, times `RALLY_CASES` where that is set, drawn from `RALLY_SEED` (0 where it is not).
pub fn cases(count: u32) -> Config {
    let number = |name: &str, default: u64| match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a whole number")),
        Err(_) => default,
    };
    let times = u32::try_from(number("RALLY_CASES", 1)).expect("RALLY_CASES fits 32 bits");
    let rng_seed = RngSeed::Fixed(number("RALLY_SEED", 0));
    Config { cases: count.saturating_mul(times), failure_persistence: None, rng_seed, ..Config::default() }
}
