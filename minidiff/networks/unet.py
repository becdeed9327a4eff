"""The U-Net of DDPM (DDPM Appendix B)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import Attention, Downsample, Features, ResBlock, Upsample, initialise, norm, time_embedding, zero


class UNet(nn.Module):
    """Down, middle, up; what each block on the way down produced is laid beside its counterpart on the way up.

    Args:
        in_channels, out_channels: of the image and of the answer.
        channels: width at full resolution.
        mult: the width at level i is ``channels * mult[i]``; every level below the first halves height and width.
        blocks: residual blocks at each level on the way down (one more on the way up).
        attention: levels, counted from 0 at full resolution, whose residual blocks are followed by attention.
        dropout: inside the residual blocks.

    ``net(x, t)`` with t (batch,) float; height and width must divide by ``net.divisor`` (ValueError otherwise).
    With 3 channels, 128, (1, 2, 2, 2), attention (1,) it is the CIFAR-10 network: 35,746,307 parameters.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: int = 128,
        mult: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (1,),
        dropout: float = 0.1,
    ):
        super().__init__()
        if channels < 4 or channels % 4:
            raise ValueError(f"channels={channels}: take a multiple of 4, group normalisation needs it.")
        if not mult or min(mult) < 1 or blocks < 1:
            raise ValueError(f"mult={tuple(mult)}, blocks={blocks}: give a level or more, and numbers of at least 1.")
        if unknown := [level for level in attention if not 0 <= level < len(mult)]:
            raise ValueError(f"attention={tuple(attention)}: level {unknown[0]} is not one of 0 to {len(mult) - 1}.")
        self.divisor = 2 ** (len(mult) - 1)
        self.embedding = channels
        self.time = nn.Sequential(nn.Linear(channels, 4 * channels), nn.SiLU(), nn.Linear(4 * channels, 4 * channels))
        self.conv_in = nn.Conv2d(in_channels, channels, 3, padding=1)

        def stage(level: int, incoming: int, outgoing: int) -> nn.ModuleList:
            block = nn.ModuleList([ResBlock(incoming, outgoing, 4 * channels, dropout)])
            return block.append(Attention(outgoing)) if level in attention else block

        # One row of the network a stage; `skips` is the stack of widths that the way up will find beside it.
        self.down, self.up, skips, width = nn.ModuleList(), nn.ModuleList(), [channels], channels
        for level, factor in enumerate(mult):
            for _ in range(blocks):
                self.down.append(stage(level, width, channels * factor))
                width = channels * factor
                skips.append(width)
            if level < len(mult) - 1:
                self.down.append(nn.ModuleList([Downsample(width)]))
                skips.append(width)
        self.middle = nn.ModuleList(
            [
                ResBlock(width, width, 4 * channels, dropout),
                Attention(width),
                ResBlock(width, width, 4 * channels, dropout),
            ]
        )
        for level, factor in reversed(list(enumerate(mult))):
            for k in range(blocks + 1):
                self.up.append(stage(level, width + skips.pop(), channels * factor))
                width = channels * factor
                if k == blocks and level > 0:
                    self.up[-1].append(Upsample(width))
        self.norm_out, self.conv_out = norm(width), nn.Conv2d(width, out_channels, 3, padding=1)

        initialise(self)
        for module in self.modules():
            if isinstance(module, ResBlock):
                zero(module.conv2)
            elif isinstance(module, Attention):
                zero(module.out)
        zero(self.conv_out)

    def forward(self, x: Features, t: Float[Tensor, " batch"]) -> Float[Tensor, "batch out height width"]:
        height, width = x.shape[2:]
        if height % self.divisor or width % self.divisor:
            raise ValueError(f"images of {height}×{width}: both sides must divide by {self.divisor} for this network.")
        time = self.time(time_embedding(t, self.embedding).to(x.dtype))
        x = self.conv_in(x)
        skips = [x]
        for row in self.down:
            x = self._row(row, x, time)
            skips.append(x)
        x = self._row(self.middle, x, time)
        for row in self.up:
            x = self._row(row, torch.cat([x, skips.pop()], dim=1), time)
        return self.conv_out(F.silu(self.norm_out(x)))

    def _row(self, row: nn.ModuleList, x: Features, time: Tensor) -> Tensor:
        """The layers of one stage in turn; only residual blocks look at the time."""
        for layer in row:
            x = layer(x, time) if isinstance(layer, ResBlock) else layer(x)
        return x
