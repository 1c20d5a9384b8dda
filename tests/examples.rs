//! The ladder of examples runs, each as a program of its own, as a reader would start it.

use std::path::PathBuf;
use std::process::Command;

/// Cargo builds examples together with the tests, next to this test's own folder.
fn example(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("a test knows its own path");
    let profile = own.parent().and_then(|deps| deps.parent()).expect("tests live in target/PROFILE/deps");
    profile.join("examples").join(name)
}

#[track_caller]
fn check(name: &str, expected: &str) {
    let output = Command::new(example(name)).output().unwrap_or_else(|error| panic!("{name}: {error}"));
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} failed: {stderr}");
    assert!(stdout.contains(expected), "{name} printed: {stdout}");
}

#[test]
fn one_stage() {
    check("1_one_stage", "row 1: experts");
}

#[test]
fn two_stages() {
    check("2_two_stages", "row 3: |y| =");
}

#[test]
fn ping_pong() {
    check("3_ping_pong", "lane ffn:");
}

#[test]
fn your_own_policy() {
    check("4_your_own_policy", "give the same");
}

#[test]
fn your_own_stage() {
    check("5_your_own_stage", "limit 0.05:");
}
