"""Which step each training example is trained at, and how much it then counts; which steps a shorter chain keeps."""

import re
from collections.abc import Callable
from itertools import accumulate
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

Spacing = Literal["uniform", "quadratic", "leading", "trailing"]


class FixedTimes:
    """A law of t that learns nothing from the losses, and has nothing to save."""

    def update(self, t: Num[Tensor, " n"], loss: Float[Tensor, " n"]) -> None:
        """Nothing to learn."""

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing to save."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Nothing to load."""


class UniformTimes(FixedTimes):
    """t uniform on 0 … T − 1, every weight 1 (DDPM Alg. 1)."""

    def __init__(self, T: int):
        self.T = T

    def draw(self, n: int, generator: torch.Generator) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
        """n steps and the weights that the losses of these examples get; on the generator's device."""
        t = torch.randint(self.T, (n,), generator=generator, device=generator.device)
        return t, torch.ones(n, device=generator.device)


class SigmaTimes(FixedTimes):
    """Noise levels σ in the place of t, every weight 1: the quantiles of p_train at uniform u (EDM Table 1)."""

    def __init__(self, quantile: Callable[[Tensor], Tensor]):
        self.quantile = quantile

    def draw(self, n: int, generator: torch.Generator) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """n noise levels, float64, and the weights that their losses get; on the generator's device."""
        u = torch.rand(n, generator=generator, device=generator.device, dtype=torch.float64)
        return self.quantile(u.clamp(min=2**-54)), torch.ones(n, device=generator.device)  # at u = 0 σ may be 0


def subsequence(T: int, n: int, spacing: Spacing = "uniform") -> list[int]:
    """The n steps τ_1 < … < τ_n that a shorter chain keeps of 0 … T − 1 (DDIM App. D.2).

    ``uniform`` is ⌊i T/n⌋, the paper's linear choice, and ``quadratic`` ⌊(i √(0.8 T) / (n − 1))²⌋, its choice for
    CIFAR-10: both begin at 0 and leave out T − 1, i = 0 … n − 1. ``leading`` and ``trailing`` are what diffusers calls
    so: i ⌊T/n⌋, and ⌊T − i T/n⌉ − 1, which ends at T − 1. Raises ValueError where there are no n different steps.
    """
    i = np.arange(n)
    spacings = {
        "uniform": lambda: i * T // n,
        "quadratic": lambda: (np.linspace(0, (0.8 * T) ** 0.5, n) ** 2).astype(int),
        "leading": lambda: i * (T // n),
        "trailing": lambda: np.round(T - i[::-1] * (T / n)).astype(int) - 1,
    }
    if spacing not in spacings:
        raise ValueError(f"spacing={spacing!r}: take one of {', '.join(spacings)}.")
    if not 1 <= n <= T:
        raise ValueError(f"n={n}: of {T} steps one can keep 1 … {T}.")
    steps = spacings[spacing]()
    if (np.diff(steps) < 1).any():
        raise ValueError(f"n={n}: {spacing} spacing would keep some of the {T} steps twice; take fewer.")
    return steps.tolist()


def sections(T: int, counts: str) -> list[int]:
    """The steps that a string such as "250", "90,60,60,20,20" or "ddim25" keeps of 0 … T − 1 (IDDPM §4).

    Numbers divide the chain into as many sections of nearly equal length, the longer ones first, and each says how many
    evenly spaced steps, both ends included, its section keeps. "ddim25" keeps every k-th step from 0 on, for the least
    whole k that makes 25 of them. Raises ValueError for a string that keeps no such steps.
    """
    if not re.fullmatch(r"ddim[1-9]\d*|[1-9]\d*(,[1-9]\d*)*", counts, re.ASCII):
        raise ValueError(f"steps={counts!r}: say how many each section keeps, as 250 or 90,60,60,20,20, or ddim25.")
    keep = [int(number) for number in counts.removeprefix("ddim").split(",")]
    if counts.startswith("ddim"):
        strides = [k for k in range(1, T + 1) if len(range(0, T, k)) == keep[0]]
        if not strides:
            raise ValueError(f"steps={counts!r}: no whole stride keeps that many of {T} steps. Take {keep[0]} instead.")
        return list(range(0, T, strides[0]))
    sizes = [T // len(keep) + (k < T % len(keep)) for k in range(len(keep))]
    steps = []
    for size, n, begin in zip(sizes, keep, accumulate(sizes, initial=0), strict=False):
        if n > size:
            raise ValueError(f"steps={counts!r}: a section of {size} steps cannot keep {n}; take fewer.")
        # Added up and not multiplied: halves are rounded by their last bit, and the official lists came about so.
        places = accumulate([(size - 1) / max(n - 1, 1)] * (n - 1), initial=0.0)
        steps += [begin + round(place) for place in places]
    return steps
