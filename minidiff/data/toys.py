"""Distributions whose every answer is known."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Points:
    """Vectors x (n, dim) as a training set."""

    def __init__(self, x: Float[Tensor, "n dim"]):
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def batch(
        self, index: Int[Tensor, " b"], generator: torch.Generator
    ) -> tuple[Float[Tensor, "b dim"], dict[str, Tensor]]:
        """The points at these places, and no conditioning."""
        return self.x[index], {}


def swiss_roll(n: int, generator: torch.Generator, noise: float = 0.05) -> Float[Tensor, "n 2"]:
    """Points on a spiral of one and a half turns, a little noisy, of unit mean square (SD Appendix D.1.1).

    The paper prints neither spiral nor noise; here the angle is 1.5π(1 + 2u), the radius equals the angle, and the
    noise is relative to the root mean square of the roll. The scale is the distribution's own, not the sample's.
    """
    u = torch.rand(n, 1, generator=generator, dtype=torch.float64)
    angle = 1.5 * math.pi * (1 + 2 * u)
    roll = torch.cat([angle * angle.cos(), angle * angle.sin()], dim=1)
    mean_square = (1.5 * math.pi) ** 2 * (1 + 2 + 4 / 3) / 2  # E[angle²] / 2, for u uniform on [0, 1]
    roll = roll / mean_square**0.5 + noise * torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return roll / (1 + noise**2) ** 0.5


class Mixture:
    """A mixture of isotropic Gaussians in any dimension, under any amount of scaling and noise, in closed form.

    Args:
        weights: (k,), positive, made to sum to 1.
        means: (k, dim).
        std: of every component.

    Where a method takes ``scale`` and ``sigma`` it speaks of z = scale · x + sigma · n: under DDPM's chain
    scale = √ᾱ_t and sigma = √(1 − ᾱ_t).
    """

    def __init__(self, weights: Float[Tensor, " k"], means: Float[Tensor, "k dim"], std: float):
        self.weights, self.means, self.std = weights.double() / weights.double().sum(), means.double(), std

    def sample(self, n: int, generator: torch.Generator) -> Float[Tensor, "n dim"]:
        """n draws, float64."""
        component = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[component] + self.std * noise

    def log_prob(
        self, z: Float[Tensor, "n dim"], scale: float = 1.0, sigma: float = 0.0
    ) -> Float[Tensor, " n"]:
        """Log density of z in nats."""
        return self._joint(z, scale, sigma).logsumexp(1)

    def score(self, z: Float[Tensor, "n dim"], scale: float = 1.0, sigma: float = 0.0) -> Float[Tensor, "n dim"]:
        """∇ log density of z."""
        share = self._joint(z, scale, sigma).softmax(1)
        return (share @ (scale * self.means) - z) / (scale**2 * self.std**2 + sigma**2)

    def denoise(self, z: Float[Tensor, "n dim"], scale: float = 1.0, sigma: float = 0.0) -> Float[Tensor, "n dim"]:
        """E[x | z]: each component's own answer, weighted by how likely that component is."""
        share = self._joint(z, scale, sigma).softmax(1)[..., None]
        variance = scale**2 * self.std**2 + sigma**2
        answers = (sigma**2 * self.means + scale * self.std**2 * z[:, None]) / variance
        return (share * answers).sum(1)

    def _joint(self, z: Tensor, scale: float, sigma: float) -> Float[Tensor, "n k"]:
        """Log of weight times density, for each component."""
        variance = scale**2 * self.std**2 + sigma**2
        square = ((z.double()[:, None] - scale * self.means) ** 2).sum(-1)
        return self.weights.log() - square / (2 * variance) - z.shape[1] / 2 * math.log(2 * math.pi * variance)
