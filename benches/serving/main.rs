//! What serving costs and keeps: `cargo bench --bench serving -- cost`, `overload`, `soak`, or all of them.
//!
//! - `cost`: tokens a second of a run whose tokens leave through HTTP, against the same run whose events are only counted.
//! - `overload`: three times the load that a target allows, for a minute: what those that were let in got, and whether anyone starves.
//! - `soak`: 100,000 short requests at 256 connections: every answer whole, memory flat.
//!
//! `RALLY_PAIRS`, `RALLY_SECONDS` and `RALLY_REQUESTS` make them shorter, to try them: bars are for what they are without.
//!
//! Clients run on the same cores, so that what they take is counted against the server; `cost` says how much that was.

#[path = "../../tests/support/clients.rs"]
mod clients;
#[path = "../common/mod.rs"]
mod common;
mod cost;
mod overload;
mod rig;
#[path = "../../tests/support/soak.rs"]
mod soak;
mod soaking;

/// A size, or what an environment variable has in its place.
fn size(variable: &str, usual: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(usual).max(1)
}

fn main() {
    let parts: [(&str, fn()); 3] = [("cost", cost::run), ("overload", overload::run), ("soak", soaking::run)];
    // cargo adds `--bench`.
    let asked: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    if let Some(wrong) = asked.iter().find(|asked| parts.iter().all(|(name, _)| name != asked)) {
        eprintln!("no part `{wrong}`: there are cost, overload and soak");
        std::process::exit(2);
    }
    println!("on {}", common::cpu_model());
    parts
        .iter()
        .filter(|(name, _)| asked.is_empty() || asked.iter().any(|asked| asked == name))
        .for_each(|(_, run)| run());
}
