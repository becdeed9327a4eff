"""From the names and layouts of a published checkpoint to those of our networks.

A format says, for every layer of a network, what its own code calls it. One walk over the network does the rest.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import EinopsError
from torch import Tensor, nn

from minidiff.networks.layers import Downsample, ResBlock, Upsample


class Place(NamedTuple):
    """Where a layer stands: its path in our network, the way, the row and the place in that row.

    ``level`` counts from the finest; ``step`` counts the rows of a level. ``resamples`` is true of the layer that leads
    to the next level. The way is ``down``, ``beside``, ``middle`` or ``up``.
    """

    path: str
    way: str
    row: int
    child: int
    level: int
    step: int
    resamples: bool
    layer: nn.Module


def places(net: nn.Module) -> Iterator[Place]:
    """The layers of a network's blocks in the order in which data meet them."""
    level = step = 0
    for row, layers in enumerate(net.down):
        for child, layer in enumerate(layers):
            yield Place(f"down.{row}.{child}", "down", row, child, level, step, resamples(layer), layer)
        if str(row) in getattr(net, "beside", {}):
            yield Place(f"beside.{row}", "beside", row, 0, level, step, True, net.beside[str(row)])
        level, step = (level + 1, 0) if resamples(layers[0]) else (level, step + 1)
    for child, layer in enumerate(net.middle):
        yield Place(f"middle.{child}", "middle", 0, child, level, 0, False, layer)
    step = 0
    for row, layers in enumerate(getattr(net, "up", ())):
        for child, layer in enumerate(layers):
            yield Place(f"up.{row}.{child}", "up", row, child, level, step, resamples(layer), layer)
        level, step = (level - 1, 0) if resamples(layers[-1]) else (level, step + 1)


def resamples(layer: nn.Module) -> bool:
    """Whether a layer halves or doubles the sides."""
    identity = isinstance(layer, ResBlock) and isinstance(layer.resample, nn.Identity)
    return isinstance(layer, ResBlock | Downsample | Upsample) and not identity


@dataclass(frozen=True)
class Naming:
    """How one published code names what a network of ours holds.

    Args:
        outside: its names of what stands outside of the blocks, by ours: of a layer, or of one tensor.
        inside: its name of a layer inside a block, given the place and our name; several where ours is cut in parts.
        change: one tensor of theirs as ours, given our key and the place (None outside of the blocks).
    """

    outside: Mapping[str, str]
    inside: Callable[[Place, str], Sequence[str]]
    change: Callable[[str, Place | None, Tensor], Tensor] = lambda key, place, tensor: tensor

    def keys(self, key: str, place: Place | None) -> list[str]:
        """What stands in the published file for one tensor of ours. Raises ValueError where nothing can."""
        if key in self.outside:
            return [self.outside[key]]
        layer, _, end = key.rpartition(".")
        if place is None and layer not in self.outside:
            raise ValueError(f"its format has nothing for {key}, which this network needs")
        names = self.inside(place, layer.rpartition(".")[2]) if place else [self.outside[layer]]
        return [f"{name}.{end}" for name in names]


def translate(net: nn.Module, naming: Naming, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict for ``net``, out of every tensor of a published one.

    Raises ValueError for a tensor that is missing, left over or of another shape.
    """
    at = {place.path: place for place in places(net)}
    ours, used = {}, set()
    for key, own in net.state_dict().items():
        place = at.get(".".join(key.split(".")[:-2]))
        keys = naming.keys(key, place)
        if missing := [name for name in keys if name not in theirs]:
            raise ValueError(f"{missing[0]} is missing, which this network needs")
        try:
            parts = [naming.change(key, place, theirs[name]) for name in keys]
        except EinopsError:
            parts = []
        rows = sum(len(part) for part in parts)
        # a 1×1 convolution may be stored as a convolution over one dimension, or as a matrix
        if rows != len(own) or any(bare(part.shape[1:]) != bare(own.shape[1:]) for part in parts):
            shapes = tuple(theirs[keys[0]].shape), tuple(own.shape)
            raise ValueError(f"{keys[0]} has the shape {shapes[0]}, and this network's {key} {shapes[1]}")
        ours[key] = torch.cat(parts).reshape(own.shape).to(own.dtype)
        used.update(keys)
    if left := [key for key in theirs if key not in used]:
        raise ValueError(f"{left[0]} is left over, which this network does not have")
    return ours


def bare(shape: torch.Size) -> list[int]:
    """A shape without its ones."""
    return [side for side in shape if side != 1]
