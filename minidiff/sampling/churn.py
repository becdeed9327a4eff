"""EDM's stochastic sampler: before each step down a little noise is put back, and errors that were made go with it."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from minidiff.diffusion import EDMPath, Path

from .ancestral import Callback, Data
from .noise import Noise, solver_dtype
from .ode import Times, second_order, solver_times


@torch.no_grad()
def churn(
    denoise: Callable[..., Tensor],
    start: Data,
    noise: Noise,
    steps: Times,
    path: Path | None = None,
    S_churn: float = 0.0,
    S_tmin: float = 0.0,
    S_tmax: float = float("inf"),
    S_noise: float = 1.0,
    cond: dict[str, Tensor] | None = None,
    callback: Callback | None = None,
) -> Data:
    """Up to σ̂ = (1 + γ) σ by fresh noise, and from there down by a step of Heun's rule (EDM Alg. 2).

    Args:
        denoise: ``denoise(x, sigma, **cond) -> x0_hat``.
        start: x at the first time, s(t) σ(t) times normal noise at t_max (batch, *dims).
        noise: ``noise(i)`` is the noise of the i-th step, 1, 2, …; not called where none is added.
        steps: how many of the path's own, the last of which ends at 0; or the times themselves, falling.
        path: ``EDMPath()`` unless given. The paper has σ = t and s = 1; on another path x/s is what noise is added to.
        S_churn: γ = S_churn/N in N steps, at most √2 − 1, which doubles σ². 0 is ``ode``, to the bit.
        S_tmin, S_tmax: the noise levels between which noise is added, both included.
        S_noise: the deviation of the noise; a little above 1 makes up for a denoiser that takes away too much.
        cond: what the network is conditioned on.
        callback: called as ``callback(step=, x=, sigma=, x0_hat=)`` with the point that each step down starts from.

    Returns x at the last time (batch, *dims), float64. Raises ValueError for S_churn or S_noise below 0,
    and for an S_tmin above S_tmax.
    """
    if not S_churn >= 0 or not 0 <= S_noise < float("inf"):
        raise ValueError(f"S_churn={S_churn}, S_noise={S_noise}: give numbers of at least 0.")
    if not S_tmin <= S_tmax:
        raise ValueError(f"S_tmin={S_tmin}, S_tmax={S_tmax}: the first is the lower end of the noise levels.")
    path = path or EDMPath()
    times, cond, x = solver_times(path, steps), cond or {}, start.to(solver_dtype(start.device))
    gamma = min(S_churn / (len(times) - 1), 2**0.5 - 1)
    for i, (t, t_next) in enumerate(pairwise(times)):
        sigma = path.sigma(t)
        if gamma > 0 and S_tmin <= sigma <= S_tmax:
            sigma_hat = (1 + gamma) * sigma
            t_hat = path.t_of_sigma(sigma_hat)
            added = S_noise * (sigma_hat**2 - sigma**2).sqrt() * noise(i + 1).to(x)
            x, t = path.s(t_hat) * (x / path.s(t) + added), t_hat
        x0_hat = path.denoised(denoise, x, t, **cond)
        if callback is not None:
            callback(step=i, x=x, sigma=path.sigma(t).item(), x0_hat=x0_hat)
        x = second_order(denoise, x, x0_hat, path, t, t_next, 1.0, cond)
    return x
