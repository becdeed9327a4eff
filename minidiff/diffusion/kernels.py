"""What any step of a chain can do, Normal or Bernoulli: be drawn from, and say how likely a point is."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Bernoulli, Normal

from .stats import bernoulli_log_prob

Kernel = Normal | Bernoulli


def draw(kernel: Kernel, noise: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """One draw from each entry of a kernel, as a function of standard normal noise.

    A Normal gives mean + scale · noise; a Bernoulli gives 1 where the noise falls into its lowest share, Φ(noise) < p.
    """
    if isinstance(kernel, Bernoulli):
        return (torch.special.ndtr(noise) < kernel.probs).to(noise.dtype)
    return kernel.mean + kernel.scale * noise


def kernel_log_prob(kernel: Kernel, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Log density or log probability of each element of x under a kernel, in nats."""
    return bernoulli_log_prob(x, kernel.logits) if isinstance(kernel, Bernoulli) else kernel.log_prob(x)
