"""Gaussian diffusion as its first paper has it: the covariance is learned, and so is the schedule.

Here the data are continuous, of mean square 1, and the bound is on their log density: there is no decoder. The tables
are functions of β, which is a parameter, so they are made anew whenever they are asked for. t = 0 … T − 1, as in
gaussian.py.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Normal

from minidiff.checks import one_of

from .gaussian import Data, GaussianDenoiser, Net, PerExample, Steps, call_network
from .stats import LN2, flat_mean, gaussian_entropies, normal_kl, over

Step = Literal["pull", "shift"]


class LearnedGaussian(nn.Module):
    """The Gaussian process of Sohl-Dickstein et al. (SD Table A1), its bound K and its learned schedule.

    Args:
        betas: β_1 … β_T to begin with, each in (0, 1). β_1 stays: K would reward a first step that shrinks for ever
            onto the training data (SD §2.4.1).
        learn_betas: whether K is maximised over β_2 … β_T too.
        predict: what the network's z^μ does to x_t: ``pull`` draws it towards z^μ as (SD 65) prints it, ``shift`` adds
            √β_t z^μ to √(1−β_t) x_t as the paper's own code has it, so that z^μ keeps one size at every step.

    Raises ValueError for an argument that makes no process, naming it.
    """

    noise_at_end = True  # the model is a density, and its last step is part of it

    def __init__(self, betas: Float[Tensor, "T"], learn_betas: bool = True, predict: Step = "pull"):
        super().__init__()
        one_of("predict", predict, Step)
        betas = betas.double()
        if len(betas) < 2 or not ((betas > 0) & (betas < 1)).all():
            raise ValueError("betas: give at least 2 values, each between 0 and 1, both excluded.")
        self.T, self.predict = len(betas), predict
        self.register_buffer("beta_1", betas[:1], persistent=False)
        self.logits = nn.Parameter(torch.logit(betas[1:]), requires_grad=learn_betas)

    # ---- tables -----------------------------------------------------------------------------------------------------

    @property
    def betas(self) -> Float[Tensor, "T"]:
        """β_1, which is fixed, and β_2 … β_T as the logistic function of the parameter."""
        return torch.cat([self.beta_1, torch.sigmoid(self.logits)])

    @property
    def alpha_bar(self) -> Float[Tensor, "T"]:
        """ᾱ_t = ∏ (1 − β_s), s ≤ t."""
        return torch.cumprod(1 - self.betas, 0)

    @property
    def alpha_bar_prev(self) -> Float[Tensor, "T"]:
        """ᾱ_{t−1}, which is 1 at the first step."""
        return torch.cat([torch.ones_like(self.beta_1), self.alpha_bar[:-1]])

    @property
    def sigma(self) -> Float[Tensor, "T"]:
        """Noise over signal, √((1 − ᾱ)/ᾱ): EDM's σ."""
        return ((1 - self.alpha_bar) / self.alpha_bar).sqrt()

    @property
    def prior(self) -> Normal:
        """π = N(0, 1) in every dimension, where the forward chain ends (SD 4)."""
        return Normal(torch.zeros_like(self.beta_1), torch.ones_like(self.beta_1), validate_args=False)

    # ---- the forward chain ------------------------------------------------------------------------------------------

    def draw_noise(self, x0: Data, generator: torch.Generator) -> Data:
        """Standard normal noise shaped like x0, from the generator."""
        return torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)

    def q_step(self, x: Data, t: Steps) -> Normal:
        """q(x_t | x_{t−1} = x), of mean √(1−β_t) x and variance β_t (SD 2)."""
        beta = over(self.betas[t], x)
        return _normal((1 - beta).sqrt() * x, beta)

    def q_marginal(self, x0: Data, t: Steps) -> Normal:
        """q(x_t | x_0), of mean √ᾱ_t x_0 and variance 1 − ᾱ_t."""
        alpha_bar = self.alpha_bar
        return _normal(over(alpha_bar.sqrt()[t], x0) * x0, over((1 - alpha_bar)[t], x0))

    def q_sample(self, x0: Data, t: Steps, noise: Data) -> Data:
        """x_t, differentiable in β while the noise is frozen (SD §2.4.1)."""
        kernel = self.q_marginal(x0, t)
        return kernel.mean + kernel.scale * noise

    def q_posterior(self, x0: Data, xt: Data, t: Steps) -> tuple[Data, Data]:
        """Mean and variance of q(x_{t−1} | x_t, x_0) (SD 48)."""
        betas, alpha_bar, before = self.betas, self.alpha_bar, self.alpha_bar_prev
        from_x0 = over((before.sqrt() * betas / (1 - alpha_bar))[t], xt)
        from_xt = over(((1 - betas).sqrt() * (1 - before) / (1 - alpha_bar))[t], xt)
        variance = over((betas * (1 - before) / (1 - alpha_bar))[t], xt)
        mean = from_x0 * x0 + from_xt * xt
        return mean, variance.expand_as(mean)

    def x0_from_mean(self, mean: Data, xt: Data, t: Steps) -> Data:
        """The x_0 whose posterior mean is ``mean``: what a reverse step believed."""
        one, _ = self.q_posterior(torch.ones_like(xt), xt, t)
        zero, _ = self.q_posterior(torch.zeros_like(xt), xt, t)
        return (mean - zero) / (one - zero)

    # ---- the reverse chain ------------------------------------------------------------------------------------------

    def reverse(self, net: Net, x: Data, t: Steps, **cond: Tensor) -> Normal:
        """p(x_{t−1} | x_t) with the diagonal covariance of (SD 64) and the mean of (SD 65); t = 0 is fixed by (SD 44).

        The network gives z^μ and z^Σ as halves of twice the channels; both 0 make the step that only shrinks.
        """
        beta = over(self.betas[t], x)
        z_mu, z_sigma = call_network(net, x, t, cond).chunk(2, dim=1)
        variance = torch.sigmoid(z_sigma + torch.logit(beta))
        shrunk = (1 - beta).sqrt() * x
        mean = (x - z_mu) * (1 - variance) + z_mu if self.predict == "pull" else shrunk + beta.sqrt() * z_mu
        first = over(t, x) == 0
        return _normal(torch.where(first, shrunk, mean), torch.where(first, beta, variance))

    def believe(self, net: Net, x: Data, t: Steps, **cond: Tensor) -> tuple[Data, None]:
        """x̂_0 at x_t, as the other Gaussian process gives it."""
        return self.x0_from_mean(self.reverse(net, x, t, **cond).mean, x, t), None

    def denoiser(self, net: Net) -> GaussianDenoiser:
        """The same network as a function of x_0 + σ n and σ."""
        return GaussianDenoiser(self, net)

    # ---- the bound --------------------------------------------------------------------------------------------------

    def loss(self, net: Net, x0: Data, t: Steps, noise: Data, **cond: Tensor) -> dict[str, PerExample]:
        """T times one term of the bound, plus the prior's: the mean over t is −K per dimension, in bits (SD 14)."""
        terms = self.bound_term(net, x0, t, noise, **cond)
        return {"loss": self.T * terms["bits"] + self.prior_term(x0), **terms}

    def bound_term(self, net: Net, x0: Data, t: Steps, noise: Data, **cond: Tensor) -> dict[str, PerExample]:
        """One term of −K at each example's t: ``bits`` per dimension, and ``x0_mse`` of the belief behind it.

        t > 0 gives the divergence of a reverse step from the posterior (SD 14); t = 0 gives
        −E_q(x_1|x_0)[log p(x_0 | x_1)] of the fixed first step, in closed form.
        """
        xt = self.q_sample(x0, t, noise)
        reverse = self.reverse(net, xt, t, **cond)
        mean, variance = self.q_posterior(x0, xt, t)
        variance = torch.where(over(t, x0) == 0, 1, variance)  # 0 there, and not used
        kl = normal_kl(mean, variance.log(), reverse.mean, 2 * reverse.scale.log())
        beta = self.beta_1.to(x0.dtype)
        first = 0.5 * (math.log(2 * math.pi) + beta.log() + 1 - beta + beta * x0**2)
        bits = torch.where(t == 0, flat_mean(first), flat_mean(kl)) / LN2
        return {"bits": bits, "x0_mse": flat_mean((self.x0_from_mean(reverse.mean, xt, t) - x0) ** 2)}

    def prior_term(self, x0: Data) -> PerExample:
        """D_KL(q(x_T | x_0) ‖ N(0, I)) in bits per dimension: what is left of the data in x_T."""
        last = self.q_marginal(x0, torch.full((len(x0),), self.T - 1, device=x0.device))
        zero = torch.zeros_like(x0)
        return flat_mean(normal_kl(last.mean, 2 * last.scale.log(), zero, zero)) / LN2

    def entropies(self, x0: Data) -> tuple[Float[Tensor, "T"], Float[Tensor, "T"]]:
        """H_q(X_t | X_{t−1}) and H_q(X_t | X_0), in bits per dimension: what (SD 24) is made of."""
        return gaussian_entropies(self.betas, self.alpha_bar)


def _normal(mean: Data, variance: Tensor) -> Normal:
    return Normal(mean, variance.sqrt().expand_as(mean), validate_args=False)
