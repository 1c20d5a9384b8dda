//! Limits, schedules, memory, and several faults at once.

use super::*;

pub(super) const CASES: &[Case] = &[
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
