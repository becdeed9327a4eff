"""The ablation of chapter 06: from the variance preserving baseline to EDM, one change at a time, three seeds each.

    python chapters/results/edm_ablation.py [--continue]

trains each configuration of EDM's Table 2 on the same number of digits, one thread, and with them DDPM's own discrete
training, and writes edm_ablation.json beside this file: the Fréchet distance of the digits extractor between 500
samples of 18 steps of Heun's rule (35 evaluations) and the training digits, with x̂_0 as it comes and clipped; the
squared error of the denoiser against σ on the 359 held-out digits and on as many training digits, and that of the best
Gaussian denoiser. Three rows more ask what augmentation costs: E on as many digits as F sees plain ones, and both for so
long that F sees as many plain ones as E did. About 45 minutes.
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

IMAGES, N, STEPS = 38_400, 500, 18
SHORT, LONG = 10_880, 134_400  # a share of ½ · 0.94 · 0.88⁴ = 0.28 of F's digits is left alone; 64 divides both
SEEDS = (0, 1, 2)
SIGMA_DATA, P_MEAN = 0.847, -0.67  # the digits' root mean square; EDM's −1.2 moved by as much as σ_data is, in log σ
SIGMAS = 0.05 * 60 ** (torch.arange(-6, 25, dtype=torch.float64) / 16)  # 0.05 and 3 are the 7th and the 23rd
OUT = Path(__file__).with_suffix(".json")

VP, EDM = md.vp_column(), md.edm_column(sigma_data=SIGMA_DATA, P_mean=P_MEAN)
MIXED = dataclasses.replace(EDM, weight=VP.weight, quantile=VP.quantile)  # EDM's network, VP's loss

DEEP = md.SongUNetConfig(channels=16, mult=(1, 2, 2), blocks=1, attention=(1,), dropout=0.1)
FLAT = dataclasses.replace(DEEP, mult=(2, 2), dropout=0.0)
TOLD = dataclasses.replace(FLAT, augment=9)
OLD = {"batch": 128, "lr": 1e-3, "ramp": 12_800, "ema": (5_000,)}
NEW = {"batch": 64, "lr": 2e-3, "ramp": 3_200, "anneal": True, "clip_grad": 0.0, "ema": (2_500,)}
ROWS = {  # of Table 2: the column (None: DDPM's chain), network, optimisation, probability of each warp, images
    "A": (VP, DEEP, OLD, 0.0, IMAGES),
    "B": (VP, dataclasses.replace(DEEP, dropout=0.0), NEW, 0.0, IMAGES),
    "C": (VP, FLAT, NEW, 0.0, IMAGES),
    "D": (MIXED, FLAT, NEW, 0.0, IMAGES),
    "E": (EDM, FLAT, NEW, 0.0, IMAGES),
    "F": (EDM, TOLD, NEW, 0.12, IMAGES),
    "DDPM": (None, FLAT, NEW, 0.0, IMAGES),
    "short E": (EDM, FLAT, NEW, 0.0, SHORT),
    "long E": (EDM, FLAT, NEW, 0.0, LONG),
    "long F": (EDM, TOLD, NEW, 0.12, LONG),
}

digits, held_out = md.digits(), md.digits("test")
see = md.DigitsExtractor()
seen = see(digits.pixels, 17).pool


def trained(row: str, seed: int) -> tuple[md.Model, dict]:
    """A model trained from scratch, and what that cost."""
    column, network, optimisation, augment, images = ROWS[row]
    settings = md.Config(
        recipe=f"edm-ablation-{row}",
        data=md.DataConfig(source="digits", augment=augment),
        process=md.EDMConfig() if column else md.GaussianConfig(clip=False),
        network=network,
        training=md.TrainingConfig(images=images, tick=6_400, checkpoint=images, seed=seed, **optimisation),
    )
    torch.manual_seed(seed)
    model = md.build(settings, (1, 8, 8), 17)
    if column:
        model.process = md.EDM(column, STEPS)
    times = md.SigmaTimes(column.quantile) if column else md.UniformTimes(1000)
    data = md.load_images("digits", augment=augment)
    began = time.process_time()
    state = md.train(md.begin(model, times, settings.training), data, settings.training)
    cost = {"cpu_seconds": round(time.process_time() - began, 1), "loss": [round(m["loss"], 5) for m in state.metrics]}
    cost["parameters"] = sum(p.numel() for p in model.net.parameters())
    return state.ema.eval().requires_grad_(False), cost


def denoiser(model: md.Model, clip: bool = False):
    """The model as denoise(x, sigma), with x̂_0 as it comes or clipped."""
    discrete = isinstance(model.process, md.GaussianDiffusion)
    raw = md.ContinuousDenoiser(model.process, model.net) if discrete else model.process.denoiser(model.net)
    return (lambda x, sigma, **cond: raw(x, sigma, **cond).clamp(-1, 1)) if clip else raw


def draw(denoise, n: int = N) -> torch.Tensor:
    """n digits in grey levels, from seeds 0 … n − 1."""
    path = md.EDMPath()
    start = path.sigma_max * md.per_image_noise(range(n), (1, 8, 8))(0)
    return md.decode(md.ode(denoise, start, path, STEPS).float(), 17)


@torch.no_grad()
def errors(denoise, x0: torch.Tensor, draws: int) -> list[float]:
    """Mean squared error of the denoiser at each of SIGMAS, the same noise for every model."""
    generator, found = torch.Generator().manual_seed(2022), []
    x0 = x0.double().repeat(draws, 1, 1, 1)
    noise = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    for sigma in SIGMAS.tolist():
        found.append((denoise(x0 + sigma * noise, sigma) - x0).square().mean().item())
    return [float(f"{error:.6g}") for error in found]


def gaussian():
    """The best denoiser, were the digits a Gaussian with the training digits' mean and covariance."""
    x = digits.x.double().flatten(1)
    mean = x.mean(0)
    values, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))

    def denoise(x, sigma):
        shares = values.clamp(min=0) / (values.clamp(min=0) + sigma**2)
        return (mean + (x.flatten(1) - mean) @ vectors * shares @ vectors.T).view_as(x)

    return denoise


if __name__ == "__main__":
    torch.set_num_threads(1)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    results = {
        "command": "python chapters/results/edm_ablation.py",
        "seeds": SEEDS,
        "images": {row: images for row, (*_, images) in ROWS.items()},
        "n": N,
        "reference": "the 1,438 training digits",
        "commit": commit,
        "machine": f"1 thread of {platform.machine()}, torch {torch.__version__}",
        "date": datetime.date.today().isoformat(),
        "sigmas": [float(f"{sigma:.6g}") for sigma in SIGMAS.tolist()],
        "rows": {},
    }
    if "--continue" in sys.argv and OUT.exists():
        results = json.loads(OUT.read_text())
        results["images"] = {row: images for row, (*_, images) in ROWS.items()}
    results["held_out"] = md.frechet_distance(see(held_out.pixels, 17).pool, seen)
    results["gaussian"] = {
        "held_out": errors(gaussian(), held_out.x, 2),
        "training": errors(gaussian(), digits.x[: len(held_out)], 1),
    }
    for seed in SEEDS:
        for name in ROWS:
            key = f"{name}, {seed}"
            if key in results["rows"]:
                continue
            model, row = trained(name, seed)
            for clip in (False, True):
                pixels = draw(denoiser(model, clip))
                row["clipped" if clip else "distance"] = round(md.frechet_distance(see(pixels, 17).pool, seen), 4)
                if not clip:
                    row["samples"] = pixels[:12].flatten(1).tolist()
            row["held_out"] = errors(denoiser(model), held_out.x, 2)
            row["training"] = errors(denoiser(model), digits.x[: len(held_out)], 1)
            results["rows"][key] = row
            print(key, row["cpu_seconds"], row["distance"], row["clipped"], row["loss"][-1], flush=True)
            OUT.write_text(json.dumps(results) + "\n")
