"""The ablation of chapter 02: what to predict, which loss, which variance, which schedule, on the digits.

    python chapters/results/ddpm_ablation.py

trains the digits recipe's network once for each row with the same seed and the same number of images, on one thread,
and writes ddpm_ablation.json beside this file: bits per dimension of the held-out digits, the Fréchet distance of 256
samples to the training digits in pixel space, and 24 of the samples. About 40 minutes.
"""

import dataclasses
import datetime
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch

import minidiff as md

IMAGES = 96_000
HALF_BIN = {"first": 0.0625**2, "last": 0.02}  # σ_1 = √β_1 = 1/16, half the distance between two grey levels
ROWS = {  # name: arguments of GaussianConfig
    "eps, simple": {"predict": "eps"},
    "mean, bound, learned variance": {"predict": "mean", "loss": "bound", "variance": "learned"},
    "mean, bound, fixed variance": {"predict": "mean", "loss": "bound"},
    "mean, simple": {"predict": "mean"},
    "x0, bound, fixed variance": {"predict": "x0", "loss": "bound"},
    "x0, simple": {"predict": "x0"},
    "eps, bound, learned variance": {"predict": "eps", "loss": "bound", "variance": "learned"},
    "eps, bound, fixed variance": {"predict": "eps", "loss": "bound"},
    "v, simple": {"predict": "v"},
    "eps, simple, half-bin schedule": {"predict": "eps", "schedule_options": HALF_BIN},
    "eps, bound, half-bin schedule": {"predict": "eps", "loss": "bound", "schedule_options": HALF_BIN},
}
OUT = Path(__file__).with_suffix(".json")


def run(arguments: dict) -> dict:
    """Train one row and measure it."""
    recipe = md.recipe("digits")
    process = dataclasses.replace(recipe.process, **arguments)
    config = dataclasses.replace(
        recipe, process=process, training=dataclasses.replace(recipe.training, images=IMAGES, tick=4_800)
    )
    torch.manual_seed(config.training.seed)
    model = md.build(config, (1, 8, 8), 17)
    began = time.process_time()
    try:
        state = md.train(md.begin(model, md.UniformTimes(1000), config.training), md.digits(), config.training)
    except FloatingPointError as error:
        return {"failed": str(error)}
    seconds, ema = time.process_time() - began, state.ema.eval()
    held_out = md.digits("test").x.double()
    bound = md.likelihood_bound(ema.process, ema.net, held_out, torch.Generator().manual_seed(0), count=80)
    x = md.generate(ema.process, ema.net, (1, 8, 8), range(256))
    x = md.encode(md.decode(x, 17), 17)
    return {
        "bits_per_dim": round(bound.total, 4),
        "standard_error": round(bound.error, 4),
        "decoder_bits": round(bound.between(0, 0), 4),
        "bits_t_2_to_60": round(bound.between(1, 59), 4),
        "bits_above_60": round(bound.between(60, 1000), 4),
        "frechet": round(md.frechet_distance(x.flatten(1), md.digits().x.flatten(1)), 4),
        "loss": [[m["images"], round(m["loss"], 5)] for m in state.metrics],
        "cpu_seconds": round(seconds),
        "samples": md.decode(x[:24], 17).flatten(1).tolist(),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    results = {
        "command": "python chapters/results/ddpm_ablation.py",
        "seed": 0,
        "images": IMAGES,
        "commit": commit,
        "machine": f"1 thread of {platform.machine()}, torch {torch.__version__}",
        "date": datetime.date.today().isoformat(),
        "rows": json.loads(OUT.read_text())["rows"] if "--continue" in sys.argv else {},
    }
    for name, arguments in ROWS.items():
        if name not in results["rows"]:
            results["rows"][name] = run(arguments)
            print(name, {k: v for k, v in results["rows"][name].items() if k not in ("loss", "samples")}, flush=True)
            OUT.write_text(json.dumps(results) + "\n")
