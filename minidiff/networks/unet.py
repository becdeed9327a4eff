"""The U-Net of DDPM, Improved DDPM and ADM (DDPM App. B; IDDPM App. A; ADM §3)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from minidiff.checks import one_of

from .layers import (
    Attention,
    Average,
    Convention,
    Downsample,
    Features,
    Inject,
    Repeat,
    ResBlock,
    Sampling,
    Style,
    Upsample,
    initialise,
    norm,
    norm_of_32,
    time_embedding,
    zero,
)
from .table import build, middle, run, way_down, way_up


class UNet(nn.Module):
    """Down, middle, up; what each row on the way down produced is laid beside its counterpart on the way up.

    Args:
        in_channels, out_channels: of the image and of the answer.
        channels: width that ``mult`` multiplies.
        mult: the width at level i is ``channels * mult[i]``; every level below the first halves height and width.
        blocks: residual blocks at each level on the way down (one more on the way up).
        attention: levels, counted from 0 at full resolution, whose residual blocks are followed by attention.
        dropout: inside the residual blocks.
        heads, head_channels: of attention, by number, or by width where head_channels is above 0.
        inject: the time is added inside a block, or scales it too (``scale``: ADM's adaptive group normalisation).
        resample: halve and double by a convolution, or by a residual ``block`` as in BigGAN.
        rescale: residual sums are divided by √2 (tried in ADM Table 1, not kept).
        classes: how many there are, where the network is conditioned on one; 0 for none.
        low_res: take a smaller image beside x, as the upsamplers do.
        convention: what two official codes do differently and no paper tells: DDPM's (sines first, 1e-6 in the norms,
            strided convolutions padded on two sides, Glorot weights) or OpenAI's (cosines first, 1e-5 and always 32
            groups, padding on all sides, PyTorch's own weights).
        checkpoint: recompute activations in the backward pass instead of keeping them.

    ``net(x, t, labels=, low_res=)``: t (batch,) float, labels (batch,) whole numbers, −1 for no class, whose embedding
    is 0, low_res (batch, channel, ·, ·). Height and width must divide by ``net.divisor``. Raises ValueError for what no
    network can be, and for an image or a condition that this one cannot take. With 3 channels, 128, (1, 2, 2, 2),
    attention (1,) it is DDPM's CIFAR-10 network: 35,746,307 parameters.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: int = 128,
        mult: Sequence[float] = (1, 2, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (1,),
        dropout: float = 0.1,
        heads: int = 1,
        head_channels: int = 0,
        inject: Inject = "add",
        resample: Sampling = "conv",
        rescale: bool = False,
        classes: int = 0,
        low_res: bool = False,
        convention: Convention = "ddpm",
        checkpoint: bool = False,
    ):
        super().__init__()
        check(channels, mult, blocks, attention, convention)
        one_of("inject", inject, Inject)
        one_of("resample", resample, Sampling)
        if classes < 0:
            raise ValueError(f"classes={classes}: give a number above 0, or 0 for a network without.")
        self.divisor = 2 ** (len(mult) - 1)
        self.channels, self.classes, self.low_res = channels, classes, low_res
        self.convention, self.checkpoint = convention, checkpoint
        widths = [int(channels * factor) for factor in mult]
        ours = convention == "ddpm"
        style = Style(4 * channels, dropout, norm if ours else norm_of_32, inject, heads, head_channels, rescale)
        make = {
            "res": lambda a, b: ResBlock(a, b, style),
            "attention": lambda a, _: Attention(a, style),
            "down": lambda a, b: ResBlock(a, b, style, Average()) if resample == "block" else Downsample(a, convention),
            "up": lambda a, b: ResBlock(a, b, style, Repeat()) if resample == "block" else Upsample(a),
        }
        self.time = nn.Sequential(nn.Linear(channels, 4 * channels), nn.SiLU(), nn.Linear(4 * channels, 4 * channels))
        if classes:
            self.label = nn.Embedding(classes, 4 * channels)
        self.conv_in = nn.Conv2d(in_channels * (2 if low_res else 1), widths[0], 3, padding=1)
        self.down = build(way_down(widths[0], widths, blocks, attention), make)
        (self.middle,) = build(middle(widths[-1]), make)
        self.up = build(way_up(widths[0], widths, blocks, attention), make)
        self.norm_out, self.conv_out = style.norm(widths[0]), nn.Conv2d(widths[0], out_channels, 3, padding=1)
        if ours:
            initialise(self)
        start_at_zero(self)
        zero(self.conv_out)

    def forward(
        self,
        x: Features,
        t: Float[Tensor, " batch"],
        labels: Int[Tensor, " batch"] | None = None,
        low_res: Float[Tensor, "batch channel h w"] | None = None,
    ) -> Float[Tensor, "batch out height width"]:
        check_sides(x, self.divisor)
        check_given("labels", labels, bool(self.classes))
        check_given("low_res", low_res, self.low_res)
        time = self.time(time_embedding(t, self.channels, convention=self.convention).to(x.dtype))
        if labels is not None:
            known = labels != -1  # another label that is out of range stays an error
            time = time + self.label(torch.where(known, labels, 0)) * known[:, None]
        if low_res is not None:
            small = F.interpolate(low_res.to(x.dtype), size=x.shape[2:], mode="bilinear", align_corners=False)
            x = torch.cat([x, small], dim=1)
        time = F.silu(time)
        x = self.conv_in(x)
        skips = [x]
        for row in self.down:
            x = run(row, x, time, self.checkpoint)
            skips.append(x)
        x = run(self.middle, x, time, self.checkpoint)
        for row in self.up:
            x = run(row, torch.cat([x, skips.pop()], dim=1), time, self.checkpoint)
        return self.conv_out(F.silu(self.norm_out(x)))


def check(
    channels: int, mult: Sequence[float], blocks: int, attention: Sequence[int], convention: Convention = "ddpm"
) -> None:
    """Raises ValueError for numbers that make no U-Net."""
    one_of("convention", convention, Convention)
    if not mult or min(mult) <= 0 or blocks < 1:
        raise ValueError(f"mult={tuple(mult)}, blocks={blocks}: give a level or more, and numbers of at least 1.")
    unit = 4 if convention == "ddpm" else 32
    fits = channels >= unit and channels % unit == 0
    if not fits or any(channels * factor % unit for factor in mult):
        widths = f" times mult={tuple(mult)}" if fits else ""
        raise ValueError(f"channels={channels}{widths}: take a multiple of {unit}, group normalisation needs it.")
    if unknown := [level for level in attention if not 0 <= level < len(mult)]:
        raise ValueError(f"attention={tuple(attention)}: level {unknown[0]} is not one of 0 to {len(mult) - 1}.")


def check_sides(x: Tensor, divisor: int) -> None:
    """Raises ValueError for an image whose sides can't be halved often enough."""
    height, width = x.shape[2:]
    if height % divisor or width % divisor:
        raise ValueError(f"images of {height}×{width}: both sides must divide by {divisor} for this network.")


def check_given(name: str, value: Tensor | None, wanted: bool) -> None:
    """Raises ValueError for a condition that is missing, or that the network does not know."""
    if (value is not None) != wanted:
        told = f"is conditioned on {name}: give them" if wanted else f"knows no {name}: leave them out"
        raise ValueError(f"{name}: this network {told}.")


def start_at_zero(net: nn.Module) -> None:
    """Let every branch beside a residual begin as nothing."""
    for module in net.modules():
        if isinstance(module, ResBlock):
            zero(module.conv2)
        elif isinstance(module, Attention):
            zero(module.out)
