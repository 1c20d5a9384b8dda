//! Transfers: what one carries, and that its ends are where its neighbours are.

use super::flow::{DeviceSet, Flow};
use super::{Layer, json_names};
use crate::kinds::{Role, Value};
use crate::resolve::StageAt;
use crate::stage_graph::DeviceIndex;
use crate::words;
use std::rc::Rc;

impl Layer<'_, '_, '_, '_> {
    /// Before the layer's FFN a transfer carries u and the routing, after it y.
    pub(super) fn transfer(&mut self, stage: &StageAt<'_>, later: &[usize], flow: &mut Flow) {
        let held = |value: &Value| !flow.holders(*value).is_empty();
        let carried: Vec<Value> = match held(&Value::Y) {
            true => vec![Value::Y],
            false => [Value::U, Value::Routing].into_iter().filter(held).collect(),
        };
        let Some(main) = carried.first().copied() else {
            // Without attention there is nothing to carry, and that was reported.
            if !self.covered {
                return;
            }
            let message = format!("`{}` carries nothing: no stage before it writes u or y", stage.id);
            self.out
                .error("transfer-of-nothing", stage.at("kind"), message)
                .with_help("put it between the attention and the FFN, or between the FFN and `combine`");
            return;
        };
        let from = self.start(stage, main, flow);
        let to = self.end(stage, main, &carried, later, flow);
        for value in carried {
            let moved = Rc::new(flow.union(value, &from));
            // The routing may be made on a part of the devices only; what no source has, none can send.
            if !moved.is_empty() {
                to.iter().for_each(|device| flow.put_shared(value, *device, Rc::clone(&moved)));
            }
        }
    }

    /// Checks `from` and returns the devices that the transfer should start from.
    fn start(&mut self, stage: &StageAt<'_>, value: Value, flow: &Flow) -> Vec<DeviceIndex> {
        let holders = flow.holders(value);
        let strangers: Vec<DeviceIndex> =
            stage.from.iter().copied().filter(|device| !holders.contains(device)).collect();
        let sent = flow.union(value, &stage.from);
        let left: Vec<DeviceIndex> =
            flow.all_origins(value).into_iter().filter(|device| !sent.contains(device)).collect();
        if strangers.is_empty() && left.is_empty() {
            return stage.from.clone();
        }
        // The devices where the value was made: what a transfer of all of it starts from.
        let makers: Vec<DeviceIndex> = flow.all_origins(value).into_iter().collect();
        let (held, name) = (self.resolved.device_names(&makers), value.name());
        let message = if strangers.is_empty() {
            let left = words::list(&self.resolved.device_names(&left));
            match value {
                Value::Y => format!("`{}` leaves out {left}, whose part of y would be lost", stage.id),
                _ => format!("`{}` leaves out {left}, whose rows would never reach the FFN", stage.id),
            }
        } else {
            let strangers = words::list(&self.resolved.device_names(&strangers));
            format!("`{}` starts at {strangers}, but {name} is on {}", stage.id, words::list(&held))
        };
        self.out
            .error("transfer-ends", stage.at("from"), message)
            .with_help(format!("write `\"from\": {}`", json_names(&held)));
        makers
    }

    /// Checks `to` against the stages that read what the transfer carries, and returns where it should end.
    fn end(
        &mut self,
        stage: &StageAt<'_>,
        main: Value,
        carried: &[Value],
        later: &[usize],
        flow: &Flow,
    ) -> Vec<DeviceIndex> {
        let mut wanted = DeviceSet::new();
        let mut readers: Vec<&StageAt<'_>> = Vec::new();
        for other in later.iter().map(|index| &self.resolved.stages[*index]) {
            if other.role() != Role::Transfer && other.info.reads().iter().any(|value| carried.contains(value)) {
                wanted.extend(self.should_run(other, flow));
                readers.push(other);
            }
        }
        // A reader that has the value already is not whom the transfer is for.
        let served = |reader: &&&StageAt<'_>| reader.on.iter().all(|device| flow.origins(main, *device).is_some());
        let first = readers.iter().find(|reader| !served(reader)).or(readers.first()).copied();
        let Some(first) = first else {
            self.unread(stage, main);
            return stage.to.clone();
        };
        let useful = |device: &DeviceIndex| wanted.contains(device) || relays(*device, main, self, later);
        let extra: Vec<DeviceIndex> = stage.to.iter().copied().filter(|device| !useful(device)).collect();
        let reaches = stage.to.iter().any(useful);
        let goal = self.should_run(first, flow);
        let lacking = self.unserved(stage, &goal, main, later, flow);
        if extra.is_empty() && (lacking.is_empty() || !stage.to.iter().any(|device| goal.contains(device))) {
            return stage.to.clone();
        }
        let names = |devices: &[DeviceIndex]| words::list(&self.resolved.device_names(devices));
        let (id, reader, value) = (stage.id, first.id, main.name());
        let message = match (reaches, extra.is_empty()) {
            (true, true) => format!("`{id}` does not reach {}, where `{reader}` reads {value}", names(&lacking)),
            (true, false) => {
                format!("`{id}` ends at {}, where no later stage of the layer reads {value}", names(&extra))
            }
            (false, _) => {
                format!(
                    "`{id}` ends at {}, but `{reader}`, which reads {value}, runs on {}",
                    names(&extra),
                    names(&goal)
                )
            }
        };
        let help = format!("write `\"to\": {}`", json_names(&self.resolved.device_names(&goal)));
        self.out.error("transfer-ends", stage.at("to"), message).with_help(help);
        stage.to.iter().copied().chain(goal).collect()
    }

    fn unread(&mut self, stage: &StageAt<'_>, value: Value) {
        // A layer without its reader was reported where it belongs.
        if self.covered {
            let message = format!("`{}` carries {}, which no later stage of the layer reads", stage.id, value.name());
            self.out
                .error("transfer-of-nothing", stage.at("kind"), message)
                .with_help("remove it, or move its reader behind it");
        }
    }

    /// Where a stage must run: with x, if it reads that, else where the file says.
    fn should_run(&self, stage: &StageAt<'_>, flow: &Flow) -> Vec<DeviceIndex> {
        match stage.info.reads().contains(&Value::X) {
            true => flow.holders(Value::X).into_iter().collect(),
            false => stage.on.clone(),
        }
    }

    /// Devices of a transfer's reader that neither it nor a later transfer serves.
    fn unserved(
        &self,
        stage: &StageAt<'_>,
        goal: &[DeviceIndex],
        value: Value,
        later: &[usize],
        flow: &Flow,
    ) -> Vec<DeviceIndex> {
        let stages = || later.iter().map(|index| &self.resolved.stages[*index]);
        let served = |device: &DeviceIndex| {
            stage.to.contains(device)
                || flow.origins(value, *device).is_some()
                || stages().any(|other| other.role() == Role::Transfer && other.to.contains(device))
        };
        goal.iter().copied().filter(|device| !served(device)).collect()
    }
}

/// Whether a device is the start of a later transfer of the same value: one before the FFN for u, one before `combine` for y.
fn relays(device: DeviceIndex, value: Value, layer: &Layer<'_, '_, '_, '_>, later: &[usize]) -> bool {
    let stages = later.iter().map(|index| &layer.resolved.stages[*index]);
    let ends = |role: Role| match value {
        Value::Y => role == Role::Combine,
        _ => role == Role::Ffn,
    };
    stages
        .take_while(|stage| !ends(stage.role()))
        .any(|stage| stage.role() == Role::Transfer && stage.from.contains(&device))
}
