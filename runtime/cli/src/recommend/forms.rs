//! The answer as one JSON object.

use super::{Answer, Question};
use rally_recommend::finalists::Finalist;
use rally_recommend::pipeline::RESOURCES;
use rally_recommend::search::Candidate;
use rally_recommend::simulate::Simulated;
use serde_json::{Value, json};

pub(super) fn json(question: &Question, answer: &Answer) -> Value {
    let Answer { found, finals, zone } = answer;
    let candidate = |candidate: &Candidate| candidate_json(question, candidate);
    let finalist = |finalist: &Finalist| {
        let mut json = candidate_json(question, &finalist.candidate);
        json["simulated"] = simulated_json(&finalist.simulated);
        json["off"] = json!(finalist.off());
        json
    };
    let undivided = found.undivided.map(|(index, undivided)| {
        json!({
            "on": question.pool[index].hardware.name, "devices": undivided.devices, "batch": undivided.batch,
            "tpot_ms": undivided.tpot_s * 1e3, "tokens_per_s": undivided.tokens_per_s,
            "tokens_per_s_per_device": undivided.tgs(), "usd_per_mtok": undivided.usd_per_mtok(),
        })
    });
    let best = match finals {
        Some(finals) => finals.best.as_ref().map(finalist),
        None => found.best.as_ref().map(candidate),
    };
    let simulations = finals.as_ref().map(|finals| {
        json!({
            "other_order": finals.other_order.as_ref().map(simulated_json),
            "terms_ms": finals.terms.map(|terms| json!({
                "pipeline": terms.pipeline * 1e3, "fabric": terms.fabric * 1e3, "plan": terms.plan * 1e3,
                "ends": terms.ends * 1e3, "overheads": terms.overheads * 1e3,
            })),
            "finalists": finals.finalists.iter().map(finalist).collect::<Vec<_>>(),
            "cost_front": finals.front.iter().map(finalist).collect::<Vec<_>>(),
        })
    });
    json!({
        "model": question.workload.model.name,
        "tpot_ms": question.tpot_s * 1e3,
        "basis": question.basis(),
        "trace": question.demand.as_ref().map(|demand| json!({
            "requests": demand.requests, "span_s": demand.span_s, "mean_context": demand.mean_context(),
            "tokens_per_s": demand.tokens_per_s, "busiest_tokens_per_s": demand.busiest_tokens_per_s,
            "deployments": answer.copies(demand),
        })),
        "best": best,
        "best_by_arithmetic": found.best.as_ref().map(candidate),
        "simulations": simulations,
        "undivided": undivided,
        "disaggregate": answer.advantage().map_or(best.is_some(), |share| share > 0.0),
        "advantage": answer.advantage(),
        "dead_zone": zone.as_ref().map(|zone| json!({
            "tokens_per_s": zone.tokens_per_s,
            "past_ffn_instances": zone.from.map(|(ffn, _)| ffn),
            "bound": zone.from.map(|(_, bound)| bound),
        })),
        "cost_front": found.cost_front.iter().map(candidate).collect::<Vec<_>>(),
        "throughput_front": found.throughput_front.iter().map(candidate).collect::<Vec<_>>(),
        "tried": found.tried,
        "pruned": found.pruned,
    })
}

fn candidate_json(question: &Question, candidate: &Candidate) -> Value {
    let (outcome, layout) = (&candidate.outcome, &candidate.outcome.layout);
    let (attention, ffn) = question.on(candidate);
    let stages: serde_json::Map<String, Value> = RESOURCES
        .iter()
        .zip(outcome.stages)
        .map(|(name, seconds)| ((*name).to_owned(), json!(seconds * 1e6)))
        .collect();
    json!({
        "layout": layout.name(), "attention_on": attention.name, "ffn_on": ffn.name,
        "attention_instances": layout.attention, "ffn_instances": layout.ffn, "devices_per_instance": layout.devices,
        "micro_batches": layout.micro_batches, "o_proj": layout.o_proj, "ffn_replicas": layout.replicas,
        "wire": layout.wire.name(), "batch": outcome.batch, "tpot_ms": outcome.tpot_s * 1e3,
        "tokens_per_s": outcome.tokens_per_s, "tokens_per_s_per_device": outcome.tgs(),
        "usd_per_mtok": outcome.usd_per_mtok(), "bound": outcome.bound(), "layer_us": stages,
        "attention_memory_share": outcome.attention_memory, "ffn_memory_share": outcome.ffn_memory,
    })
}

fn simulated_json(simulated: &Simulated) -> Value {
    json!({
        "schedule": simulated.schedule, "batch": simulated.batch, "tpot_ms": simulated.tpot_s * 1e3,
        "tokens_per_s": simulated.tokens_per_s, "tokens_per_s_per_device": simulated.tgs(),
        "usd_per_mtok": simulated.usd_per_mtok(),
        "busy": { "attention": simulated.busy[0], "ffn": simulated.busy[1] },
    })
}
