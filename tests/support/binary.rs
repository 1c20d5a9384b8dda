//! The real binary as a user starts it: in the repository, without colours, with nothing to read.
// Each test binary uses its own part of this module.
#![allow(dead_code)]

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Ready to be started with these arguments.
pub fn rally(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rally"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).env("NO_COLOR", "1").stdin(Stdio::null()).args(arguments);
    command
}

/// Run to its end.
pub fn run(arguments: &[&str]) -> Output {
    rally(arguments).output().expect("the binary starts")
}

/// Run to an end that must be a good one.
#[track_caller]
pub fn good(arguments: &[&str]) -> Output {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    output
}

/// Something wrong, what must be said about it, and nothing else: exit code 2, no panic, nothing on stdout.
#[track_caller]
pub fn refused(arguments: &[&str], said: &str) {
    let output = run(arguments);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
    assert!(stderr.contains(said), "{arguments:?} should say `{said}`, and says: {stderr}");
    assert!(!stderr.contains("panicked"), "{arguments:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{arguments:?} printed {}", text(&output.stdout));
}

/// Sends a process a signal, by its number and the signal's name: `-INT`.
#[track_caller]
pub fn signal(process: u32, name: &str) {
    let sent = Command::new("kill").args([name, &process.to_string()]).status();
    assert!(sent.expect("there is a `kill`").success());
}

/// What was printed.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A path as an argument.
pub fn path_text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are text")
}
