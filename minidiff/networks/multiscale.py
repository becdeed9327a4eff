"""The first paper's network for images: convolutions at several scales, then a small dense network at every pixel."""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import Features
from .readout import BumpReadout


class MultiScaleConv(nn.Module):
    """Means over 1, 2, 4 … pixels, each convolved 3×3, brought back to full size and added (SD Appendix D.2.1)."""

    def __init__(self, in_channels: int, out_channels: int, scales: int):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(in_channels, out_channels, 3, padding=1) for _ in range(scales))

    def forward(self, x: Features) -> Float[Tensor, "batch out height width"]:
        full = self.convs[0](x)
        for k, conv in enumerate(self.convs[1:], start=1):
            full = full + F.interpolate(conv(F.avg_pool2d(x, 2**k)), scale_factor=float(2**k), mode="nearest")
        return full / len(self.convs) ** 0.5


class MultiScale(nn.Module):
    """``net(x, t)`` for images: ``layers`` multi-scale convolutions with softplus, ``dense`` layers with tanh at every
    pixel, and a read-out by bumps of time (SD 62). Below the read-out nothing sees t.

    Sides must divide by 2^(scales − 1).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        T: int,
        features: int = 32,
        layers: int = 4,
        dense: int = 2,
        scales: int = 3,
        bumps: int = 10,
    ):
        super().__init__()
        self.divisor = 2 ** (scales - 1)
        widths = [in_channels] + [features] * layers
        self.convs = nn.ModuleList(MultiScaleConv(a, b, scales) for a, b in pairwise(widths))
        self.dense = nn.ModuleList(nn.Linear(features, features) for _ in range(dense))
        self.readout = BumpReadout(features, out_channels, T, bumps)

    def forward(self, x: Features, t: Float[Tensor, " batch"]) -> Float[Tensor, "batch out height width"]:
        for conv in self.convs:
            x = F.softplus(conv(x))
        h = x.movedim(1, -1)
        for layer in self.dense:
            h = torch.tanh(layer(h))
        return self.readout(h, t).movedim(-1, 1)
