//! Devices that do the same at the same time, of which one is run for all.
//!
//! Lanes are a system of "begins when the last of these has ended": where every lane of a class has the same tasks, durations and
//! batches and waits for the same classes at the same places, all of them have the same times, step after step. So one lane a class is
//! run, what it sends counts as often as there are members, and the result is that of all lanes. The step planner plans for all
//! devices as ever; where it gives two of a class different batches, the run ends with [`Uneven`] instead of a wrong answer.

use super::Load;
use rally_graph::stage_graph::DeviceIndex;

/// Which device stands for which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fold {
    /// By device: the one that is run for it; itself, where it is run.
    stands_in: Vec<DeviceIndex>,
    /// By device: those it is run for, itself first; none where another is run for it.
    members: Vec<Vec<DeviceIndex>>,
}

impl Fold {
    /// `stands_in`: by device, the one that is run for it. Whoever is run for another is run itself.
    pub fn new(stands_in: Vec<DeviceIndex>) -> Self {
        let mut members = vec![Vec::new(); stands_in.len()];
        for (device, stands_in) in stands_in.iter().enumerate() {
            members[*stands_in].push(device);
        }
        Self { stands_in, members }
    }

    /// Every device for itself.
    pub fn none(devices: usize) -> Self {
        Self::new((0..devices).collect())
    }

    /// The device that is run for `device`.
    pub fn stands_in(&self, device: DeviceIndex) -> DeviceIndex {
        self.stands_in[device]
    }

    /// Whether `device` is run.
    pub fn runs(&self, device: DeviceIndex) -> bool {
        self.stands_in[device] == device
    }

    /// Devices that `device` is run for, itself among them; none where it is not run.
    pub fn members(&self, device: DeviceIndex) -> &[DeviceIndex] {
        &self.members[device]
    }

    /// Devices that are run.
    pub fn classes(&self) -> usize {
        self.members.iter().filter(|members| !members.is_empty()).count()
    }

    /// Whether some device is run for another.
    pub fn folds(&self) -> bool {
        self.classes() < self.stands_in.len()
    }
}

/// Why devices that were to do the same do not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Uneven {
    /// They were given different batches.
    #[error(
        "devices {} and {} were to do the same, and have {} and {} rows with contexts of {} and {} in a step of micro-batch \
         {micro_batch}", .devices.0, .devices.1, .loads.0.rows, .loads.1.rows, .loads.0.context, .loads.1.context
    )]
    Batches {
        /// Of this micro-batch.
        micro_batch: usize,
        /// The devices.
        devices: (DeviceIndex, DeviceIndex),
        /// What they got.
        loads: (Load, Load),
    },
    /// Copies of an FFN get different numbers of rows.
    #[error("{rows} rows of a device are not divided evenly over {copies} copies of an FFN")]
    Copies {
        /// Rows of an attention device.
        rows: usize,
        /// Copies.
        copies: usize,
    },
}
