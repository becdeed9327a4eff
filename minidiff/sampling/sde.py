"""Down the reverse SDE of a path, with fresh noise in every step."""

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from minidiff.checks import one_of
from minidiff.diffusion import Path
from minidiff.diffusion.stats import over

from .ancestral import Callback, Data
from .noise import Noise, solver_dtype
from .ode import Times, solver_times

Predictor = Literal["euler", "reverse-diffusion"]


@torch.no_grad()
def sde(
    denoise: Callable[..., Tensor],
    start: Data,
    path: Path,
    steps: Times,
    noise: Noise,
    predictor: Predictor = "euler",
    corrections: int = 0,
    snr: float = 0.16,
    cond: dict[str, Tensor] | None = None,
    callback: Callback | None = None,
) -> Data:
    """Solve the reverse SDE dx = (f x − g² ∇ log p_t) dt + g dw (SDE 6) along a path, by predictor and corrector.

    Args:
        denoise: ``denoise(x, sigma, **cond) -> x0_hat``.
        start: x at the first time, s(t) σ(t) times normal noise at t_max (batch, *dims).
        path: gives s, σ, f and g.
        steps: how many of the path's own, the last of which ends at 0; or the times themselves.
        noise: ``noise(i)`` is the noise of the i-th update, 1, 2, …, corrections counted among them.
        predictor: ``euler`` (Euler–Maruyama), or ``reverse-diffusion``, in which the exact moments of x(t_i) given
            x(t_{i+1}) stand for f dt and g² dt.
        corrections: Langevin steps at each time, before the predictor's.
        snr: r in their size 2α (r ‖z‖/‖∇ log p‖)², with α = s²(t_i)/s²(t_{i+1}). The norms are each example's own, as
            the paper prints them (its code takes means over the batch); in two or three dimensions they vary too much
            to be of use.
        cond: what the network is conditioned on.
        callback: called as ``callback(step=, x=, sigma=, x0_hat=)`` before each predictor step.

    Returns x at the last time, float64. A step to 0 adds no noise and returns x̂_0, the mean of x_0 given x. Raises
    ValueError for an argument that makes no sampler, naming it.
    """
    one_of("predictor", predictor, Predictor)
    if corrections < 0 or snr <= 0:
        raise ValueError(f"corrections={corrections}, snr={snr}: corrections ≥ 0 and snr > 0.")
    cond, x, k = cond or {}, start.to(solver_dtype(start.device)), 0
    for i, (t, t_next) in enumerate(pairwise(solver_times(path, steps))):
        shrink = path.s(t) / path.s(t_next)
        for _ in range(corrections):
            score, z = path.score(x, path.denoised(denoise, x, t, **cond), t), noise(k := k + 1).to(x)
            step = 2 * shrink**2 * (snr * _norm(z) / _norm(score)) ** 2
            x = x + step * score + (2 * step).sqrt() * z
        x0_hat = path.denoised(denoise, x, t, **cond)
        if callback is not None:
            callback(step=i, x=x, sigma=path.sigma(t).item(), x0_hat=x0_hat)
        if t_next == 0:
            return path.s(t_next) * x0_hat
        if predictor == "euler":
            drift, variance = path.f(t) * (t - t_next), path.g(t) ** 2 * (t - t_next)
        else:
            drift, variance = shrink - 1, path.s(t) ** 2 * (path.sigma(t) ** 2 - path.sigma(t_next) ** 2)
        x = x - drift * x + variance * path.score(x, x0_hat, t) + variance.sqrt() * noise(k := k + 1).to(x)
    return x


def _norm(x: Tensor) -> Tensor:
    return over(x.flatten(1).norm(dim=1), x)
