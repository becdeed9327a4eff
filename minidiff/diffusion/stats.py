"""The few facts about normal distributions that bounds are made of. Values in nats unless the name says bits."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

LN2 = math.log(2)


def normal_kl(
    mean1: Float[Tensor, "*shape"],
    log_var1: Float[Tensor, "*#shape"],
    mean2: Float[Tensor, "*shape"],
    log_var2: Float[Tensor, "*#shape"],
) -> Float[Tensor, "*shape"]:
    """D_KL(N(mean1, var1) ‖ N(mean2, var2)) of each element, in nats; the closed form inside (DDPM 8)."""
    return 0.5 * (
        log_var2 - log_var1 - 1 + torch.exp(log_var1 - log_var2) + (mean1 - mean2) ** 2 * torch.exp(-log_var2)
    )


def discretised_normal_log_prob(
    x: Float[Tensor, "*shape"], mean: Float[Tensor, "*shape"], std: Float[Tensor, "*#shape"], levels: int
) -> Float[Tensor, "*shape"]:
    """Log mass that N(mean, std²) puts on the bin of each value of x, in nats (DDPM 13).

    x lives on ``levels`` equally spaced values from −1 to 1; the bins are half a spacing wide on either side, and the
    two outermost reach to infinity, so the masses of all levels sum to 1. The normal integral is exact (the official
    code approximates it by a tanh), and differences of tails are taken in logarithms, so a bin forty deviations away
    still has a finite value and a finite gradient.
    """
    half_bin = 1 / (levels - 1)
    lower, upper = (x - mean - half_bin) / std, (x - mean + half_bin) / std
    flip = lower > 0  # in the right tail both Φ round to 1: use 1 − Φ(z) = Φ(−z) there
    near, far = torch.where(flip, -lower, upper), torch.where(flip, -upper, lower)
    log_near, log_far = torch.special.log_ndtr(near), torch.special.log_ndtr(far)
    tiny = torch.finfo(x.dtype).eps  # a bin too narrow for this precision counts as this share of its tail
    inside = log_near + torch.log(-torch.expm1((log_far - log_near).clamp(max=-tiny)))
    edge = 1 - half_bin
    left, right = torch.special.log_ndtr(upper), torch.special.log_ndtr(-lower)
    return torch.where(x < -edge, left, torch.where(x > edge, right, inside))


def flat_mean(x: Float[Tensor, "batch *dims"]) -> Float[Tensor, " batch"]:
    """Mean over everything but the batch."""
    return x.flatten(1).mean(1)


def standard_error(x: Float[Tensor, " n"]) -> float:
    """Standard error of the mean of n independent values."""
    return (x.std() / len(x) ** 0.5).item()
