"""The U-Nets of the score SDEs as EDM trains them: DDPM++ and NCSN++ (SDE App. H; EDM App. F.2)."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from minidiff.checks import one_of

from .layers import Attention, Features, ResBlock, Style, initialise, norm, time_embedding
from .table import build, middle, run, way_down, way_up
from .unet import check, check_given, check_sides

Embedding = Literal["positional", "fourier"]
Encoder = Literal["standard", "residual", "skip"]


class Filter(nn.Module):
    """Half the sides (``up``: double them) through a separable filter of even length, such as (1, 1), (1, 3, 3, 1)."""

    def __init__(self, taps: Sequence[int], up: bool = False):
        super().__init__()
        row = torch.tensor(taps, dtype=torch.float32) / sum(taps)
        self.up, self.padding = up, (len(taps) - 1) // 2
        self.register_buffer("kernel", torch.outer(row, row), persistent=False)

    def forward(self, x: Features, padded: bool = False) -> Float[Tensor, "batch channel height2 width2"]:
        """``padded``: x has the margin that the filter needs already."""
        kernel, c = self.kernel.to(x.dtype).expand(x.shape[1], 1, -1, -1), x.shape[1]
        if self.up:  # zeros come in between, so that a fourth of the filter meets a pixel at each place
            return F.conv_transpose2d(x, 4 * kernel, stride=2, padding=self.padding, groups=c)
        return F.conv2d(x, kernel, stride=2, padding=0 if padded else self.padding, groups=c)


class FilteredConv(nn.Module):
    """A 3×3 convolution, then the filter that halves the sides, as one operation: only its input is padded."""

    def __init__(self, in_channels: int, out_channels: int, taps: Sequence[int]):
        super().__init__()
        self.filter = Filter(taps)
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1 + self.filter.padding)

    def forward(self, x: Features) -> Float[Tensor, "batch out height2 width2"]:
        return self.filter(self.conv(x), padded=True)


class SongUNet(nn.Module):
    """A U-Net of BigGAN blocks whose residual sums keep their variance, and whose input may be shown at every level.

    Args:
        in_channels, out_channels, channels, mult, blocks, attention, dropout, checkpoint: as in UNet; on the way up
            only the last block of a level has attention.
        classes: how many there are, where the network is conditioned on one; 0 for none.
        augment: numbers that tell how an image was augmented; all zeros where the condition is left out.
        embedding: of the time: ``positional`` (DDPM++), or ``fourier``, random frequencies of standard deviation 16
            (NCSN++), for which the time should be a logarithm of σ.
        taps: of the filter that halves and doubles: (1, 1) for DDPM++, (1, 3, 3, 1) for NCSN++.
        encoder: what the way down sees of the input beside its features: nothing (``standard``), the input halved by a
            learned ``residual`` (NCSN++), or halved and added through a 1×1 convolution (``skip``).

    ``net(x, t, labels=, augment=)`` with t (batch,) float, labels (batch,) whole numbers, −1 for no class, a row of
    zeros where others have their one, augment (batch, augment). Height and width must divide by ``net.divisor``. Raises
    ValueError for what no network can be, and for an image or a condition that this one cannot take.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: int = 128,
        mult: Sequence[float] = (2, 2, 2),
        blocks: int = 4,
        attention: Sequence[int] = (1,),
        dropout: float = 0.1,
        classes: int = 0,
        augment: int = 0,
        embedding: Embedding = "positional",
        taps: Sequence[int] = (1, 1),
        encoder: Encoder = "standard",
        checkpoint: bool = False,
    ):
        super().__init__()
        check(channels, mult, blocks, attention)
        one_of("embedding", embedding, Embedding)
        one_of("encoder", encoder, Encoder)
        if len(taps) < 2 or len(taps) % 2 or sum(taps) <= 0:
            raise ValueError(f"taps={tuple(taps)}: give an even number of them with a sum above 0, such as 1 3 3 1.")
        if classes < 0 or augment < 0:
            raise ValueError(f"classes={classes}, augment={augment}: give numbers of at least 0.")
        self.divisor = 2 ** (len(mult) - 1)
        self.classes, self.augment, self.encoder, self.checkpoint = classes, augment, encoder, checkpoint
        widths = [int(channels * factor) for factor in mult]
        style = Style(4 * channels, dropout, norm, rescale=True, project=True)
        make = {
            "res": lambda a, b: ResBlock(a, b, style),
            "attention": lambda a, _: Attention(a, style),
            "down": lambda a, b: ResBlock(a, b, style, Filter(taps)),
            "up": lambda a, b: ResBlock(a, b, style, Filter(taps, up=True)),
        }
        self.waves = 2 * channels if embedding == "fourier" else channels
        if embedding == "fourier":
            self.register_buffer("frequencies", 16 * torch.randn(channels))
        if classes:
            self.label = nn.Linear(classes, self.waves)
        if augment:
            self.augmentation = nn.Linear(augment, self.waves, bias=False)
        self.time = nn.Sequential(
            nn.Linear(self.waves, 4 * channels), nn.SiLU(), nn.Linear(4 * channels, 4 * channels), nn.SiLU()
        )
        self.conv_in = nn.Conv2d(in_channels, channels, 3, padding=1)
        down = way_down(channels, widths, blocks, attention)
        self.down = build(down, make)
        self.beside = nn.ModuleDict()  # what the input passes through, by the row of the way down that it joins
        self.shrink, width = Filter(taps), in_channels
        for k, row in enumerate(down):
            if row[0][0] == "down" and encoder == "residual":
                self.beside[str(k)] = FilteredConv(width, row[0][2], taps)
                width = row[0][2]
            elif row[0][0] == "down" and encoder == "skip":
                self.beside[str(k)] = nn.Conv2d(in_channels, row[0][2], 1)
        (self.middle,) = build(middle(widths[-1]), make)
        self.up = build(way_up(channels, widths, blocks, attention, last_only=True), make)
        self.norm_out, self.conv_out = norm(widths[0]), nn.Conv2d(widths[0], out_channels, 3, padding=1)
        start(self)

    def forward(
        self,
        x: Features,
        t: Float[Tensor, " batch"],
        labels: Int[Tensor, " batch"] | None = None,
        augment: Float[Tensor, "batch augment"] | None = None,
    ) -> Float[Tensor, "batch out height width"]:
        check_sides(x, self.divisor)
        check_given("labels", labels, bool(self.classes))
        time = self.embed(t, labels, augment).to(x.dtype)
        seen, x = x, self.conv_in(x)
        skips = [x]
        for k, row in enumerate(self.down):
            x = run(row, x, time, self.checkpoint)
            if str(k) in self.beside and self.encoder == "residual":
                seen = x = (x + self.beside[str(k)](seen)) * 0.5**0.5
            elif str(k) in self.beside:
                seen = self.shrink(seen)
                x = x + self.beside[str(k)](seen)
            skips.append(x)
        x = run(self.middle, x, time, self.checkpoint)
        for row in self.up:
            x = run(row, torch.cat([x, skips.pop()], dim=1), time, self.checkpoint)
        return self.conv_out(F.silu(self.norm_out(x)))

    def embed(self, t: Tensor, labels: Tensor | None, augment: Tensor | None) -> Float[Tensor, "batch time"]:
        """Time, class and augmentation as one activated vector."""
        dtype = self.time[0].weight.dtype
        if hasattr(self, "frequencies"):
            angles = 2 * math.pi * t[:, None] * self.frequencies.to(t.dtype)
            y = torch.cat([angles.sin(), angles.cos()], dim=1).to(dtype)
        else:
            y = time_embedding(t, self.waves).to(dtype)
        if labels is not None:
            one_hot = F.one_hot(labels.long() + 1, self.classes + 1)[:, 1:]  # all zeros for −1
            y = y + self.label(one_hot.to(dtype) * self.classes**0.5)
        if augment is not None:
            check_given("augment", augment, bool(self.augment))
            y = y + self.augmentation(augment.to(dtype))
        return self.time(y)


def start(net: SongUNet) -> None:
    """Glorot weights; smaller by √0.2 where queries, keys and values are made, nearly nothing where a branch ends."""
    initialise(net)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, ResBlock):
                module.conv2.weight *= 1e-5
            elif isinstance(module, Attention):
                module.qkv.weight *= 0.2**0.5
                module.out.weight *= 1e-5
        net.conv_out.weight *= 1e-5
