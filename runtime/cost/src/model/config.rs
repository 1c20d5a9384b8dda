//! Reads a Hugging Face `config.json`, one function a family. Keys that change no count are left alone.

use super::{Attention, Ffn, KvDtypes, Layers, Model};
use crate::SpecError;
use crate::fields::Fields;
use rally_graph::words;

/// What reads the layers of a family.
type Reader = fn(&Fields<'_>) -> Result<Vec<(Attention, Ffn)>, SpecError>;

/// `model_type`, and what reads its layers.
const FAMILIES: [(&str, Reader); 13] = [
    ("step3_text", step3),
    ("step3_vl", step3),
    ("deepseek_v2", deepseek),
    ("deepseek_v3", deepseek),
    ("kimi_k2", deepseek),
    ("qwen3", qwen3),
    ("qwen3_moe", qwen3),
    ("llama4", llama4),
    ("llama4_text", llama4),
    ("minimax_m1", minimax),
    ("minimax_text_01", minimax),
    ("ernie4_5_moe", ernie),
    ("PanguProMoE", pangu),
];

/// More layers than any model has; counts stay small enough to be summed one by one.
const MOST_LAYERS: u64 = 4096;

pub(super) fn read(outer: &Fields<'_>, name: String) -> Result<Model, SpecError> {
    let text = outer.object("text_config")?;
    let fields = text.as_ref().unwrap_or(outer);
    let family = fields.text("model_type")?.or(outer.text("model_type")?);
    let names = FAMILIES.map(|(name, _)| name);
    let family = family.ok_or_else(|| {
        fields.missing("model_type", &format!("families that can be counted: {}", words::list(&names)))
    })?;
    let Some((_, layers)) = FAMILIES.iter().find(|(known, _)| *known == family) else {
        let value = fields.find("model_type").or(outer.find("model_type")).expect("it was read above");
        return Err(fields.invalid("model_type", value, words::suggest(family, names)));
    };
    layer_count(fields)?;
    let tied = fields.find("tie_word_embeddings").is_some_and(|value| value.as_bool() == Some(true));
    Ok(Model {
        name,
        source: None,
        hidden: fields.size("hidden_size")?,
        vocab: fields.size("vocab_size")?,
        tied,
        kv_dtypes: KvDtypes::default(),
        layers: grouped(layers(fields)?),
    })
}

fn layer_count(fields: &Fields<'_>) -> Result<u64, SpecError> {
    let count = fields.size("num_hidden_layers")?;
    match count <= MOST_LAYERS {
        true => Ok(count),
        false => Err(fields.invalid("num_hidden_layers", &count.into(), format!("at most {MOST_LAYERS}"))),
    }
}

/// Equal layers together.
fn grouped(layers: Vec<(Attention, Ffn)>) -> Vec<Layers> {
    let mut groups: Vec<Layers> = Vec::new();
    for (attention, ffn) in layers {
        match groups.iter_mut().find(|group| group.attention == attention && group.ffn == ffn) {
            Some(group) => group.count += 1,
            None => groups.push(Layers { count: 1, attention, ffn }),
        }
    }
    groups
}

fn gqa(fields: &Fields<'_>) -> Result<Attention, SpecError> {
    let query_heads = fields.size("num_attention_heads")?;
    let head_dim = match fields.size_if("head_dim", 1)? {
        Some(width) => width,
        None => fields.size("hidden_size")? / query_heads,
    };
    let kv_heads = fields.size_if("num_key_value_heads", 1)?.unwrap_or(query_heads);
    Ok(Attention::Grouped { query_heads, kv_heads, head_dim, query_rank: None, window: None })
}

fn dense(fields: &Fields<'_>, key: &str) -> Result<Ffn, SpecError> {
    Ok(Ffn::Dense { width: fields.size(key)? })
}

/// `experts`, `top_k` and `expert_width` are keys.
fn moe(
    fields: &Fields<'_>,
    experts: &str,
    top_k: &str,
    expert_width: &str,
    shared_width: u64,
) -> Result<Ffn, SpecError> {
    let (experts, chosen) = (fields.size(experts)?, fields.size(top_k)?);
    if chosen > experts {
        return Err(fields.invalid(top_k, &chosen.into(), format!("at most the {experts} experts there are")));
    }
    Ok(Ffn::Moe { experts, top_k: chosen, expert_width: fields.size(expert_width)?, shared_width })
}

fn step3(fields: &Fields<'_>) -> Result<Vec<(Attention, Ffn)>, SpecError> {
    let attention = Attention::Grouped {
        query_heads: fields.size("num_attention_heads")?,
        kv_heads: fields.size_if("num_attention_groups", 1)?.unwrap_or(1),
        head_dim: fields.size("head_dim")?,
        query_rank: Some(fields.size("share_q_dim")?),
        window: None,
    };
    let shared = fields.size("share_expert_dim")?;
    let moe = moe(fields, "moe_num_experts", "moe_top_k", "moe_intermediate_size", shared)?;
    let dense = dense(fields, "intermediate_size")?;
    let routed = step3_moe_layers(fields)?;
    let ffn = |layer: u64| if routed.contains(&layer) { moe } else { dense };
    Ok((0..layer_count(fields)?).map(|layer| (attention.clone(), ffn(layer))).collect())
}

/// `moe_layers_enum`: numbers in a text with commas between them, or a list.
fn step3_moe_layers(fields: &Fields<'_>) -> Result<Vec<u64>, SpecError> {
    let value = fields.get("moe_layers_enum", "the layers with experts, such as \"4,5,6\"")?;
    let Some(text) = value.as_str() else { return Ok(fields.sizes_if("moe_layers_enum")?.unwrap_or_default()) };
    let numbers: Result<_, _> = text.split(',').map(|part| part.trim().parse()).collect();
    numbers.map_err(|_| fields.invalid("moe_layers_enum", value, "layer numbers with commas between them"))
}

fn deepseek(fields: &Fields<'_>) -> Result<Vec<(Attention, Ffn)>, SpecError> {
    let attention = Attention::Latent {
        heads: fields.size("num_attention_heads")?,
        query_rank: fields.size_if("q_lora_rank", 1)?,
        latent: fields.size("kv_lora_rank")?,
        nope: fields.size("qk_nope_head_dim")?,
        rope: fields.size("qk_rope_head_dim")?,
        value: fields.size("v_head_dim")?,
    };
    let shared = fields.size_if("n_shared_experts", 0)?.unwrap_or(0) * fields.size("moe_intermediate_size")?;
    let moe = moe(fields, "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", shared)?;
    let dense = dense(fields, "intermediate_size")?;
    let first = fields.size_if("first_k_dense_replace", 0)?.unwrap_or(0);
    let every = fields.size_if("moe_layer_freq", 1)?.unwrap_or(1);
    let ffn = |layer: u64| if layer >= first && layer.is_multiple_of(every) { moe } else { dense };
    Ok((0..layer_count(fields)?).map(|layer| (attention.clone(), ffn(layer))).collect())
}

fn qwen3(fields: &Fields<'_>) -> Result<Vec<(Attention, Ffn)>, SpecError> {
    let attention = gqa(fields)?;
    let layers = layer_count(fields)?;
    if fields.find("num_experts").is_none() {
        let dense = dense(fields, "intermediate_size")?;
        return Ok((0..layers).map(|_| (attention.clone(), dense)).collect());
    }
    let moe = moe(fields, "num_experts", "num_experts_per_tok", "moe_intermediate_size", 0)?;
    let plain = fields.sizes_if("mlp_only_layers")?.unwrap_or_default();
    let step = fields.size_if("decoder_sparse_step", 1)?.unwrap_or(1);
    let routed = |layer: u64| !plain.contains(&layer) && (layer + 1).is_multiple_of(step);
    // Only asked for where a layer needs it.
    let dense = if (0..layers).all(routed) { moe } else { dense(fields, "intermediate_size")? };
    Ok((0..layers).map(|layer| (attention.clone(), if routed(layer) { moe } else { dense })).collect())
}

fn llama4(fields: &Fields<'_>) -> Result<Vec<(Attention, Ffn)>, SpecError> {
    let full = gqa(fields)?;
    let mut chunked = full.clone();
    if let Attention::Grouped { window, .. } = &mut chunked {
        *window = fields.size_if("attention_chunk_size", 1)?;
    }
    // An expert and the shared one are of one width.
    let shared = fields.size("intermediate_size")?;
    let moe = moe(fields, "num_local_experts", "num_experts_per_tok", "intermediate_size", shared)?;
    let dense = dense(fields, "intermediate_size_mlp")?;
    let step = fields.size_if("interleave_moe_layer_step", 1)?.unwrap_or(1);
    let layers = layer_count(fields)?;
    // 0 marks a layer without rope, which is one without chunks: every fourth.
    let rope = fields.sizes_if("no_rope_layers")?.filter(|list| !list.is_empty());
    let rope = rope.unwrap_or_else(|| (1..=layers).map(|layer| u64::from(!layer.is_multiple_of(4))).collect());
    if rope.len() as u64 != layers {
        let value = fields.get("no_rope_layers", "one entry a layer")?;
        return Err(fields.invalid("no_rope_layers", value, format!("{layers} entries, one a layer")));
    }
    let layer = |(layer, rope): (u64, &u64)| {
        let attention = if *rope == 0 { full.clone() } else { chunked.clone() };
        (attention, if (layer + 1).is_multiple_of(step) { moe } else { dense })
    };
    Ok((0..).zip(&rope).map(layer).collect())
}

fn minimax(fields: &Fields<'_>) -> Result<Vec<(Attention, Ffn)>, SpecError> {
    let full = gqa(fields)?;
    let heads = fields.size("num_attention_heads")?;
    let recurrent = Attention::Recurrent { heads, head_dim: fields.size("head_dim")? };
    let shared = fields.size_if("shared_intermediate_size", 0)?.unwrap_or(0);
    let moe = moe(fields, "num_local_experts", "num_experts_per_tok", "intermediate_size", shared)?;
    let layers = layer_count(fields)?;
    let value = fields.get("attn_type_list", "one entry a layer: 0 for lightning, 1 for full attention")?;
    let kinds = fields.sizes_if("attn_type_list")?.unwrap_or_default();
    if kinds.len() as u64 != layers || kinds.iter().any(|kind| *kind > 1) {
        return Err(fields.invalid("attn_type_list", value, format!("{layers} entries, each 0 or 1")));
    }
    Ok(kinds.iter().map(|kind| (if *kind == 1 { full.clone() } else { recurrent.clone() }, moe)).collect())
}

fn ernie(fields: &Fields<'_>) -> Result<Vec<(Attention, Ffn)>, SpecError> {
    let attention = gqa(fields)?;
    let shared = fields.size_if("moe_num_shared_experts", 0)?.unwrap_or(0) * fields.size("moe_intermediate_size")?;
    let moe = moe(fields, "moe_num_experts", "moe_k", "moe_intermediate_size", shared)?;
    let dense = dense(fields, "intermediate_size")?;
    let layers = layer_count(fields)?;
    let first = fields.size_if("moe_layer_start_index", 0)?.unwrap_or(0);
    let last = fields.size_if("moe_layer_end_index", 0)?.unwrap_or(layers);
    let every = fields.size_if("moe_layer_interval", 1)?.unwrap_or(1);
    let routed = |layer: u64| (first..=last).contains(&layer) && (layer + 1).is_multiple_of(every);
    Ok((0..layers).map(|layer| (attention.clone(), if routed(layer) { moe } else { dense })).collect())
}

fn pangu(fields: &Fields<'_>) -> Result<Vec<(Attention, Ffn)>, SpecError> {
    let attention = gqa(fields)?;
    let shared = fields.size_if("shared_expert_intermediate_size", 0)?.unwrap_or(0);
    let moe = moe(fields, "num_experts", "num_experts_per_tok", "moe_intermediate_size", shared)?;
    Ok((0..layer_count(fields)?).map(|_| (attention.clone(), moe)).collect())
}
