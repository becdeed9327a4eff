"""The digits model of this package in few steps: the shapes of DDIM's Tables 1 and 2.

    python chapters/results/ddim_steps.py

draws 500 digits for each number of steps and each kind of noise from the same seeds, on one thread, and writes
ddim_steps.json beside this file: the Fréchet distance of the digits extractor between the samples and the training
digits, 12 of the samples, and how far the held-out digits come back from their codes. About 40 minutes.
"""

import datetime
import json
import platform
import subprocess
import time
from pathlib import Path

import torch

import minidiff as md

N, CODED = 500, 200
STEPS = (5, 10, 20, 50, 100, 1000)
KINDS = {  # of noise: arguments of ddim
    "0": {"eta": 0.0},
    "0.2": {"eta": 0.2},
    "0.5": {"eta": 0.5},
    "1": {"eta": 1.0},
    "larger": {"eta": 1.0, "larger": True},
}
SPACINGS = ("uniform", "trailing")
ROUND_TRIPS = (10, 20, 50, 100, 200, 500, 1000)
OUT = Path(__file__).with_suffix(".json")


def draw(model, steps: list[int], kind: str, n: int = N) -> torch.Tensor:
    """n digits in grey levels, from seeds 0 … n − 1."""
    noise = md.per_image_noise(range(n), (1, 8, 8))
    x = md.ddim(model.process, model.net, noise(0), noise, steps, **KINDS[kind])
    return md.decode(x.float(), 17)


def round_trip(model, x0: torch.Tensor, steps: list[int]) -> float:
    """Mean squared error per pixel, on [0, 1] as in the paper, of digits that were encoded and decoded again."""
    code = md.ddim_encode(model.process, model.net, x0, steps)
    silent = lambda step: torch.zeros_like(code)
    back = md.ddim(model.process, model.net, code, silent, steps, clip=False)
    return ((back - x0) / 2).square().mean().item()


if __name__ == "__main__":
    torch.set_num_threads(1)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    results = {
        "command": "python chapters/results/ddim_steps.py",
        "seed": 0,
        "n": N,
        "reference": "the 1,438 training digits",
        "commit": commit,
        "machine": f"1 thread of {platform.machine()}, torch {torch.__version__}",
        "date": datetime.date.today().isoformat(),
        "distance": {},
        "samples": {},
        "round_trip": {},
    }
    model, _ = md.load("digits")
    see = md.DigitsExtractor()
    seen = see(md.digits().pixels, 17).pool
    held_out = md.digits("test")
    results["held_out"] = md.frechet_distance(see(held_out.pixels, 17).pool, seen)
    for S in ROUND_TRIPS:
        results["round_trip"][str(S)] = round_trip(model, held_out.x[:CODED].double(), md.subsequence(1000, S))
        print("round trip", S, results["round_trip"][str(S)], flush=True)
    for S in STEPS:
        for spacing in SPACINGS if S < 1000 else SPACINGS[:1]:
            for kind in KINDS:
                began = time.process_time()
                x = draw(model, md.subsequence(1000, S, spacing), kind)
                key = f"{S}, {kind}, {spacing}"
                results["distance"][key] = round(md.frechet_distance(see(x, 17).pool, seen), 4)
                results["samples"][key] = x[:12].flatten(1).tolist()
                print(key, results["distance"][key], f"{time.process_time() - began:.0f} s", flush=True)
                OUT.write_text(json.dumps(results) + "\n")
