//! Coverage: every layer of the model has its attention, one FFN of the right kind, and a combine.

use crate::diagnostic::Reporter;
use crate::kinds::Role;
use crate::model::{LayerKind, ModelShape};
use crate::resolve::{LayerCase, Resolved};
use crate::spec::StageEntry;
use crate::words;

/// Whether every layer is covered. Without a model nothing can be said.
pub(super) fn check(resolved: &Resolved<'_>, shape: Option<&ModelShape>, out: &mut Reporter<'_>) -> bool {
    let Some(shape) = shape else { return true };
    let before = out.len();
    let cases = resolved.layer_cases(Some(shape));
    let single = doubles(resolved, &cases, out);
    wrong_kinds(resolved, shape, single, out);
    missing(resolved, &cases, out);
    out.len() == before
}

/// Layers that lack one of the stages that every layer has.
fn missing(resolved: &Resolved<'_>, cases: &[LayerCase], out: &mut Reporter<'_>) {
    let block = resolved.spec.stages.iter().position(|entry| matches!(entry, StageEntry::Layers(_))).unwrap_or(0);
    let pointer = format!("/stages/{block}/layers");
    for (kind, word, remedy) in [
        (
            LayerKind::Moe,
            "MoE",
            "add `{ \"kind\": \"expert_ffn\", \"on\": …, \"on_layers\": \"moe\" }`, or widen an `on_layers`",
        ),
        (
            LayerKind::Dense,
            "dense",
            "add `{ \"kind\": \"dense_ffn\", \"on\": …, \"on_layers\": \"dense\" }`, or widen an `on_layers`",
        ),
    ] {
        let layers = lacking(resolved, cases, Role::Ffn, Some(kind));
        if !layers.is_empty() {
            let message = format!("no FFN covers {} ({word})", name_layers(&layers));
            out.error("layer-without-ffn", &pointer, message).with_help(remedy);
        }
    }
    for (role, code, word) in
        [(Role::Attention, "layer-without-attention", "attention"), (Role::Combine, "layer-without-combine", "combine")]
    {
        let layers = lacking(resolved, cases, role, None);
        if !layers.is_empty() {
            let kind = if role == Role::Attention { "mfa_attention" } else { "combine" };
            out.error(code, &pointer, format!("no {word} stage covers {}", name_layers(&layers)))
                .with_help(format!("every layer needs one: add `{{ \"kind\": \"{kind}\", \"on\": … }}`"));
        }
    }
}

/// Layers (of one kind, or of any) without a stage of a role.
fn lacking(resolved: &Resolved<'_>, cases: &[LayerCase], role: Role, kind: Option<LayerKind>) -> Vec<usize> {
    let lacks = |case: &&LayerCase| {
        kind.is_none_or(|kind| case.kind == kind)
            && !case.stages.iter().any(|stage| resolved.stages[*stage].role() == role)
    };
    let mut layers: Vec<usize> = cases.iter().filter(lacks).flat_map(|case| case.layers.clone()).collect();
    layers.sort_unstable();
    layers
}

fn name_layers(layers: &[usize]) -> String {
    match layers {
        [only] => format!("layer {only}"),
        _ => format!("layers {}", words::runs(layers)),
    }
}

/// Two FFNs, or two attentions, in one layer. Whether there are none.
fn doubles(resolved: &Resolved<'_>, cases: &[LayerCase], out: &mut Reporter<'_>) -> bool {
    let before = out.len();
    for (role, code, word) in [
        (Role::Ffn, "layer-with-two-ffns", "FFN"),
        (Role::Attention, "layer-with-two-attentions", "attention"),
        (Role::Combine, "layer-with-two-combines", "combine"),
    ] {
        let mut pairs: Vec<(usize, usize, Vec<usize>)> = Vec::new();
        for case in cases {
            let of_role: Vec<usize> =
                case.stages.iter().copied().filter(|stage| resolved.stages[*stage].role() == role).collect();
            for second in of_role.iter().skip(1) {
                match pairs.iter_mut().find(|pair| (pair.0, pair.1) == (of_role[0], *second)) {
                    Some(pair) => pair.2.extend(&case.layers),
                    None => pairs.push((of_role[0], *second, case.layers.clone())),
                }
            }
        }
        for (first, second, mut layers) in pairs {
            layers.sort_unstable();
            let (first, second) = (&resolved.stages[first], &resolved.stages[second]);
            let pointer = if second.spec.on_layers.is_some() { second.at("on_layers") } else { second.at("kind") };
            let message = format!("`{}` and `{}` are both the {word} of {}", first.id, second.id, name_layers(&layers));
            out.error(code, pointer, message).with_help("let `on_layers` of the two select different layers");
        }
    }
    out.len() == before
}

/// A stage in layers that it cannot work in, such as experts in a dense layer. Where two FFNs meet, that was said already.
fn wrong_kinds(resolved: &Resolved<'_>, shape: &ModelShape, single: bool, out: &mut Reporter<'_>) {
    for stage in resolved.stages.iter().filter(|stage| single || stage.role() != Role::Ffn) {
        let unfit = |(layer, kind): (usize, &LayerKind)| {
            (stage.takes(layer, *kind) && !stage.info.fits(*kind)).then_some(layer)
        };
        let layers: Vec<usize> = shape.layers.iter().enumerate().filter_map(unfit).collect();
        if layers.is_empty() {
            continue;
        }
        let (is, wanted) = match shape.layers[layers[0]] {
            LayerKind::Dense => ("dense", "moe"),
            LayerKind::Moe => ("MoE", "dense"),
        };
        let key = if stage.spec.on_layers.is_some() { "on_layers" } else { "kind" };
        let verb = if layers.len() == 1 { "is" } else { "are" };
        let message = format!(
            "`{}` runs in {}, which {verb} {is}: `{}` has no weights there",
            stage.id,
            name_layers(&layers),
            stage.info.name()
        );
        out.error("wrong-layer-kind", stage.at(key), message).with_help(format!("set `\"on_layers\": \"{wanted}\"`"));
    }
}
