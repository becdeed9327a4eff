"""What one process and two processes take for a step, for chapter 07.

    python chapters/results/scaling_two_processes.py

trains the network of the digits recipe by the library's own loop, one thread a process, and writes
scaling_two_processes.json beside this file: how long a step takes in one process (``one``) and in two that torchrun
starts and that talk over gloo (``two``), by the number of images in the whole batch, and how long the two need to
exchange a vector of so many bytes (``exchange``) and nothing else. The two kinds of run take turns, ``ROUNDS`` times.
The machine has other work, and what is asked is how long a step takes while nothing else runs: so of all steps the
time that one in ten stays below is kept, by the wall clock (``seconds``) and as the processor time of the first process
(``cpu_seconds``). About a minute on two idle cores.
"""

import argparse
import dataclasses
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch

import minidiff as md
from minidiff.processes import process_group, rank

BATCHES, ROUNDS, STEPS, WARM_UP = (8, 16, 32, 64, 128), 2, 30, 5
BYTES = tuple(4 * 4**k for k in range(2, 11))  # from 64 bytes to 4 MiB
EXCHANGES = 60
OUT = Path(__file__).with_suffix(".json")


def config(batch: int) -> md.Config:
    """The digits recipe for so many steps, without a word or a checkpoint on the way."""
    recipe = md.recipe("digits")
    images = batch * (WARM_UP + STEPS)
    training = dataclasses.replace(recipe.training, batch=batch, images=images, tick=images, checkpoint=images)
    return dataclasses.replace(recipe, training=training)


def now() -> tuple[float, float]:
    """By the clock on the wall, and by this process's own."""
    return time.perf_counter(), time.process_time()


def steps(batch: int, digits: md.Images) -> list[tuple[float, float]]:
    """Wall and processor time of each step."""
    settings = config(batch)
    torch.manual_seed(0)
    model = md.build(settings, digits.shape, digits.levels)
    clock = [now()]
    state = md.begin(model, md.UniformTimes(1000), settings.training)
    md.train(state, digits, settings.training, on_step=lambda _: clock.append(now()))
    return [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(clock)][WARM_UP:-1]  # the last one ends with a tick


def exchanges(size: int) -> list[tuple[float, float]]:
    """Wall and processor time of each sum of so many bytes over the processes."""
    numbers, found = torch.zeros(size // 4), []
    for _ in range(EXCHANGES):
        torch.distributed.barrier()
        began = now()
        torch.distributed.all_reduce(numbers)
        ended = now()
        found.append((ended[0] - began[0], ended[1] - began[1]))
    return found[WARM_UP:]


def worker(out: Path) -> None:
    """One process's part of a round."""
    torch.set_num_threads(1)
    digits = md.digits()
    with process_group(torch.device("cpu")):
        two = int(os.environ.get("WORLD_SIZE", 1)) == 2
        found = {"steps": {batch: steps(batch, digits) for batch in (BATCHES[1:] if two else BATCHES)}}
        if two:
            found["exchange"] = {size: exchanges(size) for size in BYTES}
        if rank() == 0:
            out.write_text(json.dumps(found))


def quiet(times: list[tuple[float, float]]) -> dict[str, float]:
    """What one in ten stays below, by both clocks."""
    by_wall, by_processor = (round(statistics.quantiles(each, n=10)[0], 7) for each in zip(*times, strict=True))
    return {"seconds": by_wall, "cpu_seconds": by_processor}


def main() -> None:
    """Turn by turn, and after each what is kept of all so far."""
    digits = md.digits()
    model = md.build(config(8), digits.shape, digits.levels)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    turns = {1: [], 2: []}

    def kept(processes: int, part: str) -> dict[str, dict[str, float]]:
        runs = [found[part] for found in turns[processes]]
        return {key: quiet([each for run in runs for each in run[key]]) for key in runs[0]}

    for turn in range(ROUNDS):
        for processes in turns:
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "found.json"
                launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
                command = [sys.executable, "-m", *launcher, __file__, "--worker", str(out)]
                subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
                turns[processes].append(json.loads(out.read_text()))
            said = {batch: quiet(times) for batch, times in turns[processes][-1]["steps"].items()}
            print(turn, processes, said, flush=True)
        results = {
            "command": "python chapters/results/scaling_two_processes.py",
            "seed": 0,
            "commit": commit,
            "machine": f"2 virtual processors of {platform.machine()}, torch {torch.__version__}, gloo; other work beside",
            "date": datetime.date.today().isoformat(),
            "rounds": turn + 1,
            "steps": STEPS - 1,
            "gradient_bytes": 4 * sum(p.numel() for p in model.parameters()),
            "one": kept(1, "steps"),
            "two": kept(2, "steps"),
            "exchange": kept(2, "exchange"),
        }
        OUT.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--worker", type=Path)
    where = parser.parse_args().worker
    worker(where) if where else main()
