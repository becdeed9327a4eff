"""Down the probability-flow ODE of a path: no noise but the start's."""

from collections.abc import Callable
from itertools import pairwise
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from minidiff.diffusion import EDM, Path

from .ancestral import Callback, Data
from .noise import Noise, solver_dtype

Solver = Literal["heun", "euler"]
Times = int | Float[Tensor, "times"]


@torch.no_grad()
def ode(
    denoise: Callable[..., Tensor],
    start: Data,
    path: Path,
    steps: Times,
    solver: Solver = "heun",
    cond: dict[str, Tensor] | None = None,
    callback: Callback | None = None,
) -> Data:
    """Solve the probability-flow ODE (SDE 13) along a path, as EDM's Algorithm 1 does.

    Args:
        denoise: ``denoise(x, sigma, **cond) -> x0_hat``.
        start: x at the first time, s(t) σ(t) times normal noise at t_max (batch, *dims).
        path: gives s and σ.
        steps: how many of the path's own, the last of which ends at 0; or the times themselves, in any direction.
        solver: ``euler``, or ``heun``, which corrects each Euler step but that to 0: 2n − 1 evaluations in n steps.
        cond: what the network is conditioned on.
        callback: called as ``callback(step=, x=, sigma=, x0_hat=)`` before each step with the point it starts from.

    Returns x at the last time (batch, *dims), float64. Raises ValueError for another solver, and for times of which one
    but the last is 0.
    """
    if solver not in get_args(Solver):
        raise ValueError(f"solver={solver!r}: take one of {', '.join(get_args(Solver))}.")
    cond, x = cond or {}, start.to(solver_dtype(start.device))
    for i, (t, t_next) in enumerate(pairwise(solver_times(path, steps))):
        x0_hat = path.denoised(denoise, x, t, **cond)
        if callback is not None:
            callback(step=i, x=x, sigma=path.sigma(t).item(), x0_hat=x0_hat)
        d = path.velocity(x, x0_hat, t)
        x_next = x + (t_next - t) * d
        if solver == "heun" and t_next > 0:
            d_next = path.velocity(x_next, path.denoised(denoise, x_next, t_next, **cond), t_next)
            x_next = x + (t_next - t) * (d + d_next) / 2
        x = x_next
    return x


def heun(
    process: EDM,
    net: Callable[..., Tensor],
    start: Data,
    noise: Noise | None = None,
    steps: Times | None = None,
    solver: Solver = "heun",
    cond: dict[str, Tensor] | None = None,
    callback: Callback | None = None,
) -> Data:
    """``ode`` as the sampler of an EDM process, on its own path and in its own number of steps unless told otherwise.

    A sampler is given noise; this one uses none. ``start`` is a draw of ``process.prior``.
    """
    steps = process.steps if steps is None else steps
    return ode(process.denoiser(net), start, process.path, steps, solver, cond, callback)


def solver_times(path: Path, steps: Times) -> Float[Tensor, "times"]:
    """The path's own times where ``steps`` counts them, else ``steps``, looked over."""
    times = path.steps(steps) if isinstance(steps, int) else steps.double()
    if len(times) < 2 or not (times[:-1] > 0).all() or times[-1] < 0:
        raise ValueError(f"steps={times.tolist()}: give at least 2 times above 0; only the last may be 0.")
    return times
