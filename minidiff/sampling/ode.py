"""Down the probability-flow ODE of a path: no noise but the start's."""

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from minidiff.checks import one_of
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
    one_of("solver", solver, Solver)
    alpha = 1.0 if solver == "heun" else None
    return _solve(denoise, start, path, solver_times(path, steps), alpha, cond, callback)


@torch.no_grad()
def rk2(
    denoise: Callable[..., Tensor],
    start: Data,
    path: Path,
    steps: Times,
    alpha: float = 1.0,
    cond: dict[str, Tensor] | None = None,
    callback: Callback | None = None,
) -> Data:
    """``ode`` by another rule of second order, for any path (EDM 270, Alg. 3).

    A step looks again at ``alpha`` of its way, and takes 1/(2α) of the slope there and the rest of the first: α = ½ is
    the midpoint rule, ⅔ Ralston's, 1 Heun's. With α below 1 the step to 0 looks again too; from 1 on it is Euler's, for
    there is no slope at 0. All else is as in ``ode``. Raises ValueError for an α that is not above 0, or so far above 1
    that another step would look beyond 0.
    """
    times = solver_times(path, steps)
    seen = torch.lerp(times[:-1], times[1:], alpha)
    if not alpha > 0 or not (seen[times[1:] > 0] > 0).all():
        raise ValueError(f"alpha={alpha}: the second point of each step must lie after the first and above 0; take 1.")
    return _solve(denoise, start, path, times, alpha, cond, callback)


def _solve(
    denoise: Callable[..., Tensor],
    start: Data,
    path: Path,
    times: Float[Tensor, "times"],
    alpha: float | None,
    cond: dict[str, Tensor] | None,
    callback: Callback | None,
) -> Data:
    """Step by step, where one without an α is Euler's."""
    cond, x = cond or {}, start.to(solver_dtype(start.device))
    for i, (t, t_next) in enumerate(pairwise(times)):
        x0_hat = path.denoised(denoise, x, t, **cond)
        if callback is not None:
            callback(step=i, x=x, sigma=path.sigma(t).item(), x0_hat=x0_hat)
        x = second_order(denoise, x, x0_hat, path, t, t_next, alpha, cond)
    return x


def second_order(
    denoise: Callable[..., Tensor],
    x: Data,
    x0_hat: Data,
    path: Path,
    t: Tensor,
    t_next: Tensor,
    alpha: float | None,
    cond: dict[str, Tensor],
) -> Data:
    """One step of the family in α from x, where x̂_0 is known; Euler's without an α, and where it would look at 0."""
    h, d = t_next - t, path.velocity(x, x0_hat, t)
    t_seen = t_next if alpha is None else torch.lerp(t, t_next, alpha)  # not t + α h, which for α = 1 may miss t_next
    if alpha is None or t_seen <= 0:
        return x + h * d
    x_seen = x + alpha * h * d
    d_seen = path.velocity(x_seen, path.denoised(denoise, x_seen, t_seen, **cond), t_seen)
    return x + h * ((1 - 1 / (2 * alpha)) * d + d_seen / (2 * alpha))


def heun(
    process: EDM,
    net: Callable[..., Tensor],
    start: Data,
    noise: Noise | None = None,
    steps: Times | None = None,
    cond: dict[str, Tensor] | None = None,
    callback: Callback | None = None,
) -> Data:
    """``ode`` as the sampler of an EDM process, on its own path and in its own number of steps unless told otherwise.

    A sampler is given noise; this one uses none. ``start`` is a draw of ``process.prior``.
    """
    steps = process.steps if steps is None else steps
    return ode(process.denoiser(net), start, process.path, steps, "heun", cond, callback)


def solver_times(path: Path, steps: Times) -> Float[Tensor, "times"]:
    """The path's own times where ``steps`` counts them, else ``steps``, looked over."""
    times = path.steps(steps) if isinstance(steps, int) else steps.double()
    if len(times) < 2 or not (times[:-1] > 0).all() or times[-1] < 0:
        raise ValueError(f"steps={times.tolist()}: give at least 2 times above 0; only the last may be 0.")
    return times
