//! Crates depend on each other only as ARCHITECTURE.md says.

use std::collections::BTreeSet;
use std::process::Command;

/// What each crate may depend on, dev-dependencies aside.
const ALLOWED: [(&str, &[&str]); 8] = [
    ("rally-ffi", &[]),
    ("rally-kernels", &[]),
    ("rally-cuda", &[]),
    ("rally-graph", &[]),
    ("rally-schedule", &["rally-graph"]),
    ("rally-engine", &["rally-schedule", "rally-graph", "rally-kernels"]),
    ("rally-stages", &["rally-graph", "rally-engine", "rally-kernels", "rally-ffi"]),
    (
        "rally-cli",
        &["rally-graph", "rally-schedule", "rally-engine", "rally-kernels", "rally-cuda", "rally-stages", "rally-ffi"],
    ),
];

#[test]
fn crates_depend_as_written() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo can be run by a test that cargo runs");
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let packages = metadata["packages"].as_array().expect("a list of packages");
    for (name, allowed) in ALLOWED {
        let package =
            packages.iter().find(|package| package["name"] == name).unwrap_or_else(|| panic!("no crate {name}"));
        let dependencies = package["dependencies"].as_array().expect("a list of dependencies");
        let used: BTreeSet<&str> = dependencies
            .iter()
            .filter(|dependency| dependency["kind"].is_null())
            .filter_map(|dependency| dependency["name"].as_str())
            .filter(|dependency| dependency.starts_with("rally"))
            .collect();
        for dependency in used {
            assert!(allowed.contains(&dependency), "{name} must not depend on {dependency}");
        }
    }
}
