"""Distributions whose every answer is known."""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

MEAN_SQUARE = (1.5 * math.pi) ** 2 * (1 + 2 + 4 / 3) / 2  # of the roll's spiral: E[angle²] / 2, for u uniform on [0, 1]


class Points:
    """Points, sequences or images x (n, *dims) as a training set, seen as they are; levels=2 says: all are 0 or 1."""

    def __init__(self, x: Float[Tensor, "n *dims"], levels: int | None = None):
        self.x, self.levels = x, levels

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one example."""
        return tuple(self.x.shape[1:])

    def __len__(self) -> int:
        return len(self.x)

    def batch(
        self, index: Int[Tensor, " b"], generator: torch.Generator
    ) -> tuple[Float[Tensor, "b *dims"], dict[str, Tensor]]:
        """The examples at these places, and no conditioning."""
        return self.x[index], {}


def swiss_roll(n: int, generator: torch.Generator, noise: float = 0.05) -> Float[Tensor, "n 2"]:
    """Points on a spiral of one and a half turns, a little noisy, of unit mean square (SD Appendix D.1.1).

    The paper prints neither spiral nor noise; here the angle is 1.5π(1 + 2u), the radius equals the angle, and the
    noise is relative to the root mean square of the roll. The scale is the distribution's own, not the sample's.
    """
    roll = _spiral(torch.rand(n, generator=generator, dtype=torch.float64)) / MEAN_SQUARE**0.5
    roll = roll + noise * torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return roll / (1 + noise**2) ** 0.5


def swiss_roll_log_prob(x: Float[Tensor, "n 2"], noise: float = 0.05) -> Float[Tensor, " n"]:
    """Log density of the distribution behind ``swiss_roll``, in nats, by quadrature over the spiral; float64.

    The integrand is a Gaussian of width ``noise`` that moves along the spiral: Gauss–Legendre's rule with eight nodes
    on each of many panels, which are about as long as it is wide, is exact to rounding.
    """
    panels = math.ceil(10 / noise)
    node, weight = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(8))
    u = ((torch.arange(panels)[:, None] + (node + 1) / 2) / panels).flatten()
    log_weight = torch.log(weight / 2 / panels).repeat(panels)
    roll = _spiral(u) / (MEAN_SQUARE * (1 + noise**2)) ** 0.5
    variance = noise**2 / (1 + noise**2)
    parts = []
    for part in x.double().split(1000):  # a distance for every pair takes memory
        square = torch.cdist(part, roll, compute_mode="donot_use_mm_for_euclid_dist") ** 2
        parts.append((log_weight - square / (2 * variance)).logsumexp(1))
    return torch.cat(parts) - math.log(2 * math.pi * variance)


def _spiral(u: Float[Tensor, " n"]) -> Float[Tensor, "n 2"]:
    """The points at these shares of the way along."""
    angle = 1.5 * math.pi * (1 + 2 * u)
    return torch.stack([angle * angle.cos(), angle * angle.sin()], 1)


def heartbeats(length: int = 20, period: int = 5) -> Float[Tensor, "period length"]:
    """All sequences of 0 and 1 with a 1 every ``period`` places, one for each phase (SD Appendix D.1.2).

    As data each is as likely as another, so their entropy is log2(period): 2.32 bits.
    """
    return ((torch.arange(length) - torch.arange(period)[:, None]) % period == 0).float()


def is_heartbeat(x: Float[Tensor, "n length"], period: int = 5) -> Bool[Tensor, " n"]:
    """Whether each sequence is one of ``heartbeats``."""
    return (x[:, None] == heartbeats(x.shape[1], period).to(x)).all(2).any(1)


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

    def log_prob(self, z: Float[Tensor, "n dim"], scale: float = 1.0, sigma: float = 0.0) -> Float[Tensor, " n"]:
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
