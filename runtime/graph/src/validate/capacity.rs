//! Capacity: that what a device must keep fits into what it has.

use crate::diagnostic::Reporter;
use crate::hardware::Machine;
use crate::kinds::KindRegistry;
use crate::memory::{self, DeviceMemory};
use crate::model::ModelShape;
use crate::resolve::Resolved;
use crate::source::join;
use crate::spec::Backend;
use crate::words::{self, bytes};

pub(super) fn check(
    resolved: &Resolved<'_>,
    registry: &KindRegistry,
    shape: &ModelShape,
    machine: Machine,
    out: &mut Reporter<'_>,
) {
    let counted = memory::count(resolved, shape, machine);
    let before = out.len();
    for (name, device) in &resolved.spec.devices {
        // The devices of a group differ by a shard at most; the fullest one speaks for all.
        let own =
            counted.iter().zip(&resolved.devices).filter(|(_, device)| device.group == *name).map(|(memory, _)| memory);
        let own: Vec<&DeviceMemory> = own.collect();
        let Some(worst) = own.iter().rev().max_by_key(|memory| memory.needed_bytes()) else { continue };
        let equal = own.iter().all(|memory| memory.needed_bytes() == worst.needed_bytes());
        let who = match own.len() {
            1 => format!("`{}`", worst.name),
            _ if equal => format!("each device of `{name}`"),
            _ => format!("`{}`", worst.name),
        };
        let Some(capacity) = worst.capacity_bytes.filter(|capacity| worst.needed_bytes() > *capacity) else { continue };
        let source = worst.capacity_source.as_deref().unwrap_or("the device");
        let key = if device.memory_bytes.is_some() { "/memory_bytes" } else { "" };
        let message = format!(
            "{who} needs {} (weights {}, KV {}, slots {}), but has {} ({source})",
            bytes(worst.needed_bytes()),
            bytes(worst.weights_bytes),
            bytes(worst.kv_bytes),
            bytes(worst.slots_bytes),
            bytes(capacity)
        );
        let help = remedy(resolved, registry, shape, worst, capacity);
        out.error("over-capacity", format!("{}{key}", join("/devices", name)), message).with_help(help);
    }
    if out.len() == before {
        shared_memory(resolved, &counted, machine, out);
    }
}

/// What would make it fit, with the number where one follows.
fn remedy(
    resolved: &Resolved<'_>,
    registry: &KindRegistry,
    shape: &ModelShape,
    memory: &DeviceMemory,
    capacity: u64,
) -> String {
    let per_token = memory::kv_bytes_per_token(resolved.spec, shape, registry);
    let fixed = memory.weights_bytes.saturating_add(memory.slots_bytes);
    if memory.kv_bytes == 0 || per_token == 0 {
        return match memory.slots_bytes > memory.weights_bytes {
            true => "lower `limits.rows_per_micro_batch`".into(),
            false => "spread its weights over more devices (`shard`), or use a smaller weight format".into(),
        };
    }
    let attention = resolved.attention_devices().len() as u64;
    let page = u64::from(resolved.spec.limits.page_tokens.max(1));
    let tokens = capacity.saturating_sub(fixed) / per_token / page * page * attention;
    match tokens {
        0 => "even without KV it would not fit: use more or larger devices".into(),
        _ => format!("`limits.kv_tokens` of at most {tokens} fits; or add attention devices, or a smaller `kv_dtype`"),
    }
}

/// CPU devices of this machine share its memory.
fn shared_memory(resolved: &Resolved<'_>, counted: &[DeviceMemory], machine: Machine, out: &mut Reporter<'_>) {
    let Some(have) = machine.memory_bytes else { return };
    let here = |(_, device): &(&DeviceMemory, &crate::stage_graph::Device)| {
        let entry = &resolved.spec.devices[&device.group];
        entry.backend == Backend::Cpu && entry.host.is_none()
    };
    let all: Vec<&DeviceMemory> =
        counted.iter().zip(&resolved.devices).filter(here).map(|(memory, _)| memory).collect();
    let needed = all.iter().map(|memory| memory.needed_bytes()).fold(0, u64::saturating_add);
    if needed > have {
        let message = format!(
            "the {} need {} together, but this machine has {}",
            words::plural(all.len() as u64, "CPU device"),
            bytes(needed),
            bytes(have)
        );
        out.error("over-capacity", "/devices", message).with_help("lower `limits.kv_tokens`, or use fewer devices");
    }
}
