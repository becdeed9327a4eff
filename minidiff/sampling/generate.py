"""Many images, a batch at a time, each a function of its seed."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from minidiff.diffusion import EDM, draw

from .ancestral import ancestral
from .noise import per_image_noise, solver_dtype
from .ode import heun


def generate(
    process,
    net: Callable[..., Tensor],
    shape: Sequence[int],
    seeds: Sequence[int],
    batch: int = 256,
    device: torch.device | str = "cpu",
    on_batch: Callable[[int], None] | None = None,
    sampler: Callable[..., Tensor] | None = None,
    cond: dict[str, Tensor] | None = None,
) -> Float[Tensor, "n *dims"]:
    """One sample of the given shape for each seed, float32 on the CPU, not clamped.

    ``on_batch(n)`` is called after each batch of n. ``sampler(process, net, start, noise)`` leads from a draw of the
    prior to a sample, such as ``partial(ddim, steps=subsequence(1000, 50))``; unless given it is the whole chain, or
    ``heun`` where the process is an EDM.

    ``cond`` has a row for each seed and is given to the sampler as ``cond=``: the ``labels`` of classes, or for the
    second of two stages the samples of the first as ``low_res``; seeds of their own keep the stages' noises apart.
    Raises ValueError where there is nothing to draw, for a condition of another number of rows, and for labels that a
    network with ``classes`` does not know; −1 is no class.
    """
    if len(seeds) == 0 or batch < 1:
        raise ValueError(f"{len(seeds)} samples in batches of {batch}: both must be at least 1.")
    sampler = sampler or (heun if isinstance(process, EDM) else ancestral)
    cond = cond or {}
    if uneven := [name for name, rows in cond.items() if len(rows) != len(seeds)]:
        raise ValueError(f"cond[{uneven[0]!r}]: {len(cond[uneven[0]])} rows for {len(seeds)} seeds; give one a seed.")
    known = getattr(net, "classes", 0)
    if known and "labels" in cond and not ((cond["labels"] >= -1) & (cond["labels"] < known)).all():
        raise ValueError(f"labels={cond['labels'].unique().tolist()}: the network knows the classes 0 … {known - 1}.")
    done = []
    for k in range(0, len(seeds), batch):
        part = seeds[k : k + batch]
        noise = per_image_noise(part, shape)
        start = draw(process.prior, noise(0).to(device, solver_dtype(torch.device(device))))
        told = {"cond": {name: rows[k : k + batch].to(device) for name, rows in cond.items()}} if cond else {}
        done.append(sampler(process, net, start, noise, **told).float().cpu())
        if on_batch is not None:
            on_batch(len(part))
    return torch.cat(done)
