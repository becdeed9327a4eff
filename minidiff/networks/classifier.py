"""The classifier of noisy images: the U-Net's way down, then attention that pools (ADM §4)."""

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import Attention, Average, Features, ResBlock, Style, norm_of_32, time_embedding
from .table import build, middle, run, way_down
from .unet import check, check_sides, start_at_zero


class AttentionPool(nn.Module):
    """The mean of all pixels looks at each of them and at itself; what it finds is the answer, as in CLIP.

    The positions (channel, 1 + height · width) are learned, so the size is fixed.
    """

    def __init__(self, channels: int, size: tuple[int, int], head_channels: int, out: int):
        super().__init__()
        self.heads = channels // head_channels
        self.positions = nn.Parameter(torch.randn(channels, 1 + size[0] * size[1]) / channels**0.5)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, out)

    def forward(self, x: Features) -> Float[Tensor, "batch out"]:
        x = rearrange(x, "b c h w -> b c (h w)")
        x = torch.cat([x.mean(2, keepdim=True), x], dim=2) + self.positions.to(x.dtype)
        tokens = rearrange(x, "b c n -> b n c")
        q, k, v = rearrange(self.qkv(tokens), "b t (qkv n c) -> qkv b n t c", qkv=3, n=self.heads)
        found = F.scaled_dot_product_attention(q[:, :, :1], k, v)
        return self.out(rearrange(found, "b n 1 c -> b (n c)"))


class Classifier(nn.Module):
    """``net(x, t)``: the logits of ``classes`` classes for a noisy image.

    Args:
        in_channels, size: of the images; height and width are fixed by the pooling.
        classes: how many.
        channels, mult, blocks, attention, head_channels, dropout: as in UNet.
        checkpoint: recompute activations in the backward pass instead of keeping them.

    Raises ValueError for what no network can be, and for an image of another size.
    """

    def __init__(
        self,
        in_channels: int,
        size: tuple[int, int],
        classes: int,
        channels: int = 128,
        mult: Sequence[float] = (1, 2, 3, 4),
        blocks: int = 4,
        attention: Sequence[int] = (1, 2, 3),
        head_channels: int = 64,
        dropout: float = 0.0,
        checkpoint: bool = False,
    ):
        super().__init__()
        check(channels, mult, blocks, attention, "openai")
        if classes < 2:
            raise ValueError(f"classes={classes}: a classifier tells at least 2 apart.")
        if head_channels < 1:
            raise ValueError(f"head_channels={head_channels}: give the width of a head, at least 1.")
        self.divisor, self.size = 2 ** (len(mult) - 1), tuple(size)
        self.channels, self.classes, self.checkpoint = channels, classes, checkpoint
        check_sides(torch.empty(0, 0, *size, device="meta"), self.divisor)
        widths = [int(channels * factor) for factor in mult]
        style = Style(4 * channels, dropout, norm_of_32, "scale", head_channels=head_channels)
        make = {
            "res": lambda a, b: ResBlock(a, b, style),
            "attention": lambda a, _: Attention(a, style),
            "down": lambda a, b: ResBlock(a, b, style, Average()),
        }
        self.time = nn.Sequential(nn.Linear(channels, 4 * channels), nn.SiLU(), nn.Linear(4 * channels, 4 * channels))
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.down = build(way_down(widths[0], widths, blocks, attention), make)
        (self.middle,) = build(middle(widths[-1]), make)
        self.norm_out = norm_of_32(widths[-1])
        pooled = (size[0] // self.divisor, size[1] // self.divisor)
        self.pool = AttentionPool(widths[-1], pooled, head_channels, classes)
        start_at_zero(self)

    def forward(self, x: Features, t: Float[Tensor, " batch"]) -> Float[Tensor, "batch classes"]:
        if tuple(x.shape[2:]) != self.size:
            raise ValueError(f"images of {x.shape[2]}×{x.shape[3]}: this classifier was made for {self.size}.")
        time = F.silu(self.time(time_embedding(t, self.channels, convention="openai").to(x.dtype)))
        x = self.conv_in(x)
        for row in [*self.down, self.middle]:
            x = run(row, x, time, self.checkpoint)
        return self.pool(F.silu(self.norm_out(x)))
