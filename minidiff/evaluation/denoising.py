"""How much noise a denoiser leaves, σ by σ, and how much the best one that knows mean and covariance alone."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from minidiff.diffusion import flat_mean

from .level_losses import PerLevel, at_each_level

Data = Float[Tensor, "batch *dims"]


@torch.no_grad()
def denoising_error(
    denoise: Callable[..., Tensor],
    x0: Data,
    sigmas: PerLevel,
    generator: torch.Generator,
    batch: int = 256,
    cond: dict[str, Tensor] | None = None,
) -> tuple[PerLevel, PerLevel]:
    """Mean squared error of D(x_0 + σ n; σ) a dimension (EDM 2) at each σ, and its standard error over the examples.

    ``denoise(x, sigma, **cond) -> x0_hat``; ``cond`` has a row for each example. An example has the same n at every σ,
    and for every denoiser that is given the generator in the same state, so that curves differ by less than their
    errors say. Float64. Raises ValueError for fewer than 2 examples, and for σ that is not above 0.
    """
    if not (sigmas > 0).all():
        raise ValueError(f"sigmas={sigmas.tolist()}: give numbers above 0.")
    x0 = x0.double()
    noise = torch.randn(x0.shape, generator=generator, dtype=torch.float64, device=generator.device).to(x0)

    def error(x0: Data, sigma: Tensor, noise: Data, **told: Tensor) -> Float[Tensor, " batch"]:
        return flat_mean((denoise(x0 + sigma.item() * noise, sigma.item(), **told) - x0) ** 2)

    return at_each_level(error, x0, sigmas, noise, batch, cond)


def gaussian_error(data: Data, sigmas: PerLevel) -> PerLevel:
    """Mean squared error a dimension of the best linear denoiser, that of normal data of this mean and covariance.

    The mean over the covariance's eigenvalues v of v σ² / (v + σ²). A denoiser below it has learned more than moments.
    """
    x = data.double().flatten(1)
    v = torch.linalg.eigvalsh(torch.cov(x.T, correction=0).reshape(x.shape[1], x.shape[1])).clamp(min=0)
    var = sigmas.double()[:, None] ** 2
    return (v * var / (v + var)).mean(1)
