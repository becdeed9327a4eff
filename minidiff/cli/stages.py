"""Models in sequence: a second one enlarges what the first draws (IDDPM §3, ADM §4)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minidiff.cli.common import load_diffusion, place
from minidiff.cli.samplers import choose_sampler, usual_sampler
from minidiff.data import decode, encode
from minidiff.sampling import generate
from minidiff.training import Description

SECOND = 1_000_000_000  # from the seed of an image's first stage to that of its second, so that their noises differ


@dataclass(frozen=True)
class Stage:
    """A model and its sampler: what ``generate`` asks for. The process is the model's own, respaced or guided."""

    description: Description
    net: nn.Module
    process: Any
    sampler: Callable[..., Tensor]

    def draw(
        self,
        seeds: Sequence[int],
        cond: dict[str, Tensor],
        batch: int,
        device: torch.device,
        on_batch: Callable[[int], None],
    ) -> Tensor:
        """A sample for each seed."""
        shape = self.description.shape
        return generate(self.process, self.net, shape, seeds, batch, device, on_batch, self.sampler, cond)


@dataclass(frozen=True)
class Drawing:
    """One stage or two in sequence, and what the first is told of each image; image i has the seed ``seed`` + i."""

    first: Stage
    second: Stage | None
    cond: dict[str, Tensor]
    seed: int
    batch: int
    device: torch.device

    @property
    def description(self) -> Description:
        """Of what comes out."""
        return (self.second or self.first).description

    def __call__(self, places: Sequence[int], on_batch: Callable[[int], None]) -> Tensor:
        """The samples at these places; ``on_batch`` is called by each stage."""
        seeds, cond = [self.seed + i for i in places], {name: rows[list(places)] for name, rows in self.cond.items()}
        told = (self.batch, self.device, on_batch)
        x = self.first.draw(seeds, cond, *told)
        if self.second:
            cond = enlarging(x, self.first.description, self.second, cond)
            x = self.second.draw([SECOND + seed for seed in seeds], cond, *told)
        return x


def open_second(path: Path, steps: str | None, first: Description, classes: int, device: torch.device) -> Stage:
    """The model that enlarges what the first one draws, of so many classes.

    Raises ValueError for one that takes no smaller images, or others than these.
    """
    model, description = load_diffusion(path)
    factor, (channels, *sides) = description.config.data.low_res, description.shape
    if factor == 1:
        raise ValueError(f"--upsample {path}: this network takes no smaller image.")
    wanted = (channels, *(side // factor for side in sides))
    if first.shape != wanted or first.levels is None:
        raise ValueError(f"--upsample {path}: it enlarges images {wanted} in levels, and {first.shape} are drawn.")
    known = getattr(model.net, "classes", 0)
    if known not in (0, classes):
        raise ValueError(f"--upsample {path}: it is told one of {known} classes, and the first stage has {classes}.")
    try:
        process, sampler = choose_sampler(place(model, device), usual_sampler(model), steps)
    except ValueError as error:
        raise ValueError(f"--upsample-steps {steps}: {error}") from error
    return Stage(description, model.net, place(process, device), sampler)


def enlarging(small: Tensor, first: Description, second: Stage, cond: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the second stage is told: the first one's images on their levels, as a file would hold them, and the classes
    of the first where the second knows classes."""
    told = {"low_res": encode(decode(small, first.levels), first.levels)}
    return told | ({"labels": cond["labels"]} if getattr(second.net, "classes", 0) else {})
