"""One evaluation on several processes: each sees its share of the images, and all come to the same numbers."""

import torch
from torch import distributed

from minidiff import processes

from .reference import Extracted


def share(n: int) -> range:
    """The places of this process among n images: one run of neighbours each, in the order of the ranks.

    Raises ValueError for more processes than images.
    """
    rank, world = processes.rank(), processes.size()
    if world > n:
        raise ValueError(f"{n} images on {world} processes: start no more processes than there are images.")
    return range(rank * n // world, (rank + 1) * n // world)


def joined(found: Extracted) -> Extracted:
    """What all processes have seen, in the order of the images: the same on each of them."""
    if processes.size() == 1:
        return found
    parts: list[Extracted | None] = [None] * processes.size()
    distributed.all_gather_object(parts, found)
    whole = Extracted()
    for part in parts:
        for name, moments in part.moments.items():
            whole.moments[name] = whole.moments[name].merge(moments) if name in whole.moments else moments
    whole.vectors = {name: torch.cat([part.vectors[name] for part in parts]) for name in found.vectors}
    return whole
