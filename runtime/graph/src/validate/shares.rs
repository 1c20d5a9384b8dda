//! Shares of GPUs: that a card can be divided so, and that its devices are given no more than there is.
//!
//! Which card a device without `card` gets is known where it runs; of those, each share is judged alone, and opening them judges the rest.

use crate::diagnostic::Reporter;
use crate::hardware::{self, Grain};
use crate::resolve::Resolved;
use crate::source::join;
use crate::spec::{Backend, DeviceSpec};
use crate::stage_graph::Device;
use crate::words;
use indexmap::IndexMap;

pub(super) fn check(resolved: &Resolved<'_>, out: &mut Reporter<'_>) {
    for (name, device) in &resolved.spec.devices {
        let pointer = join("/devices", name);
        if device.backend == Backend::Cpu {
            let keys = [("card", device.card.is_some()), ("sms", device.sms.is_some())];
            for (key, _) in keys.into_iter().filter(|(_, given)| *given) {
                let message = format!("`{name}` is a CPU device; `{key}` is about GPUs");
                out.error("key-not-for-backend", format!("{pointer}/{key}"), message)
                    .with_help(format!("remove `{key}`; `cores` pins CPU devices"));
            }
        }
    }
    for ((host, card), devices) in cards(resolved) {
        judge_card(resolved, host, card, &devices, out);
    }
    let strays = |device: &&Device| device.backend == Backend::Cuda && device.card.is_none();
    let mut seen = "";
    for device in resolved.devices.iter().filter(strays).filter(|device| device.sms.is_some()) {
        // One device speaks for its group.
        if device.group != seen {
            judge_alone(resolved, device, out);
            seen = &device.group;
        }
    }
}

/// CUDA devices that say on which card they are, by host and card.
fn cards<'a>(resolved: &'a Resolved<'_>) -> IndexMap<(Option<usize>, u32), Vec<&'a Device>> {
    let mut cards: IndexMap<_, Vec<&Device>> = IndexMap::new();
    for device in resolved.devices.iter().filter(|device| device.backend == Backend::Cuda) {
        if let Some(card) = device.card {
            cards.entry((device.host, card)).or_default().push(device);
        }
    }
    cards
}

fn entry<'a>(resolved: &'a Resolved<'_>, device: &Device) -> &'a DeviceSpec {
    &resolved.spec.devices[&device.group]
}

fn grain(resolved: &Resolved<'_>, device: &Device) -> Grain {
    hardware::grain(entry(resolved, device).hardware.as_deref())
}

fn at(device: &Device) -> String {
    format!("{}/sms", join("/devices", &device.group))
}

fn judge_card(resolved: &Resolved<'_>, host: Option<usize>, card: u32, devices: &[&Device], out: &mut Reporter<'_>) {
    let shared: Vec<&Device> = devices.iter().copied().filter(|device| device.sms.is_some()).collect();
    let Some(first) = shared.first() else { return };
    let on = host.and_then(|host| resolved.spec.hosts.get_index(host)).map(|(host, _)| format!(" of `{host}`"));
    let on = on.unwrap_or_default();
    if let Some(whole) = devices.iter().find(|device| device.sms.is_none()) {
        let message = format!(
            "`{}` has all of GPU {card}{on}, of which `{}` has {} multiprocessors to itself",
            whole.name,
            first.name,
            first.sms.unwrap_or_default()
        );
        out.error("share-of-whole", join("/devices", &whole.group), message)
            .with_help("give it `sms` too, or take that of the others away");
        return;
    }
    let Grain { multiprocessors, .. } = grain(resolved, first);
    let mut sum = 0u32;
    for device in &shared {
        sum = sum.saturating_add(device.sms.unwrap_or_default());
        if let Some(all) = multiprocessors.filter(|all| sum > *all) {
            let names: Vec<&String> = shared.iter().map(|device| &device.name).collect();
            let total: u32 = shared.iter().filter_map(|device| device.sms).fold(0, u32::saturating_add);
            let message = match shared.len() {
                1 => format!("`{}` wants {total} multiprocessors of GPU {card}{on}, which has {all}", device.name),
                _ => format!(
                    "{} want {total} multiprocessors of GPU {card}{on} together, which has {all}",
                    words::list(&names)
                ),
            };
            out.error("share-too-large", at(device), message).with_help("two devices never run on one multiprocessor");
            return;
        }
    }
    let rest = multiprocessors.is_none_or(|all| sum == all);
    let mut uneven = 0;
    for device in &shared {
        let sms = device.sms.unwrap_or_default();
        let odd = !sms.is_multiple_of(grain(resolved, device).step);
        uneven += u32::from(odd);
        if too_small(resolved, device, out) {
            return;
        }
        // One takes what the others leave, whatever that is. Of a card whose size is not known, one may.
        if odd && !(rest && uneven == 1) {
            return not_a_step(resolved, device, out);
        }
    }
}

fn judge_alone(resolved: &Resolved<'_>, device: &Device, out: &mut Reporter<'_>) {
    let Grain { multiprocessors, .. } = grain(resolved, device);
    let sms = device.sms.unwrap_or_default();
    if let Some(all) = multiprocessors.filter(|all| sms > *all) {
        let hardware = entry(resolved, device).hardware.as_deref().unwrap_or_default();
        let message = format!("`{}` wants {sms} multiprocessors, and `{hardware}` has {all}", device.group);
        out.error("share-too-large", at(device), message).with_help("two devices never run on one multiprocessor");
    } else {
        // Whether an odd share is the rest of its card is known when it is opened.
        too_small(resolved, device, out);
    }
}

fn too_small(resolved: &Resolved<'_>, device: &Device, out: &mut Reporter<'_>) -> bool {
    let Grain { least, step, .. } = grain(resolved, device);
    let sms = device.sms.unwrap_or_default();
    if sms >= least {
        return false;
    }
    let message = format!("`{}` wants {sms} multiprocessors, and a share has {least} or more", device.name);
    out.error("share-not-a-step", at(device), message)
        .with_help(format!("give it {least}, or more in steps of {step}"));
    true
}

fn not_a_step(resolved: &Resolved<'_>, device: &Device, out: &mut Reporter<'_>) {
    let Grain { step, .. } = grain(resolved, device);
    let sms = device.sms.unwrap_or_default();
    let message = format!(
        "`{}` wants {sms} multiprocessors, and shares come in steps of {step}, but for one that takes all that others leave",
        device.name
    );
    let (below, above) = (sms / step * step, sms.next_multiple_of(step));
    out.error("share-not-a-step", at(device), message).with_help(format!("give it {below} or {above}"));
}
