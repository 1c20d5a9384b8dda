//! Expert placement: one list a shard, every layer once, every expert somewhere and nowhere twice on a shard.

use crate::diagnostic::Reporter;
use crate::model::{LayerKind, ModelShape};
use crate::resolve::StageAt;
use crate::source::join;
use crate::spec::{HeldExperts, PlacementSpec};
use crate::stage_graph::selector_takes;
use crate::words;
use indexmap::IndexMap;
use std::collections::HashSet;

pub(super) fn check(stage: &StageAt<'_>, shape: Option<&ModelShape>, out: &mut Reporter<'_>) {
    let at = stage.at("placement");
    match &stage.spec.placement {
        None => {}
        Some(PlacementSpec::Everywhere(lists)) => check_lists(stage, &at, lists, shape, out),
        Some(PlacementSpec::ByLayer(layers)) => {
            if selectors(&at, layers, out)
                && let Some(shape) = shape
            {
                every_layer_once(stage, &at, layers, shape, out);
            }
            layers.iter().for_each(|(key, lists)| check_lists(stage, &join(&at, key), lists, shape, out));
        }
    }
}

/// Whether every key selects layers.
fn selectors(at: &str, layers: &IndexMap<String, Vec<HeldExperts>>, out: &mut Reporter<'_>) -> bool {
    let before = out.len();
    for key in layers.keys().filter(|key| selector_takes(key, 0, LayerKind::Moe).is_none()) {
        let message = format!(
            "`{}` selects no layers; expected `moe`, a number, or an inclusive ascending range such as `4..59`",
            words::short(key)
        );
        out.key_error("bad-on-layers", join(at, key), message);
    }
    out.len() == before
}

fn every_layer_once(
    stage: &StageAt<'_>,
    at: &str,
    layers: &IndexMap<String, Vec<HeldExperts>>,
    shape: &ModelShape,
    out: &mut Reporter<'_>,
) {
    let own = shape.layers.iter().copied().enumerate().filter(|(layer, kind)| stage.takes(*layer, *kind));
    let mut missing: Vec<usize> = Vec::new();
    let mut twice: IndexMap<(&str, &str), Vec<usize>> = IndexMap::new();
    for (layer, kind) in own {
        let mut takes = layers.keys().filter(|key| selector_takes(key, layer, kind) == Some(true));
        match (takes.next(), takes.next()) {
            (None, _) => missing.push(layer),
            (Some(first), Some(second)) => twice.entry((first, second)).or_default().push(layer),
            (Some(_), None) => {}
        }
    }
    for ((first, second), layers) in twice {
        let message = format!("`{first}` and `{second}` both place the experts of layer {}", words::runs(&layers));
        out.key_error("placement-overlap", join(at, second), message).with_help("let the keys select different layers");
    }
    if !missing.is_empty() {
        let message = format!("the placement says nothing about layer {}", words::runs(&missing));
        out.error("placement-gap", at, message).with_help("every layer that the stage runs in needs its lists");
    }
}

fn check_lists(
    stage: &StageAt<'_>,
    at: &str,
    lists: &[HeldExperts],
    shape: Option<&ModelShape>,
    out: &mut Reporter<'_>,
) {
    let shards = stage.counts().experts;
    if lists.len() != shards {
        let message = format!(
            "the experts are placed on {}, but `{}` has {}",
            words::plural(lists.len() as u64, "shard"),
            stage.id,
            words::plural(shards as u64, "expert shard")
        );
        out.error("placement-shards", at, message)
            .with_help("one list for each shard that `\"shard\": { \"experts\": … }` makes, in order");
    }
    let experts = shape.map(|shape| shape.experts);
    let mut placed: HashSet<u32> = HashSet::new();
    for (shard, HeldExperts(ids)) in lists.iter().enumerate() {
        let mut here: HashSet<u32> = HashSet::new();
        for (index, id) in ids.iter().enumerate() {
            let pointer = || format!("{at}/{shard}/{index}");
            if let Some(experts) = experts.filter(|experts| *id as usize >= *experts) {
                let message = format!("there is no expert {id}: the model has {experts}, counted from 0");
                out.error("unknown-expert", pointer(), message);
            } else if !here.insert(*id) {
                let message = format!("expert {id} is on shard {shard} twice");
                out.error("duplicate-expert", pointer(), message)
                    .with_help("a copy helps on another shard only: name it once here");
            }
        }
        placed.extend(here);
    }
    let missing: Vec<usize> = (0..experts.unwrap_or(0)).filter(|id| !placed.contains(&(*id as u32))).collect();
    if !missing.is_empty() {
        let what = if missing.len() == 1 { "expert" } else { "experts" };
        out.error("missing-expert", at, format!("no shard holds {what} {}", words::runs(&missing)))
            .with_help("every expert is on one shard at least");
    }
}
