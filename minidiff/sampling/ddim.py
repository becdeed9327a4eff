"""DDIM: a few steps down the chain that was trained, with as much fresh noise as one likes, or with none."""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from minidiff.diffusion.stats import over

from .ancestral import Callback, Data
from .noise import Noise, solver_dtype


@torch.no_grad()
def ddim(
    process,
    net: Callable[..., Tensor],
    start: Data,
    noise: Noise,
    steps: Sequence[int] | None = None,
    eta: float = 0.0,
    larger: bool = False,
    clip: bool | None = None,
    cond: dict[str, Tensor] | None = None,
    callback: Callback | None = None,
) -> Data:
    """From x_T to x_0 by the steps that are kept (DDIM 12), of deviation σ(η) (DDIM 16).

    Args:
        process: a GaussianDiffusion.
        net: its network.
        start: x at the last of the steps (batch, *dims).
        noise: ``noise(i)`` is the noise of the i-th step; not called where no noise is added.
        steps: which steps to keep, τ_1 < … < τ_S of 0 … T − 1, as from ``subsequence``; all unless given.
        eta: η: 0 adds no noise and 1 as much as DDPM with β̃.
        larger: take σ̂ = √(1 − ᾱ_τ/ᾱ_τ') for the noise, DDPM's √β of the shorter chain; the mean keeps σ(η).
        clip: clip x̂_0 to [−1, 1]; as the process does unless given. ε is then what the clipped x̂_0 leaves of x_t.
        cond: what the network is conditioned on.
        callback: called as ``callback(step=, x=, t=, x0_hat=)`` before each step with the point it starts from.

    Returns x_0 (batch, *dims) in float64; nothing is added in the last step, where ᾱ = 1 follows. Raises ValueError for
    steps that do not rise within the chain and for an η outside of [0, 1].
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta}: give a number from 0 (no noise) to 1 (as much as DDPM).")
    kept, alpha_bar = _kept(process, steps), process.alpha_bar
    x = start.to(solver_dtype(start.device))
    for i, t in enumerate(reversed(kept)):
        at = torch.full((len(x),), t, device=x.device)
        x0_hat, _ = process.believe(net, x, at, clip, **(cond or {}))
        if callback is not None:
            callback(step=i, x=x, t=t, x0_hat=x0_hat)
        last = i == len(kept) - 1
        a, a_prev = alpha_bar[t], torch.ones_like(alpha_bar[t]) if last else alpha_bar[kept[-i - 2]]
        eps = (x - a.sqrt() * x0_hat) / (1 - a).sqrt()
        sigma_hat = (1 - a / a_prev).sqrt()
        sigma = eta * ((1 - a_prev) / (1 - a)).sqrt() * sigma_hat
        x = a_prev.sqrt() * x0_hat + (1 - a_prev - sigma**2).sqrt() * eps
        if not last and (larger or eta > 0):
            x = x + (sigma_hat if larger else sigma) * noise(i + 1).to(x)
    return x


@torch.no_grad()
def ddim_encode(
    process,
    net: Callable[..., Tensor],
    x0: Data,
    steps: Sequence[int] | None = None,
    cond: dict[str, Tensor] | None = None,
) -> Data:
    """From x_0 to the x_T that ``ddim`` with η = 0 and no clipping leads back to x_0: the steps upwards (DDIM 14).

    Each step takes ε where it starts, at x_0 that of the first kept step, so the way back differs by a discretisation
    error of first order. Nothing is clipped, which could not be undone. Returns x at the last of the steps, in float64.
    """
    x, sigma_before = x0.to(solver_dtype(x0.device)), 0.0  # x̄ = x_t / √ᾱ_t
    kept = _kept(process, steps)
    for t_before, t in zip([kept[0], *kept], kept, strict=False):
        at = torch.full((len(x),), t_before, device=x.device)
        xt = x / (1 + sigma_before**2) ** 0.5
        x0_hat, _ = process.believe(net, xt, at, False, **(cond or {}))
        eps = (xt - process.alpha_bar[t_before].sqrt() * x0_hat) / (1 - process.alpha_bar[t_before]).sqrt()
        x = x + (process.sigma[t] - sigma_before) * eps
        sigma_before = process.sigma[t]
    return x * process.alpha_bar[kept[-1]].sqrt()


def slerp(a: Data, b: Data, weight: float) -> Float[Tensor, "batch *dims"]:
    """From a (weight 0) to b (weight 1) along the great circle between them, example by example (DDIM App. D.5).

    Straight lines between normal vectors pass too near to the origin; these points are as far from it as the ends.
    """
    angle = torch.nn.functional.cosine_similarity(a.flatten(1), b.flatten(1)).clamp(-1, 1).acos()
    angle = over(angle, a)
    along = (torch.sin((1 - weight) * angle) * a + torch.sin(weight * angle) * b) / torch.sin(angle)
    return torch.where(angle > 0, along, a + weight * (b - a))


def cosine_sine(a: Data, b: Data, theta: float) -> Float[Tensor, "batch *dims"]:
    """cos θ a + sin θ b, from a (θ = 0) to b (θ = π/2): of two normal latents every point is one again (ADM App. F).

    Raises ValueError for an angle outside of [0, π/2].
    """
    if not 0 <= theta < 1.571:  # π/2, in single precision too
        raise ValueError(f"theta={theta}: give an angle from 0 to π/2, in radians.")
    return math.cos(theta) * a + math.sin(theta) * b


def _kept(process, steps: Sequence[int] | None) -> list[int]:
    kept = list(range(process.T) if steps is None else steps)
    if not kept or kept != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= process.T:
        raise ValueError(f"steps={kept}: give different steps in rising order, of 0 … {process.T - 1}.")
    return kept
