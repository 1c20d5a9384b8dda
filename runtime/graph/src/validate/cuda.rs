//! What CUDA devices do not run: said where it is asked for. Of a graph with hosts, which does not run yet at all, nothing is said.

use crate::diagnostic::Reporter;
use crate::model::ModelShape;
use crate::placement::ExpertPlacement;
use crate::resolve::{Resolved, StageAt};
use crate::spec::Backend;
use crate::stage_graph::DeviceIndex;

/// Kinds that have a CUDA implementation; transfers are the engine's.
const KINDS: [&str; 8] =
    ["embed", "mfa_attention", "router", "expert_ffn", "dense_ffn", "combine", "sampling", "transfer"];

/// Widest head of the CUDA attention kernels.
const HEAD_DIM_AT_MOST: usize = 512;

pub(super) fn check(resolved: &Resolved<'_>, shape: &ModelShape, out: &mut Reporter<'_>) {
    if !resolved.spec.hosts.is_empty() {
        return;
    }
    for stage in &resolved.stages {
        let on_cuda = stage.on.iter().find(|device| resolved.devices[**device].backend == Backend::Cuda);
        if let Some(device) = on_cuda {
            let on_cpu = |device: &DeviceIndex| resolved.devices[*device].backend == Backend::Cpu;
            let name = &resolved.devices[*device].name;
            judge(stage, (name, stage.on.iter().any(on_cpu)), shape, out);
        }
    }
}

fn judge(stage: &StageAt<'_>, (device, mixes): (&str, bool), shape: &ModelShape, out: &mut Reporter<'_>) {
    let mut refuse = |pointer: String, what: String, help: &str| {
        let message = format!("{what}, which CUDA devices such as `{device}` do not run");
        out.warning("not-on-cuda", pointer, message).with_help(help);
    };
    let kind = stage.spec.kind.as_str();
    if !KINDS.contains(&kind) {
        refuse(stage.at("kind"), format!("`{kind}` is a kind of your own"), "give it a CPU device");
    }
    let lends = |layer: usize| {
        ExpertPlacement::of(stage.spec, layer, shape.experts, stage.counts().experts).lent_at_once(shape.top_k) > 0
    };
    if mixes && stage.spec.placement.is_some() && (0..shape.layers.len()).any(lends) {
        let what = "experts with copies on CPU devices as well".into();
        refuse(stage.at("placement"), what, "place each expert once, or use devices of one backend");
    }
    if kind == "mfa_attention" && (shape.head_dim > HEAD_DIM_AT_MOST || !shape.head_dim.is_multiple_of(2)) {
        refuse(stage.at("on"), format!("heads of {} elements", shape.head_dim), "use CPU devices");
    }
}
