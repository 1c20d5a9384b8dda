//! Devices: use, cores, hosts, hardware, links, and whether the CPU can compute as asked.

use crate::diagnostic::Reporter;
use crate::hardware::{self, Machine};
use crate::kinds::Role;
use crate::resolve::{Resolved, StageAt};
use crate::source::join;
use crate::spec::{Backend, ComputeDtype, DeviceSpec, Routing, TransportKind};
use crate::stage_graph::DeviceIndex;
use crate::words;
use indexmap::IndexSet;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

/// `flow`: whether the stages are as the file has them, so that what they leave out can be judged.
pub(super) fn check(resolved: &Resolved<'_>, machine: Machine, flow: bool, out: &mut Reporter<'_>) {
    if flow {
        unused(resolved, out);
    }
    cores(resolved, machine, out);
    for (name, device) in &resolved.spec.devices {
        let pointer = join("/devices", name);
        hardware_profile(&pointer, device, out);
        links(&pointer, name, device, out);
    }
    let strays = out.len();
    for (name, device) in &resolved.spec.devices {
        host(resolved, &join("/devices", name), name, device, out);
    }
    hosts(resolved, strays == out.len(), out);
    membership(resolved, out);
    compute(resolved, out);
    for stage in resolved.stages.iter().filter(|stage| flow && stage.role() == Role::Transfer) {
        transport(resolved, stage, out);
        rail(resolved, stage, out);
    }
}

fn unused(resolved: &Resolved<'_>, out: &mut Reporter<'_>) {
    let used: HashSet<DeviceIndex> =
        resolved.stages.iter().flat_map(|stage| stage.on.iter().chain(&stage.from).chain(&stage.to)).copied().collect();
    for name in resolved.spec.devices.keys() {
        let own = |index: &DeviceIndex| resolved.devices[*index].group == *name;
        let idle: Vec<DeviceIndex> =
            (0..resolved.devices.len()).filter(own).filter(|index| !used.contains(index)).collect();
        if !idle.is_empty() {
            let message = format!("no stage runs on {}", words::list(&resolved.device_names(&idle)));
            out.warning("unused-device", join("/devices", name), message).with_help("remove it, or run a stage on it");
        }
    }
}

fn cores(resolved: &Resolved<'_>, machine: Machine, out: &mut Reporter<'_>) {
    let mut owners: HashMap<(Option<&str>, u32), String> = HashMap::new();
    for (name, device) in &resolved.spec.devices {
        let pointer = format!("{}/cores", join("/devices", name));
        let Some(cores) = &device.cores else { continue };
        if device.backend == Backend::Cuda {
            out.error("key-not-for-backend", pointer, format!("`{name}` is a GPU; `cores` pins CPU devices"))
                .with_help("remove `cores`");
            continue;
        }
        if device.count.is_some_and(|count| count > 1) {
            let message = format!("all devices of the group `{name}` share these cores");
            out.warning("core-shared", &pointer, message)
                .with_help("declare single devices to give each its own cores");
        }
        for (index, core) in cores.iter().enumerate() {
            let at = format!("{pointer}/{index}");
            if machine.cores.is_some_and(|have| *core as usize >= have) {
                let have = machine.cores.unwrap_or_default();
                let last = have.saturating_sub(1);
                let message = format!("core {core} is not on this machine, which has cores 0 to {last}");
                out.warning("core-missing", &at, message).with_help("without it the lane runs unpinned");
            }
            if let Some(owner) = owners.insert((device.host.as_deref(), *core), name.clone()) {
                let message = match owner == *name {
                    true => format!("core {core} is listed twice"),
                    false => format!("core {core} is also a core of `{owner}`: the two take turns on it"),
                };
                out.warning("core-shared", &at, message);
            }
        }
    }
}

fn hardware_profile(pointer: &str, device: &DeviceSpec, out: &mut Reporter<'_>) {
    let Some(name) = &device.hardware else { return };
    if hardware::is_profile_file(name) || hardware::memory_bytes(name).is_some() {
        return;
    }
    let help = words::suggest(name, hardware::names());
    let message =
        format!("there is no hardware `{}`; expected a known card or a profile file (`….json`)", words::short(name));
    out.error("unknown-hardware", format!("{pointer}/hardware"), message).with_help(help);
}

fn links(pointer: &str, name: &str, device: &DeviceSpec, out: &mut Reporter<'_>) {
    if device.fabric.is_some() && device.count.unwrap_or(1) == 1 {
        let message = format!("`{name}` is a single device, so a link inside it means nothing");
        out.warning("no-effect", format!("{pointer}/fabric"), message).with_help("remove `fabric`, or set `count`");
    }
}

fn host(resolved: &Resolved<'_>, pointer: &str, name: &str, device: &DeviceSpec, out: &mut Reporter<'_>) {
    let hosts = &resolved.spec.hosts;
    match &device.host {
        Some(host) if !hosts.contains_key(host) => {
            let help = match hosts.is_empty() {
                true => "declare it: `\"hosts\": { \"…\": { \"address\": \"address:port\" } }`".to_owned(),
                false => words::suggest(host, hosts.keys().map(String::as_str)),
            };
            let message = format!("there is no host `{}`", words::short(host));
            out.error("unknown-host", format!("{pointer}/host"), message).with_help(help);
        }
        None if !hosts.is_empty() => {
            let names: Vec<&String> = hosts.keys().collect();
            out.error("missing-host", pointer, format!("`{name}` does not say on which host it is"))
                .with_help(format!("add `\"host\"`: {}", words::list(&names)));
        }
        _ => {}
    }
}

/// Addresses; and, where no device has strayed from its host, hosts that nobody is on.
fn hosts(resolved: &Resolved<'_>, settled: bool, out: &mut Reporter<'_>) {
    for (name, host) in &resolved.spec.hosts {
        let pointer = join("/hosts", name);
        if settled && !resolved.spec.devices.values().any(|device| device.host.as_ref() == Some(name)) {
            out.warning("unused-host", &pointer, format!("no device is on host `{name}`"));
        }
        let Some(listens) = &host.address else {
            if resolved.spec.membership.is_none() {
                out.error("missing-address", &pointer, format!("nobody knows where host `{name}` is"))
                    .with_help("add `\"address\": \"address:port\"`, or let etcd know: `\"membership\": { \"etcd\": [\"http://…:2379\"] }`");
            }
            continue;
        };
        let port = listens.rsplit_once(':').filter(|(address, _)| !address.is_empty());
        if !port.is_some_and(|(_, port)| port.parse::<u16>().is_ok_and(|port| port != 0)) {
            let message = format!("`{}` is no address; expected `address:port`", words::short(listens));
            out.error("bad-address", format!("{pointer}/address"), message).with_help("such as `\"10.0.0.1:7000\"`");
        }
        let bare = port.map(|(address, _)| address.trim_start_matches('[').trim_end_matches(']'));
        if bare.and_then(|address| address.parse::<IpAddr>().ok()).is_some_and(|address| address.is_unspecified()) {
            let message =
                format!("`{}` is every interface of a machine, and none that others can reach", words::short(listens));
            out.error("bad-address", format!("{pointer}/address"), message)
                .with_help("name the interface of the network between the hosts, such as `\"10.0.0.1:7000\"`");
        }
    }
}

/// etcd's addresses, and hosts to be found there.
fn membership(resolved: &Resolved<'_>, out: &mut Reporter<'_>) {
    let Some(membership) = &resolved.spec.membership else { return };
    for (index, endpoint) in membership.etcd.iter().enumerate() {
        let address = endpoint.strip_prefix("http://").map(|address| address.trim_end_matches('/'));
        let port = address.and_then(|address| address.rsplit_once(':')).filter(|(name, _)| !name.is_empty());
        if !port.is_some_and(|(name, port)| !name.contains('/') && port.parse::<u16>().is_ok_and(|port| port != 0)) {
            let message = format!("`{}` is no address of etcd; expected `http://address:port`", words::short(endpoint));
            let help = match endpoint.starts_with("https://") {
                true => "etcd over TLS is not there yet; keys are signed, and hold no secret",
                false => "such as `\"http://10.0.0.9:2379\"`",
            };
            out.error("bad-address", format!("/membership/etcd/{index}"), message).with_help(help);
        }
    }
    if resolved.spec.hosts.is_empty() {
        let message = "all runs in one process, so there are no hosts to find";
        out.warning("no-effect", "/membership", message).with_help("remove `membership`, or declare `hosts`");
    }
}

/// The CPU computes in f32; another precision would be ignored there, so it is refused.
fn compute(resolved: &Resolved<'_>, out: &mut Reporter<'_>) {
    let word = match resolved.spec.compute {
        ComputeDtype::F32 => return,
        ComputeDtype::Bf16 => "bf16",
        ComputeDtype::Fp8 => "fp8",
        ComputeDtype::Fp8PerToken => "fp8_per_token",
    };
    let cpu = resolved.spec.devices.iter().find(|(_, device)| device.backend == Backend::Cpu);
    if let Some((name, _)) = cpu {
        let message = format!("`compute` is `{word}`, but `{name}` is a CPU device, and the CPU computes in f32");
        out.error("compute-not-on-cpu", "/compute", message)
            .with_help("set `\"compute\": \"f32\"`; weights, wires and KV keep their own formats");
    }
}

fn transport(resolved: &Resolved<'_>, stage: &StageAt<'_>, out: &mut Reporter<'_>) {
    let hosts = |devices: &[DeviceIndex]| -> IndexSet<Option<&str>> {
        let groups: IndexSet<&str> = devices.iter().map(|device| resolved.devices[*device].group.as_str()).collect();
        groups.into_iter().map(|group| resolved.spec.devices[group].host.as_deref()).collect()
    };
    let (starts, ends) = (hosts(&stage.from), hosts(&stage.to));
    let pair = starts.iter().find_map(|from| ends.iter().find(|to| *to != from).map(|to| (*from, *to)));
    let Some((from, to)) = pair else { return };
    let ends = || format!("`{}` to `{}`", from.unwrap_or("?"), to.unwrap_or("?"));
    match stage.spec.transport {
        None => {
            let message = format!("`{}` goes from host {} and names no transport", stage.id, ends());
            out.error("missing-transport", &stage.pointer, message)
                .with_help("add `\"transport\": \"tcp\"` (or `\"nixl\"`)");
        }
        Some(TransportKind::Local) => {
            let message = format!("`local` stays in one process, but `{}` goes from host {}", stage.id, ends());
            out.error("transport-not-across-hosts", stage.at("transport"), message)
                .with_help("use `\"tcp\"` or `\"nixl\"`");
        }
        Some(TransportKind::Tcp | TransportKind::Nixl) => {}
    }
}

/// On rails device i of a group talks to device i of another, so groups are whole and equally large.
fn rail(resolved: &Resolved<'_>, stage: &StageAt<'_>, out: &mut Reporter<'_>) {
    if stage.spec.routing != Some(Routing::Rail) {
        return;
    }
    let mut sizes: Vec<(&str, usize)> = Vec::new();
    for device in stage.from.iter().chain(stage.to.iter().filter(|device| !stage.from.contains(device))) {
        let group = resolved.devices[*device].group.as_str();
        match sizes.iter_mut().find(|(name, _)| *name == group) {
            Some((_, size)) => *size += 1,
            None => sizes.push((group, 1)),
        }
    }
    let Some((first, size)) = sizes.first().copied() else { return };
    if let Some((other, differs)) = sizes.iter().find(|(_, other)| *other != size) {
        let message = format!("rails need groups of one size, but `{first}` brings {size} and `{other}` {differs}");
        out.error("rail-sizes", stage.at("routing"), message)
            .with_help("use `\"broadcast\"`, or make the groups equal");
    }
    let bare = |(group, size): &&(&str, usize)| *size > 1 && resolved.spec.devices[*group].fabric.is_none();
    if let Some((group, _)) = sizes.iter().find(bare) {
        let message = format!("rails exchange rows inside `{group}`, which names no fabric");
        out.error("rail-without-fabric", stage.at("routing"), message)
            .with_help(format!("add `\"fabric\": \"nvlink\"` to `{group}`, or use `\"broadcast\"`"));
    }
}
