//! Dataflow: every stage finds what it reads on the devices it runs on, and every transfer moves what its neighbours need.
//!
//! An abstract interpretation over the stages of each distinct layer: for every value, the devices that hold it, and for every
//! such device whose rows (of u and the routing) or whose parts (of y) it holds. A stage's input is what its predecessors
//! left, so a branch sees only what lies before it.

mod flow;
mod order;
mod transfers;

use crate::diagnostic::Reporter;
use crate::kinds::{Role, Value};
use crate::model::ModelShape;
use crate::resolve::{LayerCase, Resolved, StageAt};
use crate::stage_graph::DeviceIndex;
use crate::words;
use flow::{DeviceSet, Flow};

/// Walks every distinct layer, then the sampling. Whether everything arrives.
pub(super) fn check(
    resolved: &Resolved<'_>,
    shape: Option<&ModelShape>,
    covered: bool,
    out: &mut Reporter<'_>,
) -> bool {
    let mut found = out.beside();
    walk_all(resolved, shape, covered, &mut found);
    let good = found.is_empty();
    out.absorb_once(found);
    good
}

fn walk_all(resolved: &Resolved<'_>, shape: Option<&ModelShape>, covered: bool, out: &mut Reporter<'_>) {
    let entry = entry(resolved);
    for case in resolved.layer_cases(shape) {
        let ffns = case.stages.iter().filter(|stage| resolved.stages[**stage].role() == Role::Ffn).count();
        let fit = case.stages.iter().all(|stage| resolved.stages[*stage].info.fits(case.kind));
        // A layer that lacks its FFN was reported, or may not exist; walking it would only repeat that.
        if ffns == 1 && (fit || (covered && shape.is_some())) {
            Layer { resolved, case: &case, covered, out }.walk(&entry);
        }
    }
    if let Some(sampling) = resolved.first(Role::Sampling) {
        read_residual(resolved, sampling, &entry, out);
    }
}

/// What flows into every layer: x on the devices of the embedding.
fn entry(resolved: &Resolved<'_>) -> Flow {
    let mut entry = Flow::default();
    if let Some(embed) = resolved.first(Role::Embed) {
        for device in &embed.on {
            entry.put(Value::X, *device, DeviceSet::from([*device]));
        }
    }
    entry
}

/// Sequences are pinned, so whoever reads x runs on every device that holds some, and on no other.
fn read_residual(resolved: &Resolved<'_>, stage: &StageAt<'_>, flow: &Flow, out: &mut Reporter<'_>) {
    let holders = flow.holders(Value::X);
    let extra: Vec<DeviceIndex> = stage.on.iter().copied().filter(|device| !holders.contains(device)).collect();
    let on: DeviceSet = stage.on.iter().copied().collect();
    let left: Vec<DeviceIndex> = holders.difference(&on).copied().collect();
    let names = |devices: &[DeviceIndex]| words::list(&resolved.device_names(devices));
    let held = names(&holders.iter().copied().collect::<Vec<_>>());
    let message = if holders.is_empty() || (extra.is_empty() && left.is_empty()) {
        return;
    } else if extra.is_empty() {
        format!("`{}` leaves out {}, where sequences have their residual x", stage.id, names(&left))
    } else {
        format!(
            "`{}` runs on {}, but the residual x stays on {held}, the devices of the embedding",
            stage.id,
            names(&extra)
        )
    };
    out.error("residual-elsewhere", stage.at("on"), message)
        .with_help(format!("x never moves: run `{}` on {held}", stage.id));
}

pub(crate) struct Layer<'a, 'r, 'o, 'p> {
    resolved: &'a Resolved<'r>,
    case: &'a LayerCase,
    covered: bool,
    out: &'o mut Reporter<'p>,
}

impl Layer<'_, '_, '_, '_> {
    fn walk(&mut self, entry: &Flow) {
        let Some(before) = order::predecessors(self.resolved, self.case, self.out) else { return };
        let Some(order) = order::sort(self.resolved, self.case, &before, self.out) else { return };
        let mut left: Vec<Flow> = vec![Flow::default(); before.len()];
        let mut followed = vec![false; before.len()];
        for (step, position) in order.iter().enumerate() {
            let mut flow = match before[*position].as_slice() {
                [] => entry.clone(),
                [only] => left[*only].clone(),
                several => {
                    let mut joined = Flow::default();
                    several.iter().for_each(|earlier| joined.join(&left[*earlier]));
                    joined
                }
            };
            before[*position].iter().for_each(|earlier| followed[*earlier] = true);
            let later: Vec<usize> = order[step + 1..].iter().map(|other| self.case.stages[*other]).collect();
            self.run(self.case.stages[*position], &later, &mut flow);
            left[*position] = flow;
        }
        let mut end = Flow::default();
        (0..left.len()).filter(|position| !followed[*position]).for_each(|leaf| end.join(&left[leaf]));
        self.finish(&end);
    }

    fn finish(&mut self, end: &Flow) {
        let combined = self.case.stages.iter().any(|stage| self.resolved.stages[*stage].role() == Role::Combine);
        if combined && !end.holders(Value::Y).is_empty() {
            let ffn =
                self.case.stages.iter().map(|stage| &self.resolved.stages[*stage]).find(|s| s.role() == Role::Ffn);
            if let Some(ffn) = ffn {
                let message = format!("`{}` makes y after the layer's `combine`, so nothing adds it to x", ffn.id);
                self.out.error("uncombined-output", ffn.at("kind"), message).with_help("move `combine` behind it");
            }
        }
    }

    fn run(&mut self, index: usize, later: &[usize], flow: &mut Flow) {
        let stage = &self.resolved.stages[index];
        if stage.role() == Role::Transfer {
            return self.transfer(stage, later, flow);
        }
        let before = self.out.len();
        let reads = stage.info.reads();
        // Whoever works on x should have run where x is, so that is where the walk goes on.
        let mut on = stage.on.clone();
        if reads.contains(&Value::X) {
            read_residual(self.resolved, stage, flow, self.out);
            if self.out.len() > before {
                on = flow.holders(Value::X).into_iter().collect();
            }
        }
        self.read(stage, &on, flow);
        if self.out.len() == before {
            match stage.role() {
                Role::Ffn => self.rows_reach(stage, flow),
                Role::Combine => self.parts_reach(stage, flow),
                _ => {}
            }
        }
        write(stage, &on, flow);
    }

    /// Reports the values that a stage on the devices `on` lacks, and goes on as if it had them.
    fn read(&mut self, stage: &StageAt<'_>, on: &[DeviceIndex], flow: &mut Flow) {
        let mut elsewhere: Vec<Value> = Vec::new();
        let mut lacking_any: Vec<DeviceIndex> = Vec::new();
        for value in stage.info.reads().iter().copied().filter(|value| *value != Value::X) {
            let holders = flow.holders(value);
            let lacking: Vec<DeviceIndex> = on.iter().copied().filter(|device| !holders.contains(device)).collect();
            match (lacking.is_empty(), holders.is_empty()) {
                (true, _) => continue,
                (false, true) => self.missing_input(stage, value),
                (false, false) => {
                    elsewhere.push(value);
                    lacking_any.extend(
                        lacking.iter().filter(|device| !lacking_any.contains(device)).copied().collect::<Vec<_>>(),
                    );
                }
            }
        }
        if !elsewhere.is_empty() {
            self.missing_transfer(stage, &elsewhere, &lacking_any, flow);
        }
        for value in stage.info.reads().iter().copied().filter(|value| *value != Value::X) {
            let (holders, all) = (flow.holders(value), flow.all_origins(value));
            for device in on.iter().copied().filter(|device| !holders.contains(device)) {
                let rows = if all.is_empty() { DeviceSet::from([device]) } else { all.clone() };
                flow.put(value, device, rows);
            }
        }
    }

    fn missing_input(&mut self, stage: &StageAt<'_>, value: Value) {
        let writer = |info: &&StageAt<'_>| info.info.writes().contains(&value);
        let elsewhere = self.resolved.stages.iter().find(writer);
        // A layer without attention or combine was reported where it belongs.
        if !self.covered && elsewhere.is_none() {
            return;
        }
        let message = format!("`{}` reads {}, which no stage before it writes", stage.id, value.name());
        let help = match (value, elsewhere) {
            (_, Some(other)) => {
                format!("`{}` writes it: it must come before `{}` in every layer where that runs", other.id, stage.id)
            }
            (Value::Routing, None) => {
                "add `{ \"kind\": \"router\", \"on\": …, \"on_layers\": \"moe\" }` after the attention".to_owned()
            }
            (Value::U, None) => "put an attention stage before it".to_owned(),
            (_, None) => format!("put a stage that writes {} before it", value.name()),
        };
        self.out.error("missing-input", stage.at("kind"), message).with_help(help);
    }

    fn missing_transfer(&mut self, stage: &StageAt<'_>, values: &[Value], lacking: &[DeviceIndex], flow: &Flow) {
        let makers: Vec<DeviceIndex> = flow.all_origins(values[0]).into_iter().collect();
        let (from, to) = (self.resolved.device_names(&makers), self.resolved.device_names(lacking));
        let what = values.iter().map(|value| value.name()).collect::<Vec<_>>().join(" and ");
        let verb = if values.len() == 1 { "is" } else { "are" };
        let message = format!(
            "`{}` reads {what} on {}, but {what} {verb} on {}: a transfer is missing before it",
            stage.id,
            words::list(&to),
            words::list(&from)
        );
        let earlier = self.case.stages.iter().map(|index| &self.resolved.stages[*index]);
        let mut passed = earlier.take_while(|other| other.pointer != stage.pointer);
        let help = match passed.find(|other| other.role() == Role::Transfer) {
            Some(transfer) if values == [Value::Routing] => {
                format!(
                    "move the router before `{}`, which then carries the routing, or run it on {}",
                    transfer.id,
                    words::list(&to)
                )
            }
            _ => transfer_help(&from, &self.resolved.device_names(&stage.on), values[0]),
        };
        self.out.error("missing-transfer", stage.at("on"), message).with_help(help);
    }

    /// Every attention device's rows reach all devices of one replica.
    fn rows_reach(&mut self, stage: &StageAt<'_>, flow: &Flow) {
        let per_replica = stage.counts().per_replica().max(1);
        let rows = flow.all_origins(Value::U);
        let lost: Vec<DeviceIndex> = rows
            .iter()
            .copied()
            .filter(|row| {
                let has = |device: &DeviceIndex| flow.origins(Value::U, *device).is_some_and(|rows| rows.contains(row));
                !stage.on.chunks(per_replica).any(|replica| replica.iter().all(has))
            })
            .collect();
        if lost.is_empty() {
            return;
        }
        let names = self.resolved.device_names(&lost);
        let message = format!(
            "`{}` never gets the rows of {} on all devices of a copy of its weights: a transfer is missing before it",
            stage.id,
            words::list(&names)
        );
        let from = self.resolved.device_names(&rows.iter().copied().collect::<Vec<_>>());
        let help = transfer_help(&from, &self.resolved.device_names(&stage.on), Value::U);
        self.out.error("missing-transfer", stage.at("on"), message).with_help(help);
    }

    /// Every device that combines has all parts of y of one replica.
    fn parts_reach(&mut self, stage: &StageAt<'_>, flow: &Flow) {
        let ffn = self.case.stages.iter().map(|index| &self.resolved.stages[*index]).find(|s| s.role() == Role::Ffn);
        let Some(ffn) = ffn else { return };
        let per_replica = ffn.counts().per_replica().max(1);
        for device in &stage.on {
            let Some(parts) = flow.origins(Value::Y, *device) else { continue };
            if ffn.on.chunks(per_replica).any(|replica| replica.iter().all(|part| parts.contains(part))) {
                continue;
            }
            let lost: Vec<DeviceIndex> = ffn.on.iter().copied().filter(|part| !parts.contains(part)).collect();
            let message = format!(
                "`{}` on {} lacks the part of y that {} computes: a transfer is missing before it",
                stage.id,
                words::list(&self.resolved.device_names(&[*device])),
                words::list(&self.resolved.device_names(&lost))
            );
            let (from, to) = (self.resolved.device_names(&ffn.on), self.resolved.device_names(&stage.on));
            let help = transfer_help(&from, &to, Value::Y);
            self.out.error("missing-transfer", stage.at("on"), message).with_help(help);
            return;
        }
    }
}

/// What a stage leaves behind on its devices.
fn write(stage: &StageAt<'_>, on: &[DeviceIndex], flow: &mut Flow) {
    let reads = stage.info.reads();
    for value in stage.info.writes() {
        for device in on {
            let own = || DeviceSet::from([*device]);
            let rows = match (stage.role(), value) {
                (Role::Attention | Role::Embed, _) | (_, Value::X | Value::Tokens) => own(),
                (Role::Ffn, Value::Y) => own(),
                _ => {
                    let mut rows = DeviceSet::new();
                    for read in reads {
                        rows.extend(flow.origins(*read, *device).into_iter().flatten());
                    }
                    if rows.is_empty() { own() } else { rows }
                }
            };
            flow.put(*value, *device, rows);
        }
    }
    if stage.role() == Role::Combine {
        [Value::U, Value::Routing, Value::Y].into_iter().for_each(|value| flow.remove(value));
    }
}

/// A transfer as it would stand in the file.
fn transfer_help(from: &[String], to: &[String], value: Value) -> String {
    let dtype = if value == Value::Y { "bf16" } else { "fp8_e4m3" };
    let (from, to) = (json_names(from), json_names(to));
    format!("insert `{{ \"kind\": \"transfer\", \"id\": …, \"from\": {from}, \"to\": {to}, \"dtype\": \"{dtype}\" }}`")
}

/// A list of names as it stands in a graph file.
pub(super) fn json_names(names: &[String]) -> String {
    match names {
        [only] => format!("\"{only}\""),
        _ => format!("[{}]", names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")),
    }
}
