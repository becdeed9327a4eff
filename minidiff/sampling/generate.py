"""Many images, a batch at a time, each a function of its seed."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from minidiff.diffusion import draw

from .ancestral import ancestral
from .noise import per_image_noise, solver_dtype


def generate(
    process,
    net: Callable[..., Tensor],
    shape: Sequence[int],
    seeds: Sequence[int],
    batch: int = 256,
    device: torch.device | str = "cpu",
    on_batch: Callable[[int], None] | None = None,
) -> Float[Tensor, "n *dims"]:
    """One sample of the given shape for each seed, float32 on the CPU, not clamped.

    ``on_batch(n)`` is called after each batch of n. Raises ValueError where there is nothing to draw.
    """
    if len(seeds) == 0 or batch < 1:
        raise ValueError(f"{len(seeds)} samples in batches of {batch}: both must be at least 1.")
    done = []
    for k in range(0, len(seeds), batch):
        part = seeds[k : k + batch]
        noise = per_image_noise(part, shape)
        start = draw(process.prior, noise(0).to(device, solver_dtype(torch.device(device))))
        done.append(ancestral(process, net, start, noise).float().cpu())
        if on_batch is not None:
            on_batch(len(part))
    return torch.cat(done)
