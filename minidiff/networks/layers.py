"""The bricks of the papers' networks. Images are (batch, channel, height, width)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

Features = Float[Tensor, "batch channel height width"]
Embedded = Float[Tensor, "batch time"]

Convention = Literal["ddpm", "openai"]
Inject = Literal["add", "scale"]
Sampling = Literal["conv", "block"]


def time_embedding(t: Float[Tensor, " batch"], dim: int, convention: Convention = "ddpm") -> Float[Tensor, "batch dim"]:
    """Sines and cosines of t at dim/2 frequencies that fall geometrically from 1 to 1/10,000.

    In DDPM's code sines come first and the last frequency is 1/10,000; in OpenAI's (improved- and guided-diffusion)
    cosines come first and the last frequency is one step short of it.
    """
    half = dim // 2
    rate = math.log(10_000) / (half - 1 if convention == "ddpm" else half)
    angles = t[:, None] * torch.exp(-rate * torch.arange(half, dtype=t.dtype, device=t.device))
    waves = [angles.sin(), angles.cos()]
    return torch.cat(waves if convention == "ddpm" else waves[::-1], dim=1)


class GroupNorm(nn.GroupNorm):
    """Group normalisation whose sums are taken in float32 at least: those over an image overflow half precision."""

    def forward(self, x: Features) -> Features:
        wide = torch.promote_types(x.dtype, torch.float32)
        weight, bias = self.weight.to(wide), self.bias.to(wide)
        return F.group_norm(x.to(wide), self.num_groups, weight, bias, self.eps).to(x.dtype)


def norm(channels: int, eps: float = 1e-6) -> GroupNorm:
    """The usual 32 groups; in fewer, of at least 4 channels, where a width is small or odd."""
    groups = 32 if channels >= 128 and channels % 32 == 0 else math.gcd(32, channels // 4)
    return GroupNorm(groups, channels, eps=eps)


def norm_of_32(channels: int) -> GroupNorm:
    """32 groups at any width, as in OpenAI's code."""
    return GroupNorm(32, channels, eps=1e-5)


@dataclass(frozen=True)
class Style:
    """What all blocks of one network have in common.

    Args:
        time: channels of the embedded time.
        dropout: before the second convolution of a residual block.
        norm: makes the normalisation of so many channels.
        inject: how the time enters a block: ``add``, between the convolutions, or ``scale``, which also multiplies the
            second norm's output: AdaGN(h, y) = (1 + y_s) GroupNorm(h) + y_b (ADM §3.1).
        heads, head_channels: of attention: so many heads, or, where head_channels is above 0, as many as there are such
            widths in the channels.
        rescale: divide by √2 where a branch joins its residual, so that variances stay.
        project: give the residual of a resampling block a 1×1 convolution even where the width stays.
    """

    time: int
    dropout: float = 0.0
    norm: Callable[[int], GroupNorm] = norm
    inject: Inject = "add"
    heads: int = 1
    head_channels: int = 0
    rescale: bool = False
    project: bool = False

    def join(self, x: Features, h: Features) -> Features:
        """A residual and its branch."""
        return (x + h) * 0.5**0.5 if self.rescale else x + h


class ResBlock(nn.Module):
    """Norm, swish, convolution, twice; the time enters in between; the input is added at the end.

    ``time`` comes activated: the swish that the papers put before each block's linear layer is the same for all blocks.
    ``resample`` halves or doubles the sides, inside the first half and on the residual alike (BigGAN's block).
    """

    def __init__(self, in_channels: int, out_channels: int, style: Style, resample: nn.Module | None = None):
        super().__init__()
        self.style, self.resample = style, resample or nn.Identity()
        self.norm1, self.conv1 = style.norm(in_channels), nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time = nn.Linear(style.time, out_channels * (2 if style.inject == "scale" else 1))
        self.norm2, self.conv2 = style.norm(out_channels), nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.dropout = nn.Dropout(style.dropout)
        same = in_channels == out_channels and not (style.project and resample)
        self.skip = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Features, time: Embedded) -> Float[Tensor, "batch out height2 width2"]:
        h = self.conv1(self.resample(F.silu(self.norm1(x))))
        y = self.time(time)[:, :, None, None]
        if self.style.inject == "scale":
            scale, shift = y.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + y)
        h = self.conv2(self.dropout(F.silu(h)))
        return self.style.join(self.skip(self.resample(x)), h)


class Attention(nn.Module):
    """Every pixel looks at every pixel, in several heads, and adds what it found; channels are (q k v) (head) (c)."""

    def __init__(self, channels: int, style: Style):
        super().__init__()
        self.style = style
        self.heads = channels // style.head_channels if style.head_channels else style.heads
        if self.heads < 1 or channels % self.heads or (style.head_channels and channels % style.head_channels):
            wanted = f"heads={style.heads}, head_channels={style.head_channels}"
            raise ValueError(f"{wanted}: attention over {channels} channels can't be split so; take a divisor of them.")
        self.norm = style.norm(channels)
        self.qkv, self.out = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Features) -> Features:
        qkv = rearrange(self.qkv(self.norm(x)), "b (qkv n c) h w -> qkv b n (h w) c", qkv=3, n=self.heads)
        q, k, v = qkv.contiguous()  # the fused kernels want c side by side and are passed over without
        found = F.scaled_dot_product_attention(q, k, v)
        return self.style.join(x, self.out(rearrange(found, "b n (h w) c -> b (n c) h w", h=x.shape[2])))


class Downsample(nn.Module):
    """Half the height and width by a strided convolution, padded right and below only (DDPM) or all around (OpenAI)."""

    def __init__(self, channels: int, convention: Convention = "ddpm"):
        super().__init__()
        self.convention = convention
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if convention == "ddpm" else 1)

    def forward(self, x: Features) -> Float[Tensor, "batch channel height2 width2"]:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.convention == "ddpm" else x)


class Upsample(nn.Module):
    """Twice the height and width by repeating pixels, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Features) -> Float[Tensor, "batch channel height2 width2"]:
        return self.conv(Repeat()(x))


class Average(nn.Module):
    """Half the height and width: the mean of each four pixels."""

    def forward(self, x: Features) -> Float[Tensor, "batch channel height2 width2"]:
        return F.avg_pool2d(x, 2)


class Repeat(nn.Module):
    """Twice the height and width: each pixel four times."""

    def forward(self, x: Features) -> Float[Tensor, "batch channel height2 width2"]:
        return F.interpolate(x, scale_factor=2.0, mode="nearest")


def initialise(module: nn.Module) -> nn.Module:
    """Uniform weights of variance 2 / (fan in + fan out), zero biases, for every convolution and linear layer."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module


def zero(layer: nn.Module) -> nn.Module:
    """Set a layer to zero: a residual branch that starts as nothing lets the block start as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
