"""A classifier of noisy images leads an image to its class: guidance of a process, or of a denoiser (ADM §4)."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import Normal
from torch.nn import functional as F

from minidiff.checks import one_of
from minidiff.diffusion import GaussianDiffusion
from minidiff.diffusion.gaussian import Net, PerExample, Steps, call_network, on_chain
from minidiff.diffusion.stats import over

from .ancestral import Data
from .classifier_free import check_scale

Labels = Int[Tensor, " batch"]
LogProb = Callable[..., Tensor]
At = Literal["mean", "x"]


class ClassLogProb:
    """log p_φ(y | x_t) in nats, of a classifier's ``net`` that was trained on the noise of ``process``.

    Raises ValueError for a process that is not Gaussian.
    """

    def __init__(self, process, net: Net):
        if not isinstance(process, GaussianDiffusion):
            raise ValueError(
                f"process: {type(process).__name__} is no GaussianDiffusion; of a NoisyClassifier give .process."
            )
        self.process, self.net = process, net

    def __call__(self, x: Data, t: Steps, labels: Labels) -> PerExample:
        """Of each label, at x = x_t of the chain; the network keeps its own precision.

        Raises ValueError for a label that the network does not know.
        """
        logits = call_network(self.net, x, self.process.fed[t], {})
        if not ((labels >= 0) & (labels < logits.shape[1])).all():
            raise ValueError(
                f"labels={labels.unique().tolist()}: the classifier knows the classes 0 … {logits.shape[1] - 1}."
            )
        return -F.cross_entropy(logits, labels, reduction="none")

    def at_sigma(self, x: Data, sigma: Tensor | float, labels: Labels) -> PerExample:
        """Of each label, at x = x_0 + σ n: x/√(1 + σ²) is x_t at the level of the chain that is next to σ."""
        return self(*on_chain(self.process, x, sigma), labels)

    def on(self, process: GaussianDiffusion) -> "ClassLogProb":
        """The same classifier, asked by the steps of a chain that leaves some out.

        Raises ValueError for a chain with a level of noise on which it was not trained, or under another name.
        """
        ours = torch.searchsorted(self.process.sigma, process.sigma * (1 - 1e-6)).clamp(max=self.process.T - 1)
        if not all(torch.allclose(getattr(process, k), getattr(self.process, k)[ours]) for k in ("sigma", "fed")):
            raise ValueError(
                f"log_p: the classifier was trained on the noise of another chain, of {self.process.T} steps: take one "
                "whose schedule and T are those of the process that it guides."
            )
        return ClassLogProb(process, self.net)


class Guided:
    """A process that is led to a class: every step moves up the slope of s log p(y | x_t).

    Args:
        process: a GaussianDiffusion, respaced or not.
        log_p: any ``log_p(x, t, labels) -> (batch,)`` in nats, where x = x_t and t is an index of ``process``. A
            ``ClassLogProb`` is asked at the noise level of that step, so the classifier's whole chain may be given with
            it where ``process`` is a respaced one.
        scale: s; 0 asks log_p nothing.
        at: where ``reverse`` takes the slope: at the ``mean`` μ of x_{t−1}, at t − 1, as the paper derives, so that
            there is none in the last step; or at ``x``, which is x_t, at t, as the official code does.
        tell_net: the network is conditioned on the labels too.

    It goes where a process goes; the labels are the ``labels`` of ``cond``. Raises ValueError for a process that is not
    Gaussian, for a classifier of other noise, for another ``at``, and for a scale that is not finite.
    """

    def __init__(self, process, log_p: LogProb, scale: float = 1.0, at: At = "mean", tell_net: bool = True):
        if not isinstance(process, GaussianDiffusion):
            raise ValueError(
                f"process: the slope of a classifier moves a GaussianDiffusion, no {type(process).__name__}."
            )
        one_of("at", at, At)
        check_scale(scale)
        self.process, self.log_p = process, log_p.on(process) if isinstance(log_p, ClassLogProb) else log_p
        self.scale, self.at, self.tell_net = scale, at, tell_net
        self.T, self.noise_at_end = process.T, process.noise_at_end

    @property
    def prior(self) -> Normal:
        """As the process has it: nothing of a class is left in x_T."""
        return self.process.prior

    @property
    def alpha_bar(self) -> Float[Tensor, "T"]:
        """As the process has it."""
        return self.process.alpha_bar

    @property
    def sigma(self) -> Float[Tensor, "T"]:
        """As the process has it."""
        return self.process.sigma

    def x0_from_mean(self, mean: Data, xt: Data, t: Steps) -> Data:
        """As the process has it."""
        return self.process.x0_from_mean(mean, xt, t)

    def reverse(
        self, net: Net, x: Data, t: Steps, clip: bool | None = None, labels: Labels | None = None, **cond: Tensor
    ) -> Normal:
        """N(μ + s Σ g, Σ) for the process's own N(μ, Σ) and g = ∇ log p(y | x_{t−1}) at μ (ADM 10, ADM Alg. 1).

        Raises ValueError where ``labels`` are missing.
        """
        kernel = self.process.reverse(net, x, t, clip, **_told(self.tell_net, labels, cond))
        at, level = (x, t) if self.at == "x" else (kernel.mean, t - 1)
        asked = level >= 0  # x_0 holds no noise, and no classifier of noise knows it
        if not self.scale or not asked.any():
            return kernel
        slope = torch.zeros_like(x)
        slope[asked] = _slope(self.log_p, at[asked], level[asked], labels[asked])
        return Normal(kernel.mean + self.scale * kernel.variance * slope, kernel.scale, validate_args=False)

    def believe(
        self, net: Net, x: Data, t: Steps, clip: bool | None = None, labels: Labels | None = None, **cond: Tensor
    ) -> tuple[Data, Tensor | None]:
        """x̂_0 of ε̂ = ε − √(1−ᾱ_t) s ∇ log p(y | x_t) (ADM 14, ADM Alg. 2), and log σ² where it is learned.

        ε is what the clipped x̂_0 leaves of x_t; what the shift then moves out of [−1, 1] stays there, as in the
        official code. Raises ValueError where ``labels`` are missing.
        """
        x0_hat, log_variance = self.process.believe(net, x, t, clip, **_told(self.tell_net, labels, cond))
        if self.scale:
            per_eps = over(self.process.sigma[t], x)  # x̂_0 = x_t/√ᾱ_t − σ_t ε
            noise = over(self.process.noise[t], x)
            x0_hat = x0_hat + per_eps * noise * self.scale * _slope(self.log_p, x, t, labels)
        return x0_hat, log_variance


class GuidedDenoiser:
    """A denoiser that is led to a class: D + s σ² ∇_x log p(y | x; σ), for any solver that takes a denoiser.

    This is (ADM 14) on x = x_0 + σ n. ``log_p(x, sigma, labels) -> (batch,)`` in nats, such as
    ``ClassLogProb(…).at_sigma``; its sigma is (batch,). ``scale`` and ``tell_net`` are those of ``Guided``. Raises
    ValueError for a scale that is not finite.
    """

    def __init__(self, denoise: Callable[..., Tensor], log_p: LogProb, scale: float = 1.0, tell_net: bool = True):
        check_scale(scale)
        self.denoise, self.log_p, self.scale, self.tell_net = denoise, log_p, scale, tell_net

    def __call__(self, x: Data, sigma: Tensor | float, labels: Labels | None = None, **cond: Tensor) -> Data:
        """x̂_0 at noise level sigma, a number or one for each example. Raises ValueError where labels are missing."""
        x0_hat = self.denoise(x, sigma, **_told(self.tell_net, labels, cond))
        if not self.scale:
            return x0_hat
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x))
        return x0_hat + self.scale * over(sigma**2, x) * _slope(self.log_p, x, sigma, labels)


def _told(tell_net: bool, labels: Labels | None, cond: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the network is conditioned on."""
    if labels is None:
        raise ValueError('labels: guidance leads to a class; give that of each example, as cond={"labels": …}.')
    return cond | {"labels": labels} if tell_net else cond


def _slope(log_p: LogProb, x: Data, level: Tensor, labels: Labels) -> Data:
    """∇_x log p(y | x), each example's own, under no_grad too; no parameter collects a gradient."""
    again = torch.is_grad_enabled() and x.requires_grad  # a likelihood along the ODE differentiates the slope
    with torch.enable_grad():
        x = x if again else x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(log_p(x, level, labels).sum(), x, create_graph=again)
    return slope
