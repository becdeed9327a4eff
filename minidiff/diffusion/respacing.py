"""A chain on a part of its steps: fewer calls of the network, and the same network."""

from collections.abc import Sequence

import torch

from .gaussian import GaussianDiffusion
from .timesteps import sections


def respace(process: GaussianDiffusion, steps: str | Sequence[int]) -> GaussianDiffusion:
    """The process on the steps that are kept: β and β̃ from one of them to the next (IDDPM 19).

    q(x_t) stays as it was at each of them, and the network is fed what it was fed there, so the result goes wherever a
    process goes: samplers, bounds, losses. A variance between β̃ and β is one between the new β̃ and β.

    Args:
        process: any Gaussian process, a respaced one too.
        steps: the places to keep, counted from 0 and rising; or a string that ``sections`` reads.

    Raises ValueError for places that the chain does not have, and for fewer than two.
    """
    kept = sections(process.T, steps) if isinstance(steps, str) else list(steps)
    if len(kept) < 2 or kept != sorted(set(kept)) or not 0 <= kept[0] <= kept[-1] < process.T:
        raise ValueError(f"steps={steps!r}: keep at least 2 of 0 … {process.T - 1}, each once and in rising order.")
    alpha_bar = process.alpha_bar[kept]
    before = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    shorter = GaussianDiffusion(
        1 - alpha_bar / before,
        process.predict,
        process.variance,
        process.loss_kind,
        levels=process.levels,
        clip=process.clip,
        lambda_vlb=process.lambda_vlb,
    )
    shorter.fed, shorter.weight = process.fed[kept], process.weight[kept]
    return shorter
