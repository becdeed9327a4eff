"""Averaged weights: the network that is sampled from."""

from copy import deepcopy

import torch
from torch import nn


class EMA:
    """An exponential moving average of a module's parameters, with a half-life counted in images.

    Early in training the half-life is a twentieth of the images seen, so that the average forgets the random start
    (EDM Appendix F.2). Buffers are copied, never averaged.
    """

    def __init__(self, model: nn.Module, half_life: int):
        self.half_life = half_life
        self.model = deepcopy(model).eval().requires_grad_(False)
        # Looked up once: in a small network a walk through its modules takes as long as the average itself.
        self.averages, self.copies = list(self.model.parameters()), list(self.model.buffers())

    @torch.no_grad()
    def update(self, model: nn.Module, images_seen: int, batch: int) -> None:
        """Move towards the model after a step of ``batch`` images; ``images_seen`` counts those before it."""
        half_life = min(self.half_life, 0.05 * images_seen)
        beta = 0.5 ** (batch / half_life) if half_life > 0 else 0.0
        # as a lerp towards the model: mean ← mean + (1 − β)(model − mean)
        torch._foreach_lerp_(self.averages, list(model.parameters()), 1 - beta)
        for ours, theirs in zip(self.copies, model.buffers(), strict=True):
            ours.copy_(theirs)
