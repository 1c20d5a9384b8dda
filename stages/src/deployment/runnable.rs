//! What this version checks and plans but does not run: refused by name before any weight is read.

use super::assemble::AssembleError;
use rally_graph::routes::{Exchanges, FfnLayout, Rails};
use rally_graph::spec::{Backend, ComputeDtype, DeploymentSpec};
use rally_graph::stage_graph::{DeviceIndex, Payload, ResolvedStage, ResolvedTransfer, StageGraph};

fn refuse<T>(what: String) -> Result<T, AssembleError> {
    Err(AssembleError::NotRunnable { what })
}

/// Refuses fields whose meaning this version does not carry out.
pub(super) fn refuse_fields(spec: &DeploymentSpec, host: Option<usize>) -> Result<(), AssembleError> {
    // The checker says so too; whoever assembles without it is not to get f32 for what he asked.
    if spec.compute != ComputeDtype::F32 && spec.devices.values().any(|device| device.backend == Backend::Cpu) {
        return refuse("`compute` other than `f32` on CPU devices".into());
    }
    if let (Some(host), None) = (spec.hosts.keys().next(), host) {
        return refuse(format!(
            "a graph with hosts (`{host}`) other than by `rally run`, `rally serve` and `rally worker`"
        ));
    }
    Ok(())
}

/// Refuses copied experts whose holders are on different hosts or of different backends: their exchange does not cross.
pub(super) fn refuse_exchanges_across_hosts(graph: &StageGraph) -> Result<(), AssembleError> {
    for instance in graph.graph.node_weights() {
        let (stage, Some(layer)) = (&graph.stages[instance.stage], instance.layer) else { continue };
        let Some(exchanges) = Exchanges::of(graph, stage, layer) else { continue };
        let host = |device: &DeviceIndex| graph.devices[*device].host;
        if exchanges.peers.iter().any(|peers| peers.iter().any(|device| host(device) != host(&peers[0]))) {
            return refuse(format!("`{}`, whose devices work on each other's rows on different hosts,", stage.id));
        }
        let backend = |device: &DeviceIndex| graph.devices[*device].backend;
        if exchanges.peers.iter().any(|peers| peers.iter().any(|device| backend(device) != backend(&peers[0]))) {
            let what = "whose devices work on each other's rows on CPU and CUDA devices at once,";
            return refuse(format!("`{}`, {what}", stage.id));
        }
    }
    Ok(())
}

/// Refuses layers whose rows take another way than attention → FFN → attention, each leg in one transfer: rows find their way
/// home by the device they were sent from, and parts of y are summed where one transfer brings them all.
pub(super) fn refuse_ways(graph: &StageGraph, attention: &[DeviceIndex]) -> Result<(), AssembleError> {
    for (layer, ffn) in FfnLayout::by_layer(graph).into_iter().enumerate() {
        let Some(ffn) = ffn else { continue };
        let transfers = |output: bool| -> Vec<(&ResolvedStage, &ResolvedTransfer)> {
            let instances = graph.graph.node_weights().filter(|instance| instance.layer == Some(layer));
            let right = instances.filter(|instance| (instance.payload == Payload::Output) == output);
            right.filter_map(|i| Some((&graph.stages[i.stage], graph.stages[i.stage].transfer.as_ref()?))).collect()
        };
        let (inputs, outputs) = (transfers(false), transfers(true));
        let alone = attention.len() == 1 && ffn.devices() == attention;
        if alone || (inputs.is_empty() && outputs.is_empty() && ffn.parts() == 1) {
            continue;
        }
        let ends = |ends: &[(&ResolvedStage, &ResolvedTransfer)]| -> Vec<String> {
            ends.iter().map(|(stage, _)| format!("`{}`", stage.id)).collect()
        };
        let ([(input, a2f)], [(output, f2a)]) = (inputs.as_slice(), outputs.as_slice()) else {
            let (before, after) = (ends(&inputs).join(", "), ends(&outputs).join(", "));
            return refuse(format!(
                "layer {layer} with {} transfers to its FFN ({before}) and {} back ({after}), not one each,",
                inputs.len(),
                outputs.len(),
            ));
        };
        whole(graph, &input.id, &a2f.from, attention)?;
        whole(graph, &input.id, &a2f.to, ffn.devices())?;
        whole(graph, &output.id, &f2a.from, ffn.devices())?;
        whole(graph, &output.id, &f2a.to, attention)?;
        let railed =
            [(input, a2f), (output, f2a)].into_iter().find(|(_, transfer)| Rails::of(graph, transfer).is_some());
        if let Some((stage, _)) = railed
            && !ffn.replicas_keep_groups(graph)
        {
            return refuse(format!(
                "transfer `{}` with `rail` routing to a group that several replicas share",
                stage.id
            ));
        }
    }
    Ok(())
}

/// A transfer's end is exactly the devices `wanted`.
fn whole(graph: &StageGraph, id: &str, end: &[DeviceIndex], wanted: &[DeviceIndex]) -> Result<(), AssembleError> {
    let name = |device: &DeviceIndex| &graph.devices[*device].name;
    if let Some(left) = wanted.iter().find(|device| !end.contains(device)) {
        return refuse(format!("transfer `{id}` that leaves out `{}`, whose part stays where it is,", name(left)));
    }
    match end.iter().find(|device| !wanted.contains(device)) {
        Some(relay) => refuse(format!("transfer `{id}` over `{}`, which only passes rows on,", name(relay))),
        None => Ok(()),
    }
}
