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
        # The tables in which modules keep their tensors. To walk through the modules at every step takes as long in a
        # small network as the average itself, and a list of the tensors would not follow them to another device.
        module = lambda key: self.model.get_submodule(key.rpartition(".")[0])
        name = lambda key: key.rpartition(".")[2]
        self.averages = [(module(key)._parameters, name(key)) for key, _ in self.model.named_parameters()]
        self.copies = [(module(key)._buffers, name(key)) for key, _ in self.model.named_buffers()]

    @torch.no_grad()
    def update(self, model: nn.Module, images_seen: int, batch: int) -> None:
        """Move towards the model after a step of ``batch`` images; ``images_seen`` counts those before it."""
        half_life = min(self.half_life, 0.05 * images_seen)
        beta = 0.5 ** (batch / half_life) if half_life > 0 else 0.0
        # as a lerp towards the model: mean ← mean + (1 − β)(model − mean)
        averages = [table[name] for table, name in self.averages]
        torch._foreach_lerp_(averages, list(model.parameters()), 1 - beta)
        for (table, name), buffer in zip(self.copies, model.buffers(), strict=True):
            table[name].copy_(buffer)
