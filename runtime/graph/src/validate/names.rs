//! Names: that devices and stages have usable ones, each once, and that every use of a name leads somewhere.

use crate::diagnostic::Reporter;
use crate::kinds::KindRegistry;
use crate::model::LayerKind;
use crate::resolve::{Resolved, StageAt, written_stages};
use crate::source::join;
use crate::spec::{DeploymentSpec, OneOrMany};
use crate::stage_graph::{Section, selector_takes};
use crate::words;
use std::collections::{HashMap, HashSet};

/// Devices a deployment may have; far above any that was built, and what keeps checking fast.
pub const MAX_DEVICES: u64 = 4096;

/// Whether the number of devices is one that the other rules can work with.
pub(super) fn count_devices(spec: &DeploymentSpec, out: &mut Reporter<'_>) -> bool {
    let total: u64 = spec.devices.values().map(|device| u64::from(device.count.unwrap_or(1))).sum();
    if total == 0 {
        out.error("no-devices", "/devices", "no device is declared")
            .with_help("add `\"cpu\": { \"backend\": \"cpu\" }`");
    } else if total > MAX_DEVICES {
        out.error(
            "too-many-devices",
            "/devices",
            format!("{total} devices are declared; a deployment has at most {MAX_DEVICES}"),
        );
    }
    (1..=MAX_DEVICES).contains(&total)
}

/// Whether every name is good, so that rules about what the names lead to can judge.
pub(super) fn check(resolved: &Resolved<'_>, registry: &KindRegistry, out: &mut Reporter<'_>) -> bool {
    let before = out.len();
    device_names(resolved, out);
    stage_ids(resolved, out);
    for (pointer, _, stage) in written_stages(resolved.spec) {
        if registry.get(&stage.kind).is_none() {
            let help = words::suggest(&stage.kind, registry.names());
            let message = format!("there is no kind of stage `{}`", words::short(&stage.kind));
            out.error("unknown-kind", join(&pointer, "kind"), message).with_help(help);
        }
    }
    for stage in &resolved.stages {
        for (key, names) in [("on", &stage.spec.on), ("from", &stage.spec.from), ("to", &stage.spec.to)] {
            if let Some(names) = names {
                device_uses(resolved, &stage.at(key), names, out);
            }
        }
        selectors(stage, out);
        predecessors(resolved, stage, out);
    }
    out.len() == before
}

/// Letters, digits, `_`, `-`: names become parts of lane names, file names and `--schedule` orders.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
}

const PLAIN: &str = "letters, digits, `_` and `-`";

fn device_names(resolved: &Resolved<'_>, out: &mut Reporter<'_>) {
    for name in resolved.spec.devices.keys().filter(|name| !is_plain(name)) {
        let message = format!("`{}` is no device name; expected {PLAIN}", words::short(name));
        out.key_error("bad-name", join("/devices", name), message);
    }
    for name in resolved.spec.hosts.keys().filter(|name| !is_plain(name)) {
        let message = format!("`{}` is no host name; expected {PLAIN}", words::short(name));
        out.key_error("bad-name", join("/hosts", name), message);
    }
}

fn stage_ids(resolved: &Resolved<'_>, out: &mut Reporter<'_>) {
    let mut first: HashMap<&str, &StageAt<'_>> = HashMap::new();
    for stage in &resolved.stages {
        let key = if stage.spec.id.is_some() { "id" } else { "kind" };
        if stage.spec.id.is_some() && !is_plain(stage.id) {
            let message = format!("`{}` is no stage id; expected {PLAIN}", words::short(stage.id));
            out.error("bad-name", stage.at("id"), message);
        }
        if let Some(other) = first.get(stage.id) {
            let message = format!("the id `{}` is taken by the stage at {}", words::short(stage.id), other.pointer);
            let help = match stage.spec.id {
                Some(_) => "give one of the two another `id`".to_owned(),
                None => "a stage without `id` is named by its kind: give one of the two an `id`".to_owned(),
            };
            out.error("duplicate-id", stage.at(key), message).with_help(help);
        } else {
            first.insert(stage.id, stage);
        }
    }
}

fn device_uses(resolved: &Resolved<'_>, pointer: &str, names: &OneOrMany, out: &mut Reporter<'_>) {
    let mut seen: HashSet<usize> = HashSet::new();
    for (index, name) in names.names().iter().enumerate() {
        let at = match names {
            OneOrMany::One(_) => pointer.to_owned(),
            OneOrMany::Many(_) => format!("{pointer}/{index}"),
        };
        let meant: Vec<usize> = (0..resolved.devices.len())
            .filter(|device| resolved.devices[*device].name == *name || resolved.devices[*device].group == *name)
            .collect();
        if meant.is_empty() {
            unknown_device(resolved, &at, name, out);
        } else if meant.iter().filter(|device| !seen.insert(**device)).count() > 0 {
            let message = format!("`{}` is named twice in this list", words::short(name));
            out.error("duplicate-device", at, message)
                .with_help("name every device once; a group stands for all its devices");
        }
    }
}

fn unknown_device(resolved: &Resolved<'_>, pointer: &str, name: &str, out: &mut Reporter<'_>) {
    let message = format!("there is no device `{}`", words::short(name));
    let group = name.rsplit_once('.').and_then(|(group, _)| resolved.spec.devices.get_key_value(group));
    let help = match group {
        Some((group, entry)) => match entry.count {
            Some(count) => format!("the devices of `{group}` are `{group}.0` … `{group}.{}`", count - 1),
            None => format!("`{group}` is a single device; write `{group}`"),
        },
        None => words::suggest(name, resolved.spec.devices.keys().map(String::as_str)),
    };
    out.error("unknown-device", pointer, message).with_help(help);
}

fn selectors(stage: &StageAt<'_>, out: &mut Reporter<'_>) {
    let Some(selectors) = &stage.spec.on_layers else { return };
    for (index, text) in selectors.names().iter().enumerate() {
        if selector_takes(text, 0, LayerKind::Dense).is_some() {
            continue;
        }
        let pointer = match selectors {
            OneOrMany::One(_) => stage.at("on_layers"),
            OneOrMany::Many(_) => format!("{}/{index}", stage.at("on_layers")),
        };
        let message = format!(
            "`{}` selects no layers; expected `all`, `moe`, `dense`, a number, or an inclusive ascending range such as `4..59`",
            words::short(text)
        );
        let near = words::nearest(text, ["all", "moe", "dense"]);
        let help = match (near, text.split_once("..")) {
            (Some(word), _) => Some(format!("did you mean `{word}`?")),
            (None, Some((a, b))) => match (a.trim().parse::<u64>(), b.trim_start_matches('=').trim().parse::<u64>()) {
                (Ok(first), Ok(last)) => Some(format!("did you mean `{}..{}`?", first.min(last), first.max(last))),
                _ => None,
            },
            _ => None,
        };
        out.error("bad-on-layers", pointer, message).help = help;
    }
}

fn predecessors(resolved: &Resolved<'_>, stage: &StageAt<'_>, out: &mut Reporter<'_>) {
    let in_layers = |other: &&StageAt<'_>| other.section == Section::Layers;
    for (index, name) in stage.spec.after.iter().flatten().enumerate() {
        let pointer = format!("{}/{index}", stage.at("after"));
        if resolved.stages.iter().filter(in_layers).any(|other| other.id == name) {
            continue;
        }
        let outside = resolved.stages.iter().any(|other| other.id == name);
        let message = match outside {
            true => {
                format!("`{}` stands outside the layers; `after` names stages of the same layer", words::short(name))
            }
            false => format!("there is no stage `{}`", words::short(name)),
        };
        let ids: Vec<&str> = resolved.stages.iter().filter(in_layers).map(|other| other.id).collect();
        out.error("unknown-stage", pointer, message).with_help(words::suggest(name, ids));
    }
}
