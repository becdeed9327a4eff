"""One evaluation on several processes: each sees its share of the images, and all come to the same numbers."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed

from .reference import Extracted


@contextmanager
def process_group() -> Iterator[tuple[int, int]]:
    """This process's rank and how many there are: those of ``torchrun`` while inside, or 0 of 1 without it."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield 0, 1
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("gloo")  # what is exchanged lies on the CPU
    try:
        yield distributed.get_rank(), distributed.get_world_size()
        distributed.barrier()
    finally:
        distributed.destroy_process_group()


def share(n: int) -> range:
    """The places of this process among n images: one run of neighbours each, in the order of the ranks.

    Raises ValueError for more processes than images.
    """
    rank, world = _place()
    if world > n:
        raise ValueError(f"{n} images on {world} processes: start no more processes than there are images.")
    return range(rank * n // world, (rank + 1) * n // world)


def joined(found: Extracted) -> Extracted:
    """What all processes have seen, in the order of the images: the same on each of them."""
    _, world = _place()
    if world == 1:
        return found
    parts: list[Extracted | None] = [None] * world
    distributed.all_gather_object(parts, found)
    whole = Extracted()
    for part in parts:
        for name, moments in part.moments.items():
            whole.moments[name] = whole.moments[name].merge(moments) if name in whole.moments else moments
    whole.vectors = {name: torch.cat([part.vectors[name] for part in parts]) for name in found.vectors}
    return whole


def _place() -> tuple[int, int]:
    on = distributed.is_available() and distributed.is_initialized()
    return (distributed.get_rank(), distributed.get_world_size()) if on else (0, 1)
