"""Denoising score matching: the slope of log p_t, learned from examples with noise."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .paths import Data, Path, Time
from .stats import flat_mean, over


@dataclass(frozen=True)
class ScoreMatching:
    """The objective of a network that gives the score, ``net(x, t, **cond)`` ≈ ∇ log p_t(x), on a path (SDE 7).

    The score of x(t) given x_0 is −n / (s σ). Each squared error is multiplied with λ = (s σ)², so that all times weigh
    alike; with ``EDMPath`` and times drawn from a list of σ this is (SDE 1).
    """

    path: Path

    def draw_noise(self, x0: Data, generator: torch.Generator) -> Data:
        """Standard normal noise shaped like x0, from the generator."""
        return torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)

    def loss(
        self, net: Callable[..., Tensor], x0: Data, t: Time, noise: Data, **cond: Tensor
    ) -> dict[str, Float[Tensor, " batch"]]:
        """``loss``: the mean over dimensions of (s σ)² (net(x(t), t) + n / (s σ))², for each example."""
        score = net(self.path.q_sample(x0, t, noise), t, **cond)
        return {"loss": flat_mean((over(self.path.std(t), x0) * score + noise) ** 2)}
