//! Crates depend on each other only as ARCHITECTURE.md says.

use std::collections::BTreeSet;
use std::process::Command;

/// What each crate may depend on, dev-dependencies aside.
const ALLOWED: [(&str, &[&str]); 16] = [
    ("rally-ffi", &[]),
    ("rally-kernels", &[]),
    ("rally-cuda", &[]),
    ("rally-graph", &[]),
    ("rally-load", &[]),
    ("rally-cost", &["rally-graph"]),
    ("rally-recommend", &["rally-cost", "rally-predict", "rally-schedule", "rally-graph", "rally-load"]),
    ("rally-schedule", &["rally-graph"]),
    ("rally-predict", &["rally-schedule", "rally-graph", "rally-load", "rally-cost"]),
    ("rally-metrics", &[]),
    ("rally-transport", &["rally-ffi"]),
    ("rally-engine", &["rally-schedule", "rally-graph", "rally-kernels", "rally-metrics", "rally-transport"]),
    ("rally-trace", &["rally-schedule", "rally-graph"]),
    ("rally-serve", &["rally-engine", "rally-stages", "rally-metrics"]),
    ("rally-stages", &["rally-graph", "rally-engine", "rally-kernels", "rally-cuda", "rally-ffi"]),
    (
        "rally-cli",
        &[
            "rally-graph",
            "rally-schedule",
            "rally-load",
            "rally-cost",
            "rally-predict",
            "rally-recommend",
            "rally-engine",
            "rally-kernels",
            "rally-cuda",
            "rally-stages",
            "rally-metrics",
            "rally-serve",
            "rally-transport",
            "rally-trace",
            "rally-ffi",
        ],
    ),
];

/// The workspace's crates, as cargo sees them.
fn packages() -> Vec<serde_json::Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo can be run by a test that cargo runs");
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    metadata["packages"].as_array().expect("a list of packages").clone()
}

#[test]
fn crates_depend_as_written() {
    let packages = packages();
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

/// The façade lets anyone make a metric of any name; a crate that does not depend on it cannot.
#[test]
fn metrics_are_made_in_one_crate() {
    let packages = packages();
    let depends = |package: &serde_json::Value, on: &str| {
        package["dependencies"].as_array().is_some_and(|all| all.iter().any(|dependency| dependency["name"] == on))
    };
    for facade in ["metrics", "metrics-exporter-prometheus"] {
        let users: Vec<&str> = packages
            .iter()
            .filter(|package| depends(package, facade))
            .filter_map(|package| package["name"].as_str())
            .collect();
        assert_eq!(users, ["rally-metrics"], "{facade}");
    }
}

/// Every package with each set of features that it is built with, where dependencies of these kinds count.
fn features(kinds: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--workspace", "--offline", "--edges", kinds, "--prefix", "none", "--format", "{p}: {f}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo can be run by a test that cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("cargo prints text");
    text.lines().map(|line| line.trim_end_matches(" (*)").to_owned()).collect()
}

/// What is run is what was tested, and nothing is built twice: tests' own dependencies turn no feature on below the others.
#[test]
fn tests_change_no_feature() {
    let (run, tested) = (features("normal,build"), features("normal,build,dev"));
    assert!(run.len() > 200, "{run:#?}");
    let others: Vec<&String> = run.difference(&tested).collect();
    assert!(others.is_empty(), "built otherwise for `cargo run` than for `cargo test`: {others:#?}");
}
