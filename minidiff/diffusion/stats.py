"""The few facts about normal and Bernoulli distributions that bounds are made of. Values in nats."""

import math

import torch
from jaxtyping import Float, Num
from torch import Tensor
from torch.nn.functional import logsigmoid

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


def gaussian_entropies(
    betas: Float[Tensor, "T"], alpha_bar: Float[Tensor, "T"]
) -> tuple[Float[Tensor, "T"], Float[Tensor, "T"]]:
    """H(X_t | X_{t−1}) and H(X_t | X_0) of a Gaussian forward chain, in bits per dimension: ½ log2(2πe · variance)."""
    return tuple(0.5 * torch.log2(2 * math.pi * math.e * variance) for variance in (betas, 1 - alpha_bar))


def over(values: Num[Tensor, "*t"], x: Tensor) -> Tensor:
    """One value, or one for each example, in x's precision and shaped to broadcast over x's dimensions."""
    return values.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1)) if values.ndim else values


def flat_mean(x: Float[Tensor, "batch *dims"]) -> Float[Tensor, " batch"]:
    """Mean over everything but the batch."""
    return x.flatten(1).mean(1)


def standard_error(x: Float[Tensor, " n"]) -> float:
    """Standard error of the mean of n independent values."""
    return (x.std() / len(x) ** 0.5).item()


def bernoulli_log_prob(x: Float[Tensor, "*shape"], logits: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
    """Log probability of each x in {0, 1} under the rate sigmoid(logits), in nats; exact at rates 0 and 1."""
    return logsigmoid(torch.where(x > 0.5, logits, -logits))


def bernoulli_entropy(logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Entropy of each rate sigmoid(logits), in nats; 0 at rates 0 and 1."""
    return bernoulli_kl(logits, torch.zeros_like(logits)).neg() + LN2


def bernoulli_kl(logits1: Float[Tensor, "*shape"], logits2: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """D_KL of the rate sigmoid(logits1) from sigmoid(logits2), in nats; exact at rates 0 and 1, where 0 · log 0 = 0."""

    def share(sign: int) -> Tensor:
        p = torch.sigmoid(sign * logits1)
        ratio = logsigmoid(sign * logits1) - logsigmoid(sign * logits2)
        return torch.where(p > 0, p * torch.where(p > 0, ratio, 0), 0)

    return share(1) + share(-1)
