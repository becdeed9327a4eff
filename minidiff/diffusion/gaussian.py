"""Gaussian diffusion in discrete time: the forward chain, its posterior, what a network may predict, and the bound.

The papers count t = 1 … T; here t = 0 … T − 1, as in the official code, so ``t = 0`` means one step of noise.
Tables are float64 buffers that no checkpoint stores: they are rebuilt from β.
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn
from torch.distributions import Normal

from minidiff.checks import one_of

from .schedules import checked_betas
from .stats import LN2, discretised_normal_log_prob, flat_mean, gaussian_entropies, normal_kl, over

Data = Float[Tensor, "batch *dims"]
Steps = Int[Tensor, " batch"]
PerExample = Float[Tensor, " batch"]
Net = Callable[..., Tensor]

Prediction = Literal["eps", "x0", "mean", "v"]
Variance = Literal["large", "small", "learned", "range"]
Loss = Literal["simple", "bound", "hybrid"]


def call_network(net: Net, x: Data, t: Num[Tensor, " batch"], cond: dict[str, Tensor]) -> Tensor:
    """The network at x_t and at the number t that it knows this step by, in its own precision; its answer in x's."""
    dtype = next(net.parameters(), x).dtype if isinstance(net, nn.Module) else x.dtype
    exact = torch.promote_types(dtype, torch.float32)  # half precision cannot count to 1000
    return net(x.to(dtype), t.to(exact), **cond).to(x.dtype)


class GaussianDiffusion(nn.Module):
    """The process of DDPM: q adds Gaussian noise in T steps, p_θ takes it away (DDPM 1, DDPM 2).

    Args:
        betas: β_1 … β_T, each in (0, 1].
        predict: what the network's output means: the noise ``eps``, the data ``x0``, the posterior ``mean`` μ̃, or
            ``v`` = √ᾱ ε − √(1−ᾱ) x_0.
        variance: of the reverse step: ``large`` σ² = β, ``small`` σ² = β̃; or learned, where the network gives twice the
            channels, and the second half is log σ² (``learned``) or says where between β̃ and β it lies (``range``).
        loss: ``simple``, the squared error of the prediction (DDPM 14); ``bound``, T times one term of (DDPM 5) in bits
            per dimension, whose mean over t is the bound without its constant L_T; or ``hybrid``, the first for the
            mean plus ``lambda_vlb`` times the second for the variance (IDDPM 16).
        weight: but for ``bound``, what the squared error at each step is multiplied with; all ones unless given.
        levels: how many values a data dimension can take on [−1, 1]; the decoder (DDPM 13) needs it.
        clip: clip x̂_0 to [−1, 1] in ``reverse``. The paper's Algorithm 2 does not, its code does.
        lambda_vlb: λ of ``hybrid``; 1/T adds one term of the bound unscaled, the plain form of the official code.
        rescale_times: feed the network 1000 t/T, whatever T, and not the bare step number (DDPM §3).

    Raises ValueError for an argument that makes no process, naming it.
    """

    noise_at_end = False  # samples end on a mean (DDPM Alg. 2)

    def __init__(
        self,
        betas: Float[Tensor, "T"],
        predict: Prediction = "eps",
        variance: Variance = "large",
        loss: Loss = "simple",
        weight: Float[Tensor, "T"] | None = None,
        levels: int = 256,
        clip: bool = True,
        lambda_vlb: float = 0.001,
        rescale_times: bool = False,
    ):
        super().__init__()
        one_of("predict", predict, Prediction)
        one_of("variance", variance, Variance)
        one_of("loss", loss, Loss)
        betas = checked_betas(betas)
        if betas[-1] == 1 and predict == "eps":
            raise ValueError('β_T = 1 leaves nothing of x_0 in x_T, so ε cannot tell it: predict "x0", "mean" or "v".')
        if levels < 2:
            raise ValueError(f"levels={levels}: data need at least 2 levels.")
        learned = variance in ("learned", "range")
        if learned and loss == "simple":
            raise ValueError(f'variance="{variance}" gets no gradient from loss="simple": take "hybrid" or "bound".')
        if loss == "hybrid" and not learned:
            raise ValueError(f'loss="hybrid" teaches the variance, and "{variance}" is fixed: take variance="range".')
        if not 0 < lambda_vlb < float("inf"):
            raise ValueError(f"lambda_vlb={lambda_vlb}: the weight of the bound is above 0, as 0.001.")
        if weight is not None and len(weight) != len(betas):
            raise ValueError(f"weight: {len(weight)} values for {len(betas)} steps; give one a step.")
        if weight is not None and loss == "bound":
            raise ValueError('weight applies to squared errors; the bound fixes its own weights: take loss="simple".')
        self.T, self.predict, self.variance, self.loss_kind = len(betas), predict, variance, loss
        self.levels, self.clip, self.lambda_vlb = levels, clip, lambda_vlb

        alpha_bar = torch.cumprod(1 - betas, 0)
        alpha_bar_prev = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
        beta_tilde = betas * (1 - alpha_bar_prev) / (1 - alpha_bar)
        # β̃ is 0 in the last step back, where its logarithm would be −∞. The official code puts β̃ of the next step
        # there, under both choices of σ², which also gives the decoder a better width than √β_1.
        floor = beta_tilde[1:2]
        tables = {
            "betas": betas,
            "alpha_bar": alpha_bar,
            "alpha_bar_prev": alpha_bar_prev,
            "signal": alpha_bar.sqrt(),  # what x_t holds of x_0 …
            "noise": (1 - alpha_bar).sqrt(),  # … and of ε; here, since 1 − ᾱ cancels in single precision
            "sigma": ((1 - alpha_bar) / alpha_bar).sqrt(),  # noise over signal: EDM's σ
            "beta_tilde": beta_tilde,
            "log_beta_tilde": torch.cat([floor, beta_tilde[1:]]).log(),
            "log_beta": torch.cat([floor, betas[1:]]).log(),
            "mean_from_x0": alpha_bar_prev.sqrt() * betas / (1 - alpha_bar),
            "mean_from_xt": (1 - betas).sqrt() * (1 - alpha_bar_prev) / (1 - alpha_bar),
            "weight": torch.ones_like(betas) if weight is None else weight.double(),
            # what the network is fed at each step: one name for a level of noise, also where steps were left out
            "fed": torch.arange(self.T, device=betas.device).double() * (1000 / self.T if rescale_times else 1),
        }
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    # ---- the forward chain: nothing to learn ------------------------------------------------------------------------

    @property
    def prior(self) -> Normal:
        """p(x_T) = N(0, 1) in every dimension, where the chain of the model begins (DDPM 1)."""
        return Normal(torch.zeros_like(self.betas[:1]), torch.ones_like(self.betas[:1]), validate_args=False)

    def draw_noise(self, x0: Data, generator: torch.Generator) -> Data:
        """Standard normal noise shaped like x0, from the generator."""
        return torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)

    def q_step(self, x: Data, t: Steps) -> Normal:
        """q(x_t | x_{t−1} = x), of mean √(1−β_t) x and variance β_t (DDPM 2)."""
        beta = self._at("betas", t, x)
        return Normal((1 - beta).sqrt() * x, beta.sqrt().expand_as(x), validate_args=False)

    def q_sample(self, x0: Data, t: Steps, noise: Data) -> Data:
        """x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε: t steps of noise at once (DDPM 4)."""
        return self._at("signal", t, x0) * x0 + self._at("noise", t, x0) * noise

    def q_posterior(self, x0: Data, xt: Data, t: Steps) -> tuple[Data, Data]:
        """Mean μ̃_t(x_t, x_0) and variance β̃_t of q(x_{t−1} | x_t, x_0) (DDPM 6, DDPM 7)."""
        mean = self._at("mean_from_x0", t, xt) * x0 + self._at("mean_from_xt", t, xt) * xt
        return mean, self._at("beta_tilde", t, xt).expand_as(mean)

    # ---- four names for one quantity --------------------------------------------------------------------------------

    def target(self, x0: Data, t: Steps, noise: Data) -> Data:
        """What the network should answer for this example, in the chosen parametrisation."""
        if self.predict == "eps":
            return noise
        if self.predict == "x0":
            return x0
        if self.predict == "v":
            return self._at("signal", t, x0) * noise - self._at("noise", t, x0) * x0
        return self.q_posterior(x0, self.q_sample(x0, t, noise), t)[0]

    def x0_from(self, prediction: Data, xt: Data, t: Steps) -> Data:
        """x̂_0 from the network's prediction at x_t; for ``eps`` this is (DDPM 15)."""
        signal, noise = self._at("signal", t, xt), self._at("noise", t, xt)
        if self.predict == "eps":
            return (xt - noise * prediction) / signal
        if self.predict == "x0":
            return prediction
        if self.predict == "v":
            return signal * xt - noise * prediction
        return self.x0_from_mean(prediction, xt, t)

    def x0_from_mean(self, mean: Data, xt: Data, t: Steps) -> Data:
        """The x_0 whose posterior mean (DDPM 7) is ``mean``: what a reverse step believed."""
        return (mean - self._at("mean_from_xt", t, xt) * xt) / self._at("mean_from_x0", t, xt)

    # ---- the reverse chain ------------------------------------------------------------------------------------------

    def believe(
        self, net: Net, x: Data, t: Steps, clip: bool | None = None, **cond: Tensor
    ) -> tuple[Data, Data | None]:
        """x̂_0 at x_t, clipped where asked, and log σ² where it is learned; ``clip`` overrides the process's own choice.

        x may be float64 while the network keeps its own precision.
        """
        prediction, log_variance = self._ask(net, x, t, cond)
        x0_hat = self.x0_from(prediction, x, t)
        return x0_hat.clamp(-1, 1) if (self.clip if clip is None else clip) else x0_hat, log_variance

    def reverse(self, net: Net, x: Data, t: Steps, clip: bool | None = None, **cond: Tensor) -> Normal:
        """p_θ(x_{t−1} | x_t) as a Normal (DDPM 1); its mean is (DDPM 11) where nothing is clipped."""
        return self._kernel(*self.believe(net, x, t, clip, **cond), x, t)

    def denoiser(self, net: Net) -> "GaussianDenoiser":
        """The same network as a function of x_0 + σ n and σ, the form in which any ODE or SDE solver takes it."""
        return GaussianDenoiser(self, net)

    # ---- objectives -------------------------------------------------------------------------------------------------

    def loss(self, net: Net, x0: Data, t: Steps, noise: Data, **cond: Tensor) -> dict[str, PerExample]:
        """Per-example losses; ``loss`` is to be minimised, the others are reported (DDPM 14, DDPM 5, or IDDPM 16)."""
        if self.loss_kind == "bound":
            terms = self.bound_term(net, x0, t, noise, clip=False, **cond)
            return {"loss": self.T * terms["bits"], **terms}
        xt = self.q_sample(x0, t, noise)
        prediction, log_variance = self._ask(net, xt, t, cond)
        mse = flat_mean((prediction - self.target(x0, t, noise)) ** 2)
        simple = self.weight[t].to(mse.dtype) * mse
        if self.loss_kind == "simple":
            return {"loss": simple, "mse": mse}
        x0_hat = self.x0_from(prediction.detach(), xt, t)  # the bound would pull at the mean too; here it must not
        terms = self._bound_term(x0, xt, t, x0_hat, log_variance)
        return {"loss": simple + self.lambda_vlb * self.T * terms["bits"], "mse": mse, **terms}

    def bound_term(
        self, net: Net, x0: Data, t: Steps, noise: Data, clip: bool | None = None, **cond: Tensor
    ) -> dict[str, PerExample]:
        """One term of (DDPM 5) at each example's t: ``bits`` per dimension, and the squared errors behind it.

        t > 0 gives the Kullback–Leibler divergence of one reverse step from the posterior, t = 0 the discretised
        decoder (DDPM 13). ``x0_mse`` is of x̂_0, ``eps_mse`` of the noise that x̂_0 leaves over.
        """
        xt = self.q_sample(x0, t, noise)
        return self._bound_term(x0, xt, t, *self.believe(net, xt, t, clip, **cond))

    def _bound_term(
        self, x0: Data, xt: Data, t: Steps, x0_hat: Data, log_variance: Data | None
    ) -> dict[str, PerExample]:
        reverse = self._kernel(x0_hat, log_variance, xt, t)
        mean, _ = self.q_posterior(x0, xt, t)
        kl = normal_kl(mean, self._at("log_beta_tilde", t, xt), reverse.mean, 2 * reverse.scale.log())
        decoder = -discretised_normal_log_prob(x0, reverse.mean, reverse.scale, self.levels)
        nats = torch.where(t == 0, flat_mean(decoder), flat_mean(kl))
        x0_mse = flat_mean((x0_hat - x0) ** 2)
        return {"bits": nats / LN2, "x0_mse": x0_mse, "eps_mse": x0_mse / self.sigma[t].to(x0.dtype) ** 2}

    def prior_term(self, x0: Data) -> PerExample:
        """L_T = D_KL(q(x_T | x_0) ‖ N(0, I)) in bits per dimension: what is left of the data in x_T (DDPM 5)."""
        alpha_bar = self.alpha_bar[-1].to(x0.dtype)
        zero = torch.zeros((), dtype=x0.dtype, device=x0.device)
        kl = normal_kl(alpha_bar.sqrt() * x0, torch.log1p(-alpha_bar), torch.zeros_like(x0), zero)
        return flat_mean(kl) / LN2

    def entropies(self, x0: Data) -> tuple[Float[Tensor, "T"], Float[Tensor, "T"]]:
        """H_q(X_t | X_{t−1}) and H_q(X_t | X_0), in bits per dimension: what (SD 24) is made of."""
        return gaussian_entropies(self.betas, self.alpha_bar)

    # ---- helpers ----------------------------------------------------------------------------------------------------

    def _at(self, table: str, t: Steps, x: Tensor) -> Tensor:
        """Row t of a table, in x's precision, shaped to broadcast over x's dimensions."""
        return over(getattr(self, table)[t], x)

    def _kernel(self, x0_hat: Data, log_variance: Data | None, xt: Data, t: Steps) -> Normal:
        """The posterior (DDPM 6) with x̂_0 in place of x_0, and the variance of the reverse chain."""
        mean, _ = self.q_posterior(x0_hat, xt, t)
        if log_variance is None:
            log_variance = self._at("log_beta" if self.variance == "large" else "log_beta_tilde", t, xt)
        return Normal(mean, torch.exp(0.5 * log_variance).expand_as(mean), validate_args=False)

    def _ask(self, net: Net, x: Data, t: Steps, cond: dict[str, Tensor]) -> tuple[Data, Data | None]:
        """The network's prediction, and log σ² where it is learned: the halves of its channels."""
        output = call_network(net, x, self.fed[t], cond)
        if self.variance not in ("learned", "range"):
            return output, None
        prediction, head = output.chunk(2, dim=1)
        if self.variance == "learned":
            return prediction, head
        # v = (v' + 1)/2, so that v' = −1 is β̃ and v' = 1 is β (IDDPM 15); nothing bounds v'. Log β has no floor at
        # t = 0, where log β̃ has one: the decoder's width is free too.
        v = (head + 1) / 2
        return prediction, v * self._at("betas", t, x).log() + (1 - v) * self._at("log_beta_tilde", t, x)


class GaussianDenoiser:
    """``denoise(x, sigma, **cond) -> x0_hat``: a discrete process's network seen as a denoiser (EDM §5).

    x = x_0 + σ n is scaled by 1/√(1+σ²) to what the network knows, and σ is rounded to the level of the chain that is
    nearest in log σ.
    """

    def __init__(self, process: nn.Module, net: Net):
        self.process, self.net = process, net

    def __call__(self, x: Data, sigma: Tensor | float, **cond: Tensor) -> Data:
        """x̂_0 at noise level sigma, a number or one for each example; clipped where the process clips."""
        return self.process.believe(self.net, *on_chain(self.process, x, sigma), **cond)[0]


def on_chain(process: nn.Module, x: Data, sigma: Tensor | float) -> tuple[Data, Steps]:
    """x = x_0 + σ n as a chain knows it: x_t = x/√(1 + σ²), and t of the level that is next to σ."""
    sigma = torch.as_tensor(sigma, dtype=process.sigma.dtype, device=x.device).expand(len(x))
    t = (process.sigma.log() - sigma.log()[:, None]).abs().argmin(1)
    return x * over(1 / (1 + sigma**2).sqrt(), x), t
