"""Greedy continuations in float32 on the CPU for the runtime's test: writes tiny-step3-greedy.json.

Prompts are the first tokens of generated stories. The stories' choices are uniform, so greedy decoding meets many
near-ties; only prompts whose every step keeps `--margin` between the two best logits are kept, so that another
float32 implementation must give the same tokens. The first three are whole sentences whose story ends.
"""
import argparse
import json
from multiprocessing import Pool
from pathlib import Path

import torch

from data import END, load_tokenizer
from model import generate, load
from stories import check, stories

SEED = 4242
SENTENCES = [20, 23, 26, 28, 30, 32, 34, 36, 40, 44]
PREFIXES = [3, 6, 9, 12, 15, 18, 25, 35, 52, 70, 90, 115, 140, 160]
PARITY = [
    "  Two  spaces,\ttabs,\r\n\n\nand newlines  ",
    "Zoë naïvely ate 3½ crêpes — “très bon!” ☃ 🦊🏽‍🚀 \u00a0\u200bend",
    "日本語とкириллица, عربى; I'll they've 'tis 1234567 __init__(x)=>{}\u0000",
]


def search(job):
    """Cases of one prompt length, those with the widest margins first."""
    model, length, sentence, args = job
    torch.set_num_threads(1)
    net, tokenizer = load(model), load_tokenizer(model)
    prompts = {}
    for text, _ in stories(SEED + length, 8_000):
        ids = tokenizer.encode(text).ids[:length]
        prompt = tokenizer.decode(ids)
        if tokenizer.encode(prompt).ids == ids and (prompt.endswith(".") or not sentence):
            prompts[prompt] = ids
        if len(prompts) == args.candidates:
            break
    if not prompts:
        return []
    outs, margins = generate(net, list(prompts.values()), args.max_new, END)
    cases = []
    for (prompt, ids), out, margin in zip(prompts.items(), outs, margins):
        ended = out[-1] == END
        text = tokenizer.decode(out)
        if margin < args.margin or (sentence and not (ended and len(out) > 120 and check(prompt + text)[0])):
            continue
        cases.append(dict(prompt=prompt, prompt_token_ids=ids, token_ids=out, text=text, min_top1_margin=round(margin, 5)))
    cases.sort(key=lambda case: -case["min_top1_margin"])
    print(f"{length} tokens: {len(cases)} of {len(prompts)}", flush=True)
    return cases


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--model", default="../tiny-step3")
    ap.add_argument("--out", default="../tiny-step3-greedy.json")
    ap.add_argument("--max-new", type=int, default=256)
    ap.add_argument("--margin", type=float, default=1e-3)
    ap.add_argument("--prompts", type=int, default=20)
    ap.add_argument("--candidates", type=int, default=192, help="prompts tried for each length")
    args = ap.parse_args()
    tokenizer = load_tokenizer(args.model)
    with Pool(2) as pool:
        whole = pool.map(search, [(args.model, n, True, args) for n in SENTENCES], chunksize=1)
        parts = pool.map(search, [(args.model, n, False, args) for n in PREFIXES], chunksize=1)
    cases = [case for found in whole for case in found][:6]
    rank = 0  # the best of every length, then the second best, and so on
    while len(cases) < args.prompts and rank < args.candidates:
        cases += [found[rank] for found in parts if rank < len(found)]
        rank += 1
    cases = cases[: args.prompts]
    parity = [dict(text=t, token_ids=tokenizer.encode(t, add_special_tokens=False).ids) for t in PARITY]
    for case in parity:
        assert tokenizer.decode(case["token_ids"]) == case["text"], case
    Path(args.out).write_text(json.dumps(dict(
        about="Greedy continuations of models/tiny-step3 by PyTorch, float32 on the stored bfloat16 weights; "
              "prompt_token_ids start with <|story|>, token_ids end with <|end|> unless cut at max_new. "
              "tokenizer_parity is encoded without special tokens.",
        max_new=args.max_new, eos_token_id=END, prompts=cases, tokenizer_parity=parity,
    ), ensure_ascii=True) + "\n")
    print(len(cases), "prompts written")


if __name__ == "__main__":
    main()
