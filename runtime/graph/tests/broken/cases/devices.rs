//! Shards, placements and devices.

use super::*;

pub(super) const CASES: &[Case] = &[
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
        "what CUDA devices do not run",
        TINY,
        &[
            (
                r#""ffn":  { "backend": "cpu", "cores": [1] }"#,
                r#""ffn": { "backend": "cuda" }, "more": { "backend": "cpu", "cores": [1] }"#,
            ),
            (
                EXPERTS,
                r#"{ "kind": "expert_ffn", "on": ["ffn", "more"], "on_layers": "moe", "shard": { "experts": 2 }, "placement": [[0, 1, 2, 3, 6], [4, 5, 6, 7]] },"#,
            ),
            (r#""to": "ffn""#, r#""to": ["ffn", "more"]"#),
            (r#""from": "ffn""#, r#""from": ["ffn", "more"]"#),
            (
                r#""kind": "dense_ffn",     "on": "ffn",  "on_layers": "dense" },"#,
                r#""kind": "dense_ffn", "on": ["ffn", "more"], "on_layers": "dense", "shard": { "replicas": 2 } },"#,
            ),
        ],
        &[("not-on-cuda", "/stages/1/layers/3/placement", 17)],
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
        "a share of a CPU",
        TINY,
        &[("\"cores\": [1]", "\"card\": 0, \"sms\": 48")],
        &[("key-not-for-backend", "/devices/ffn/card", 9), ("key-not-for-backend", "/devices/ffn/sms", 9)],
    ),
    case(
        "a share of nothing",
        TINY,
        &[("\"backend\": \"cpu\", \"cores\": [1]", "\"backend\": \"cuda\", \"sms\": 0")],
        &[("out-of-range", "/devices/ffn/sms", 9)],
    ),
    case(
        "a share of less than the least",
        TINY,
        &[("\"backend\": \"cpu\", \"cores\": [1]", "\"backend\": \"cuda\", \"sms\": 4")],
        &[("share-not-a-step", "/devices/ffn/sms", 9)],
    ),
    case(
        "a share of more than a card has",
        TINY,
        &[("\"backend\": \"cpu\", \"cores\": [1]", "\"backend\": \"cuda\", \"hardware\": \"h200\", \"sms\": 136")],
        &[("share-too-large", "/devices/ffn/sms", 9)],
    ),
    case(
        "shares of more than a card has",
        TINY,
        &[
            (
                "\"backend\": \"cpu\", \"cores\": [0]",
                "\"backend\": \"cuda\", \"hardware\": \"h200\", \"card\": 1, \"sms\": 48",
            ),
            (
                "\"backend\": \"cpu\", \"cores\": [1]",
                "\"backend\": \"cuda\", \"hardware\": \"h200\", \"card\": 1, \"sms\": 88",
            ),
        ],
        &[("share-too-large", "/devices/ffn/sms", 9)],
    ),
    case(
        "a share that is no step, and not the rest",
        TINY,
        &[
            (
                "\"backend\": \"cpu\", \"cores\": [0]",
                "\"backend\": \"cuda\", \"hardware\": \"h200\", \"card\": 0, \"sms\": 48",
            ),
            (
                "\"backend\": \"cpu\", \"cores\": [1]",
                "\"backend\": \"cuda\", \"hardware\": \"h200\", \"card\": 0, \"sms\": 83",
            ),
        ],
        &[("share-not-a-step", "/devices/ffn/sms", 9)],
    ),
    case(
        "attention and FFN on shares of one card",
        TINY,
        &[
            ("\"backend\": \"cpu\", \"cores\": [0]", "\"backend\": \"cuda\", \"sms\": 48"),
            ("\"backend\": \"cpu\", \"cores\": [1]", "\"backend\": \"cuda\", \"sms\": 84"),
        ],
        &[("split-loses", "/devices/attn", 8)],
    ),
    case(
        "attention and FFN on all of one card",
        TINY,
        &[
            ("\"backend\": \"cpu\", \"cores\": [0]", "\"backend\": \"cuda\", \"card\": 2"),
            ("\"backend\": \"cpu\", \"cores\": [1]", "\"backend\": \"cuda\", \"card\": 2"),
        ],
        &[("split-loses", "/devices/attn", 8)],
    ),
    case(
        "attention and FFN on two cards",
        TINY,
        &[
            ("\"backend\": \"cpu\", \"cores\": [0]", "\"backend\": \"cuda\", \"card\": 0"),
            ("\"backend\": \"cpu\", \"cores\": [1]", "\"backend\": \"cuda\", \"card\": 1"),
        ],
        &[],
    ),
    case(
        "a share of a card that another device has whole",
        TINY,
        &[
            ("\"backend\": \"cpu\", \"cores\": [0]", "\"backend\": \"cuda\", \"card\": 0, \"sms\": 48"),
            ("\"backend\": \"cpu\", \"cores\": [1]", "\"backend\": \"cuda\", \"card\": 0"),
        ],
        &[("share-of-whole", "/devices/ffn", 9)],
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
        "an address that is every interface",
        STEP3,
        &[("\"10.0.0.1:7000\"", "\"[::]:7000\"")],
        &[("bad-address", "/hosts/attention-0/address", 8)],
    ),
    case(
        "a host that nobody can find",
        STEP3,
        &[("{ \"address\": \"10.0.0.1:7000\" }", "{}")],
        &[("missing-address", "/hosts/attention-0", 8)],
    ),
    case(
        "addresses of etcd that are none",
        STEP3,
        &[(
            "\"hosts\": {",
            "\"membership\": { \"etcd\": [\"http://10.0.0.9:2379\", \"10.0.0.9:2379\", \"http://:2379\"] }, \"hosts\": {",
        )],
        &[("bad-address", "/membership/etcd/1", 7), ("bad-address", "/membership/etcd/2", 7)],
    ),
    case(
        "etcd over TLS",
        STEP3,
        &[("\"hosts\": {", "\"membership\": { \"etcd\": [\"https://10.0.0.9:2379\"] }, \"hosts\": {")],
        &[("bad-address", "/membership/etcd/0", 7)],
    ),
    case(
        "a lease that is over before it is kept",
        STEP3,
        &[(
            "\"hosts\": {",
            "\"membership\": { \"etcd\": [\"http://10.0.0.9:2379\"], \"lease_seconds\": 1 }, \"hosts\": {",
        )],
        &[("out-of-range", "/membership/lease_seconds", 7)],
    ),
    case(
        "etcd without hosts",
        TINY,
        &[("\"devices\": {", "\"membership\": { \"etcd\": [\"http://10.0.0.9:2379\"] }, \"devices\": {")],
        &[("no-effect", "/membership", 7)],
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
    case(
        "a split o_proj without a fabric",
        STEP3,
        &[
            ("\"host\": \"attention-1\", \"fabric\": \"nvlink\"", "\"host\": \"attention-1\""),
            ("\"rail\"", "\"broadcast\""),
            ("\"rail\"", "\"broadcast\""),
        ],
        &[("o-proj-without-fabric", "/stages/1/layers/0/shard/o_proj", 22)],
    ),
    case("too many devices", STEP3, &[("\"count\": 8", "\"count\": 4096")], &[("too-many-devices", "/devices", 13)]),
];
