//! Schedule: that a custom order is there exactly when asked for, gives every turn once, and does not deadlock.

use crate::diagnostic::Reporter;
use crate::kinds::{KindRegistry, Role};
use crate::model::ModelShape;
use crate::order::{self, CustomOrder};
use crate::plan::{Plan, PlanError, TaskTable};
use crate::resolve::{Resolved, StageAt};
use crate::source::join;
use crate::spec::PolicyKind;
use crate::stage_graph::{DeviceIndex, Section, StageGraph};
use crate::words;
use std::collections::BTreeMap;

pub(super) fn check(resolved: &Resolved<'_>, out: &mut Reporter<'_>) {
    let schedule = &resolved.spec.schedule;
    if schedule.micro_batches == 0 {
        out.error("out-of-range", "/schedule/micro_batches", "`micro_batches` is 0; expected an integer from 1 to 64");
    }
    match (&schedule.order, schedule.policy) {
        (None, PolicyKind::Custom) => {
            out.error("missing-order", "/schedule/policy", "the policy is `custom`, but there is no `order`")
                .with_help("add `\"order\": { \"device\": [\"stage:micro_batch\", …] }`");
        }
        (Some(_), policy) if policy != PolicyKind::Custom => {
            out.key_error("order-without-custom", "/schedule/order", "`order` is read by the policy `custom` alone")
                .with_help("set `\"policy\": \"custom\"`, or remove `order`");
        }
        (Some(order), _) => custom(resolved, order, out),
        (None, PolicyKind::PingPong) if schedule.micro_batches == 1 => {
            out.warning("nothing-overlaps", "/schedule/micro_batches", "with one micro-batch nothing overlaps")
                .with_help("two or three rotate between attention and FFN");
        }
        (None, _) => {}
    }
}

/// Whether a custom order is a plan, over the layers of this model. Asked only of a graph without other errors.
pub(super) fn check_plan(resolved: &Resolved<'_>, registry: &KindRegistry, shape: &ModelShape, out: &mut Reporter<'_>) {
    let schedule = &resolved.spec.schedule;
    let (PolicyKind::Custom, Some(order)) = (schedule.policy, &schedule.order) else { return };
    // A graph without errors unrolls; if it does not, whoever unrolls it next says why.
    let Ok(graph) = StageGraph::build(resolved.spec, shape, registry) else { return };
    let table = TaskTable::new(&graph);
    let micro_batches = schedule.micro_batches as usize;
    let orders = match order::expand(&table, order, micro_batches) {
        Ok(orders) => orders,
        Err(error) => {
            out.error("impossible-order", error.pointer(), error.to_string()).with_help(
                "a turn before the one it follows works on the layer before; it must end before the next begins",
            );
            return;
        }
    };
    let Err(error) = Plan::compile(table.clone(), micro_batches, &orders) else { return };
    let pointer = match &error {
        PlanError::Deadlock { lane, position, .. } => {
            let lane = table.lanes.iter().position(|known| known.name == *lane).unwrap_or_default();
            order::pointer_of(&table, order, lane, &orders[lane][*position])
        }
        PlanError::NoMicroBatches | PlanError::LaneCount { .. } | PlanError::NotOnce { .. } => "/schedule/order".into(),
    };
    out.error("deadlocking-order", pointer, error.to_string())
        .with_help("lanes wait for each other here: let both take the micro-batches in the same turn");
}

fn custom(resolved: &Resolved<'_>, order: &CustomOrder, out: &mut Reporter<'_>) {
    for (name, turns) in order {
        let pointer = join("/schedule/order", name);
        let devices: Vec<DeviceIndex> = (0..resolved.devices.len())
            .filter(|index| resolved.devices[*index].group == *name || resolved.devices[*index].name == *name)
            .collect();
        if devices.is_empty() {
            let help = words::suggest(name, resolved.spec.devices.keys().map(String::as_str));
            let message = format!("there is no device `{}`", words::short(name));
            out.key_error("unknown-device", pointer, message).with_help(help);
            continue;
        }
        let here: Vec<&StageAt<'_>> = resolved
            .stages
            .iter()
            .filter(|stage| stage.section == Section::Layers && touches(stage, &devices))
            .collect();
        pattern(resolved, &pointer, name, turns, &here, out);
    }
    let ordered = |device: &DeviceIndex| {
        let device = &resolved.devices[*device];
        order.contains_key(&device.group) || order.contains_key(&device.name)
    };
    let busy = |device: &DeviceIndex| {
        resolved.stages.iter().any(|stage| stage.section == Section::Layers && stage.on.contains(device))
    };
    let missing: Vec<DeviceIndex> = (0..resolved.devices.len()).filter(|d| busy(d) && !ordered(d)).collect();
    if !missing.is_empty() {
        let message = format!("`order` says nothing about {}", words::list(&resolved.device_names(&missing)));
        out.error("incomplete-order", "/schedule/order", message)
            .with_help("every device of the layers needs a pattern");
    }
}

fn touches(stage: &StageAt<'_>, devices: &[DeviceIndex]) -> bool {
    devices.iter().any(|device| stage.on.contains(device) || stage.from.contains(device) || stage.to.contains(device))
}

/// One device's pattern: known turns, each at most once, and every stage of every micro-batch (transfers may be left out:
/// they run beside their neighbours).
fn pattern(
    resolved: &Resolved<'_>,
    pointer: &str,
    name: &str,
    turns: &[String],
    here: &[&StageAt<'_>],
    out: &mut Reporter<'_>,
) {
    let micro_batches = resolved.spec.schedule.micro_batches;
    let mut seen: BTreeMap<(&str, u32), usize> = BTreeMap::new();
    for (index, turn) in turns.iter().enumerate() {
        let at = format!("{pointer}/{index}");
        let parts = turn.rsplit_once(':').and_then(|(stage, number)| Some((stage, number.parse::<u32>().ok()?)));
        let Some((stage, number)) = parts else {
            let message = format!("`{}` is no turn; expected `stage:micro_batch`", words::short(turn));
            out.error("bad-turn", at, message).with_help("such as `mfa_attention:0`");
            continue;
        };
        if !here.iter().any(|known| known.id == stage) {
            let ids: Vec<&str> = here.iter().map(|known| known.id).collect();
            let message = format!("no stage `{}` runs on `{name}` in the layers", words::short(stage));
            out.error("unknown-stage", at, message).with_help(words::suggest(stage, ids));
        } else if number >= micro_batches {
            let message =
                format!("there is no micro-batch {number}; they count from 0 to {}", micro_batches.saturating_sub(1));
            out.error("out-of-range", at, message);
        } else if let Some(first) = seen.insert((stage, number), index) {
            out.error("duplicate-turn", at, format!("`{turn}` is there twice; the first is {pointer}/{first}"));
        }
    }
    let wanted = here.iter().filter(|stage| stage.role() != Role::Transfer);
    let missing: Vec<String> = wanted
        .flat_map(|stage| (0..micro_batches).map(|number| (stage.id, number)))
        .filter(|turn| !seen.contains_key(turn))
        .map(|(stage, number)| format!("{stage}:{number}"))
        .collect();
    if !missing.is_empty() {
        out.error("incomplete-order", pointer, format!("the pattern of `{name}` lacks {}", words::list(&missing)))
            .with_help("every stage of the device has one turn for each micro-batch");
    }
}
