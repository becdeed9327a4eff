"""Table 1 of chapter 01: what the first paper's recipes reach here, and what each choice in them is worth.

    python chapters/results/sd_table1.py

trains each row with the settings of its recipe but for what the row changes, on one thread with one seed, and writes
sd_table1.json beside this file: K, L_null and the likelihood by trajectories in bits per example, the share of legal
sequences among 1,000 samples of each heartbeat model. About 35 minutes; --continue keeps the rows that are there.
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

ROWS = {  # name: recipe, and what is changed in its process and network
    "heartbeat: predict x0, 16 bumps": ("heartbeat-sd", {}, {}),
    "heartbeat: predict the rate, 16 bumps": ("heartbeat-sd", {"predict": "rate"}, {}),
    "heartbeat: predict x0, a read-out per step": ("heartbeat-sd", {}, {"bumps": 0}),
    "heartbeat: predict the rate, a read-out per step": ("heartbeat-sd", {"predict": "rate"}, {"bumps": 0}),
    "swiss roll: shift, 100 units": ("swissroll-sd", {}, {}),
    "swiss roll: shift, 16 units": ("swissroll-sd", {}, {"units": 16}),
    "swiss roll: pull (65), 100 units": ("swissroll-sd", {"predict": "pull"}, {}),
    "swiss roll: pull (65), 16 units": ("swissroll-sd", {"predict": "pull"}, {"units": 16}),
    "swiss roll: shift, 100 units, fixed betas": ("swissroll-sd", {"learn_betas": False}, {}),
    "dead leaves: 16 by 16": ("dead-leaves-sd", {}, {}),
}
OUT = Path(__file__).with_suffix(".json")


def configuration(name: str) -> md.Config:
    """The recipe of a row, changed as the row says."""
    recipe, process, network = ROWS[name]
    config = md.recipe(recipe)
    return dataclasses.replace(
        config,
        process=dataclasses.replace(config.process, **process),
        network=dataclasses.replace(config.network, **network),
    )


def run(name: str) -> dict:
    """Train one row and measure it."""
    config, began = configuration(name), time.process_time()
    data, held_out = (md.load_data(config.data.source, split) for split in ("train", "test"))
    torch.manual_seed(config.training.seed)
    model = md.build(config, data.shape, data.levels)
    state = md.train(md.begin(model, md.UniformTimes(config.process.T), config.training), data, config.training)
    seconds, ema = time.process_time() - began, state.ema.eval()

    n, count, repeats = {"heartbeat": (1000, 2000, 4), "swiss roll": (5000, 40, 4), "dead leaves": (200, 100, 1)}[
        name.split(":")[0]
    ]
    x0, dims = held_out.x[:n].double(), held_out.x[0].numel()
    bound = md.likelihood_bound(
        ema.process, ema.net, x0, torch.Generator().manual_seed(0), count=count, repeats=repeats, batch=1000
    )
    K, null = -dims * bound.per_example, md.null_likelihood(ema.process, x0)
    row = {
        "K": round(K.mean().item(), 4),
        "K_error": round(md.standard_error(K), 4),
        "L_null": round(null.mean().item(), 4),
        "gain_error": round(md.standard_error(K - null), 4),
        "examples": n,
        "dims": dims,
        "images": config.training.images,
        "cpu_seconds": round(seconds),
    }
    if dims == 2:
        paths = md.trajectory_likelihood(ema.process, ema.net, x0[:2000], torch.Generator().manual_seed(0), 100)
        row["by_trajectories"] = round(paths.log_p.mean().item(), 4)
        row["exact_of_these"] = round(md.swiss_roll_log_prob(x0[:2000]).mean().item() / 0.6931471805599453, 4)
        row["exact"] = round(md.swiss_roll_log_prob(x0).mean().item() / 0.6931471805599453, 4)
        row["betas"] = [float(f"{beta:.4g}") for beta in ema.process.betas]
    if dims == 20:
        noise = md.batch_noise(torch.Generator().manual_seed(1), 1000, (20,))
        x = md.ancestral(ema.process, ema.net, md.draw(ema.process.prior, noise(0)), noise)
        row["legal_of_1000"] = int(md.is_heartbeat(x).sum())
    row["loss"] = [[line["images"], round(line["loss"], 5)] for line in state.metrics]
    return row


if __name__ == "__main__":
    torch.set_num_threads(1)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    results = {
        "command": "python chapters/results/sd_table1.py",
        "seed": 0,
        "commit": commit,
        "machine": f"1 thread of {platform.machine()}, torch {torch.__version__}",
        "date": datetime.date.today().isoformat(),
        "rows": json.loads(OUT.read_text())["rows"] if "--continue" in sys.argv else {},
    }
    for name in ROWS:
        if name not in results["rows"]:
            results["rows"][name] = run(name)
            print(name, {k: v for k, v in results["rows"][name].items() if k not in ("loss", "betas")}, flush=True)
            OUT.write_text(json.dumps(results, indent=1) + "\n")
