"""The bricks of the papers' networks. Images are (batch, channel, height, width)."""

import math

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

Features = Float[Tensor, "batch channel height width"]


def time_embedding(t: Float[Tensor, " batch"], dim: int, max_period: float = 10_000.0) -> Float[Tensor, "batch dim"]:
    """Sines, then cosines, of t at dim/2 frequencies falling geometrically from 1 to 1/max_period, both included."""
    half = dim // 2
    rate = math.log(max_period) / (half - 1)
    angles = t[:, None] * torch.exp(-rate * torch.arange(half, dtype=t.dtype, device=t.device))
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def norm(channels: int) -> nn.GroupNorm:
    """Group normalisation in the paper's 32 groups; in fewer, of at least 4 channels, where a width is small or odd."""
    groups = 32 if channels >= 128 and channels % 32 == 0 else math.gcd(32, channels // 4)
    return nn.GroupNorm(groups, channels, eps=1e-6)


def initialise(module: nn.Module) -> nn.Module:
    """Uniform weights of variance 2 / (fan in + fan out), zero biases, for every convolution and linear layer."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return module


def zero(layer: nn.Module) -> nn.Module:
    """Set a layer to zero: a residual branch that starts as nothing lets the block start as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class ResBlock(nn.Module):
    """Norm, swish, convolution, twice; the time is added in between; the input is added at the end."""

    def __init__(self, in_channels: int, out_channels: int, time_channels: int, dropout: float):
        super().__init__()
        self.norm1, self.conv1 = norm(in_channels), nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time = nn.Linear(time_channels, out_channels)
        self.norm2, self.conv2 = norm(out_channels), nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Features, time: Float[Tensor, "batch time"]) -> Float[Tensor, "batch out height width"]:
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time(F.silu(time))[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.skip(x) + h


class Attention(nn.Module):
    """Every pixel looks at every pixel, with one head, and adds what it found."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = norm(channels)
        self.qkv, self.out = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Features) -> Features:
        q, k, v = rearrange(self.qkv(self.norm(x)), "b (qkv c) h w -> qkv b 1 (h w) c", qkv=3)
        found = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(rearrange(found, "b 1 (h w) c -> b c h w", h=x.shape[2]))


class Downsample(nn.Module):
    """Half the height and width by a strided convolution, padded right and below only, as in the official code."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Features) -> Float[Tensor, "batch channel height//2 width//2"]:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the height and width by repeating pixels, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Features) -> Float[Tensor, "batch channel 2*height 2*width"]:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
