"""Prints the model's figures as JSON: held-out loss against the generator's entropy, sampled stories, expert use.

Held-out stories come from their own seed. The generator's nats are those of the choices it made (an upper bound of
the text's own nats when two derivations give one text); `exact_*` figures use the parser's sum over all derivations
on the first stories. Losses are in float32 on the stored bfloat16 weights, over every token after <|story|>,
<|end|> included. `--shards` regenerates the training stories to look for verbatim copies.
"""
import argparse
import hashlib
import json
from multiprocessing import Pool
from pathlib import Path

import torch
import torch.nn.functional as F

from data import END, HELD_OUT_SEED, STORIES_PER_SHARD, STORY, encode_stories, load_tokenizer
from model import generate, load
from stories import check, stories


def digest(text):
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def seen_in(job):
    seed, count, wanted = job
    return [d for text, _ in stories(seed, count) if (d := digest(text)) in wanted]


@torch.no_grad()
def held_out(net, seqs, batch=64):
    """Nats of each story under the model, and how often each expert was chosen, per MoE layer."""
    order = sorted(range(len(seqs)), key=lambda i: len(seqs[i]))
    nats, use = [0.0] * len(seqs), None
    for at in range(0, len(order), batch):
        part = order[at : at + batch]
        width = max(len(seqs[i]) for i in part)
        ids = torch.full((len(part), width), END)
        for row, i in enumerate(part):
            ids[row, : len(seqs[i])] = torch.tensor(seqs[i])
        ids = ids.to(net.cos.device)
        logits, routing = net(ids)
        real = ids[:, :-1] != END
        ce = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(real.shape)
        for row, i in enumerate(part):
            nats[i] = ce[row][real[row]].double().sum().item()
        used = torch.stack([F.one_hot(chosen[:, :-1][real], p.shape[-1]).sum((0, 1)) for p, chosen in routing])
        use = used if use is None else use + used
    return nats, use


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--model", default="../tiny-step3")
    ap.add_argument("--held", type=int, default=5000, help="held-out stories")
    ap.add_argument("--exact", type=int, default=500, help="of these, parsed for their exact probability")
    ap.add_argument("--samples", type=int, default=200)
    ap.add_argument("--seed", type=int, default=7, help="of the sampling")
    ap.add_argument("--train-seed", type=int, default=20)
    ap.add_argument("--shards", type=int, default=0, help="training shards to search for verbatim copies")
    ap.add_argument("--workers", type=int, default=8)
    ap.add_argument("--samples-out", help="file for the sampled stories")
    args = ap.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = False
    net, tokenizer = load(args.model, device), load_tokenizer(args.model)

    made = list(stories(HELD_OUT_SEED, args.held))
    seqs = encode_stories(tokenizer, [text for text, _ in made])
    nats, use = held_out(net, seqs)
    tokens = sum(len(s) - 1 for s in seqs)
    loss, entropy = sum(nats) / tokens, sum(n for _, n in made) / tokens

    rng = torch.Generator(device=device).manual_seed(args.seed)
    outs, _ = generate(net, [[STORY]] * args.samples, 400, END, temperature=1.0, generator=rng)
    texts = [tokenizer.decode(o[:-1]) if o[-1] == END else tokenizer.decode(o) + " (no end)" for o in outs]
    with Pool(args.workers) as pool:
        exact = pool.map(check, [text for text, _ in made[: args.exact]])
        checks = pool.map(check, texts)
        wanted = {digest(t) for t in texts}
        jobs = [(args.train_seed * 1_000_000 + k, STORIES_PER_SHARD, wanted) for k in range(args.shards)]
        seen = {d for found in pool.imap_unordered(seen_in, jobs) for d in found}
    if args.samples_out:
        lines = [f"{text}\n[{'pass' if ok else info}]\n" for text, (ok, info) in zip(texts, checks)]
        Path(args.samples_out).write_text("\n".join(lines))
    share = use.double() / use.sum(1, keepdim=True)
    exact_tokens = sum(len(s) - 1 for s in seqs[: args.exact])
    exact_entropy = sum(n for _, n in exact) / exact_tokens
    exact_loss = sum(nats[: args.exact]) / exact_tokens
    print(json.dumps({
        "held_out_stories": args.held,
        "held_out_tokens": tokens,
        "tokens_per_story": round(tokens / args.held, 1),
        "generator_nats_per_token": round(entropy, 4),
        "held_out_loss": round(loss, 4),
        "loss_over_entropy": round(loss / entropy, 4),
        "exact_stories": args.exact,
        "exact_nats_per_token": round(exact_entropy, 4),
        "exact_loss": round(exact_loss, 4),
        "exact_ratio": round(exact_loss / exact_entropy, 4),
        "sampled_stories": args.samples,
        "samples_ended": sum(o[-1] == END for o in outs),
        "samples_passing": sum(ok for ok, _ in checks),
        "samples_verbatim": sum(digest(t) in seen for t in texts),
        "samples_distinct": len(set(texts)),
        "training_stories_searched": args.shards * STORIES_PER_SHARD,
        "least_expert_share": round(share.min().item(), 4),
        "expert_share_by_layer": [[round(x, 3) for x in row] for row in share.tolist()],
    }, indent=1))


if __name__ == "__main__":
    main()
