//! A machine that gives no more threads: the lane that got none is named, those that started before it are gone, nothing hangs.

#![cfg(target_os = "linux")]

use std::process::Command;

/// Runs a graph of five lanes with stacks so large that only some of them fit into `kib` of address space.
fn run(kib: u64) -> (Option<i32>, String) {
    let rally = env!("CARGO_BIN_EXE_rally");
    let shell = format!("ulimit -v {kib}; exec timeout 20 {rally} run graphs/3a2f.json --prompt Once --max-tokens 4");
    let mut command = Command::new("sh");
    command.args(["-c", &shell]).current_dir(env!("CARGO_MANIFEST_DIR")).env("RUST_MIN_STACK", "900000000");
    let output = command.output().expect("a shell is there");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_lane_without_a_thread_is_named() {
    let mut lanes = Vec::new();
    for kib in [2_500_000, 3_400_000] {
        let (code, stderr) = run(kib);
        let lane = stderr.trim().strip_prefix("error: no thread for lane `").and_then(|rest| rest.split('`').next());
        assert!(code == Some(1) && lane.is_some(), "{kib} KiB: {code:?}, {stderr}");
        lanes.extend(lane.map(str::to_owned));
    }
    // One of them, at least, comes after others that run already.
    assert!(lanes.iter().any(|lane| lane != "attn.0"), "{lanes:?}");
}
