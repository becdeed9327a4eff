"""Data by name."""

import re
from collections.abc import Callable
from pathlib import Path

import torch

from .dead_leaves import dead_leaves
from .images import Images, Split, load_images
from .toys import Points, heartbeats, swiss_roll


def load_data(source: str | Path, split: Split = "train", **options) -> Images | Points:
    """A data set by its name, or images from an ``.npz`` file or a prepared folder (``load_images`` tells of both, and
    of the options).

    ``digits``; ``mnist``, 28×28, or ``mnist-8`` and other sizes; ``swiss-roll``, 50,000 points; ``heartbeat``, each of
    the five sequences 2,000 times; ``dead-leaves-16``, 20,000 images of 16×16, or of another size. What is generated is
    the same every time; a tenth as much is drawn anew to be held out. Raises ValueError for a source that is not known,
    for a file that holds something else, and for options that what is generated does not have.
    """
    generated = str(source) in ("swiss-roll", "heartbeat") or str(source).startswith("dead-leaves-")
    if generated and (given := [name for name, value in options.items() if value is True or value not in (False, 1)]):
        raise ValueError(f"data.{given[0]} is for images of digits, MNIST or a file; {source!r} has a law of its own.")
    generator, share = torch.Generator().manual_seed(2015 + (split == "test")), 10 if split == "test" else 1
    if leaves := re.fullmatch(r"dead-leaves-(\d+)", str(source)):
        if not 8 <= (size := int(leaves[1])) <= 256:
            raise ValueError(f"data source {source!r}: dead leaves have sides of 8 to 256 pixels.")
        return Points(dead_leaves(20_000 // share, size, generator))
    made: dict[str, Callable[[], Points]] = {
        "swiss-roll": lambda: Points(swiss_roll(50_000 // share, generator).float()),
        "heartbeat": lambda: Points(heartbeats().repeat(2_000 // share, 1), levels=2),
    }
    return made[str(source)]() if str(source) in made else load_images(source, split, **options)
