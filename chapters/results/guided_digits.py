"""Guidance on digits: fidelity against diversity, for the figures and tables of chapter 05.

    python chapters/results/guided_digits.py [--continue]

draws eight sets of 359 digits for each way of sampling from the shipped models digits-classes and digits-classifier,
one thread, and writes guided_digits.json beside this file: the Fréchet distance, precision and recall of each set
against the 1,438 training digits under the digits extractor, and the share of it in which the extractor reads the
digit that was asked for. The ways: classifier guidance at growing scale, of a network that is told the class and of the
same network that is not; guidance without a classifier; 25 steps of DDIM against 250 of the chain; the slope taken at
x_t; less noise than the chain asks for; and 25 steps spread unevenly. About half an hour.
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

import minidiff as md

N, STEPS, K = 359, "25", 3
SETS = tuple(range(8))
SCALES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 7.0, 10.0)
UNTOLD_SCALES = (0.0, 1.0, 2.0, 4.0, 7.0, 10.0, 15.0, 25.0, 40.0, 80.0, 160.0)
FREE_SCALES = (1.25, 1.5, 2.0, 3.0, 5.0)
TAUS = (0.8, 0.9, 0.95)
SEGMENTS = ("5,5,5,5,5", "9,6,6,2,2", "2,2,6,6,9", "9,4,4,4,4", "13,3,3,3,3", "3,3,3,3,13")
OUT = Path(__file__).with_suffix(".json")

model, classifier = md.load("digits-classes")[0], md.load("digits-classifier")[0]
log_p = md.ClassLogProb(classifier.process.process, classifier.net)
labels = torch.arange(N) % 10
digits, held_out = md.digits(), md.digits("test")
see = md.DigitsExtractor()
seen = see(digits.pixels, 17).pool


def untold(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The network when nobody tells it the class."""
    x, t = x.float(), t.float()
    return model.net(x, t, labels=torch.full((len(x),), -1)).double()


def guided(steps: str, scale: float, **options) -> md.Guided:
    """The chain on some of its steps, led by the classifier."""
    return md.Guided(md.respace(model.process, steps), log_p, scale, **options)


def looks(pixels: torch.Tensor) -> dict:
    """How a set compares with the training digits, and whether it shows what was asked for."""
    found = see(pixels, 17)
    precision, recall = md.precision_recall(seen, found.pool, k=K)
    return {
        "distance": round(md.frechet_distance(found.pool, seen), 4),
        "precision": round(precision, 4),
        "recall": round(recall, 4),
        "agreed": round((found.logits.argmax(1) == labels).double().mean().item(), 4),
    }


def ways() -> dict:
    """Each way of sampling: its process, its network and its sampler."""
    found = {}
    for scale in SCALES:
        found[f"told, {scale:g}"] = guided(STEPS, scale), model.net, None
    for scale in UNTOLD_SCALES:
        found[f"untold, {scale:g}"] = guided(STEPS, scale, tell_net=False), untold, None
    for scale in FREE_SCALES:
        found[f"free, {scale:g}"] = md.respace(model.process, STEPS), md.ClassifierFree(model.net, scale), None
    for scale in (2.0, 10.0):
        found[f"at x, {scale:g}"] = guided(STEPS, scale, at="x"), model.net, None
    for tau in TAUS:
        cool = functools.partial(tempered_chain, tau=tau)
        found[f"tau, {tau:g}"] = md.respace(model.process, STEPS), model.net, cool
        found[f"untold tau, {tau:g}"] = guided(STEPS, 0.0, tell_net=False), untold, cool
    for segments in SEGMENTS:
        found[f"segments, {segments}"] = md.respace(model.process, segments), model.net, None
    ddim = functools.partial(md.ddim, steps=md.sections(1000, "ddim25"))
    for scale in (0.0, 0.5, 1.0, 2.0, 4.0):
        found[f"ddim25, {scale:g}"] = guided("1000", scale), model.net, ddim
    for scale in (0.0, 1.0):
        found[f"250, {scale:g}"] = guided("250", scale), model.net, None
    return found


def tempered_chain(process, net, start, noise, tau: float, cond: dict) -> torch.Tensor:
    """The chain with its noise, but not its start, made smaller."""
    return md.ancestral(process, net, start, md.tempered(noise, tau), cond=cond)


if __name__ == "__main__":
    torch.set_num_threads(1)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    results = {
        "command": "python chapters/results/guided_digits.py",
        "seeds": SETS,
        "n": N,
        "steps": STEPS,
        "reference": f"the {len(digits):,} training digits",
        "commit": commit,
        "machine": f"1 thread of {platform.machine()}, torch {torch.__version__}",
        "date": datetime.date.today().isoformat(),
        "sets": {},
        "seconds": {},
        "samples": {},
    }
    if "--continue" in sys.argv:
        results = json.loads(OUT.read_text())
    found = see(held_out.pixels, 17)
    precision, recall = md.precision_recall(seen, found.pool, k=K)
    agreed = (found.logits.argmax(1) == held_out.labels).double().mean().item()
    distance = md.frechet_distance(found.pool, seen)
    results["held_out"] = {"distance": distance, "precision": precision, "recall": recall, "agreed": agreed}
    for name, (process, net, sampler) in ways().items():
        if name in results["sets"]:
            continue
        began, sets = time.process_time(), []
        for k in SETS:
            seeds = range(k * N, (k + 1) * N)
            x = md.generate(process, net, (1, 8, 8), seeds, batch=N, sampler=sampler, cond={"labels": labels})
            pixels = md.decode(x, 17)
            sets.append(looks(pixels))
            if k == 0:
                results["samples"][name] = pixels[:20].flatten(1).tolist()
        results["sets"][name] = {key: [one[key] for one in sets] for key in sets[0]}
        results["seconds"][name] = round((time.process_time() - began) / len(SETS), 1)
        print(name, results["seconds"][name], results["sets"][name], flush=True)
        OUT.write_text(json.dumps(results) + "\n")
