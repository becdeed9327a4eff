"""Many samples, by any number of processes: each fills the shards whose turn is its own, and none waits for another."""

import os
from pathlib import Path

from tqdm import tqdm

from minidiff.cli.stages import Drawing
from minidiff.evaluation import SampleFolder


def place_among() -> tuple[int, int]:
    """Which process this is, from 0, and how many there are: as torchrun says, or 0 of 1."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def check_shards(samples: SampleFolder) -> None:
    """Raises ValueError where a process would have nothing to do."""
    _, world = place_among()
    if world > samples.shards:
        raise ValueError(
            f"--shard {samples.shard}: {samples.n:,} samples are {samples.shards} shards, for {world} processes. Give "
            f"--shard {max(1, samples.n // world)} or less, or start fewer."
        )


def fill(drawing: Drawing, samples: SampleFolder, folder: Path) -> None:
    """Draw what is missing of this process's shards. Whoever finds all of them there at the end says so."""
    rank, world = place_among()
    samples.begin(folder)
    missing = {k: samples.missing(folder, k) for k in range(rank, samples.shards, world)}
    left, stages = sum(map(len, missing.values())), 2 if drawing.second else 1
    if rank == 0:
        print(f"{samples.n:,} samples into {folder}; {left:,} to draw in this process of {world}", flush=True)
    at_a_time = samples.shard if samples.kind == "npz" else drawing.batch  # what is lost when it is killed
    with tqdm(total=left * stages, unit=" samples", disable=True if rank else None) as bar:
        for places in missing.values():
            for k in range(0, len(places), at_a_time):
                part = places[k : k + at_a_time]
                labels = drawing.cond["labels"][part] if "labels" in drawing.cond else None
                samples.write(folder, part, drawing(part, bar.update), labels)
    if not any(samples.missing(folder, k) for k in range(samples.shards)):
        print(f"all {samples.n:,} samples are in {folder}", flush=True)
