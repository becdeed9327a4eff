"""The training loss, noise level by noise level: where a network is good, and where it still learns."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Num
from torch import Tensor

PerLevel = Float[Tensor, " levels"]


@torch.no_grad()
def level_losses(
    process,
    net: Callable[..., Tensor],
    x0: Float[Tensor, "batch *dims"],
    levels: Num[Tensor, " levels"],
    generator: torch.Generator,
    batch: int = 256,
    cond: dict[str, Tensor] | None = None,
) -> tuple[PerLevel, PerLevel]:
    """Mean of the process's loss over the examples at each level, a step t or a σ, and its standard error.

    ``cond`` has a row for each example. An example has the same noise at every level, so that a curve is smoother than
    its errors say. Float64, on the CPU. Raises ValueError for fewer than 2 examples.
    """
    loss = lambda x0, level, noise, **told: process.loss(net, x0, level.expand(len(x0)), noise, **told)["loss"]
    return at_each_level(loss, x0, levels, process.draw_noise(x0, generator), batch, cond)


def at_each_level(
    value: Callable[..., Tensor],
    x0: Float[Tensor, "batch *dims"],
    levels: Num[Tensor, " levels"],
    noise: Float[Tensor, "batch *dims"],
    batch: int,
    cond: dict[str, Tensor] | None,
) -> tuple[PerLevel, PerLevel]:
    """Mean and standard error over the examples of ``value(x0, level, noise, **cond) -> (batch,)``, at each level.

    Raises ValueError for fewer than 2 examples.
    """
    if len(x0) < 2 or batch < 1:
        raise ValueError(f"x0 of {len(x0)}, in batches of {batch}: give 2 examples or more, and a batch of at least 1.")
    values = torch.empty(len(levels), len(x0), dtype=torch.float64)
    for i, level in enumerate(levels):
        for k in range(0, len(x0), batch):
            part = slice(k, k + batch)
            told = {name: rows[part] for name, rows in (cond or {}).items()}
            values[i, part] = value(x0[part], level, noise[part], **told).cpu().double()
    return values.mean(1), values.std(1) / len(x0) ** 0.5
