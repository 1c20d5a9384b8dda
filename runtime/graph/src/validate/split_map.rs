//! Whether a split of one card was measured to lose: attention and FFN on parts of it, or on all of it at once, against both on one
//! device. The figures are `split_map.json`, which `scripts/cards-map one --map` writes; none of them is made up between cells.

use crate::diagnostic::Reporter;
use crate::kinds::Role;
use crate::memory::pages_per_device;
use crate::resolve::Resolved;
use crate::source::join;
use crate::spec::Backend;
use crate::stage_graph::{Device, DeviceIndex};
use serde::Deserialize;
use std::sync::OnceLock;

#[derive(Debug, Deserialize)]
struct SplitMap {
    /// Name of the card.
    hardware: String,
    cells: Vec<Cell>,
}

/// Speed of splits, of the undivided model's with one micro-batch.
#[derive(Debug, Deserialize)]
struct Cell {
    sequences: u32,
    context: u64,
    /// By the multiprocessors that attention has; FFN has the others.
    splits: Vec<(u32, f64)>,
    /// Both on all.
    together: f64,
}

fn map() -> Option<&'static SplitMap> {
    static MAP: OnceLock<Option<SplitMap>> = OnceLock::new();
    // A test reads it too.
    MAP.get_or_init(|| serde_json::from_str(include_str!("split_map.json")).ok()).as_ref()
}

impl SplitMap {
    /// The measured cell that is nearest in sequences and context.
    fn nearest(&self, sequences: u32, context: u64) -> Option<&Cell> {
        let apart = |a: f64, b: f64| (a.max(1.0) / b.max(1.0)).ln().abs();
        let distance = |cell: &&Cell| {
            apart(f64::from(cell.sequences), f64::from(sequences)) + apart(cell.context as f64, context as f64)
        };
        self.cells.iter().min_by(|a, b| distance(a).total_cmp(&distance(b)))
    }

    fn range(&self) -> (f64, f64) {
        let all = self.cells.iter().flat_map(|cell| cell.splits.iter().map(|(_, speed)| *speed).chain([cell.together]));
        all.fold((f64::INFINITY, 0.0), |(least, most), speed| (speed.min(least), speed.max(most)))
    }
}

impl Cell {
    /// Of the split that is nearest, or of both on all.
    fn speed(&self, attention_sms: Option<u32>) -> (String, f64) {
        let nearest = attention_sms.and_then(|sms| self.splits.iter().min_by_key(|(of, _)| of.abs_diff(sms)));
        match nearest {
            Some((sms, speed)) => (format!("{sms} for attention"), *speed),
            None => ("both on all of it".into(), self.together),
        }
    }
}

/// Warns of attention and FFN on one card. Devices that have shares and say nothing of cards count as on one: on several, each would have
/// a card of its own.
pub(super) fn check(resolved: &Resolved<'_>, out: &mut Reporter<'_>) {
    let Some(map) = map() else { return };
    let with_role = |role: Role| -> Vec<DeviceIndex> {
        resolved.stages.iter().filter(|stage| stage.role() == role).flat_map(|stage| stage.on.clone()).collect()
    };
    let (attention, ffn) = (with_role(Role::Attention), with_role(Role::Ffn));
    let knows_card =
        |device: &Device| device.backend == Backend::Cuda && (device.card.is_some() || device.sms.is_some());
    let place = |device: &Device| (device.host, device.card);
    for a in attention.iter().filter(|a| !ffn.contains(a)).map(|a| &resolved.devices[*a]).filter(|a| knows_card(a)) {
        let beside = ffn.iter().filter(|f| !attention.contains(f)).map(|f| &resolved.devices[*f]);
        let Some(f) = beside.into_iter().find(|f| knows_card(f) && place(f) == place(a)) else { continue };
        let limits = &resolved.spec.limits;
        let devices = resolved.attention_devices().len().max(1);
        let sequences = limits.sequences.div_ceil(devices as u32);
        let tokens = pages_per_device(limits, devices) * u64::from(limits.page_tokens);
        let Some(cell) = map.nearest(sequences, tokens / u64::from(sequences.max(1))) else { return };
        let (split, speed) = cell.speed(a.sms);
        // What was measured to be no slower is nobody's business.
        if speed >= 1.0 {
            continue;
        }
        let (least, most) = map.range();
        let message = format!(
            "`{}` and `{}` share a GPU; such a split was measured at {speed:.2} of the speed of attention and FFN on one device without \
             transfers ({}, {} sequences × {}K, {split}; {least:.2} to {most:.2} over all that was measured)",
            a.name,
            f.name,
            map.hardware,
            cell.sequences,
            cell.context / 1024
        );
        out.warning("split-loses", join("/devices", &a.group), message).with_help(
            "put both on one device, or on GPUs of their own; to try AFD out on one GPU it is right all the same",
        );
        return;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_is_whole_and_the_nearest_cell_is_the_one_that_was_measured() {
        let map = map().expect("the map is well formed");
        assert!(map.cells.len() >= 2);
        for cell in &map.cells {
            let nearest = map.nearest(cell.sequences, cell.context).expect("there are cells");
            assert_eq!((nearest.sequences, nearest.context), (cell.sequences, cell.context));
            assert!(!cell.splits.is_empty() && cell.splits.iter().all(|(sms, speed)| *sms < 132 && *speed > 0.0));
            let (sms, speed) = cell.splits[0];
            assert_eq!(cell.speed(Some(sms)), (format!("{sms} for attention"), speed));
            assert_eq!(cell.speed(None).1, cell.together);
        }
        let (least, most) = map.range();
        assert!(least > 0.0 && least <= most);
    }
}
