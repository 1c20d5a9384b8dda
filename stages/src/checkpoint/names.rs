//! The spellings under which checkpoints store one tensor.

/// All spellings of a tensor's name: bare, and inside the vision-language model in its two published forms.
pub(super) fn variants(name: &str) -> Vec<String> {
    let mut names = vec![name.to_owned()];
    if let Some(rest) = name.strip_prefix("model.") {
        names.push(format!("language_model.model.{rest}"));
        names.push(format!("model.language_model.{rest}"));
    } else {
        names.push(format!("language_model.{name}"));
    }
    names
}

/// The name of one expert's matrix where experts are stored one by one: `…moe.experts.4.gate_proj.weight` for
/// `…moe.gate_proj.weight`.
pub(super) fn expert(name: &str, expert: usize) -> Option<String> {
    let (layer, matrix) = name.split_once(".moe.")?;
    Some(format!("{layer}.moe.experts.{expert}.{matrix}"))
}

/// The name of a weight's fp8 scales.
pub(super) fn scale(name: &str) -> String {
    format!("{name}_scale_inv")
}
