"""The likelihood itself, by averaging over forward trajectories; and what (SD 24) says of every step."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Bernoulli

from minidiff.diffusion import draw, kernel_log_prob
from minidiff.diffusion.stats import LN2


@dataclass(frozen=True)
class TrajectoryLikelihood:
    """log2 p(x_0) of each example, from the ratios p/q of forward trajectories; in bits per example.

    ``log_p`` (n,): logarithm of the ratios' mean (SD 9); ``log_p_error`` (n,): its standard error, to first order.
    ``K`` (n,): mean of the ratios' logarithms (SD 12), never above the truth but by chance; ``K_error`` (n,) likewise.
    """

    log_p: Float[Tensor, " n"]
    log_p_error: Float[Tensor, " n"]
    K: Float[Tensor, " n"]
    K_error: Float[Tensor, " n"]


@torch.no_grad()
def trajectory_likelihood(
    process,
    net: Callable[..., Tensor],
    x0: Float[Tensor, "n *dims"],
    generator: torch.Generator,
    trajectories: int = 100,
    batch: int = 10_000,
) -> TrajectoryLikelihood:
    """Run the forward chain ``trajectories`` times from each example and weigh each path by p/q (SD 9).

    The estimate of p is unbiased; that of log p is too low while few paths dominate the mean, which happens where the
    logarithms of the ratios spread over more than a few nats. About ``batch`` paths are walked at a time. Raises
    ValueError for fewer than 2 trajectories.
    """
    if trajectories < 2:
        raise ValueError(f"trajectories={trajectories}: at least 2, or there is no standard error.")
    parts = x0.split(max(1, batch // trajectories))
    log_ratio = torch.cat([_log_ratio(process, net, x, generator, trajectories) for x in parts])
    weights = log_ratio.softmax(1) * trajectories  # p/q over its mean
    return TrajectoryLikelihood(
        log_p=(log_ratio.logsumexp(1) - math.log(trajectories)) / LN2,
        log_p_error=weights.std(1) / trajectories**0.5 / LN2,
        K=log_ratio.mean(1) / LN2,
        K_error=log_ratio.std(1) / trajectories**0.5 / LN2,
    )


def _log_ratio(
    process, net: Callable[..., Tensor], x0: Float[Tensor, "n *dims"], generator: torch.Generator, trajectories: int
) -> Float[Tensor, "n trajectories"]:
    """log p(x_0 … x_T) / q(x_1 … x_T | x_0) of each path, in nats."""
    x = x0.repeat_interleave(trajectories, 0)
    log_ratio = x.new_zeros(len(x))
    for t in range(process.T):
        at = torch.full((len(x),), t, device=x.device)
        forward = process.q_step(x, at)
        later = draw(forward, torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype))
        back = process.reverse(net, later, at)
        log_ratio += (kernel_log_prob(back, x) - kernel_log_prob(forward, later)).flatten(1).sum(1)
        x = later
    log_ratio += kernel_log_prob(process.prior, x).flatten(1).sum(1)
    return log_ratio.reshape(len(x0), trajectories)


def entropy_bounds(process, x0: Float[Tensor, "n *dims"]) -> tuple[Float[Tensor, "T"], Float[Tensor, "T"]]:
    """Lower and upper bounds of H_q(X_{t−1} | X_t) for t = 1 … T at index t − 1, in bits per dimension (SD 24).

    They need q alone. The upper one holds for data whose entropy does not fall along the chain, such as data of mean
    square 1 under Gaussian steps, or of mean rate m under binomial ones. Where X_0 is continuous the lower bound of the
    first step is −∞.
    """
    step, given_x0 = process.entropies(x0)
    at_start = 0.0 if isinstance(process.prior, Bernoulli) else -math.inf  # H(X_0 | X_0)
    before = torch.cat([given_x0.new_tensor([at_start]), given_x0[:-1]])
    return step + before - given_x0, step


def null_likelihood(process, x0: Float[Tensor, "n *dims"]) -> Float[Tensor, " n"]:
    """log2 π(x_0) of each example, in bits: independent noise as a model. Its mean is L_null (SD Table 1)."""
    return kernel_log_prob(process.prior, x0).flatten(1).sum(1) / LN2
