//! Where values are: per value and device, whose rows or parts the device holds.

use crate::kinds::Value;
use crate::stage_graph::DeviceIndex;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

pub(super) type DeviceSet = BTreeSet<DeviceIndex>;

/// Sets are shared: after a broadcast every destination holds the same one.
#[derive(Clone, Debug, Default)]
pub(super) struct Flow {
    values: BTreeMap<Value, BTreeMap<DeviceIndex, Rc<DeviceSet>>>,
}

impl Flow {
    pub(super) fn put(&mut self, value: Value, device: DeviceIndex, origins: DeviceSet) {
        self.put_shared(value, device, Rc::new(origins));
    }

    pub(super) fn put_shared(&mut self, value: Value, device: DeviceIndex, origins: Rc<DeviceSet>) {
        self.values.entry(value).or_default().insert(device, origins);
    }

    /// Adds to what a device holds.
    pub(super) fn add_shared(&mut self, value: Value, device: DeviceIndex, origins: &Rc<DeviceSet>) {
        let held = self.values.entry(value).or_default().entry(device).or_insert_with(|| Rc::clone(origins));
        if !Rc::ptr_eq(held, origins) && !origins.is_subset(held) {
            Rc::make_mut(held).extend(origins.iter());
        }
    }

    pub(super) fn remove(&mut self, value: Value) {
        self.values.remove(&value);
    }

    /// Devices that hold some of a value.
    pub(super) fn holders(&self, value: Value) -> DeviceSet {
        self.values.get(&value).map(|devices| devices.keys().copied().collect()).unwrap_or_default()
    }

    /// Whose rows or parts of a value a device holds.
    pub(super) fn origins(&self, value: Value, device: DeviceIndex) -> Option<&DeviceSet> {
        self.values.get(&value)?.get(&device).map(|origins| &**origins)
    }

    /// Whose rows or parts the given devices hold together.
    pub(super) fn union(&self, value: Value, devices: &[DeviceIndex]) -> DeviceSet {
        let mut all = DeviceSet::new();
        let mut last: Option<&Rc<DeviceSet>> = None;
        let held = self.values.get(&value);
        for origins in devices.iter().filter_map(|device| held?.get(device)) {
            if !last.is_some_and(|last| Rc::ptr_eq(last, origins)) {
                all.extend(origins.iter());
            }
            last = Some(origins);
        }
        all
    }

    /// Whose rows or parts there are anywhere.
    pub(super) fn all_origins(&self, value: Value) -> DeviceSet {
        self.union(value, &self.holders(value).into_iter().collect::<Vec<_>>())
    }

    /// Adds what another branch left.
    pub(super) fn join(&mut self, other: &Self) {
        for (value, devices) in &other.values {
            let mine = self.values.entry(*value).or_default();
            for (device, origins) in devices {
                match mine.get_mut(device) {
                    Some(held) if Rc::ptr_eq(held, origins) => {}
                    Some(held) => Rc::make_mut(held).extend(origins.iter()),
                    None => {
                        mine.insert(*device, Rc::clone(origins));
                    }
                }
            }
        }
    }
}
