"""A small network for points and other short vectors."""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .layers import time_embedding


class MLP(nn.Module):
    """``net(x, t)`` for x (batch, dim): the point and the embedded time through ``depth`` hidden layers.

    The last layer starts at zero, so an untrained network answers 0 everywhere.
    """

    def __init__(self, dim: int, out_dim: int | None = None, width: int = 128, depth: int = 3):
        super().__init__()
        self.embedding = 32
        widths = [dim + self.embedding] + [width] * depth
        hidden = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.SiLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, out_dim or dim))
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, x: Float[Tensor, "batch dim"], t: Float[Tensor, " batch"]) -> Float[Tensor, "batch out"]:
        return self.layers(torch.cat([x, time_embedding(t, self.embedding).to(x.dtype)], dim=1))
