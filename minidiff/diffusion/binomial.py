"""Binomial diffusion: binary data forget themselves bit by bit, and a chain of Bernoulli kernels learns to recall them.

Data are 0.0 or 1.0, and t = 0 … T − 1 as in gaussian.py. A rate is kept as its logit, the difference of two logarithms
of which neither is rounded, so that rates of exactly 0 and 1 stay exact. As data are binary, every kernel is a table.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Bernoulli
from torch.nn.functional import logsigmoid

from minidiff.checks import one_of

from .gaussian import Data, Net, PerExample, Steps, call_network
from .schedules import checked_betas
from .stats import LN2, bernoulli_entropy, bernoulli_kl, bernoulli_log_prob, flat_mean, over

BinomialPrediction = Literal["x0", "rate"]


class BinomialDiffusion(nn.Module):
    """The binomial process (SD Table A1): each bit is replaced, with probability β_t, by a fresh one of rate m.

    Args:
        betas: β_1 … β_T, each in (0, 1].
        m: the stationary rate, in (0, 1). The paper's table prints 0.5, its heartbeat needs the data's mean rate, 0.2.
        predict: what the network's output is the logit of: ``x0``, the probability that a bit of the data is 1, from
            which the reverse rate follows as the mixture of the two posteriors; or ``rate``, the reverse rate itself.

    Raises ValueError for an argument that makes no process, naming it.
    """

    noise_at_end = True  # a rate is not yet a bit

    def __init__(self, betas: Float[Tensor, "T"], m: float = 0.5, predict: BinomialPrediction = "x0"):
        super().__init__()
        one_of("predict", predict, BinomialPrediction)
        betas = checked_betas(betas)
        if not 0 < m < 1:
            raise ValueError(f"m={m}: a stationary rate lies between 0 and 1, both excluded.")
        self.T, self.m, self.predict = len(betas), m, predict

        alpha_bar = torch.cumprod(1 - betas, 0)
        alpha_bar_prev = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
        # log P(next = j | now = k) as step[t, k, j], and the same for x_t and x_{t−1} given x_0
        step, marginal, before = (_log_kernel(keep, m) for keep in (1 - betas, alpha_bar, alpha_bar_prev))
        joint = before[:, :, :, None] + step[:, None]  # log q(x_{t−1}, x_t | x_0), by [t, x_0, x_{t−1}, x_t]
        tables = {
            "betas": betas,
            "alpha_bar": alpha_bar,
            "alpha_bar_prev": alpha_bar_prev,
            "step": step[:, :, 1] - step[:, :, 0],  # logit of q(x_t = 1 | x_{t−1}), by [t, x_{t−1}]
            "marginal": marginal[:, :, 1] - marginal[:, :, 0],  # of q(x_t = 1 | x_0), by [t, x_0]
            "posterior": joint[:, :, 1] - joint[:, :, 0],  # of q(x_{t−1} = 1 | x_t, x_0), by [t, x_0, x_t]: Bayes
        }
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    # ---- the forward chain ------------------------------------------------------------------------------------------

    @property
    def prior(self) -> Bernoulli:
        """π, where the forward chain ends: every bit by itself 1 with probability m (SD 4)."""
        return _bernoulli(torch.logit(torch.tensor(self.m, dtype=self.betas.dtype, device=self.betas.device)))

    def draw_noise(self, x0: Data, generator: torch.Generator) -> Data:
        """Uniform noise on [0, 1) shaped like x0, from the generator."""
        return torch.rand(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)

    def q_step(self, x: Data, t: Steps) -> Bernoulli:
        """q(x_t | x_{t−1} = x), of rate (1 − β_t) x + β_t m (SD 2)."""
        return _bernoulli(self._at("step", t, x))

    def q_marginal(self, x0: Data, t: Steps) -> Bernoulli:
        """q(x_t | x_0), of rate ᾱ_t x_0 + (1 − ᾱ_t) m."""
        return _bernoulli(self._at("marginal", t, x0))

    def q_sample(self, x0: Data, t: Steps, noise: Data) -> Data:
        """x_t: 1 where the uniform noise falls below the rate of q(x_t | x_0)."""
        return (noise < self.q_marginal(x0, t).probs).to(x0.dtype)

    def q_posterior(self, x0: Data, xt: Data, t: Steps) -> Bernoulli:
        """q(x_{t−1} | x_t, x_0) by Bayes' rule (SD 48)."""
        return _bernoulli(self._at("posterior", t, x0, xt))

    # ---- the reverse chain ------------------------------------------------------------------------------------------

    def reverse(self, net: Net, x: Data, t: Steps, **cond: Tensor) -> Bernoulli:
        """p(x_{t−1} | x_t) of rate f_b (SD Table A1); the first step, t = 0, is the forward kernel (SD 44)."""
        z = call_network(net, x, t, cond)
        if self.predict == "x0":
            one, zero = (self._at("posterior", t, torch.full_like(x, k), x) for k in (1.0, 0.0))
            z = _mix(z, one, zero)
        return _bernoulli(torch.where(over(t, x) == 0, self._at("step", torch.zeros_like(t), x), z))

    def x0_from_mean(self, mean: Data, xt: Data, t: Steps) -> Data:
        """The P(x_0 = 1) under which the reverse rate would be ``mean``: what a reverse step believed."""
        one, zero = (torch.sigmoid(self._at("posterior", t, torch.full_like(xt, k), xt)) for k in (1.0, 0.0))
        return (mean - zero) / (one - zero)

    # ---- the bound --------------------------------------------------------------------------------------------------

    def loss(self, net: Net, x0: Data, t: Steps, noise: Data, **cond: Tensor) -> dict[str, PerExample]:
        """T times one term of the bound: its mean over t is −K per dimension, in bits (SD 14), but for the prior's.

        Raises ValueError for data on the CPU that are not all 0 or 1; a GPU would have to be waited for.
        """
        if x0.is_cpu and not ((x0 == 0) | (x0 == 1)).all():
            raise ValueError("x0: binomial diffusion takes data of 0 and 1 only.")
        terms = self.bound_term(net, x0, t, noise, **cond)
        return {"loss": self.T * terms["bits"], **terms}

    def bound_term(self, net: Net, x0: Data, t: Steps, noise: Data, **cond: Tensor) -> dict[str, PerExample]:
        """One term of −K at each example's t: ``bits`` per dimension, and ``x0_mse`` of the belief behind it.

        t > 0 gives the divergence of a reverse step from the posterior (SD 14); t = 0 gives
        −E_q(x_1|x_0)[log p(x_0 | x_1)] of the fixed first step, a sum over the two values of x_1.
        """
        xt = self.q_sample(x0, t, noise)
        reverse = self.reverse(net, xt, t, **cond)
        kl = bernoulli_kl(self.q_posterior(x0, xt, t).logits, reverse.logits)
        start = torch.zeros_like(t)
        to_one = self.q_step(x0, start).probs
        back = [bernoulli_log_prob(x0, self.q_step(torch.full_like(x0, k), start).logits) for k in (0.0, 1.0)]
        first = -((1 - to_one) * back[0] + to_one * back[1])
        bits = torch.where(t == 0, flat_mean(first), flat_mean(kl)) / LN2
        return {"bits": bits, "x0_mse": flat_mean((self.x0_from_mean(reverse.probs, xt, t) - x0) ** 2)}

    def prior_term(self, x0: Data) -> PerExample:
        """D_KL(q(x_T | x_0) ‖ π) in bits per dimension: what is left of the data in x_T; 0 where β_T = 1."""
        last = torch.full((len(x0),), self.T - 1, device=x0.device)
        return flat_mean(bernoulli_kl(self._at("marginal", last, x0), self.prior.logits.to(x0).expand_as(x0))) / LN2

    def entropies(self, x0: Data) -> tuple[Float[Tensor, "T"], Float[Tensor, "T"]]:
        """H_q(X_t | X_{t−1}) and H_q(X_t | X_0) for data x0, in bits per dimension: what (SD 24) is made of."""
        rate = x0.double().mean()
        before = self.alpha_bar_prev * rate + (1 - self.alpha_bar_prev) * self.m  # P(x_{t−1} = 1)
        step, marginal = bernoulli_entropy(self.step) / LN2, bernoulli_entropy(self.marginal) / LN2
        return (1 - before) * step[:, 0] + before * step[:, 1], (1 - rate) * marginal[:, 0] + rate * marginal[:, 1]

    # ---- helpers ----------------------------------------------------------------------------------------------------

    def _at(self, table: str, t: Steps, *bits: Data) -> Data:
        """The entries of a table at step t and these bits, in their precision."""
        row = t.reshape(-1, *[1] * (bits[0].ndim - 1))
        return getattr(self, table)[(row, *(x.long() for x in bits))].to(bits[0].dtype)


def _log_kernel(keep: Tensor, m: float) -> Float[Tensor, "T 2 2"]:
    """log P(j | k) of a bit k that is kept with probability ``keep`` and else drawn anew, by [t, k, j]."""
    fresh = torch.tensor([1 - m, m], dtype=keep.dtype, device=keep.device)
    same = torch.eye(2, dtype=keep.dtype, device=keep.device)
    return torch.log(keep[:, None, None] * same + (1 - keep)[:, None, None] * fresh)


def _mix(z: Tensor, one: Tensor, zero: Tensor) -> Tensor:
    """Logit of sigmoid(z) · sigmoid(one) + sigmoid(−z) · sigmoid(zero)."""
    up = torch.logaddexp(logsigmoid(z) + logsigmoid(one), logsigmoid(-z) + logsigmoid(zero))
    down = torch.logaddexp(logsigmoid(z) + logsigmoid(-one), logsigmoid(-z) + logsigmoid(-zero))
    return up - down


def _bernoulli(logits: Tensor) -> Bernoulli:
    return Bernoulli(logits=logits, validate_args=False)
