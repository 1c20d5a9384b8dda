"""The Step-3 text architecture (MFA attention, softmax-routed MoE with a shared expert) in plain PyTorch.

Parameter names are those of the Hugging Face Step-3 checkpoints, so `state_dict` is the checkpoint. The routed
experts are evaluated as one wide SwiGLU whose columns are scaled by the routing weights (0 for an expert that
was not chosen): with 8 experts of width 128 that is faster than gathering tokens, and exactly the same function.
"""
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn


def load_config(path):
    cfg = json.loads(Path(path).read_text())
    return {**cfg.get("text_config", cfg), "tie_word_embeddings": cfg.get("tie_word_embeddings", False)}


class RMSNorm(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        x = x.float()
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def rope(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


class Attention(nn.Module):
    """Multi-matrix factorisation attention: low-rank shared query, one key and one value head."""

    def __init__(self, c):
        super().__init__()
        d, self.heads, self.dim = c["hidden_size"], c["num_attention_heads"], c["head_dim"]
        self.q_proj = nn.Linear(d, c["share_q_dim"], bias=False)
        self.k_proj = nn.Linear(d, self.dim, bias=False)
        self.v_proj = nn.Linear(d, self.dim, bias=False)
        self.inter_norm = RMSNorm(c["share_q_dim"], c["rms_norm_eps"])
        self.wq = nn.Linear(c["share_q_dim"], self.heads * self.dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.dim, d, bias=False)

    def forward(self, x, cos, sin, mask, cache):
        b, t, _ = x.shape
        q = self.wq(self.inter_norm(self.q_proj(x))).view(b, t, self.heads, self.dim).transpose(1, 2)
        k, v = self.k_proj(x).unsqueeze(1), self.v_proj(x).unsqueeze(1)
        q, k = rope(q, cos, sin).to(v.dtype), rope(k, cos, sin).to(v.dtype)
        if cache is not None:
            start, keys, values = cache
            keys[:, :, start : start + t], values[:, :, start : start + t] = k, v
            k, v = keys[:, :, : start + t], values[:, :, : start + t]
        k, v = k.expand(-1, self.heads, -1, -1), v.expand(-1, self.heads, -1, -1)
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None and t > 1)
        return self.o_proj(o.transpose(1, 2).reshape(b, t, -1))


class MLP(nn.Module):
    def __init__(self, d, inner):
        super().__init__()
        self.gate_proj = nn.Linear(d, inner, bias=False)
        self.up_proj = nn.Linear(d, inner, bias=False)
        self.down_proj = nn.Linear(inner, d, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Stacked(nn.Module):
    """The experts' matrices in one tensor: experts x out x in."""

    def __init__(self, experts, out, inp):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, out, inp))


class MoE(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, inner, self.experts = c["hidden_size"], c["moe_intermediate_size"], c["moe_num_experts"]
        self.top_k, self.renorm = c["moe_top_k"], c["norm_expert_weight"]
        self.gate = nn.Linear(d, self.experts, bias=False)
        self.gate_proj = Stacked(self.experts, inner, d)
        self.up_proj = Stacked(self.experts, inner, d)
        self.down_proj = Stacked(self.experts, d, inner)

    def forward(self, x):
        with torch.autocast(x.device.type, enabled=False):
            probs = torch.softmax(F.linear(x.float(), self.gate.weight.float()), dim=-1)
        top, ids = probs.topk(self.top_k, dim=-1)
        if self.renorm:
            top = top / top.sum(-1, keepdim=True)
        weights = torch.zeros_like(probs).scatter(-1, ids, top)
        inner = self.gate_proj.weight.shape[1]
        h = F.silu(F.linear(x, self.gate_proj.weight.flatten(0, 1))) * F.linear(x, self.up_proj.weight.flatten(0, 1))
        h = (h.unflatten(-1, (self.experts, inner)) * weights.unsqueeze(-1)).flatten(-2)
        return F.linear(h, self.down_proj.weight.transpose(0, 1).flatten(1)), probs, ids


class Layer(nn.Module):
    def __init__(self, c, index):
        super().__init__()
        d, eps = c["hidden_size"], c["rms_norm_eps"]
        self.input_layernorm = RMSNorm(d, eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = RMSNorm(d, eps)
        self.is_moe = index in {int(i) for i in c["moe_layers_enum"].split(",")}
        if self.is_moe:
            self.moe = MoE(c)
            self.share_expert = MLP(d, c["share_expert_dim"])
        else:
            self.mlp = MLP(d, c["intermediate_size"])

    def forward(self, x, cos, sin, mask, cache):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask, cache)
        u = self.post_attention_layernorm(x)
        if not self.is_moe:
            return x + self.mlp(u), None
        y, probs, ids = self.moe(u)
        return x + y + self.share_expert(u), (probs, ids)


class Decoder(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(Layer(c, i) for i in range(c["num_hidden_layers"]))
        self.norm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])


class Step3(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.tied = config["tie_word_embeddings"]
        if not self.tied:
            self.lm_head = nn.Linear(config["hidden_size"], config["vocab_size"], bias=False)
        dim = config["head_dim"]
        freq = config["rope_theta"] ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        angle = torch.arange(config["max_seq_len"], dtype=torch.float64)[:, None] * freq.repeat(2)
        self.register_buffer("cos", angle.cos().float(), persistent=False)
        self.register_buffer("sin", angle.sin().float(), persistent=False)

    def init_weights(self, seed):
        torch.manual_seed(seed)
        depth = 2 * self.config["num_hidden_layers"]
        for name, p in self.named_parameters():
            if p.dim() > 1:
                std = 0.02 if "embed" in name else p.shape[-1] ** -0.5
                if "o_proj" in name or "down_proj" in name:
                    std /= depth**0.5
                nn.init.normal_(p, std=std)

    def forward(self, ids, mask=None, caches=None, start=0):
        """Logits and, for each MoE layer, (router probabilities, chosen experts)."""
        cos, sin = self.cos[start : start + ids.shape[1]], self.sin[start : start + ids.shape[1]]
        x, routing = self.model.embed_tokens(ids), []
        for i, layer in enumerate(self.model.layers):
            cache = None if caches is None else (start, *caches[i])
            x, route = layer(x, cos, sin, mask, cache)
            if route:
                routing.append(route)
        x = self.model.norm(x)
        head = self.model.embed_tokens.weight if self.tied else self.lm_head.weight
        return F.linear(x, head), routing

    def new_caches(self, batch, length):
        shape = (batch, 1, length, self.config["head_dim"])
        new = lambda: torch.zeros(shape, device=self.cos.device)
        return [(new(), new()) for _ in self.model.layers]


def load(folder, device="cpu"):
    """A model folder (config.json and safetensors) as float32."""
    folder = Path(folder)
    net = Step3(load_config(folder / "config.json"))
    weights = {}
    for shard in sorted(folder.glob("model*.safetensors")):
        weights.update(load_file(shard))
    wanted = net.state_dict().keys()
    net.load_state_dict({k: v.float() for k, v in weights.items() if k in wanted})
    return net.to(device).eval()


@torch.no_grad()
def generate(net, prompts, max_new, end, temperature=0.0, generator=None):
    """Continues prompts of equal length, with a KV cache; returns (list of token lists, smallest top-1 margin each)."""
    ids = torch.tensor(prompts, device=net.cos.device)
    caches = net.new_caches(len(prompts), ids.shape[1] + max_new)
    out, margins, done, start = [[] for _ in prompts], [float("inf")] * len(prompts), [False] * len(prompts), 0
    for _ in range(max_new):
        logits = net(ids, caches=caches, start=start)[0][:, -1].float()
        start += ids.shape[1]
        if temperature:
            # float64: float32 randomness is too coarse for the tail of 4,096 improbable tokens
            probs = torch.softmax(logits.double() / temperature, -1)
            ids = torch.multinomial(probs, 1, generator=generator)
        else:
            ids = logits.argmax(-1, keepdim=True)
        top = logits.topk(2).values
        gaps, picks = (top[:, 0] - top[:, 1]).tolist(), ids[:, 0].tolist()
        for i, pick in enumerate(picks):
            if not done[i]:
                out[i].append(pick)
                margins[i] = min(margins[i], gaps[i])
                done[i] = pick == end
        if all(done):
            break
    return out, margins
