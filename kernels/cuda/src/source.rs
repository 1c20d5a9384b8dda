//! The kernels' text, as embedded. Owns which files there are and which architectures each is for.

/// One `.cu` file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// File name in `cu/`.
    pub file: &'static str,
    /// Its text.
    pub text: &'static str,
    /// Whether it needs Hopper's own instructions (compiled for `sm_90a`, it holds nothing elsewhere).
    pub hopper: bool,
}

macro_rules! source {
    ($file:literal, $hopper:literal) => {
        Source { file: $file, text: include_str!(concat!("../cu/", $file)), hopper: $hopper }
    };
}

/// MFA decode attention over bf16 KV.
pub const MFA_DECODE_BF16: Source = source!("mfa_decode_bf16.cu", true);
/// MFA decode attention over fp8 KV.
pub const MFA_DECODE_FP8: Source = source!("mfa_decode_fp8.cu", true);
/// MFA attention of several tokens of a sequence, over bf16 and fp8 KV.
pub const MFA_PREFILL: Source = source!("mfa_prefill.cu", true);
/// MFA decode attention of any shape on any card.
pub const MFA_DECODE_PLAIN: Source = source!("mfa_decode_plain.cu", false);
/// Random data and the read ceiling, for tests and benchmarks.
pub const MEASURE: Source = source!("measure.cu", false);
/// The tensor cores' ceiling, for benchmarks.
pub const MEASURE_TENSOR: Source = source!("measure_tensor.cu", true);

/// Products with weights as stored.
pub const MATMUL: Source = source!("matmul.cu", false);
/// Embedding, norms, sums.
pub const ROWS: Source = source!("rows.cu", false);
/// Rope, and k and v into their pages.
pub const ROPE_APPEND: Source = source!("rope_append.cu", false);
/// Attention over pages, prefill and decode.
pub const ATTENTION: Source = source!("attention.cu", false);
/// Choice of experts.
pub const ROUTER: Source = source!("router.cu", false);
/// Rows by expert, and the sum of their answers.
pub const EXPERTS: Source = source!("experts.cu", false);
/// Rows of experts that several devices hold, and the sum of their answers.
pub const COPIES: Source = source!("copies.cu", false);
/// Tokens from logits.
pub const SAMPLE: Source = source!("sample.cu", false);
/// Rows as they cross an edge.
pub const WIRE: Source = source!("wire.cu", false);

/// Weights from a seed.
pub const DRAW: Source = source!("draw.cu", false);

/// Rows sorted by expert, for the tensor cores.
pub const SLOTS: Source = source!("slots.cu", true);
/// Rows to what tensor cores multiply, and the sum of experts' answers.
pub const ROWS_FAST: Source = source!("rows_fast.cu", true);
/// Gated products with experts on tensor cores.
pub const TENSOR_UP: Source = source!("tensor_up.cu", true);
/// Products with experts on tensor cores.
pub const TENSOR_DOWN: Source = source!("tensor_down.cu", true);
/// Rope, and k and v into the pages of the fast attention.
pub const ROPE_FAST: Source = source!("rope_fast.cu", true);
/// Products with one matrix on tensor cores.
pub const TENSOR_PROJECT: Source = source!("tensor_project.cu", true);
/// Rows to e4m3 with a scale each 128 elements.
pub const GROUP_ROWS: Source = source!("group_rows.cu", true);
/// Products of such rows, summed in f32.
pub const GROUP_PRODUCT: Source = source!("group_product.cu", true);

/// What plain operations are in.
pub const PLAIN: [Source; 10] = [MATMUL, ROWS, ROPE_APPEND, ATTENTION, ROUTER, EXPERTS, COPIES, SAMPLE, WIRE, DRAW];
/// What products on tensor cores are in.
pub const TENSOR: [Source; 8] =
    [TENSOR_UP, TENSOR_DOWN, TENSOR_PROJECT, GROUP_PRODUCT, ROWS_FAST, SLOTS, ROPE_FAST, GROUP_ROWS];

/// Every kernel file.
pub const SOURCES: [Source; 24] = [
    MFA_DECODE_BF16,
    MFA_DECODE_FP8,
    MFA_PREFILL,
    MFA_DECODE_PLAIN,
    MEASURE,
    MEASURE_TENSOR,
    MATMUL,
    ROWS,
    ROPE_APPEND,
    ATTENTION,
    ROUTER,
    EXPERTS,
    COPIES,
    SAMPLE,
    WIRE,
    DRAW,
    SLOTS,
    ROWS_FAST,
    TENSOR_UP,
    TENSOR_DOWN,
    TENSOR_PROJECT,
    ROPE_FAST,
    GROUP_ROWS,
    GROUP_PRODUCT,
];

/// Files that kernels include, by the name they include them by.
pub const HEADERS: [(&str, &str); 11] = [
    ("common.cuh", include_str!("../cu/common.cuh")),
    ("hopper.cuh", include_str!("../cu/hopper.cuh")),
    ("wgmma.cuh", include_str!("../cu/wgmma.cuh")),
    ("mfa_work.cuh", include_str!("../cu/mfa_work.cuh")),
    ("mfa_chunk.cuh", include_str!("../cu/mfa_chunk.cuh")),
    ("warp.cuh", include_str!("../cu/warp.cuh")),
    ("tensor.cuh", include_str!("../cu/tensor.cuh")),
    ("tensor_items.cuh", include_str!("../cu/tensor_items.cuh")),
    ("tensor_sums.cuh", include_str!("../cu/tensor_sums.cuh")),
    ("weights.cuh", include_str!("../cu/weights.cuh")),
    ("append.cuh", include_str!("../cu/append.cuh")),
];

/// Architectures that every kernel which claims them is compiled for in checks: A100, L40 and H100.
pub const ARCHITECTURES: [&str; 3] = ["sm_80", "sm_89", "sm_90a"];
