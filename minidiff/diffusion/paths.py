"""Continuous time: how fast noise comes and how the data shrink, x(t) = s(t) (x_0 + σ(t) n) with normal n.

A path is σ(t), s(t), their derivatives, the inverse of σ, and the times at which its paper puts the steps of a solver.
All else follows from these, once for every path: the SDE that adds the noise, the score, and the ODE and the SDE that
take the noise away. The columns of EDM's Table 1 are paths; so is what a reader defines in a few lines.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from .stats import over

Data = Float[Tensor, "batch *dims"]
Time = Float[Tensor, "*t"] | float
Values = Float[Tensor, "*t"]
Denoiser = Callable[..., Tensor]


EXACT = {"dtype": torch.float64, "device": "cpu"}  # whatever torch's defaults are, such as the meta device


def _exact(t: Time) -> Values:
    return t.double() if isinstance(t, Tensor) else torch.tensor(t, **EXACT)


class Path:
    """A path; as it stands σ(t) = t and s(t) = 1, and a subclass says what differs.

    It is a frozen dataclass with the times ``t_min`` and ``t_max`` between which it is used, or the noise levels
    ``sigma_min`` and ``sigma_max`` there, and any of ``sigma``, ``sigma_dot``, ``s``, ``s_dot``, ``t_of_sigma`` and
    ``grid``, functions of a float64 tensor. σ must rise with t from σ(0) = 0. Where a method takes data, t is one time
    or (batch,). Raises ValueError for numbers that make no path.
    """

    def __post_init__(self):
        low, high = (self.sigma(_exact(t)) for t in (self.t_min, self.t_max))
        if not 0 < self.t_min < self.t_max or not 0 < low < high < torch.inf:
            raise ValueError(f"{self}: times and noise levels must rise from above 0 to a finite end.")

    # ---- what makes a path ------------------------------------------------------------------------------------------

    @property
    def t_min(self) -> float:
        """The last time before 0 that a solver sees."""
        return self.t_of_sigma(_exact(self.sigma_min)).item()

    @property
    def t_max(self) -> float:
        """Where a solver begins."""
        return self.t_of_sigma(_exact(self.sigma_max)).item()

    def sigma(self, t: Time) -> Values:
        """σ(t), the noise level of x(t)/s(t)."""
        return _exact(t)

    def sigma_dot(self, t: Time) -> Values:
        """dσ/dt."""
        return torch.ones_like(_exact(t))

    def s(self, t: Time) -> Values:
        """s(t), what x_0 and noise are both multiplied with."""
        return torch.ones_like(_exact(t))

    def s_dot(self, t: Time) -> Values:
        """ds/dt."""
        return torch.zeros_like(_exact(t))

    def t_of_sigma(self, sigma: Time) -> Values:
        """The time of a noise level: the inverse of ``sigma``."""
        return _exact(sigma)

    def grid(self, n: int) -> Float[Tensor, " n"]:
        """t_0 > … > t_{n−1}, from t_max to t_min; evenly spaced unless a subclass says otherwise."""
        return torch.linspace(self.t_max, self.t_min, n, **EXACT)

    # ---- what follows -----------------------------------------------------------------------------------------------

    def steps(self, n: int) -> Float[Tensor, " times"]:
        """The n + 1 times of n steps: the path's own ``grid``, and a last 0. Raises ValueError for n below 1."""
        if n < 1:
            raise ValueError(f"n={n}: a solver takes at least 1 step.")
        return torch.cat([self.grid(n), torch.zeros(1, **EXACT)])

    def std(self, t: Time) -> Values:
        """Standard deviation s(t) σ(t) of x(t) given x_0; its mean is s(t) x_0 (SDE 29)."""
        t = _exact(t)
        return self.s(t) * self.sigma(t)

    def q_sample(self, x0: Data, t: Time, noise: Data) -> Data:
        """x(t) = s(t) (x_0 + σ(t) n)."""
        t = _exact(t)
        return over(self.s(t), x0) * x0 + over(self.std(t), x0) * noise

    def f(self, t: Time) -> Values:
        """ṡ/s, the drift of the SDE dx = f(t) x dt + g(t) dw whose solution x(t) is (SDE 5)."""
        t = _exact(t)
        return self.s_dot(t) / self.s(t)

    def g(self, t: Time) -> Values:
        """s √(2 σ̇ σ), how fast that SDE adds noise."""
        t = _exact(t)
        return self.s(t) * (2 * self.sigma_dot(t) * self.sigma(t)).sqrt()

    def denoised(self, denoise: Denoiser, x: Data, t: Time, **cond: Tensor) -> Data:
        """x̂_0 at x(t): the denoiser at x/s, which is x_0 + σ n."""
        t = _exact(t)
        sigma = self.sigma(t)
        return denoise(x / over(self.s(t), x), sigma if sigma.ndim else sigma.item(), **cond)

    def score(self, x: Data, x0_hat: Data, t: Time) -> Data:
        """∇ log p_t(x) = (s x̂_0 − x) / (s σ)², where x̂_0 is the mean of x_0 given x(t)."""
        t = _exact(t)
        return (over(self.s(t), x) * x0_hat - x) / over(self.std(t), x) ** 2

    def velocity(self, x: Data, x0_hat: Data, t: Time) -> Data:
        """dx/dt along the probability-flow ODE, f x − ½ g² ∇ log p_t(x) (SDE 13), as (σ̇/σ + ṡ/s) x − (σ̇ s/σ) x̂_0."""
        t = _exact(t)
        rate = self.sigma_dot(t) / self.sigma(t)
        return over(rate + self.f(t), x) * x - over(rate * self.s(t), x) * x0_hat


@dataclass(frozen=True)
class VPPath(Path):
    """Variance preserving: s² (1 + σ²) = 1, with β(t) = β_min + β_d t (SDE 11); the first column of EDM's Table 1."""

    beta_min: float = 0.1
    beta_d: float = 19.9
    t_min: float = 1e-3
    t_max: float = 1.0

    def beta(self, t: Time) -> Values:
        """β(t)."""
        return self.beta_min + self.beta_d * _exact(t)

    def beta_integral(self, t: Time) -> Values:
        """∫_0^t β."""
        t = _exact(t)
        return (self.beta_min + 0.5 * self.beta_d * t) * t

    def sigma(self, t: Time) -> Values:
        """√(e^{∫β} − 1)."""
        return torch.expm1(self.beta_integral(t)).sqrt()

    def sigma_dot(self, t: Time) -> Values:
        """½ β (σ + 1/σ)."""
        sigma = self.sigma(t)
        return 0.5 * self.beta(t) * (sigma + 1 / sigma)

    def s(self, t: Time) -> Values:
        """e^{−½ ∫β}."""
        return torch.exp(-0.5 * self.beta_integral(t))

    def s_dot(self, t: Time) -> Values:
        """−½ β s."""
        return -0.5 * self.beta(t) * self.s(t)

    def t_of_sigma(self, sigma: Time) -> Values:
        """The time at which ∫β = log(1 + σ²)."""
        return self._t_of_integral(torch.log1p(_exact(sigma) ** 2))

    def _t_of_integral(self, integral: Values) -> Values:
        """Solves ½ β_d t² + β_min t = integral, in the form that does not cancel."""
        return 2 * integral / (self.beta_min + (self.beta_min**2 + 2 * self.beta_d * integral).sqrt())


@dataclass(frozen=True)
class SubVPPath(VPPath):
    """VP's shrinking with less noise: the standard deviation is 1 − e^{−∫β}, VP's variance (SDE 12)."""

    def sigma(self, t: Time) -> Values:
        """(1 − e^{−∫β}) / e^{−½ ∫β} = 2 sinh(½ ∫β)."""
        return 2 * torch.sinh(0.5 * self.beta_integral(t))

    def sigma_dot(self, t: Time) -> Values:
        """β cosh(½ ∫β)."""
        return self.beta(t) * torch.cosh(0.5 * self.beta_integral(t))

    def t_of_sigma(self, sigma: Time) -> Values:
        """The time at which ½ ∫β = arsinh(½ σ)."""
        return self._t_of_integral(2 * torch.asinh(0.5 * _exact(sigma)))


@dataclass(frozen=True)
class GeometricVEPath(Path):
    """Variance exploding as its paper states it: σ² = σ_min² ((σ_max/σ_min)^{2t} − 1) at t from 0 to 1 (SDE 9).

    The subtracted 1 lets the noise begin at 0; the paper's code leaves it out, which changes neither f nor g.
    """

    sigma_min: float = 0.02
    sigma_max: float = 100.0
    t_min: float = 1e-5
    t_max: float = 1.0

    @property
    def _rate(self) -> Values:
        return 2 * _exact(self.sigma_max / self.sigma_min).log()

    def sigma(self, t: Time) -> Values:
        """σ_min √((σ_max/σ_min)^{2t} − 1)."""
        return self.sigma_min * torch.expm1(self._rate * _exact(t)).sqrt()

    def sigma_dot(self, t: Time) -> Values:
        """log(σ_max/σ_min) (σ² + σ_min²) / σ."""
        sigma = self.sigma(t)
        return 0.5 * self._rate * (sigma + self.sigma_min**2 / sigma)

    def t_of_sigma(self, sigma: Time) -> Values:
        """½ log(1 + σ²/σ_min²) / log(σ_max/σ_min)."""
        return torch.log1p((_exact(sigma) / self.sigma_min) ** 2) / self._rate


@dataclass(frozen=True)
class VEPath(Path):
    """Variance exploding as its code runs it: σ = √t, with steps geometric in t; the second column of EDM's Table 1."""

    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def sigma(self, t: Time) -> Values:
        """√t."""
        return _exact(t).sqrt()

    def sigma_dot(self, t: Time) -> Values:
        """1 / (2 √t)."""
        return 0.5 / _exact(t).sqrt()

    def t_of_sigma(self, sigma: Time) -> Values:
        """σ²."""
        return _exact(sigma) ** 2

    def grid(self, n: int) -> Float[Tensor, " n"]:
        """σ_max² (σ_min²/σ_max²)^{i/(n−1)}."""
        return self.t_max * (self.t_min / self.t_max) ** torch.linspace(0, 1, n, **EXACT)


@dataclass(frozen=True)
class IDDPMPath(Path):
    """The noise levels of improved DDPM's cosine schedule, with σ = t: the third column of EDM's Table 1.

    ``M`` levels, of which a solver begins at ``j_0`` since the first few are huge; ``C_1`` bounds each step's growth,
    ``C_2`` is the cosine's offset. Raises ValueError unless 0 ≤ j_0 < M − 1.
    """

    M: int = 1000
    j_0: int = 8
    C_1: float = 0.001
    C_2: float = 0.008

    def __post_init__(self):
        if not 0 <= self.j_0 < self.M - 1:
            raise ValueError(f"j_0={self.j_0}: of M={self.M} levels a solver can begin at 0 … {self.M - 2}.")

    @cached_property
    def u(self) -> Float[Tensor, "levels"]:
        """u_0 > … > u_M = 0: u_{j−1} = √((u_j² + 1) / max(ᾱ_{j−1}/ᾱ_j, C_1) − 1)."""
        j = torch.arange(self.M + 1, **EXACT)
        alpha_bar = torch.sin(torch.pi / 2 * j / (self.M * (self.C_2 + 1))) ** 2
        growth = -(alpha_bar[:-1] / alpha_bar[1:]).clamp(min=self.C_1).log()
        # log(u_j² + 1) sums the growth from j on; so the small levels stay exact
        return torch.expm1(torch.cat([growth.flip(0).cumsum(0).flip(0), growth.new_zeros(1)])).sqrt()

    @property
    def sigma_min(self) -> float:
        """u_{M−1}."""
        return self.u[self.M - 1].item()

    @property
    def sigma_max(self) -> float:
        """u_{j_0}."""
        return self.u[self.j_0].item()

    def grid(self, n: int) -> Float[Tensor, " n"]:
        """u at ⌊j_0 + (M−1−j_0) i/(n−1) + ½⌋. Raises ValueError for more steps than there are levels."""
        if n > self.M - self.j_0:
            raise ValueError(f"n={n}: from j_0={self.j_0} there are {self.M - self.j_0} levels, one for each step.")
        return self.u[torch.floor(torch.linspace(self.j_0, self.M - 1, n, **EXACT) + 0.5).long()]


@dataclass(frozen=True)
class EDMPath(Path):
    """σ = t, with steps that are even in σ^{1/ρ}: the last column of EDM's Table 1."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self):
        super().__post_init__()
        if not 0.1 <= self.rho <= 1e9:  # beyond these, σ^{1/ρ} overflows or is 1 at every σ
            raise ValueError(f"rho={self.rho}: give a number from 0.1 to 1e9, such as 7.")

    def grid(self, n: int) -> Float[Tensor, " n"]:
        """(σ_max^{1/ρ} + i/(n−1) (σ_min^{1/ρ} − σ_max^{1/ρ}))^ρ."""
        ends = (self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho))
        return torch.linspace(*ends, n, **EXACT) ** self.rho
