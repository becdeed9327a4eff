"""The ablation of chapter 04: schedule and objective on the digits, three seeds each, and few steps.

    python chapters/results/improved_ddpm_ablation.py [--continue]

trains the digits recipe's network for each schedule, objective and seed on the same number of images, one thread (and
the bound once more on a cosine schedule that is clipped earlier), and writes improved_ddpm_ablation.json beside this
file: bits per dimension of the 359 held-out digits with 1,000 steps and with 25, the Fréchet distance of the digits
extractor between 359 samples and the training digits, how noisy the gradient of each objective is at the weights that
L_hybrid found, distance, precision and recall against the number of steps, and digits drawn by class. About 20
minutes.
"""

import dataclasses
import datetime
import functools
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn

import minidiff as md

IMAGES, N, K = 38_400, 359, 3
SEEDS = (0, 1, 2)
SCHEDULES = {"linear": ("linear", {}), "cosine": ("cosine", {}), "cosine, β ≤ 0.5": ("cosine", {"max_beta": 0.5})}
OBJECTIVES = {  # name: arguments of GaussianConfig, how t is drawn
    "simple": ({"variance": "large", "loss": "simple"}, "uniform"),
    "hybrid": ({"variance": "range", "loss": "hybrid"}, "uniform"),
    "vlb": ({"variance": "range", "loss": "bound"}, "importance"),
}
ROWS = [(schedule, objective) for schedule in ("linear", "cosine") for objective in OBJECTIVES]
ROWS += [("cosine, β ≤ 0.5", "vlb")]
STEPS = (5, 10, 25, 50, 100)
OUT = Path(__file__).with_suffix(".json")

digits, held_out = md.digits(), md.digits("test")
see = md.DigitsExtractor()
seen = see(digits.pixels, 17).pool


def variants(process: md.GaussianDiffusion) -> dict[str, md.GaussianDiffusion]:
    """The process under each variance that its network can serve."""
    if process.variance == "range":
        return {"learned": process}
    return {kind: md.GaussianDiffusion(process.betas, variance=kind, levels=17) for kind in ("large", "small")}


def bits(process: md.GaussianDiffusion, net: nn.Module, count: int, **cond: torch.Tensor) -> dict:
    """The bound of the held-out digits, and where it lies."""
    x0, generator = held_out.x.double(), torch.Generator().manual_seed(0)
    bound = md.likelihood_bound(process, net, x0, generator, count=count, cond=cond)
    return {
        "total": round(bound.total, 4),
        "error": round(bound.error, 4),
        "prior": round(bound.prior.mean().item(), 5),
        "first": bound.edges[:-1].tolist(),
        "terms": [round(term, 5) for term in bound.terms.tolist()],
    }


def samples(process: md.GaussianDiffusion, net: nn.Module, sampler=None, **cond: torch.Tensor) -> torch.Tensor:
    """N digits in grey levels, from seeds 0 … N − 1."""
    return md.decode(md.generate(process, net, (1, 8, 8), range(N), batch=N, sampler=sampler, cond=cond), 17)


def looks(pixels: torch.Tensor) -> dict:
    """How the samples compare with the training digits, and the first of them."""
    pool = see(pixels, 17).pool
    precision, recall = md.precision_recall(seen, pool, k=K)
    return {
        "distance": round(md.frechet_distance(pool, seen), 4),
        "precision": round(precision, 4),
        "recall": round(recall, 4),
        "samples": pixels[:12].flatten(1).tolist(),
    }


def config(schedule: str, objective: str, seed: int, labels: bool = False) -> md.Config:
    """The digits recipe with another process, for a short run that ends at rate 0."""
    recipe, (arguments, times) = md.recipe("digits"), OBJECTIVES[objective]
    name, options = SCHEDULES[schedule]
    return dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, labels=labels),
        process=dataclasses.replace(recipe.process, schedule=name, schedule_options=options, **arguments),
        network=dataclasses.replace(recipe.network, classes=10 if labels else 0),
        training=dataclasses.replace(
            recipe.training, images=IMAGES, batch=64, ramp=3_200, anneal=True, ema=(2_500,), times=times, seed=seed
        ),
    )


def trained(schedule: str, objective: str, seed: int, labels: bool = False) -> tuple[md.Model, dict]:
    """A model trained from scratch, and what that cost and brought."""
    settings = config(schedule, objective, seed, labels)
    torch.manual_seed(seed)
    model = md.build(settings, (1, 8, 8), 17)
    times = md.ImportanceTimes(1000) if settings.training.times == "importance" else md.UniformTimes(1000)
    data = md.load_images("digits", labels=labels)
    began = time.process_time()
    state = md.train(md.begin(model, times, settings.training), data, settings.training)
    cost = {"cpu_seconds": round(time.process_time() - began, 1), "loss": [round(m["loss"], 5) for m in state.metrics]}
    if isinstance(times, md.ImportanceTimes):
        cost["warm"] = bool((times.seen >= times.history).all())
    return state.ema.eval().requires_grad_(False), cost


def noise_of_gradients(model: md.Model) -> dict:
    """Signal and noise of the gradient at these weights, under each objective."""
    make = functools.partial(md.GaussianDiffusion, model.process.betas, variance="range", levels=17)
    simple, hybrid, bound = make(loss="hybrid", lambda_vlb=1e-9), make(loss="hybrid"), make(loss="bound")
    history, generator = md.ImportanceTimes(1000), torch.Generator().manual_seed(0)
    t = torch.arange(1000)
    with torch.no_grad():
        for _ in range(history.history):
            x0 = digits.x[torch.randint(len(digits), (1000,), generator=generator)]
            history.update(t, bound.loss(model.net, x0, t, bound.draw_noise(x0, generator))["loss"])
    found, uniform = {}, md.UniformTimes(1000)
    objectives = {"simple": (simple, uniform), "hybrid": (hybrid, uniform)}
    objectives |= {"vlb": (bound, uniform), "vlb, importance": (bound, history)}
    model.requires_grad_(True)
    for name, (other, times) in objectives.items():
        noise = md.gradient_noise(md.Model(model.net, other), digits, times, torch.Generator().manual_seed(1), draws=96)
        found[name] = {"signal": noise.signal, "noise": noise.noise}
    model.requires_grad_(False)
    return found


def ablate(schedule: str, objective: str, seed: int) -> tuple[md.Model, dict]:
    """Train one row and measure it."""
    model, row = trained(schedule, objective, seed)
    for kind, process in variants(model.process).items():
        row[kind] = {
            "1000": bits(process, model.net, 40),
            "25": bits(md.respace(process, "25"), model.net, 25),
            "looks": looks(samples(md.respace(process, "50"), model.net)),
        }
    if objective == "hybrid":
        row["gradient"] = noise_of_gradients(model)
    return model, row


def against_steps(simple: md.Model, hybrid: md.Model) -> dict:
    """Distance, precision and recall for each number of steps and each way to take them."""
    kinds = {"learned": (hybrid.process, hybrid.net)}
    kinds |= {kind: (process, simple.net) for kind, process in variants(simple.process).items()}
    found = {}
    for S in STEPS:
        for kind, (process, net) in kinds.items():
            found[f"{S}, {kind}"] = looks(samples(md.respace(process, str(S)), net))
        ddim = functools.partial(md.ddim, steps=md.sections(1000, str(S)))
        found[f"{S}, ddim"] = looks(samples(simple.process, simple.net, sampler=ddim))
    return found


def by_class() -> dict:
    """A model that is told the class: its bits, its looks, and whether a classifier reads what was asked for."""
    model, row = trained("cosine", "hybrid", 0, labels=True)
    labels = torch.arange(N) % 10
    pixels = samples(md.respace(model.process, "50"), model.net, labels=labels)
    read = see(pixels, 17).logits.argmax(1)
    bound = bits(model.process, model.net, 40, labels=held_out.labels)
    shuffled = bits(model.process, model.net, 40, labels=(held_out.labels + 1) % 10)
    agreed = (read == labels).double().mean().item()
    row |= {"1000": bound, "wrong labels": shuffled, "agreed": round(agreed, 4), **looks(pixels)}
    return row | {"samples": pixels[:50].flatten(1).tolist()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    results = {
        "command": "python chapters/results/improved_ddpm_ablation.py",
        "seeds": SEEDS,
        "images": IMAGES,
        "n": N,
        "reference": "the 1,438 training digits",
        "commit": commit,
        "machine": f"1 thread of {platform.machine()}, torch {torch.__version__}",
        "date": datetime.date.today().isoformat(),
        "rows": {},
    }
    if "--continue" in sys.argv:
        results = json.loads(OUT.read_text())
    pool = see(held_out.pixels, 17).pool
    precision, recall = md.precision_recall(seen, pool, k=K)
    results["held_out"] = {"distance": md.frechet_distance(pool, seen), "precision": precision, "recall": recall}

    def write() -> None:
        OUT.write_text(json.dumps(results) + "\n")

    for seed in SEEDS:
        models = {}
        for schedule, objective in ROWS:
            key = f"{schedule}, {objective}, {seed}"
            if key in results["rows"] and (seed or "steps" in results):
                continue
            model, row = ablate(schedule, objective, seed)
            models[schedule, objective], results["rows"][key] = model, row
            measured = {kind: row[kind] for kind in ("learned", "large", "small") if kind in row}
            shown = {kind: (m["1000"]["total"], m["25"]["total"]) for kind, m in measured.items()}
            print(key, row["cpu_seconds"], shown, [m["looks"]["distance"] for m in measured.values()], flush=True)
            write()
        if seed == 0 and "steps" not in results:
            results["steps"] = against_steps(models["cosine", "simple"], models["cosine", "hybrid"])
            print({key: value["distance"] for key, value in results["steps"].items()}, flush=True)
            write()
        if seed == 0 and "classes" not in results:
            results["classes"] = by_class()
            print("classes", results["classes"]["1000"]["total"], results["classes"]["agreed"], flush=True)
            write()
