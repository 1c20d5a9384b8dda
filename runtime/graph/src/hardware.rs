//! Memory of known accelerators, so that a graph for machines that are not here can be checked.
//!
//! Sizes as sold, in units of 10⁹ bytes: a little under what the driver reports, which leaves it its own share.

/// Memory of one card by the name used in `hardware`.
const MEMORY_BYTES: &[(&str, u64)] = &[
    ("h800", 80_000_000_000),
    ("h100", 80_000_000_000),
    ("h200", 141_000_000_000),
    ("b200", 180_000_000_000),
    ("h20", 96_000_000_000),
    ("a800", 80_000_000_000),
    ("a100", 80_000_000_000),
    ("l20", 48_000_000_000),
    ("l40s", 48_000_000_000),
    ("l4", 24_000_000_000),
    ("ascend910b", 64_000_000_000),
];

/// Multiprocessors of one card, and whether it is Hopper or later, by the same names (NVIDIA data sheets).
const MULTIPROCESSORS: &[(&str, u32, bool)] = &[
    ("h800", 132, true),
    ("h100", 132, true),
    ("h200", 132, true),
    ("b200", 148, true),
    ("h20", 78, true),
    ("a800", 108, false),
    ("a100", 108, false),
    ("l20", 92, false),
    ("l40s", 142, false),
    ("l4", 58, false),
];

/// Into what a card can be divided (CUDA driver API, green contexts).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grain {
    /// Multiprocessors in all, where the card is known.
    pub multiprocessors: Option<u32>,
    /// Fewest of a share.
    pub least: u32,
    /// What a share is a multiple of, unless it is the rest of the card.
    pub step: u32,
}

/// How a card can be divided; one that is not known counts as a Hopper of any size.
pub fn grain(name: Option<&str>) -> Grain {
    let known = MULTIPROCESSORS.iter().find(|(known, ..)| name == Some(*known));
    let (least, step) = if known.is_none_or(|(_, _, hopper)| *hopper) { (8, 8) } else { (4, 2) };
    Grain { multiprocessors: known.map(|(_, count, _)| *count), least, step }
}

/// Names that `hardware` knows.
pub fn names() -> Vec<&'static str> {
    MEMORY_BYTES.iter().map(|(name, _)| *name).collect()
}

/// Memory of a known accelerator, in bytes.
pub fn memory_bytes(name: &str) -> Option<u64> {
    MEMORY_BYTES.iter().find(|(known, _)| *known == name).map(|(_, bytes)| *bytes)
}

/// Whether `hardware` names a profile file rather than a known accelerator.
pub fn is_profile_file(name: &str) -> bool {
    name.ends_with(".json") || name.contains('/')
}

/// What the machine that checks a graph has; absent where it is not known or does not matter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Cores of its processor.
    pub cores: Option<usize>,
    /// Its memory, in bytes.
    pub memory_bytes: Option<u64>,
}
