//! The table: an edit of a good graph, and every diagnostic that must follow, in order.

use super::common::{ONE_DEVICE, STEP3, TINY};
use super::{Case, case};

const ATTENTION: &str = r#"{ "kind": "mfa_attention", "on": "attn", "kv_dtype": "bf16" },"#;
const ROUTER: &str = r#"{ "kind": "router",        "on": "attn", "on_layers": "moe" },"#;
const A2F: &str = r#"{ "kind": "transfer", "id": "a2f", "from": "attn", "to": "ffn", "dtype": "fp8_e4m3" },"#;
const EXPERTS: &str = r#"{ "kind": "expert_ffn",    "on": "ffn",  "on_layers": "moe" },"#;
const DENSE: &str = r#"{ "kind": "dense_ffn",     "on": "ffn",  "on_layers": "dense" },"#;
const F2A: &str = r#"{ "kind": "transfer", "id": "f2a", "from": "ffn", "to": "attn", "dtype": "bf16" },"#;
const COMBINE: &str = r#"{ "kind": "combine",       "on": "attn" }"#;
const EMBED: &str = r#"{ "kind": "embed", "on": "attn" },"#;
const SAMPLING: &str = r#"{ "kind": "sampling", "on": "attn" }"#;
const SCHEDULE: &str = r#"{ "policy": "ping_pong", "micro_batches": 3 }"#;
const EXPERT_SHARD: &str = r#""shard": { "experts": 2, "tensor": 8 }"#;

pub(super) const CASES: &[Case] = &[
    // Form.
    case("a comma too many", TINY, &[("\"version\": 1,", "\"version\": 1,,")], &[("syntax", "", 3)]),
    case("a trailing comma", TINY, &[("\"tpot_ms\": 50", "\"tpot_ms\": 50,")], &[("syntax", "", 26)]),
    case("a missing comma", TINY, &[("\"version\": 1,", "\"version\": 1")], &[("syntax", "", 3)]),
    case("a comment", TINY, &[("\"version\": 1,", "\"version\": 1, // first")], &[("syntax", "", 3)]),
    case("single quotes", TINY, &[("\"name\"", "'name'")], &[("syntax", "", 4)]),
    case("a bare word", TINY, &[("\"f32\"", "f32")], &[("syntax", "", 6)]),
    case("NaN", TINY, &[("\"tpot_ms\": 50", "\"tpot_ms\": NaN")], &[("syntax", "", 26)]),
    case("a leading zero", TINY, &[("\"sequences\": 64", "\"sequences\": 064")], &[("syntax", "", 24)]),
    case(
        "a brace that never ends",
        TINY,
        &[("\"slo\": { \"tpot_ms\": 50 }\n}", "\"slo\": { \"tpot_ms\": 50 }")],
        &[("syntax", "", 1)],
    ),
    case(
        "two values",
        TINY,
        &[("\"slo\": { \"tpot_ms\": 50 }\n}", "\"slo\": { \"tpot_ms\": 50 }\n}\n{}")],
        &[("syntax", "", 28)],
    ),
    case(
        "a key twice",
        TINY,
        &[("\"version\": 1,", "\"version\": 1, \"version\": 1,")],
        &[("duplicate-key", "/version", 3)],
    ),
    // Types, words, ranges.
    case("wrong version", TINY, &[("\"version\": 1", "\"version\": 2")], &[("wrong-version", "/version", 3)]),
    case("an unknown key at the top", TINY, &[("\"slo\"", "\"sla\"")], &[("unknown-key", "/sla", 26)]),
    case(
        "an unknown key that names a required one",
        TINY,
        &[("\"limits\"", "\"limit\"")],
        &[("unknown-key", "/limit", 24)],
    ),
    case(
        "an unknown key of a stage",
        TINY,
        &[("\"kv_dtype\"", "\"kv_type\"")],
        &[("unknown-key", "/stages/1/layers/0/kv_type", 14)],
    ),
    case(
        "a key of another kind",
        TINY,
        &[(EMBED, r#"{ "kind": "embed", "on": "attn", "dtype": "bf16" },"#)],
        &[("unknown-key", "/stages/0/dtype", 12)],
    ),
    case("a missing key", TINY, &[(", \"page_tokens\": 64", "")], &[("missing-key", "/limits", 24)]),
    case(
        "a stage without devices",
        TINY,
        &[(SAMPLING, r#"{ "kind": "sampling" }"#)],
        &[("missing-key", "/stages/2", 22)],
    ),
    case(
        "a stage without a kind",
        TINY,
        &[(SAMPLING, r#"{ "kin": "sampling", "on": "attn" }"#)],
        &[("missing-key", "/stages/2", 22)],
    ),
    case(
        "an unknown kind",
        TINY,
        &[("\"expert_ffn\"", "\"expert_fnn\"")],
        &[("unknown-kind", "/stages/1/layers/3/kind", 17)],
    ),
    case(
        "an unknown kind far from all",
        TINY,
        &[("\"combine\"", "\"zzz\"")],
        &[("unknown-kind", "/stages/1/layers/6/kind", 20)],
    ),
    case("an unknown word", TINY, &[("\"fp8_e4m3\"", "\"fp8\"")], &[("unknown-word", "/stages/1/layers/2/dtype", 16)]),
    case("an unknown policy", TINY, &[("\"ping_pong\"", "\"pingpong\"")], &[("unknown-word", "/schedule/policy", 25)]),
    case("an unknown backend", TINY, &[("\"cpu\"", "\"gpu\"")], &[("unknown-word", "/devices/attn/backend", 8)]),
    case(
        "null for an optional key",
        TINY,
        &[("\"cores\": [0]", "\"cores\": null")],
        &[("wrong-type", "/devices/attn/cores", 8)],
    ),
    case(
        "a number in quotes",
        TINY,
        &[("\"sequences\": 64", "\"sequences\": \"64\"")],
        &[("wrong-type", "/limits/sequences", 24)],
    ),
    case(
        "zero micro-batches",
        TINY,
        &[("\"micro_batches\": 3", "\"micro_batches\": 0")],
        &[("out-of-range", "/schedule/micro_batches", 25)],
    ),
    case(
        "a negative number",
        TINY,
        &[("\"sequences\": 64", "\"sequences\": -64")],
        &[("out-of-range", "/limits/sequences", 24)],
    ),
    case(
        "a fraction",
        TINY,
        &[("\"prefill_chunk\": 32", "\"prefill_chunk\": 32.5")],
        &[("not-an-integer", "/limits/prefill_chunk", 24)],
    ),
    case(
        "an exponent that overflows",
        TINY,
        &[("\"tpot_ms\": 50", "\"tpot_ms\": 1e999")],
        &[("out-of-range", "/slo/tpot_ms", 26)],
    ),
    case(
        "an absurd number",
        TINY,
        &[("\"kv_tokens\": 65536", "\"kv_tokens\": 99999999999999999999999999")],
        &[("out-of-range", "/limits/kv_tokens", 24)],
    ),
    case("an empty list", TINY, &[("\"cores\": [0]", "\"cores\": []")], &[("empty-list", "/devices/attn/cores", 8)]),
    case(
        "a list for an object",
        TINY,
        &[("\"schedule\": { \"policy\": \"ping_pong\", \"micro_batches\": 3 }", "\"schedule\": [3]")],
        &[("wrong-type", "/schedule", 25)],
    ),
    case(
        "a layers block in the layers",
        TINY,
        &[(COMBINE, r#"{ "layers": [] }"#)],
        &[("nested-layers", "/stages/1/layers/6/layers", 20)],
    ),
    case(
        "an attention outside the layers",
        TINY,
        &[(SAMPLING, r#"{ "kind": "mfa_attention", "on": "attn" }"#)],
        &[("misplaced-stage", "/stages/2/kind", 22)],
    ),
    // Structure.
    case("no embedding", TINY, &[(EMBED, "")], &[("missing-stage", "/stages", 11)]),
    case(
        "no sampling",
        TINY,
        &[("]},\n    { \"kind\": \"sampling\", \"on\": \"attn\" }", "]}")],
        &[("missing-stage", "/stages", 11)],
    ),
    case(
        "an embedding after the layers",
        TINY,
        &[(SAMPLING, r#"{ "kind": "sampling", "on": "attn" }, { "kind": "embed", "id": "e2", "on": "attn" }"#)],
        &[
            ("sampling-not-last", "/stages/2/kind", 22),
            ("misplaced-stage", "/stages/3/kind", 22),
            ("duplicate-stage", "/stages/3/kind", 22),
        ],
    ),
    case(
        "two layers blocks",
        TINY,
        &[("]},\n", "]}, { \"layers\": [ { \"kind\": \"combine\", \"id\": \"c2\", \"on\": \"attn\" } ] },\n")],
        &[("two-layers-blocks", "/stages/2/layers", 21)],
    ),
    // Names.
    case("a duplicate id", TINY, &[("\"f2a\"", "\"a2f\"")], &[("duplicate-id", "/stages/1/layers/5/id", 19)]),
    case(
        "a kind twice without ids",
        TINY,
        &[(COMBINE, r#"{ "kind": "combine", "on": "attn" }, { "kind": "combine", "on": "attn" }"#)],
        &[("duplicate-id", "/stages/1/layers/7/kind", 20)],
    ),
    case(
        "an unknown device",
        TINY,
        &[("\"to\": \"ffn\"", "\"to\": \"fnn\"")],
        &[("unknown-device", "/stages/1/layers/2/to", 16)],
    ),
    case(
        "an index that a group lacks",
        STEP3,
        &[(r#"{ "kind": "embed", "on": ["a0", "a1"] }"#, r#"{ "kind": "embed", "on": ["a0", "a1.8"] }"#)],
        &[("unknown-device", "/stages/0/on/1", 20)],
    ),
    case(
        "a device twice",
        STEP3,
        &[(r#"{ "kind": "embed", "on": ["a0", "a1"] }"#, r#"{ "kind": "embed", "on": ["a0", "a1", "a1.3"] }"#)],
        &[("duplicate-device", "/stages/0/on/2", 20)],
    ),
    case(
        "a bad device name",
        ONE_DEVICE,
        &[("\"cpu\": { \"backend\"", "\"c p u\": { \"backend\": \"cpu\" }, \"cpu\": { \"backend\"")],
        &[("bad-name", "/devices/c p u", 8), ("unused-device", "/devices/c p u", 8)],
    ),
    case(
        "a bad selector",
        TINY,
        &[("\"on_layers\": \"dense\"", "\"on_layers\": \"dens\"")],
        &[("bad-on-layers", "/stages/1/layers/4/on_layers", 18)],
    ),
    case(
        "a range that descends",
        TINY,
        &[("\"on_layers\": \"dense\"", "\"on_layers\": [\"dense\", \"9..4\"]")],
        &[("bad-on-layers", "/stages/1/layers/4/on_layers/1", 18)],
    ),
    case(
        "an unknown stage in after",
        TINY,
        &[(COMBINE, r#"{ "kind": "combine", "on": "attn", "after": ["f2b"] }"#)],
        &[("unknown-stage", "/stages/1/layers/6/after/0", 20)],
    ),
    case(
        "after a stage outside",
        TINY,
        &[(COMBINE, r#"{ "kind": "combine", "on": "attn", "after": ["embed"] }"#)],
        &[("unknown-stage", "/stages/1/layers/6/after/0", 20)],
    ),
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
    // Shards.
    case(
        "a product that differs",
        STEP3,
        &[(EXPERT_SHARD, r#""shard": { "experts": 2, "tensor": 4 }"#)],
        &[("shard-product", "/stages/1/layers/3/shard", 25)],
    ),
    case(
        "no shards on sixteen devices",
        STEP3,
        &[(",   \"shard\": { \"experts\": 2, \"tensor\": 8 }", "")],
        &[("shard-product", "/stages/1/layers/3/on", 25)],
    ),
    case(
        "fp8 tiles cut",
        STEP3,
        &[(EXPERT_SHARD, r#""shard": { "tensor": 16 }"#)],
        &[
            ("shard-across-groups", "/stages/1/layers/3/shard/tensor", 25),
            ("fp8-cut", "/stages/1/layers/3/shard/tensor", 25),
        ],
    ),
    case(
        "an empty shard of experts",
        STEP3,
        &[
            ("\"f0\": { \"backend\": \"cuda\", \"count\": 8", "\"f0\": { \"backend\": \"cuda\", \"count\": 64"),
            ("\"f1\": { \"backend\": \"cuda\", \"count\": 8", "\"f1\": { \"backend\": \"cuda\", \"count\": 64"),
            (EXPERT_SHARD, r#""shard": { "experts": 64, "replicas": 2 }"#),
            (r#""shard": { "tensor": 8, "replicas": 2 }"#, r#""shard": { "tensor": 8, "replicas": 16 }"#),
            ("\"rail\"", "\"broadcast\""),
            ("\"rail\"", "\"broadcast\""),
        ],
        &[("empty-shard", "/stages/1/layers/3/shard/experts", 25)],
    ),
    case(
        "an o_proj shard that does not divide a group",
        STEP3,
        &[("\"o_proj\": 8", "\"o_proj\": 3")],
        &[("shard-product", "/stages/1/layers/0/shard/o_proj", 22)],
    ),
    case(
        "a placement for more shards than there are",
        TINY,
        &[(
            EXPERTS,
            r#"{ "kind": "expert_ffn", "on": "ffn", "on_layers": "moe", "placement": [[0, 1, 2, 3], [4, 5, 6, 7]] },"#,
        )],
        &[("placement-shards", "/stages/1/layers/3/placement", 17)],
    ),
    case(
        "an expert that the model does not have",
        TINY,
        &[(
            EXPERTS,
            r#"{ "kind": "expert_ffn", "on": "ffn", "on_layers": "moe", "placement": [[0, 1, 2, 3, 4, 5, 6, 7, 8]] },"#,
        )],
        &[("unknown-expert", "/stages/1/layers/3/placement/0/8", 17)],
    ),
    case(
        "an expert twice on a shard",
        TINY,
        &[(
            EXPERTS,
            r#"{ "kind": "expert_ffn", "on": "ffn", "on_layers": "moe", "placement": [[0, 1, 2, 3, 4, 5, 6, 7, 2]] },"#,
        )],
        &[("duplicate-expert", "/stages/1/layers/3/placement/0/8", 17)],
    ),
    case(
        "experts that no shard holds",
        TINY,
        &[(EXPERTS, r#"{ "kind": "expert_ffn", "on": "ffn", "on_layers": "moe", "placement": [[0, 1, 2, 5, 6]] },"#)],
        &[("missing-expert", "/stages/1/layers/3/placement", 17)],
    ),
    case(
        "a shard without experts",
        TINY,
        &[(EXPERTS, r#"{ "kind": "expert_ffn", "on": "ffn", "on_layers": "moe", "placement": [[]] },"#)],
        &[("empty-list", "/stages/1/layers/3/placement/0", 17)],
    ),
    case(
        "an expert id that is no number",
        TINY,
        &[(EXPERTS, r#"{ "kind": "expert_ffn", "on": "ffn", "on_layers": "moe", "placement": [["0"]] },"#)],
        &[("wrong-type", "/stages/1/layers/3/placement/0/0", 17)],
    ),
    case(
        "a placement that is no list",
        TINY,
        &[(EXPERTS, r#"{ "kind": "expert_ffn", "on": "ffn", "on_layers": "moe", "placement": 4 },"#)],
        &[("wrong-type", "/stages/1/layers/3/placement", 17)],
    ),
    case(
        "a placement by layer with gaps and an overlap",
        TINY,
        &[(
            EXPERTS,
            r#"{ "kind": "expert_ffn", "on": "ffn", "on_layers": "moe", "placement": { "1..2": [[0, 1, 2, 3, 4, 5, 6, 7]], "2": [[0, 1, 2, 3, 4, 5, 6, 7]] } },"#,
        )],
        &[
            ("placement-gap", "/stages/1/layers/3/placement", 17),
            ("placement-overlap", "/stages/1/layers/3/placement/2", 17),
        ],
    ),
    case(
        "a placement for layers that cannot be selected",
        TINY,
        &[(
            EXPERTS,
            r#"{ "kind": "expert_ffn", "on": "ffn", "on_layers": "moe", "placement": { "2..1": [[0, 1, 2, 3, 4, 5, 6, 7]], "moe": [[0, 1, 2, 3, 4, 5, 6, 7]] } },"#,
        )],
        &[("bad-on-layers", "/stages/1/layers/3/placement/2..1", 17)],
    ),
    case(
        "a placement of a dense FFN",
        TINY,
        &[(DENSE, r#"{ "kind": "dense_ffn", "on": "ffn", "on_layers": "dense", "placement": [[0]] },"#)],
        &[("unknown-key", "/stages/1/layers/4/placement", 18)],
    ),
    case(
        "an expert shard of a dense FFN",
        STEP3,
        &[(r#""shard": { "tensor": 8, "replicas": 2 }"#, r#""shard": { "tensor": 8, "experts": 2 }"#)],
        &[("unknown-key", "/stages/1/layers/4/shard/experts", 26)],
    ),
    // Devices.
    case(
        "a device that nobody uses",
        TINY,
        &[("\"ffn\":  {", "\"spare\": { \"backend\": \"cpu\" }, \"ffn\":  {")],
        &[("unused-device", "/devices/spare", 9)],
    ),
    case(
        "a core that the machine lacks",
        TINY,
        &[("\"cores\": [1]", "\"cores\": [64]")],
        &[("core-missing", "/devices/ffn/cores/0", 9)],
    ),
    case(
        "a core of two devices",
        TINY,
        &[("\"cores\": [1]", "\"cores\": [0]")],
        &[("core-shared", "/devices/ffn/cores/0", 9)],
    ),
    case(
        "cores on a GPU",
        TINY,
        &[("\"backend\": \"cpu\", \"cores\": [1]", "\"backend\": \"cuda\", \"cores\": [1]")],
        &[("key-not-for-backend", "/devices/ffn/cores", 9)],
    ),
    case(
        "a precision that the CPU does not compute in",
        TINY,
        &[("\"compute\": \"f32\"", "\"compute\": \"bf16\"")],
        &[("compute-not-on-cpu", "/compute", 6)],
    ),
    case(
        "unknown hardware",
        STEP3,
        &[("\"hardware\": \"h800\"", "\"hardware\": \"h8000\"")],
        &[("unknown-hardware", "/devices/a0/hardware", 14)],
    ),
    case(
        "an unknown host",
        STEP3,
        &[("\"host\": \"ffn-0\"", "\"host\": \"fnn-0\"")],
        &[("unknown-host", "/devices/f0/host", 16)],
    ),
    case(
        "a device without a host",
        STEP3,
        &[("\"count\": 8, \"host\": \"attention-0\"", "\"count\": 8")],
        &[("missing-host", "/devices/a0", 14)],
    ),
    case(
        "a bad address",
        STEP3,
        &[("\"10.0.0.1:7000\"", "\"10.0.0.1\"")],
        &[("bad-address", "/hosts/attention-0/address", 8)],
    ),
    case(
        "no transport between hosts",
        STEP3,
        &[(", \"transport\": \"nixl\"", "")],
        &[("missing-transport", "/stages/1/layers/2", 24)],
    ),
    case(
        "a local transport between hosts",
        STEP3,
        &[("\"transport\": \"nixl\"", "\"transport\": \"local\"")],
        &[("transport-not-across-hosts", "/stages/1/layers/2/transport", 24)],
    ),
    case(
        "rails between unequal groups",
        STEP3,
        &[
            ("\"f1\": { \"backend\": \"cuda\", \"count\": 8", "\"f1\": { \"backend\": \"cuda\", \"count\": 4"),
            (EXPERT_SHARD, r#""shard": { "experts": 3, "tensor": 4 }"#),
            (r#""shard": { "tensor": 8, "replicas": 2 }"#, r#""shard": { "tensor": 4, "replicas": 3 }"#),
        ],
        &[("rail-sizes", "/stages/1/layers/2/routing", 24), ("rail-sizes", "/stages/1/layers/5/routing", 27)],
    ),
    case(
        "rails without a fabric",
        STEP3,
        &[("\"host\": \"ffn-0\",       \"fabric\": \"nvlink\"", "\"host\": \"ffn-0\"")],
        &[
            ("rail-without-fabric", "/stages/1/layers/2/routing", 24),
            ("rail-without-fabric", "/stages/1/layers/5/routing", 27),
        ],
    ),
    case("too many devices", STEP3, &[("\"count\": 8", "\"count\": 4096")], &[("too-many-devices", "/devices", 13)]),
    // Limits and schedule.
    case(
        "fewer rows than sequences",
        TINY,
        &[("\"rows_per_micro_batch\": 64, \"prefill_chunk\": 32", "\"rows_per_micro_batch\": 8, \"prefill_chunk\": 8")],
        &[("too-few-rows", "/limits/rows_per_micro_batch", 24)],
    ),
    case(
        "a chunk longer than a micro-batch",
        TINY,
        &[("\"prefill_chunk\": 32", "\"prefill_chunk\": 65")],
        &[("chunk-too-long", "/limits/prefill_chunk", 24)],
    ),
    case(
        "less KV than a page",
        TINY,
        &[("\"kv_tokens\": 65536", "\"kv_tokens\": 63")],
        &[("kv-below-page", "/limits/kv_tokens", 24)],
    ),
    case(
        "less KV than a page on each of sixteen devices",
        STEP3,
        &[("\"kv_tokens\": 25165824", "\"kv_tokens\": 1023")],
        &[("kv-below-page", "/limits/kv_tokens", 32)],
    ),
    case(
        "more sequences than pages",
        TINY,
        &[("\"kv_tokens\": 65536", "\"kv_tokens\": 640")],
        &[("few-kv-pages", "/limits/kv_tokens", 24)],
    ),
    case(
        "more micro-batches than sequences",
        TINY,
        &[("\"sequences\": 64", "\"sequences\": 2")],
        &[("empty-micro-batches", "/schedule/micro_batches", 25)],
    ),
    case(
        "ping-pong with one micro-batch",
        TINY,
        &[("\"micro_batches\": 3", "\"micro_batches\": 1")],
        &[("nothing-overlaps", "/schedule/micro_batches", 25)],
    ),
    case(
        "custom without an order",
        TINY,
        &[("\"ping_pong\"", "\"custom\"")],
        &[("missing-order", "/schedule/policy", 25)],
    ),
    case(
        "an order without custom",
        TINY,
        &[(SCHEDULE, r#"{ "policy": "ping_pong", "micro_batches": 3, "order": { "attn": [] } }"#)],
        &[("order-without-custom", "/schedule/order", 25)],
    ),
    case(
        "an order with faults",
        TINY,
        &[(
            SCHEDULE,
            r#"{ "policy": "custom", "micro_batches": 2, "order": {
      "atn": [],
      "attn": ["mfa_attention:0", "router:0", "combine", "combine:0", "mfa_attention:1", "router:1", "combine:2", "combine:0"],
      "ffn": ["expert_ffn:0", "expert_ffn:1", "dense_ffn:0", "dense_ffn:1", "moe:0"]
    } }"#,
        )],
        &[
            ("unknown-device", "/schedule/order/atn", 26),
            ("incomplete-order", "/schedule/order/attn", 27),
            ("bad-turn", "/schedule/order/attn/2", 27),
            ("out-of-range", "/schedule/order/attn/6", 27),
            ("duplicate-turn", "/schedule/order/attn/7", 27),
            ("unknown-stage", "/schedule/order/ffn/4", 28),
        ],
    ),
    case(
        "an order that deadlocks",
        TINY,
        &[(
            SCHEDULE,
            r#"{ "policy": "custom", "micro_batches": 2, "order": {
      "attn": ["mfa_attention:0", "router:0", "combine:0", "mfa_attention:1", "router:1", "combine:1"],
      "ffn": ["expert_ffn:1", "dense_ffn:1", "expert_ffn:0", "dense_ffn:0"]
    } }"#,
        )],
        &[("deadlocking-order", "/schedule/order/attn", 26)],
    ),
    case(
        "an order against the dataflow",
        TINY,
        &[(
            SCHEDULE,
            r#"{ "policy": "custom", "micro_batches": 1, "order": {
      "attn": ["combine:0", "router:0", "mfa_attention:0"],
      "ffn": ["expert_ffn:0", "dense_ffn:0"]
    } }"#,
        )],
        &[("impossible-order", "/schedule/order/attn/0", 26)],
    ),
    case("weights that are no rule", STEP3, &[("\"random:7\"", "\"random\"")], &[("bad-weights", "/model/weights", 5)]),
    // Memory.
    case(
        "weights above the capacity",
        TINY,
        &[("\"cores\": [1]", "\"cores\": [1], \"memory_bytes\": 1000000")],
        &[("over-capacity", "/devices/ffn/memory_bytes", 9)],
    ),
    case(
        "KV above the capacity",
        STEP3,
        &[("\"kv_tokens\": 25165824", "\"kv_tokens\": 100663296")],
        &[("over-capacity", "/devices/a0", 14), ("over-capacity", "/devices/a1", 15)],
    ),
    case(
        "KV above the machine",
        TINY,
        &[("\"kv_tokens\": 65536", "\"kv_tokens\": 65536000")],
        &[("over-capacity", "/devices/attn", 8)],
    ),
    // Several at once.
    case(
        "many faults at once",
        TINY,
        &[
            ("\"version\": 1", "\"version\": 3"),
            ("\"mfa_attention\"", "\"mla_attention\""),
            ("\"to\": \"ffn\"", "\"too\": \"ffn\""),
            ("\"sequences\": 64", "\"sequences\": 0"),
            ("\"ping_pong\"", "\"pong\""),
            ("\"tpot_ms\": 50", "\"tpot_ms\": -1"),
        ],
        &[
            ("wrong-version", "/version", 3),
            ("unknown-kind", "/stages/1/layers/0/kind", 14),
            ("unknown-key", "/stages/1/layers/2/too", 16),
            ("out-of-range", "/limits/sequences", 24),
            ("unknown-word", "/schedule/policy", 25),
            ("out-of-range", "/slo/tpot_ms", 26),
        ],
    ),
    case(
        "faults of form and of names at once",
        TINY,
        &[
            ("\"kv_dtype\"", "\"kv_type\""),
            ("\"to\": \"ffn\"", "\"to\": \"fnn\""),
            ("\"cores\": [1]", "\"cores\": [0]"),
            ("\"on_layers\": \"dense\"", "\"on_layers\": \"dens\""),
            ("\"micro_batches\": 3", "\"micro_batches\": 0"),
        ],
        &[
            ("core-shared", "/devices/ffn/cores/0", 9),
            ("unknown-key", "/stages/1/layers/0/kv_type", 14),
            ("unknown-device", "/stages/1/layers/2/to", 16),
            ("bad-on-layers", "/stages/1/layers/4/on_layers", 18),
            ("out-of-range", "/schedule/micro_batches", 25),
        ],
    ),
    case(
        "a number out of range and a missing transfer at once",
        TINY,
        &[("\"tpot_ms\": 50", "\"tpot_ms\": 0"), (A2F, "")],
        &[
            ("missing-transfer", "/stages/1/layers/2/on", 17),
            ("missing-transfer", "/stages/1/layers/3/on", 18),
            ("out-of-range", "/slo/tpot_ms", 26),
        ],
    ),
    case(
        "a shard of the wrong type and no combine",
        STEP3,
        &[
            ("\"o_proj\": 8", "\"o_proj\": \"8\""),
            (
                r#",
      { "kind": "combine",       "on": ["a0", "a1"] }"#,
                "",
            ),
        ],
        &[("layer-without-combine", "/stages/1/layers", 21), ("wrong-type", "/stages/1/layers/0/shard/o_proj", 22)],
    ),
    case("a stage that is no object", TINY, &[(SAMPLING, "\"sampling\"")], &[("wrong-type", "/stages/2", 22)]),
    case(
        "stages that are no list",
        TINY,
        &[("\"schedule\": {", "\"stages\": 3, \"schedule\": {"), ("\"stages\": [", "\"stage\": [")],
        &[("unknown-key", "/stage", 11), ("wrong-type", "/stages", 25)],
    ),
    case("a model that is a number", TINY, &[("\"../models/tiny-step3\"", "7")], &[("wrong-type", "/model", 5)]),
    case("a model without weights", STEP3, &[(", \"weights\": \"random:7\"", "")], &[("missing-key", "/model", 5)]),
    case(
        "a device that is a text",
        TINY,
        &[("{ \"backend\": \"cpu\", \"cores\": [1] }", "\"cpu\"")],
        &[("wrong-type", "/devices/ffn", 9)],
    ),
    case("an empty name", TINY, &[("\"name\": \"tiny-ping-pong\"", "\"name\": \"\"")], &[("empty-text", "/name", 4)]),
    case("a count of zero", STEP3, &[("\"count\": 8", "\"count\": 0")], &[("out-of-range", "/devices/a0/count", 14)]),
    case(
        "faults of five families at once",
        TINY,
        &[
            ("\"to\": \"ffn\"", "\"to\": \"attn\""),
            (DENSE, ""),
            ("\"cores\": [1]", "\"cores\": [0]"),
            ("\"kv_tokens\": 65536", "\"kv_tokens\": 1"),
            ("\"micro_batches\": 3", "\"micro_batches\": 1"),
        ],
        &[
            ("core-shared", "/devices/ffn/cores/0", 9),
            ("layer-without-ffn", "/stages/1/layers", 13),
            ("transfer-ends", "/stages/1/layers/2/to", 16),
            ("kv-below-page", "/limits/kv_tokens", 24),
            ("nothing-overlaps", "/schedule/micro_batches", 25),
        ],
    ),
];
