"""Compares model.py in float32 with recorded logits: `python golden_check.py FOLDER...` (config, weights, golden.*)."""
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from model import load

for folder in map(Path, sys.argv[1:]):
    net, worst = load(folder), 0.0
    want = load_file(folder / "golden.safetensors")
    for c, case in enumerate(json.loads((folder / "golden.json").read_text())["cases"]):
        for s, seq in enumerate(case["seqs"]):
            ids = seq["prompt"] + seq["greedy"][:-1]
            with torch.no_grad():
                logits = net(torch.tensor([ids]))[0][0, len(seq["prompt"]) - 1 :]
            worst = max(worst, (logits - want[f"case{c}.seq{s}.step_logits"]).abs().max().item())
    print(folder.name, "largest logit difference", worst, "ok" if worst < 1e-3 else "TOO LARGE")
