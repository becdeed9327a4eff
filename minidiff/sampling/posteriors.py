"""Asking a trained model a question: samples from p̃(x) ∝ p(x) r(x), by bending every step (SD §2.5)."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributions import Bernoulli, Normal

from minidiff.checks import one_of
from minidiff.diffusion.stats import over

from .ancestral import Data

Evidence = Normal | Bernoulli | Callable[[Tensor, Tensor], Tensor]
OverTime = Literal["constant", "rising"]


class Posterior:
    """A process whose every reverse step, and whose start, is multiplied with r: p̃(x_{t−1} | x_t) ∝ p · r (SD 22).

    Args:
        process: any process; its network stays as it was trained.
        r: what is known, as a factor for each element. ``Normal(y, sd)`` is exact; sd = 0 fixes an element, sd = inf
            says nothing of it (``known`` makes both; torch itself wants ``validate_args=False`` for them). For a
            binomial process ``Bernoulli(logits=…)`` of the rates d of (SD Table A1); a logit of ±inf fixes a bit, 0
            says nothing of it (torch's ``probs=`` stops short of 0 and 1). Or, for a Gaussian process, any
            ``log_r(x, t) -> (batch,)`` in nats, whose gradient is taken at the mean (SD 61); its t is the library's
            index of the x that it is given, −1 for x_0.
        over_time: ``constant``, r(x_t) = r(x_0) (SD 23), or ``rising``, r(x_t) = r(x_0)^((T − t)/T), which leaves the
            start alone. A delta stays one under any power but 0.

    It has the methods of a process and goes where one goes. Samples follow p(x) r(x) only in so far as r(x_t) is
    E[r(x_0) | x_t] (SD 21); chapter 01 measures the difference. Raises ValueError for an r that does not fit the
    process.
    """

    def __init__(self, process, r: Evidence, over_time: OverTime = "constant"):
        one_of("over_time", over_time, OverTime)
        if isinstance(r, Bernoulli | Normal) and type(r) is not type(process.prior):
            ours, theirs = type(process.prior).__name__, type(r).__name__
            raise ValueError(f"r is a {theirs}, but the steps of {type(process).__name__} are {ours}: give r as such.")
        if isinstance(process.prior, Bernoulli) and not isinstance(r, Bernoulli):
            raise ValueError("r: a binomial process takes a torch Bernoulli, with a logit for each bit.")
        self.process, self.r, self.over_time = process, r, over_time
        self.T, self.noise_at_end = process.T, process.noise_at_end

    @property
    def prior(self) -> Normal | Bernoulli:
        """π times r, where the chain begins; π alone where r is a function, for π is not narrow and (SD 61) fails."""
        if callable(self.r):
            return self.process.prior
        kernel = self.process.prior
        return self._multiply(kernel, self._power(torch.tensor(self.T - 1), kernel.mean))

    def reverse(self, net: Callable[..., Tensor], x: Data, t: Tensor, **cond: Tensor) -> Normal | Bernoulli:
        """The process's own kernel, times r at the point it leads to."""
        kernel, power = self.process.reverse(net, x, t, **cond), over(self._power(t - 1, x), x)
        return _shift(kernel, self.r, power, t - 1) if callable(self.r) else self._multiply(kernel, power)

    def x0_from_mean(self, mean: Data, xt: Data, t: Tensor) -> Data:
        """As the process has it."""
        return self.process.x0_from_mean(mean, xt, t)

    def _power(self, t: Tensor, x: Tensor) -> Tensor:
        """The exponent of r(x_t), in x's precision; t counts from 0, and −1 is the data."""
        rising = (self.T - 1 - t).to(x) / self.T
        return rising if self.over_time == "rising" else torch.ones_like(rising)

    def _multiply(self, kernel: Normal | Bernoulli, power: Tensor) -> Normal | Bernoulli:
        return (_add_logits if isinstance(self.r, Bernoulli) else _product)(kernel, self.r, power)


def known(x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*#shape"], process) -> Normal | Bernoulli:
    """The r of inpainting: elements of x are fixed where the mask is True, and nothing is said of the others."""
    if isinstance(process.prior, Bernoulli):
        certain = torch.where(x > 0.5, torch.inf, -torch.inf)
        return Bernoulli(logits=torch.where(mask, certain, 0.0), validate_args=False)
    return Normal(x, torch.where(mask, 0.0, torch.inf).to(x).expand_as(x), validate_args=False)


def _product(kernel: Normal, r: Normal, power: Tensor) -> Normal:
    """Two Gaussians multiplied: precisions add, and means by precision; exact also where one scale is 0 or infinite."""
    ours = kernel.variance
    theirs = torch.where(power > 0, r.variance.to(ours) / power, torch.inf)
    share = torch.where(theirs.isinf(), 0, ours / (ours + theirs))  # how far r draws the mean to its own
    variance = torch.where(theirs.isinf(), ours, share * theirs)
    return Normal(kernel.mean + share * (r.mean.to(ours) - kernel.mean), variance.sqrt(), validate_args=False)


def _shift(kernel: Normal, log_r: Callable[[Tensor, Tensor], Tensor], power: Tensor, t: Tensor) -> Normal:
    """The mean moved by Σ ∇ log r, taken at the mean (SD 61)."""
    with torch.enable_grad():
        at = kernel.mean.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(log_r(at, t).sum(), at)
    return Normal(kernel.mean + power * kernel.variance * gradient, kernel.scale, validate_args=False)


def _add_logits(kernel: Bernoulli, r: Bernoulli, power: Tensor) -> Bernoulli:
    """Rates c and d to c d / (c d + (1 − c)(1 − d)): logits add, and a rate of 0 or 1 in r has the last word."""
    d = r.logits.to(kernel.logits)
    logits = torch.where(d.isinf(), d, kernel.logits + power * d)
    return Bernoulli(logits=torch.where(power > 0, logits, kernel.logits), validate_args=False)
