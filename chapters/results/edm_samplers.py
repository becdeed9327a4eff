"""The digits model of this package under every solver of chapter 06, one network, few evaluations.

    python chapters/results/edm_samplers.py [--continue]

draws 500 digits for each column of EDM's Table 1, solver and number of evaluations, from the same seeds, on one thread,
with the shipped model and with the ideal denoiser of the training digits, and writes edm_samplers.json beside this
file: Fréchet distances of the digits extractor to the 1,438 training digits and to the 359 held-out ones. With them:
18 steps of Heun's rule against 250 steps of the chain from three sets of seeds, x̂_0 clipped alike; the same steps with
noise put back, little and much; and the steps spaced by other values of ρ. About 15 minutes.
"""

import datetime
import json
import platform
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch

import minidiff as md

N, SEEDS = 500, (0, 1, 2)
EVALUATIONS = (5, 9, 17, 35)
MORE = 67  # for Euler's rule alone, which needs them
COLUMNS = {name: make().path for name, make in md.COLUMNS.items()}
SOLVERS = {  # evaluations → steps, and how they are taken
    "euler": (lambda count: count, partial(md.ode, solver="euler")),
    "heun": (lambda count: (count + 1) // 2, md.ode),
    "midpoint": (lambda count: count // 2, partial(md.rk2, alpha=0.5)),  # its last step asks twice too
    "dpmpp": (lambda count: count, md.dpmpp),
}
WINDOWS = {"all": {}, "window": {"S_tmin": 0.05, "S_tmax": 3.0}}
CHURN = (1.0, 2.0, 4.0, 8.0)  # of 18 steps: from 7.5 on γ is as large as it can be
NOISE = (0.98, 1.01, 1.03)
RHO = (1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0)
OUT = Path(__file__).with_suffix(".json")

digits, held_out = md.digits(), md.digits("test")
see = md.DigitsExtractor()
seen, unseen = (see(part.pixels, 17).pool for part in (digits, held_out))
model, _ = md.load("digits")


def noise(seed: int):
    """N digits' noise, another for each seed."""
    return md.per_image_noise(range(N * seed, N * seed + N), (1, 8, 8))


def looks(x: torch.Tensor) -> dict:
    """Distances to both parts of the digits."""
    pool = see(md.decode(x.float(), 17), 17).pool
    return {
        "training": round(md.frechet_distance(pool, seen), 4),
        "held_out": round(md.frechet_distance(pool, unseen), 4),
    }


def start(path: md.Path, seed: int = 0) -> torch.Tensor:
    """Where a solver begins."""
    return path.std(path.t_max) * noise(seed)(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    results = {
        "command": "python chapters/results/edm_samplers.py",
        "seeds": SEEDS,
        "n": N,
        "commit": commit,
        "machine": f"1 thread of {platform.machine()}, torch {torch.__version__}",
        "date": datetime.date.today().isoformat(),
        "rows": {},
        "samples": {},
    }
    if "--continue" in sys.argv and OUT.exists():
        results = json.loads(OUT.read_text())
    results["held_out"] = md.frechet_distance(unseen, seen)

    def measure(key: str, sampler, *arguments, **options) -> None:
        """One row, unless it is there."""
        if key in results["rows"]:
            return
        began = time.process_time()
        x = sampler(*arguments, **options)
        results["rows"][key] = looks(x)
        if key.endswith(", heun, 35") or key.startswith(("heun 18, 0", "ancestral 250, 0", "churn")):
            results["samples"][key] = md.decode(x.float(), 17)[:8].flatten(1).tolist()
        print(key, results["rows"][key], f"{time.process_time() - began:.0f} s", flush=True)
        OUT.write_text(json.dumps(results) + "\n")

    clipped = md.ContinuousDenoiser(model.process, model.net, clip=True)
    raw = md.ContinuousDenoiser(model.process, model.net, clip=False)
    edm, short = md.EDMPath(), md.respace(model.process, "250")
    for seed in SEEDS:
        measure(f"heun 18, {seed}", md.ode, clipped, start(edm, seed), edm, 18)
        measure(f"heun 18 unclipped, {seed}", md.ode, raw, start(edm, seed), edm, 18)
    for seed in SEEDS:
        measure(f"ancestral 250, {seed}", md.ancestral, short, model.net, noise(seed)(0), noise(seed))

    denoisers = {"digits": clipped, "ideal": md.IdealDenoiser(digits.x)}
    for whose, denoise in denoisers.items():
        for name, path in COLUMNS.items():
            for solver, (steps, solve) in SOLVERS.items():
                for count in EVALUATIONS + ((MORE,) if solver == "euler" else ()):
                    key = f"{whose}, {name}, {solver}, {count}"
                    measure(key, solve, denoise, start(path), path, steps(count))

    for seed in SEEDS:
        for window, options in WINDOWS.items():
            for S_churn in CHURN:
                more = {"path": edm, "S_churn": S_churn, **options}
                if seed == 0 or S_churn == 4.0:
                    key = f"churn {S_churn:g}, {window}, {seed}"
                    measure(key, md.churn, clipped, start(edm, seed), noise(seed), 18, **more)
    for S_noise in NOISE:
        more = {"path": edm, "S_churn": 4.0, "S_noise": S_noise, **WINDOWS["window"]}
        measure(f"S_noise {S_noise:g}", md.churn, clipped, start(edm), noise(0), 18, **more)
    for rho in RHO:
        path = md.EDMPath(rho=rho)
        for steps in (9, 18):
            measure(f"rho {rho:g}, {steps}", md.ode, clipped, start(path), path, steps)
