//! Layers and dataflow.

use super::*;

pub(super) const CASES: &[Case] = &[
    // Layers.
    case("a layer without FFN", TINY, &[(DENSE, "")], &[("layer-without-ffn", "/stages/1/layers", 13)]),
    case(
        "a layer outside every range",
        TINY,
        &[("\"ffn\",  \"on_layers\": \"dense\"", "\"ffn\",  \"on_layers\": \"0..2\"")],
        &[("layer-without-ffn", "/stages/1/layers", 13), ("layer-with-two-ffns", "/stages/1/layers/4/on_layers", 18)],
    ),
    case(
        "a layer with two FFNs",
        TINY,
        &[("\"ffn\",  \"on_layers\": \"dense\"", "\"ffn\",  \"on_layers\": \"all\"")],
        &[("layer-with-two-ffns", "/stages/1/layers/4/on_layers", 18)],
    ),
    case(
        "experts in dense layers",
        TINY,
        &[(DENSE, ""), ("\"ffn\",  \"on_layers\": \"moe\"", "\"ffn\",  \"on_layers\": \"all\"")],
        &[("wrong-layer-kind", "/stages/1/layers/3/on_layers", 17)],
    ),
    case(
        "a router in dense layers",
        TINY,
        &[(ROUTER, r#"{ "kind": "router", "on": "attn" },"#)],
        &[("wrong-layer-kind", "/stages/1/layers/1/kind", 15)],
    ),
    case("no attention", TINY, &[(ATTENTION, "")], &[("layer-without-attention", "/stages/1/layers", 13)]),
    case(
        "no combine",
        TINY,
        &[(F2A, r#"{ "kind": "transfer", "id": "f2a", "from": "ffn", "to": "attn", "dtype": "bf16" }"#), (COMBINE, "")],
        &[("layer-without-combine", "/stages/1/layers", 13)],
    ),
    case("no router", TINY, &[(ROUTER, "")], &[("missing-input", "/stages/1/layers/2/kind", 17)]),
    case(
        "a cycle",
        TINY,
        &[(ROUTER, r#"{ "kind": "router", "on": "attn", "on_layers": "moe", "after": ["combine"] },"#)],
        &[("cycle", "/stages/1/layers/1/after", 15)],
    ),
    case(
        "after itself",
        TINY,
        &[(COMBINE, r#"{ "kind": "combine", "on": "attn", "after": ["combine"] }"#)],
        &[("cycle", "/stages/1/layers/6/after", 20)],
    ),
    case(
        "after a stage of other layers",
        TINY,
        &[(F2A, r#"{ "kind": "transfer", "id": "f2a", "from": "ffn", "to": "attn", "after": ["expert_ffn"] },"#)],
        &[("after-not-in-layer", "/stages/1/layers/5/after/0", 19)],
    ),
    // Dataflow.
    case(
        "no transfer to the FFN",
        TINY,
        &[(A2F, "")],
        &[("missing-transfer", "/stages/1/layers/2/on", 17), ("missing-transfer", "/stages/1/layers/3/on", 18)],
    ),
    case("no transfer back", TINY, &[(F2A, "")], &[("missing-transfer", "/stages/1/layers/5/on", 20)]),
    case(
        "no transfer at all",
        TINY,
        &[(A2F, ""), (F2A, "")],
        &[
            ("missing-transfer", "/stages/1/layers/2/on", 17),
            ("missing-transfer", "/stages/1/layers/3/on", 18),
            ("missing-transfer", "/stages/1/layers/4/on", 20),
        ],
    ),
    case(
        "a transfer that starts elsewhere",
        TINY,
        &[("\"from\": \"attn\"", "\"from\": \"ffn\"")],
        &[("transfer-ends", "/stages/1/layers/2/from", 16)],
    ),
    case(
        "a transfer that ends elsewhere",
        TINY,
        &[("\"to\": \"ffn\"", "\"to\": \"attn\"")],
        &[("transfer-ends", "/stages/1/layers/2/to", 16)],
    ),
    case(
        "a transfer that also ends elsewhere",
        TINY,
        &[("\"to\": \"ffn\"", "\"to\": [\"ffn\", \"attn\"]")],
        &[("transfer-ends", "/stages/1/layers/2/to", 16)],
    ),
    case(
        "a transfer before the attention",
        TINY,
        &[
            (A2F, ""),
            (
                ATTENTION,
                r#"{ "kind": "transfer", "id": "a2f", "from": "attn", "to": "ffn" }, { "kind": "mfa_attention", "on": "attn" },"#,
            ),
        ],
        &[
            ("transfer-of-nothing", "/stages/1/layers/0/kind", 14),
            ("missing-transfer", "/stages/1/layers/3/on", 17),
            ("missing-transfer", "/stages/1/layers/4/on", 18),
        ],
    ),
    case(
        "a second transfer out",
        TINY,
        &[(
            COMBINE,
            r#"{ "kind": "combine", "on": "attn" }, { "kind": "transfer", "id": "x", "from": "attn", "to": "ffn" }"#,
        )],
        &[("transfer-of-nothing", "/stages/1/layers/7/kind", 20)],
    ),
    case(
        "a transfer that skips a group",
        STEP3,
        &[(r#""from": ["f0", "f1"], "to": ["a0", "a1"]"#, r#""from": "f0", "to": ["a0", "a1"]"#)],
        &[("transfer-ends", "/stages/1/layers/5/from", 27)],
    ),
    case(
        "a transfer that serves half",
        STEP3,
        &[(r#""from": ["a0", "a1"], "to": ["f0", "f1"]"#, r#""from": ["a0", "a1"], "to": "f0""#)],
        &[("transfer-ends", "/stages/1/layers/2/to", 24)],
    ),
    case(
        "an attention that leaves sequences behind",
        STEP3,
        &[(r#""mfa_attention", "on": ["a0", "a1"]"#, r#""mfa_attention", "on": "a0""#)],
        &[("residual-elsewhere", "/stages/1/layers/0/on", 22)],
    ),
    case(
        "a combine on the FFN",
        TINY,
        &[(COMBINE, r#"{ "kind": "combine", "on": "ffn" }"#)],
        &[("residual-elsewhere", "/stages/1/layers/6/on", 20)],
    ),
    case(
        "a sampling on the FFN",
        TINY,
        &[(SAMPLING, r#"{ "kind": "sampling", "on": "ffn" }"#)],
        &[("residual-elsewhere", "/stages/2/on", 22)],
    ),
    case(
        "a router after the transfer",
        TINY,
        &[
            (ROUTER, ""),
            (
                EXPERTS,
                r#"{ "kind": "router", "on": "attn", "on_layers": "moe" }, { "kind": "expert_ffn", "on": "ffn", "on_layers": "moe" },"#,
            ),
        ],
        &[("missing-transfer", "/stages/1/layers/3/on", 17)],
    ),
];
