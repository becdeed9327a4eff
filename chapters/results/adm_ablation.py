"""The ablation of chapter 05: ADM's changes of architecture, one at a time, on MNIST at equal parameters.

    python chapters/results/adm_ablation.py [--continue]

trains a network of 190 thousand parameters for each change and seed on the same number of images, one thread, and
writes adm_ablation.json beside this file: the loss L_simple of the 1,000 held-out digits at fixed times and noise, and
the Fréchet distance between 240 samples and the training digits under a small classifier that is trained first, on
14×14 pixels, with the share of samples in which it reads the class that was asked for. Widths, and the channels of the
time's embedding, are chosen so that no row has 2 % more or fewer parameters than the base. About 90 minutes.
"""

import datetime
import functools
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F

import minidiff as md
from minidiff.evaluation.features import DigitsNet

IMAGES, N, STEPS = 38_400, 240, 20
SEEDS = (0, 1, 2)
BASE = dict(blocks=1, attention=(1,), dropout=0.0, heads=1, inject="scale", resample="conv", classes=10)
ROWS = {  # what is changed, the widths at 28×28, 14×14 and 7×7, and the channels of the time's embedding
    "base": ({}, (8, 16, 32), 16),
    "depth": ({"blocks": 2}, (8, 16, 24), 16),
    "heads": ({"heads": 4}, (8, 16, 32), 16),
    "attention": ({"attention": (1, 2)}, (8, 16, 28), 24),
    "biggan": ({"resample": "block"}, (8, 16, 28), 20),
    "rescale": ({"rescale": True}, (8, 16, 32), 16),
    "add": ({"inject": "add"}, (8, 16, 32), 24),
    "all": ({"heads": 4, "attention": (1, 2), "resample": "block"}, (8, 16, 28), 16),
}
OUT = Path(__file__).with_suffix(".json")


def config(row: str, seed: int) -> md.Config:
    """A short run that ends at rate 0."""
    change, widths, channels = ROWS[row]
    network = md.UNetConfig(**{**BASE, **change}, channels=channels, mult=tuple(wide / channels for wide in widths))
    training = md.TrainingConfig(
        images=IMAGES, batch=16, lr=2e-3, ramp=3_200, anneal=True, ema=(1_600,), tick=6_400, seed=seed
    )
    data = md.DataConfig(source="mnist", labels=True)
    return md.Config("adm-ablation-mnist", data, md.GaussianConfig(), network, training)


def held_out_loss(model: md.Model, images: md.Images) -> dict:
    """L_simple of each image at two times of its own, the same times and noise for every model."""
    generator = torch.Generator().manual_seed(5)
    n = 2 * len(images)
    t = (torch.arange(n) * 1000 // n)[torch.randperm(n, generator=generator)]
    x0, labels = images.x.repeat(2, 1, 1, 1), images.labels.repeat(2)
    noise = torch.randn(x0.shape, generator=generator)
    with torch.no_grad():
        loss = torch.cat(
            [
                model.process.loss(model.net, x0[i], t[i], noise[i], labels=labels[i])["loss"]
                for i in torch.arange(n).split(100)
            ]
        )
    by_time = torch.stack([loss[(t >= low) & (t < low + 100)].mean() for low in range(0, 1000, 100)])
    return {"loss": round(loss.mean().item(), 6), "by_time": [round(value, 6) for value in by_time.tolist()]}


def halved(pixels: torch.Tensor) -> torch.Tensor:
    """MNIST's digits at 14×14, in [−1, 1]."""
    return F.avg_pool2d(md.encode(pixels, 256), 2)


def evaluator() -> DigitsNet:
    """The network of the digits extractor, trained on MNIST at 14×14."""
    torch.manual_seed(1)
    net = DigitsNet()
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    x, epochs = halved(train.pixels), 8
    for epoch in range(epochs):
        for i in torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch)).split(50):
            loss = F.cross_entropy(net(x[i]).logits, train.labels[i])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - (epoch + 1) / epochs)
    return net.eval().requires_grad_(False)


def samples(model: md.Model) -> torch.Tensor:
    """N digits, classes in turn, by DDIM from seeds 0 … N − 1."""
    ddim = functools.partial(md.ddim, steps=md.sections(1000, str(STEPS)))
    labels = torch.arange(N) % 10
    x = md.generate(model.process, model.net, (1, 28, 28), range(N), batch=60, sampler=ddim, cond={"labels": labels})
    return md.decode(x, 256)


def ablate(row: str, seed: int) -> dict:
    """Train one row and measure it."""
    settings = config(row, seed)
    torch.manual_seed(seed)
    model = md.build(settings, (1, 28, 28), 256)
    began = time.process_time()
    state = md.train(md.begin(model, md.UniformTimes(1000), settings.training), train, settings.training)
    seconds = time.process_time() - began
    averaged = state.ema.eval().requires_grad_(False)
    pixels = samples(averaged)
    found = see(halved(pixels))
    read = found.logits.argmax(1) == torch.arange(N) % 10
    return {
        "parameters": sum(p.numel() for p in model.net.parameters()),
        "cpu_seconds": round(seconds, 1),
        "training": [round(line["loss"], 5) for line in state.metrics],
        **held_out_loss(averaged, test),
        "distance": round(md.frechet_distance(found.pool, seen), 4),
        "agreed": round(read.double().mean().item(), 4),
        "samples": pixels[:10].flatten(1).tolist() if seed == 0 else [],
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    train, test = md.load_images("mnist", labels=True), md.load_images("mnist", "test", labels=True)
    see = evaluator()
    seen, unseen = see(halved(train.pixels)).pool, see(halved(test.pixels))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    results = {
        "command": "python chapters/results/adm_ablation.py",
        "seeds": SEEDS,
        "images": IMAGES,
        "n": N,
        "steps": STEPS,
        "reference": f"the {len(train):,} training digits",
        "commit": commit,
        "machine": f"1 thread of {platform.machine()}, torch {torch.__version__}",
        "date": datetime.date.today().isoformat(),
        "base": BASE,
        "changes": {row: {"change": c, "widths": w, "embedding": e} for row, (c, w, e) in ROWS.items()},
        "rows": {},
    }
    if "--continue" in sys.argv:
        results = json.loads(OUT.read_text())
    results["held_out"] = {
        "distance": round(md.frechet_distance(unseen.pool[:N], seen), 4),
        "agreed": round((unseen.logits.argmax(1) == test.labels).double().mean().item(), 4),
    }
    print(results["held_out"], flush=True)
    for seed in SEEDS:
        for row in ROWS:
            key = f"{row}, {seed}"
            if key in results["rows"]:
                continue
            found = results["rows"][key] = ablate(row, seed)
            print(
                key,
                {name: found[name] for name in ("parameters", "cpu_seconds", "loss", "distance", "agreed")},
                flush=True,
            )
            OUT.write_text(json.dumps(results) + "\n")
