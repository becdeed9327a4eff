"""How much noise each step adds: β_1 … β_T in float64, as tensors of length T whose index 0 holds β_1.

All functions raise ``ValueError`` for a T that they cannot serve. The tensors are made on the CPU whatever torch's
default device is, so that a network can be built on ``meta`` beside a process whose tables are real.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

Betas = Float[Tensor, "T"]


def linear_betas(T: int, first: float = 1e-4, last: float = 0.02) -> Betas:
    """β rising on a straight line, both ends included (DDPM §4); the ends are stated for T = 1000.

    For another T both are multiplied by 1000 / T, as in Improved DDPM, so that the chain ends at nearly the same ᾱ_T.
    Raises ValueError where that makes a β of 1 or more.
    """
    return torch.linspace(*_ends(T, first, last), T, dtype=torch.float64, device="cpu")


def quadratic_betas(T: int, first: float = 1e-4, last: float = 0.02) -> Betas:
    """√β rising on a straight line: less noise in the early steps than ``linear_betas``, the ends meant as there."""
    first, last = _ends(T, first, last)
    return torch.linspace(first**0.5, last**0.5, T, dtype=torch.float64, device="cpu") ** 2


def constant_betas(T: int, beta: float = 0.01) -> Betas:
    """The same β in every step, stated for T = 1000 and scaled as in ``linear_betas``."""
    return linear_betas(T, beta, beta)


def harmonic_betas(T: int) -> Betas:
    """β_t = 1 / (T − t + 1): every step erases the same share 1/T of the first signal (SD §2.4.1); ends at β_T = 1."""
    _check_steps(T)
    return 1 / torch.arange(T, 0, -1, dtype=torch.float64, device="cpu")


def geometric_betas(T: int, first: float = 1e-4, last: float = 0.5) -> Betas:
    """β growing by the same factor in every step, both ends included and meant for this T, whatever it is."""
    _check_steps(T)
    return torch.logspace(math.log10(first), math.log10(last), T, dtype=torch.float64, device="cpu")


def cosine_betas(T: int, s: float = 0.008, max_beta: float = 0.999) -> Betas:
    """β from ᾱ_t ∝ cos²((t/T + s) / (1 + s) · π/2), each at most ``max_beta`` (IDDPM 17)."""
    _check_steps(T)
    t = torch.arange(T + 1, dtype=torch.float64, device="cpu") / T
    f = torch.cos((t + s) / (1 + s) * math.pi / 2) ** 2
    return (1 - f[1:] / f[:-1]).clamp(max=max_beta)


SCHEDULES = {
    "linear": linear_betas,
    "quadratic": quadratic_betas,
    "constant": constant_betas,
    "harmonic": harmonic_betas,
    "geometric": geometric_betas,
    "cosine": cosine_betas,
}


def _ends(T: int, first: float, last: float) -> tuple[float, float]:
    """β_1 and β_T for T steps, from their values for 1000."""
    _check_steps(T)
    scale = 1000 / T
    if last * scale >= 1:
        raise ValueError(
            f"T={T} is too short for a schedule that ends at {last} per 1000 steps: β_T would be {last * scale:.2f}. "
            f"Take T above {math.ceil(1000 * last)}, or cosine_betas."
        )
    return first * scale, last * scale


def checked_betas(betas: Betas) -> Betas:
    """β in float64. Raises ValueError for fewer than 2, and for one outside of (0, 1]; 1 may stand at the end alone."""
    betas = betas.double()
    if len(betas) < 2 or not ((betas > 0) & (betas <= 1)).all() or (betas[:-1] == 1).any():
        raise ValueError("betas: give at least 2 values, each above 0 and at most 1, and 1 only at the end.")
    return betas


def _check_steps(T: int) -> None:
    if T < 2:
        raise ValueError(f"T={T}: a chain needs at least 2 steps.")
