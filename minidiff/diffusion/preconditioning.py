"""What stands between a network and a denoiser, and which noise it is trained with: the columns of EDM's Table 1.

A column is a path and a few functions of σ, and it is all that tells VP, VE, iDDPM and EDM apart: the objective, the
denoiser and the solvers are written once. σ is the noise level of x = y + σ n, and takes t's place in training.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Normal

from .gaussian import Net, PerExample, call_network
from .paths import Data, EDMPath, IDDPMPath, Path, Values, VEPath, VPPath
from .stats import flat_mean, over

OfSigma = Callable[[Values], Values]


@dataclass(frozen=True)
class Column:
    """One column of Table 1, float64 functions of σ as they are printed there; a new one is a handful of lambdas.

    ``path`` leads a solver. The denoiser is D = c_skip x + c_out F(c_in x; c_noise). ``weight`` is λ, and ``quantile``
    the law of σ in training, p_train: what it gives for u uniform on (0, 1).
    """

    path: Path
    c_skip: OfSigma
    c_out: OfSigma
    c_in: OfSigma
    c_noise: OfSigma
    weight: OfSigma
    quantile: OfSigma

    def trained_as(self, other: "Column") -> "Column":
        """This column's network and path with another's λ and p_train: C, D and E of EDM's Table 2."""
        return replace(self, weight=other.weight, quantile=other.quantile)


def edm_column(
    sigma_data: float = 0.5,
    P_mean: float = -1.2,
    P_std: float = 1.2,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
) -> Column:
    """EDM's own: the network's input and target have variance 1 at every σ, where ``sigma_data``² = E[y²] a dimension.

    ln σ ~ N(P_mean, P_std²) in training (EDM Table 1). Raises ValueError for numbers that make no column.
    """
    if not 0 < sigma_data < torch.inf or not 0 < P_std < torch.inf or not abs(P_mean) < torch.inf:
        raise ValueError(
            f"sigma_data={sigma_data}, P_mean={P_mean}, P_std={P_std}: give finite ones, the first and the last > 0."
        )
    total = lambda sigma: sigma**2 + sigma_data**2
    return Column(
        path=EDMPath(sigma_min, sigma_max, rho),
        c_skip=lambda sigma: sigma_data**2 / total(sigma),
        c_out=lambda sigma: sigma * sigma_data / total(sigma).sqrt(),
        c_in=lambda sigma: 1 / total(sigma).sqrt(),
        c_noise=lambda sigma: sigma.log() / 4,
        weight=lambda sigma: total(sigma) / (sigma * sigma_data) ** 2,
        quantile=lambda u: torch.exp(P_mean + P_std * torch.special.ndtri(u)),
    )


def vp_column(
    beta_min: float = 0.1, beta_d: float = 19.9, eps_s: float = 1e-3, eps_t: float = 1e-5, M: float = 1000
) -> Column:
    """The variance preserving SDE's: the network predicts the noise, and is fed M − 1 times t (EDM Table 1).

    t is uniform on (eps_t, 1) in training; a solver stops at eps_s.
    """
    path = VPPath(beta_min, beta_d, t_min=eps_s)
    return Column(
        path,
        c_skip=torch.ones_like,
        c_out=lambda sigma: -sigma,
        c_in=lambda sigma: 1 / (sigma**2 + 1).sqrt(),
        c_noise=lambda sigma: (M - 1) * path.t_of_sigma(sigma),
        weight=lambda sigma: 1 / sigma**2,
        quantile=lambda u: path.sigma(eps_t + u * (path.t_max - eps_t)),
    )


def ve_column(sigma_min: float = 0.02, sigma_max: float = 100.0) -> Column:
    """The variance exploding SDE's: the network predicts minus the noise, and sees x as it is (EDM Table 1)."""
    return Column(
        path=VEPath(sigma_min, sigma_max),
        c_skip=torch.ones_like,
        c_out=lambda sigma: sigma,
        c_in=torch.ones_like,
        c_noise=lambda sigma: (sigma / 2).log(),
        weight=lambda sigma: 1 / sigma**2,
        quantile=lambda u: sigma_min * (sigma_max / sigma_min) ** u,
    )


def iddpm_column(M: float = 1000, j_0: float = 8, C_1: float = 0.001, C_2: float = 0.008) -> Column:
    """Improved DDPM's: the network predicts the noise, and is fed the step of the level u_j next to σ (EDM Table 1)."""
    path = IDDPMPath(int(M), int(j_0), C_1, C_2)
    place = cache(path.u[:-1].to)  # u_M = 0 is no level of the chain; a GPU gets the others once, not at every step
    levels = lambda like: place(like.device)
    return Column(
        path,
        c_skip=torch.ones_like,
        c_out=lambda sigma: -sigma,
        c_in=lambda sigma: 1 / (sigma**2 + 1).sqrt(),
        c_noise=lambda sigma: path.M - 1 - (levels(sigma) - sigma[..., None]).abs().argmin(-1).double(),
        weight=lambda sigma: 1 / sigma**2,
        quantile=lambda u: levels(u)[(u * path.M).long()],
    )


COLUMNS: dict[str, Callable[..., Column]] = {
    "edm": edm_column,
    "vp": vp_column,
    "ve": ve_column,
    "iddpm": iddpm_column,
}


class EDM(nn.Module):
    """A network under a column of Table 1: its objective, its denoiser, and where its solver starts.

    Args:
        column: what is done with x, σ and the network's output.
        steps: how many a solver takes on the column's path unless told otherwise.

    A network with more output channels than data, as one that also learned a variance, is used by the first of them.
    Raises ValueError for no steps.
    """

    def __init__(self, column: Column, steps: int = 18):
        super().__init__()
        if steps < 1:
            raise ValueError(f"steps={steps}: a solver takes at least 1.")
        self.column, self.path, self.steps = column, column.path, steps

    @property
    def prior(self) -> Normal:
        """N(0, s² σ²) at the path's first time, where sampling starts (EDM Alg. 1)."""
        std = self.path.std(self.path.t_max)
        return Normal(torch.zeros_like(std), std, validate_args=False)

    def draw_noise(self, x0: Data, generator: torch.Generator) -> Data:
        """Standard normal noise shaped like x0, from the generator."""
        return torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)

    def target(self, x0: Data, sigma: Float[Tensor, " batch"], noise: Data) -> Data:
        """What the network should answer, (y − c_skip (y + σ n)) / c_out (EDM 8); for VP and iDDPM this is n itself.

        Written as one factor of y and one of n, so that nothing cancels in single precision where σ is small.
        """
        c_skip, c_out = self.column.c_skip(sigma), self.column.c_out(sigma)
        return over((1 - c_skip) / c_out, x0) * x0 - over(c_skip * sigma / c_out, x0) * noise

    def loss(
        self, net: Net, x0: Data, t: Float[Tensor, " batch"], noise: Data, **cond: Tensor
    ) -> dict[str, PerExample]:
        """``loss``, λ c_out² times the network's squared error, for noise levels t = σ; means over dimensions (EDM 8).

        ``x0_mse`` is the squared error of the denoiser, which λ weighs; it is only reported.
        """
        sigma = t.double()
        answer = self._ask(net, x0 + over(sigma, x0) * noise, sigma, cond)
        mse = flat_mean((answer - self.target(x0, sigma, noise)) ** 2)
        scale = self.column.c_out(sigma) ** 2
        return {"loss": (self.column.weight(sigma) * scale).to(mse) * mse, "x0_mse": scale.to(mse) * mse}

    def denoise(self, net: Net, x: Data, sigma: Values | float, **cond: Tensor) -> Data:
        """x̂_0 of x = y + σ n, as c_skip x + c_out F(c_in x; c_noise), in x's precision (EDM 7).

        sigma is a number or one for each example, above 0.
        """
        sigma = torch.as_tensor(sigma, dtype=torch.float64, device=x.device).expand(len(x))
        answer = self._ask(net, x, sigma, cond)
        return over(self.column.c_skip(sigma), x) * x + over(self.column.c_out(sigma), x) * answer

    def denoiser(self, net: Net) -> Callable[..., Tensor]:
        """``denoise(x, sigma, **cond)`` of this network, the form in which any solver takes it."""
        return partial(self.denoise, net)

    def _ask(self, net: Net, x: Data, sigma: Float[Tensor, " batch"], cond: dict[str, Tensor]) -> Data:
        """The network's output F, without what it may say of a variance."""
        answer = call_network(net, over(self.column.c_in(sigma), x) * x, self.column.c_noise(sigma), cond)
        return answer[:, : x.shape[1]]
