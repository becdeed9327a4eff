"""A U-Net as a table: which layers stand in each row on the way down, in the middle and on the way up.

A layer is (kind, channels in, channels out) of the kinds ``res``, ``attention``, ``down`` and ``up``.
"""

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .layers import ResBlock

Layer = tuple[str, int, int]
Table = list[list[Layer]]


def way_down(first: int, widths: Sequence[int], blocks: int, attention: Collection[int]) -> Table:
    """Rows from ``first`` channels through one level a width: ``blocks`` rows each, then one that halves the sides."""
    table, width = [], first
    for level, wide in enumerate(widths):
        for _ in range(blocks):
            table.append([("res", width, wide), *attend(wide, level in attention)])
            width = wide
        if level < len(widths) - 1:
            table.append([("down", width, width)])
    return table


def middle(width: int) -> Table:
    """Between them: two residual blocks, and attention at every network's lowest resolution."""
    return [[("res", width, width), ("attention", width, width), ("res", width, width)]]


def way_up(
    first: int, widths: Sequence[int], blocks: int, attention: Collection[int], last_only: bool = False
) -> Table:
    """Back again with a row more a level; each takes in what the row on the same step of the way down gave out.

    With ``last_only`` only the last row of a level has attention, as in EDM's versions of Song's networks.
    """
    skips = [first, *(row[-1][2] for row in way_down(first, widths, blocks, attention))]
    table, width = [], widths[-1]
    for level, wide in reversed(list(enumerate(widths))):
        for k in range(blocks + 1):
            attends = level in attention and (k == blocks or not last_only)
            table.append([("res", width + skips.pop(), wide), *attend(wide, attends)])
            width = wide
        if level > 0:
            table[-1].append(("up", wide, wide))
    return table


def attend(width: int, wanted: bool) -> list[Layer]:
    """An attention layer, or none."""
    return [("attention", width, width)] if wanted else []


class Row(nn.ModuleList):
    """The layers of one row in turn; only residual blocks look at the time."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, time) if isinstance(layer, ResBlock) else layer(x)
        return x


def build(table: Table, make: dict[str, Callable[[int, int], nn.Module]]) -> nn.ModuleList:
    """The modules of a table, each kind of layer by its maker."""
    return nn.ModuleList(Row(make[kind](a, b) for kind, a, b in row) for row in table)


def run(row: Row, x: Tensor, time: Tensor, recompute: bool) -> Tensor:
    """One row; with ``recompute`` its activations are not kept for the backward pass but computed again there."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(row, x, time, use_reentrant=False)
    return row(x, time)
