"""Noise that belongs to an image, not to a batch."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Noise = Callable[[int], Tensor]


def per_image_noise(seeds: Sequence[int], shape: Sequence[int]) -> Noise:
    """``noise(step)`` for a sampler: standard normals (len(seeds), *shape), float64, on the CPU.

    Row i is a function of (seeds[i], step) alone, so an image is the same in any batch, on any number of processes and
    on any device. Step 0 is the starting noise.
    """
    generator = torch.Generator()

    def noise(step: int) -> Float[Tensor, "batch *dims"]:
        rows = []
        for seed in seeds:
            state = np.random.SeedSequence(seed, spawn_key=(step,)).generate_state(1, np.uint64)
            generator.manual_seed(int(state[0] >> 1))
            rows.append(torch.randn(*shape, generator=generator, dtype=torch.float64))
        return torch.stack(rows)

    return noise


def solver_dtype(device: torch.device) -> torch.dtype:
    """What a solver computes in: float64, except on Apple's MPS, which has none."""
    return torch.float32 if device.type == "mps" else torch.float64


def tempered(noise: Noise, tau: float) -> Noise:
    """The noise of every step times the temperature τ, but the start's as it is (ADM App. G).

    Raises ValueError for a τ below 0.
    """
    if not tau >= 0:
        raise ValueError(f"tau={tau}: give a temperature of at least 0, such as 0.98.")
    return lambda step: noise(step) if step == 0 else tau * noise(step)


def batch_noise(generator: torch.Generator, n: int, shape: Sequence[int]) -> Noise:
    """``noise(step)`` drawn in order from one generator: quicker, for the many images of an experiment."""

    def noise(step: int) -> Float[Tensor, "batch *dims"]:
        return torch.randn(n, *shape, generator=generator, dtype=torch.float64, device=generator.device)

    return noise
