"""Trains the tiny Step-3 model on fresh stories and writes model.safetensors (bfloat16).

Every story is seen once: shard k of the stream comes from seed `--seed + k`. bf16 autocast over float32 weights,
AdamW, linear warm-up and cosine decay, load-balancing loss on the router. With --minutes the schedule follows the
clock and ends on time; with --steps it follows the step count (use the logged one to repeat a run).
"""
import argparse
import json
import math
import os
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from data import END, HELD_OUT_SEED, STORY, make_shard, shard_stream
from model import Step3, load_config


def document_mask(ids):
    """Causal, and within the same story only."""
    story = (ids == STORY).cumsum(1)
    causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril()
    return ((story[:, :, None] == story[:, None, :]) & causal)[:, None]


def losses(net, ids, balance):
    """Next-token loss over the story tokens (END included), and the router's load-balancing loss."""
    logits, routing = net(ids, mask=document_mask(ids))
    targets = torch.where(ids[:, :-1] == END, -100, ids[:, 1:])
    ce = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets.flatten(), ignore_index=-100)
    aux = 0.0
    if balance:
        for probs, chosen in routing:
            e = probs.shape[-1]
            share = F.one_hot(chosen, e).float().sum(-2).mean((0, 1)) / chosen.shape[-1]
            aux = aux + e * (share * probs.mean((0, 1))).sum() / len(routing)
    return ce, aux


def save(net, path):
    weights = {k: v.detach().to(torch.bfloat16).cpu().contiguous() for k, v in net.state_dict().items()}
    tmp = f"{path}.tmp"
    save_file(weights, tmp, metadata={"format": "pt"})
    os.replace(tmp, path)


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--model", default="../tiny-step3", help="folder with config.json and tokenizer.json")
    ap.add_argument("--out", default="../tiny-step3/model.safetensors")
    ap.add_argument("--log", default="log.jsonl")
    ap.add_argument("--seed", type=int, default=20)
    ap.add_argument("--minutes", type=float)
    ap.add_argument("--steps", type=int)
    ap.add_argument("--batch", type=int, default=64, help="rows a step")
    ap.add_argument("--row", type=int, default=768, help="tokens a row")
    ap.add_argument("--lr", type=float, default=1.5e-3)
    ap.add_argument("--warmup", type=float, default=0.02, help="part of the schedule")
    ap.add_argument("--decay", type=float, default=0.1, help="weight decay on matrices")
    ap.add_argument("--balance", type=float, default=0.01)
    ap.add_argument("--workers", type=int, default=8)
    ap.add_argument("--shard", type=int, default=50_000, help="stories a shard")
    ap.add_argument("--eval-every", type=float, default=60, help="seconds between held-out losses")
    ap.add_argument("--no-compile", action="store_true")
    args = ap.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")

    net = Step3(load_config(Path(args.model) / "config.json"))
    net.init_weights(args.seed)
    net.to(device)
    matrices = [p for n, p in net.named_parameters() if p.dim() > 1 and "embed" not in n]
    others = [p for n, p in net.named_parameters() if p.dim() == 1 or "embed" in n]
    groups = [dict(params=matrices, weight_decay=args.decay), dict(params=others, weight_decay=0.0)]
    opt = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), eps=1e-9, fused=device == "cuda")
    step_loss = losses if args.no_compile else torch.compile(losses, dynamic=False)

    held, held_tokens, _, held_nats = make_shard(args.model, HELD_OUT_SEED, args.row, 2048 if device == "cuda" else 16)
    held = torch.from_numpy(held.astype("int64"))
    entropy = held_nats / held_tokens
    log = open(args.log, "w")

    def write(**entry):
        log.write(json.dumps(entry) + "\n")
        log.flush()
        print(json.dumps(entry), flush=True)

    write(event="start", device=torch.cuda.get_device_name() if device == "cuda" else "cpu", torch=torch.__version__,
          parameters=sum(p.numel() for p in net.parameters()), entropy=round(entropy, 4), **vars(args))

    @torch.no_grad()
    def held_loss():
        parts = held.split(args.batch)  # the last may be smaller, hence the weights
        return sum(losses(net, b.to(device), 0)[0].item() * len(b) for b in parts) / len(held)

    clock, step, tokens, shards, size, last_eval, run = None, 0, 0, 0, 0, time.time(), []
    stream = shard_stream(args.model, args.seed * 1_000_000, args.row, args.workers, args.shard)
    done = False
    while not done:
        rows, shard_tokens, shard_size, _ = next(stream)
        shards, size = shards + 1, size + shard_size
        rows = torch.from_numpy(rows.astype("int16"))
        if device == "cuda":
            rows = rows.pin_memory().to(device, non_blocking=True)
        for ids in rows.split(args.batch):
            if len(ids) < args.batch:
                break
            if args.steps:
                progress = step / args.steps
            else:
                progress = 0.0 if clock is None else (time.time() - clock) / (60 * args.minutes)
            if progress >= 1:
                done = True
                break
            warm = min(1.0, (step + 1) / 200, progress / args.warmup + 0.01)
            lr = args.lr * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
            for group in opt.param_groups:
                group["lr"] = lr
            with torch.autocast(device, dtype=torch.bfloat16):
                ce, aux = step_loss(net, ids.long(), args.balance)
            (ce + args.balance * aux).backward()
            norm = torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            opt.step()
            opt.zero_grad(set_to_none=True)
            step += 1
            tokens += ids.numel()
            run.append(ce.detach())
            if clock is None and step == 3:  # compilation is over
                if device == "cuda":
                    torch.cuda.synchronize()
                clock = time.time()
            if step % 50 == 0:
                now = time.time()
                evaluate = now - last_eval > args.eval_every
                entry = dict(step=step, minutes=round((now - clock) / 60, 2), mtokens=round(tokens / 1e6, 1),
                             loss=round(torch.stack(run).mean().item(), 4), aux=round(aux.item() if args.balance else 0.0, 4),
                             grad=round(norm.item(), 3), lr=round(lr, 6))
                run = []
                if evaluate:
                    entry["held"] = round(held_loss(), 4)
                    entry["ratio"] = round(entry["held"] / entropy, 4)
                    last_eval = now
                    save(net, args.out)
                if evaluate or step % 1000 == 0 or step == 50:
                    write(**entry)
    stream.close()
    save(net, args.out)
    final = held_loss()
    write(event="end", step=step, shards=shards, story_mb=round(size / 1e6), mtokens=round(tokens / 1e6, 1),
          minutes=round((time.time() - clock) / 60, 2), held=round(final, 4), ratio=round(final / entropy, 4))


if __name__ == "__main__":
    main()
