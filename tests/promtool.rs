//! Prometheus' own judgement of a live scrape: `promtool check metrics`. Part of the second test command, since it needs
//! `promtool` (Debian: `apt-get install prometheus`).

#[path = "support/scrape.rs"]
mod scrape;

use scrape::Running;
use std::io::Write;
use std::process::{Command, Stdio};

/// What promtool says of a page: whether it passes, and its words.
fn promtool(page: &str) -> (bool, String) {
    let spawned = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = spawned.expect("promtool is installed (Debian: apt-get install prometheus)");
    child.stdin.take().expect("stdin is piped").write_all(page.as_bytes()).expect("promtool reads");
    let output = child.wait_with_output().expect("promtool ends");
    let words = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&words).into_owned())
}

#[test]
fn promtool_finds_nothing_wrong_with_a_live_scrape() {
    let page = Running::start().page_after(2_000.0);
    let (passes, words) = promtool(&page);
    assert!(passes && words.is_empty(), "{words}\n{page}");
}

#[test]
fn promtool_would_say_so() {
    let (passes, words) = promtool("# TYPE rally_wrong counter\nrally_wrong 1\n");
    assert!(!passes && words.contains("_total"), "{words}");
}
