"""The scaling study of chapter 04: four widths of one network, measured on the way.

    python chapters/results/improved_ddpm_scaling.py

trains the digits recipe's network at each width and seed with L_hybrid and the cosine schedule, on one thread, and
writes improved_ddpm_scaling.json beside this file: at 3,200, 6,400, 12,800 and 25,600 images the floating-point
operations spent, the bits per dimension of the 359 held-out digits and of as many training digits, and at the end the
Fréchet distance of 359 samples. About 4 minutes.
"""

import dataclasses
import datetime
import json
import platform
import subprocess
import time
from pathlib import Path

import torch

import minidiff as md
from minidiff.training.cost import Cost

WIDTHS, SEEDS = (8, 12, 16, 32), (0, 1)
SNAPSHOTS = (3_200, 6_400, 12_800, 25_600)
OUT = Path(__file__).with_suffix(".json")

digits, held_out = md.digits(), md.digits("test")
see = md.DigitsExtractor()
seen = see(digits.pixels, 17).pool


def config(width: int, seed: int) -> md.Config:
    """The digits recipe at this width; the rate falls with the square root of the width, as in the paper."""
    recipe = md.recipe("digits")
    return dataclasses.replace(
        recipe,
        process=dataclasses.replace(recipe.process, schedule="cosine", variance="range", loss="hybrid"),
        network=dataclasses.replace(recipe.network, channels=width),
        training=dataclasses.replace(
            recipe.training,
            images=SNAPSHOTS[-1],
            batch=64,
            lr=1e-3 * (32 / width) ** 0.5,
            ramp=3_200,
            ema=(1_250,),
            tick=SNAPSHOTS[0],
            seed=seed,
        ),
    )


def bits(model: md.Model, x: torch.Tensor) -> float:
    """The bound of these images."""
    generator = torch.Generator().manual_seed(0)
    return round(md.likelihood_bound(model.process, model.net, x.double(), generator, count=30).total, 4)


def run(width: int, seed: int) -> dict:
    """Train at one width, and measure at each snapshot."""
    settings = config(width, seed)
    cost = Cost(md.Description(settings, (1, 8, 8), 17))
    torch.manual_seed(seed)
    model = md.build(settings, (1, 8, 8), 17)
    began, points = time.process_time(), []

    def measure(state: md.State) -> None:
        if state.images not in SNAPSHOTS:
            return
        average = state.ema.eval()
        points.append(
            {
                "images": state.images,
                "flop": cost.training * state.images,
                "bits": bits(average, held_out.x),
                "bits_train": bits(average, digits.x[: len(held_out)]),
            }
        )

    state = md.train(
        md.begin(model, md.UniformTimes(1000), settings.training), digits, settings.training, on_tick=measure
    )
    fifty = md.respace(state.ema.process, "50")
    x = md.generate(fifty, state.ema.eval().net, (1, 8, 8), range(len(held_out)), batch=len(held_out))
    return {
        "parameters": cost.parameters,
        "points": points,
        "distance": round(md.frechet_distance(see(md.decode(x, 17), 17).pool, seen), 4),
        "cpu_seconds": round(time.process_time() - began, 1),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    results = {
        "command": "python chapters/results/improved_ddpm_scaling.py",
        "seeds": SEEDS,
        "commit": commit,
        "machine": f"1 thread of {platform.machine()}, torch {torch.__version__}",
        "date": datetime.date.today().isoformat(),
        "runs": {},
    }
    for seed in SEEDS:
        for width in WIDTHS:
            row = run(width, seed)
            results["runs"][f"{width}, {seed}"] = row
            found = [(point["bits"], point["bits_train"]) for point in row["points"]]
            print(width, seed, row["parameters"], row["cpu_seconds"], found, row["distance"], flush=True)
            OUT.write_text(json.dumps(results) + "\n")
