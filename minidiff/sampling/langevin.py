"""Langevin dynamics: samples from a slope alone, at one level of noise or down a list of them."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from .ancestral import Callback, Data
from .noise import Noise, solver_dtype


@torch.no_grad()
def langevin(score: Callable[[Data], Data], start: Data, step: float, n: int, noise: Noise, first: int = 1) -> Data:
    """n times x ← x + ε ∇ log p(x) + √(2ε) z with ε = ``step`` (SDE 2); z is ``noise(first)``, ``noise(first + 1)``, ….

    The density of x tends to p as n grows and ε falls. Returns x (batch, *dims), float64. Raises ValueError for a step
    that is not above 0, or n below 0.
    """
    if step <= 0 or n < 0:
        raise ValueError(f"step={step}, n={n}: step > 0 and n ≥ 0.")
    x = start.to(solver_dtype(start.device))
    for i in range(first, first + n):
        x = x + step * score(x) + (2 * step) ** 0.5 * noise(i).to(x)
    return x


@torch.no_grad()
def annealed_langevin(
    denoise: Callable[..., Tensor],
    start: Data,
    sigmas: Float[Tensor, "levels"],
    noise: Noise,
    step: float = 0.1,
    n: int = 100,
    cond: dict[str, Tensor] | None = None,
    callback: Callback | None = None,
) -> Data:
    """n Langevin steps at each noise level in turn, of size ε = ``step`` · σ² (SDE 2).

    Args:
        denoise: ``denoise(x, sigma, **cond) -> x0_hat``; the score is (x̂_0 − x)/σ².
        start: x (batch, *dims); what it is matters little where σ_1 is as large as the data are apart.
        sigmas: falling; where the last is 0, the end is x̂_0 at the one before.
        noise: ``noise(i)`` is the noise of the i-th step, 1, 2, … over all levels.
        step: in units of σ². Song and Ermon's 2·10⁻⁵ σ²/σ_L² with σ_L = 0.01 is 0.1 here, for they write ½ ε and √ε.
        n: steps a level.
        cond: what the network is conditioned on.
        callback: called as ``callback(step=, x=, sigma=, x0_hat=)`` before each level.

    Returns x (batch, *dims), float64. Raises ValueError for levels that do not fall, or begin at 0.
    """
    if len(sigmas) < 1 or sigmas[0] <= 0 or sigmas[-1] < 0 or (sigmas.diff() >= 0).any():
        raise ValueError(f"sigmas={sigmas.tolist()}: give falling levels above 0; only the last may be 0.")
    cond, x = cond or {}, start.to(solver_dtype(start.device))
    levels = sigmas.tolist()
    for level, sigma in enumerate(levels):
        if sigma == 0:
            return denoise(x, levels[level - 1], **cond)
        if callback is not None:
            callback(step=level, x=x, sigma=sigma, x0_hat=denoise(x, sigma, **cond))
        score = lambda x, sigma=sigma: (denoise(x, sigma, **cond) - x) / sigma**2
        x = langevin(score, x, step * sigma**2, n, noise, level * n + 1)
    return x
