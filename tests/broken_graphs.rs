//! Every broken graph of the table in `runtime/graph/tests/broken`, through the real binary: exit code 2, every fault with its
//! pointer and line in the JSON, no panic.

#[path = "../runtime/graph/tests/broken/case.rs"]
mod case;
#[path = "../runtime/graph/tests/broken/cases/mod.rs"]
mod cases;

use case::{Case, case, edited};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// The graphs that the table edits.
mod common {
    pub const TINY: &str = include_str!("../graphs/tiny-ping-pong.json");
    pub const ONE_DEVICE: &str = include_str!("../graphs/one-device.json");
    pub const STEP3: &str = include_str!("../graphs/step3-2a2f.json");
}

/// The model that the table's tiny graphs are judged with: six layers, the first and the last dense.
fn tiny_model() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = serde_json::json!({
        "architectures": ["Step3TextForCausalLM"], "model_type": "step3_text", "torch_dtype": "bfloat16",
        "hidden_size": 256, "vocab_size": 512, "num_attention_heads": 4, "num_attention_groups": 1, "head_dim": 64,
        "share_q_dim": 128, "intermediate_size": 768, "moe_intermediate_size": 256, "share_expert_dim": 256,
        "moe_num_experts": 8, "moe_top_k": 2, "norm_expert_weight": false, "num_hidden_layers": 6,
        "moe_layers_enum": "1,2,3,4", "rms_norm_eps": 1e-5, "rope_theta": 500_000, "max_position_embedding": 4096,
    });
    std::fs::write(folder.path().join("config.json"), config.to_string()).expect("the temporary folder can be written");
    folder
}

/// What `check --format json` says of the edited graph, with the exit code.
fn check(case: &Case, tiny: &Path) -> (Option<i32>, Value, String) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("graph.json");
    std::fs::write(&path, edited(case)).expect("the temporary folder can be written");
    let model = if case.base == common::STEP3 { Path::new("models/step3") } else { tiny };
    let output = Command::new(env!("CARGO_BIN_EXE_rally"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .arg("check")
        .arg(&path)
        .args(["--format", "json", "--model"])
        .arg(model)
        .output()
        .expect("the binary starts");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let report =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{}: {error}: {stderr}", case.name));
    (output.status.code(), report, stderr)
}

#[test]
fn every_broken_graph_ends_with_exit_code_2_and_its_places() {
    let tiny = tiny_model();
    let mut refused = 0;
    for case in cases::cases() {
        let (code, report, stderr) = check(case, tiny.path());
        let found = report["diagnostics"].as_array().expect("a list of diagnostics");
        let errors = found.iter().any(|diagnostic| diagnostic["severity"] == "error");
        assert_eq!(code, Some(if errors { 2 } else { 0 }), "{}: {stderr}", case.name);
        assert_eq!(report["ok"], !errors, "{}", case.name);
        assert!(!stderr.contains("panicked"), "{}: {stderr}", case.name);
        refused += usize::from(errors);
        for (fault, pointer, line) in case.expect {
            let told = |d: &Value| d["code"] == *fault && d["pointer"] == *pointer && d["line"] == *line;
            assert!(found.iter().any(told), "{}: no {fault} at {pointer}, line {line} in {found:?}", case.name);
        }
    }
    assert!(refused >= 60, "only {refused} graphs are refused");
}
