"""The likelihood itself and not a bound: along the probability-flow ODE a density changes by what the flow spreads."""

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from minidiff.diffusion import Path
from minidiff.diffusion.stats import LN2

Data = Float[Tensor, "batch *dims"]
PerExample = Float[Tensor, " batch"]


def ode_log_prob(
    denoise: Callable[..., Tensor],
    x: Data,
    path: Path,
    probe: Data | None = None,
    log_prior: Callable[[Data], PerExample] | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    cond: dict[str, Tensor] | None = None,
) -> PerExample:
    """log p(x) of each example in nats: log p(x(t_max)) + ∫ div v dt along the ODE that begins at x (SDE 39).

    Args:
        denoise: ``denoise(x, sigma, **cond) -> x0_hat``, differentiable in x and continuous in σ.
        x: (batch, *dims), taken as x(t_min).
        path: gives the velocity v and the ends of the integral.
        probe: ε of mean 0 and covariance 1, as from ``rademacher``, for the unbiased ε·(∂v/∂x)ε in place of the
            divergence (SDE 40), which takes one backward pass an evaluation. Without it the divergence is exact and
            takes one a dimension.
        log_prior: log density of x(t_max), per example; that of N(0, s²σ²) unless given. Data whose mean is not 0 leave
            some of it in x(t_max).
        rtol, atol: of scipy's RK45, whose state is the whole batch.
        cond: what the network is conditioned on.

    Raises FloatingPointError where the velocity is not finite or the solver gives up.
    """
    latent, spread = _flow(denoise, x, path, path.t_min, path.t_max, rtol, atol, cond, probe, True)
    if log_prior is None:
        prior = torch.distributions.Normal(0.0, path.std(path.t_max).item())
        log_prior = lambda x: prior.log_prob(x).flatten(1).sum(1)
    return log_prior(latent) + spread


def ode_encode(
    denoise: Callable[..., Tensor],
    x: Data,
    path: Path,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    cond: dict[str, Tensor] | None = None,
) -> Data:
    """x(t_max) of the ODE's solution that begins at x at t_min: the one latent of x, whatever network was trained."""
    return _flow(denoise, x, path, path.t_min, path.t_max, rtol, atol, cond)[0]


def ode_decode(
    denoise: Callable[..., Tensor],
    latent: Data,
    path: Path,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    cond: dict[str, Tensor] | None = None,
) -> Data:
    """The way back: x(t_min) of the solution that ends in ``latent`` at t_max."""
    return _flow(denoise, latent, path, path.t_max, path.t_min, rtol, atol, cond)[0]


def rademacher(x: Data, generator: torch.Generator) -> Data:
    """+1 or −1 with probability ½, shaped like x: the probe of least variance."""
    return torch.randint(2, x.shape, generator=generator, device=x.device).to(x) * 2 - 1


def dequantise(x0: Data, levels: int, generator: torch.Generator) -> Data:
    """Each value moved uniformly within its bin, of width 2/(levels − 1) about it.

    A level is then as wide as the next, and the data fill [−1 − 1/(levels − 1), 1 + 1/(levels − 1)].
    """
    u = torch.rand(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
    return x0 + (u - 0.5) * 2 / (levels - 1)


def bits_per_dim(log_prob: PerExample, dims: int, levels: int) -> PerExample:
    """Bits per dimension of levels, from the log density of their dequantised values in nats.

    −log2 p / dims is of a density on [−1, 1]; log2((levels − 1)/2) is what the bins' width adds. The mean over the
    uniform noise is an upper bound of the discrete data's −log2 P.
    """
    return -log_prob / (LN2 * dims) + math.log2((levels - 1) / 2)


def _flow(
    denoise: Callable[..., Tensor],
    x: Data,
    path: Path,
    begin: float,
    end: float,
    rtol: float,
    atol: float,
    cond: dict[str, Tensor] | None,
    probe: Data | None = None,
    with_divergence: bool = False,
) -> tuple[Data, PerExample]:
    """Where the ODE takes x from one time to another, and ∫ div v dt (0 where it is not asked for)."""

    def slope(t: float, state: np.ndarray) -> np.ndarray:
        at = torch.from_numpy(state[: x.numel()]).to(x).reshape(x.shape)
        with torch.set_grad_enabled(with_divergence):
            at = at.requires_grad_(with_divergence)
            v = path.velocity(at, path.denoised(denoise, at, t, **(cond or {})), t)
        div = _divergence(v, at, probe) if with_divergence else x.new_zeros(len(x))
        change = torch.cat([v.detach().flatten(), div]).double().cpu().numpy()
        if not np.isfinite(change).all():  # the solver would try ever smaller steps for ever
            raise FloatingPointError(f"the ODE at t = {t}: its velocity or divergence is not finite.")
        return change

    from scipy.integrate import solve_ivp  # here, because it takes half a second to import

    state = np.concatenate([x.detach().flatten().double().cpu().numpy(), np.zeros(len(x))])
    solution = solve_ivp(slope, (begin, end), state, "RK45", t_eval=[end], rtol=rtol, atol=atol)
    if not solution.success:
        raise FloatingPointError(f"the ODE from t = {begin} to {end} has no solution: {solution.message}")
    final = torch.from_numpy(solution.y[:, 0]).to(x)
    return final[: x.numel()].reshape(x.shape), final[x.numel() :]


def _divergence(v: Data, x: Data, probe: Data | None) -> PerExample:
    """Σ_k ∂v_k/∂x_k, or its estimate from one probe; the examples of a batch do not act on each other."""
    if probe is not None:
        (product,) = torch.autograd.grad((v * probe).sum(), x)
        return (product * probe).flatten(1).sum(1)
    parts = []
    for k, total in enumerate(v.flatten(1).sum(0)):
        (slope,) = torch.autograd.grad(total, x, retain_graph=True)
        parts.append(slope.flatten(1)[:, k])
    return torch.stack(parts).sum(0)
