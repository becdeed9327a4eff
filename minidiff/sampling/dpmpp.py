"""DPM-Solver++(2M), the multistep rule that most users of diffusion know: second order for one evaluation a step.

Lu et al., 2022 (arXiv 2211.01095). In x̄ = x/s and λ = −log σ the ODE is dx̄/dλ = x̂_0 − x̄. Its linear part is solved
exactly, and x̂_0 is a line in λ through the last two values.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from minidiff.diffusion import Path

from .ancestral import Callback, Data
from .noise import solver_dtype
from .ode import Times, solver_times


@torch.no_grad()
def dpmpp(
    denoise: Callable[..., Tensor],
    start: Data,
    path: Path,
    steps: Times,
    cond: dict[str, Tensor] | None = None,
    callback: Callback | None = None,
) -> Data:
    """Solve the probability-flow ODE along a path by DPM-Solver++(2M): n evaluations in n steps.

    Arguments and result are those of ``ode``. Of the path the noise levels count alone, for the rule is the same for
    every s. The first step, and one to 0, are of first order; the latter ends at x̂_0.
    """
    times, cond, x = solver_times(path, steps), cond or {}, start.to(solver_dtype(start.device))
    before = h_before = None
    for i, (t, t_next) in enumerate(pairwise(times)):
        x0_hat = path.denoised(denoise, x, t, **cond)
        if callback is not None:
            callback(step=i, x=x, sigma=path.sigma(t).item(), x0_hat=x0_hat)
        kept = path.sigma(t_next) / path.sigma(t)  # e^{−h}
        h, target = -kept.log(), x0_hat
        if before is not None and t_next > 0:
            target = x0_hat + h / (2 * h_before) * (x0_hat - before)  # at the middle of the step
        x = path.s(t_next) * (kept * x / path.s(t) + (1 - kept) * target)
        before, h_before = x0_hat, h
    return x
