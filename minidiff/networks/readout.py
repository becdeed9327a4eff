"""Networks that are shared by all steps and do not see t: time enters in the last layer only (SD Appendix D.2).

The two read-outs turn features into one answer per step; ``RBF`` and ``SigmoidMLP`` are the paper's networks for
points and for sequences.
"""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn


def temporal_bumps(t: Float[Tensor, " batch"], T: int, bumps: int) -> Float[Tensor, "batch bumps"]:
    """g_j(t): Gaussian bumps of time, made to sum to 1 at every t (SD 63).

    The centres τ_j divide (0, T) evenly and the width is their spacing, as the paper says; its own code uses half.
    """
    spacing = T / bumps
    centres = spacing * (torch.arange(bumps, dtype=t.dtype, device=t.device) + 0.5)
    # t counts from 0, as everywhere in the library: step t is at time t + 1
    return torch.softmax(-(((t[:, None] + 1 - centres) / spacing) ** 2) / 2, dim=1)


class StepReadout(nn.Module):
    """A linear layer of its own for every step; all start at zero."""

    def __init__(self, features: int, out: int, T: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(T, out, features))
        self.bias = nn.Parameter(torch.zeros(T, out))

    def forward(self, h: Float[Tensor, "batch features"], t: Float[Tensor, " batch"]) -> Float[Tensor, "batch out"]:
        step = t.long()
        return torch.baddbmm(self.bias[step, :, None], self.weight[step], h[:, :, None])[:, :, 0]


class BumpReadout(nn.Module):
    """One linear layer for every bump of time, mixed as the bumps are at t (SD 62); all start at zero."""

    def __init__(self, features: int, out: int, T: int, bumps: int):
        super().__init__()
        self.T, self.bumps = T, bumps
        self.y = nn.Linear(features, out * bumps)
        nn.init.zeros_(self.y.weight)
        nn.init.zeros_(self.y.bias)

    def forward(self, h: Float[Tensor, "*batch features"], t: Float[Tensor, " batch"]) -> Float[Tensor, "*batch out"]:
        y = self.y(h).unflatten(-1, (-1, self.bumps))
        g = temporal_bumps(t, self.T, self.bumps)
        return torch.einsum("b...oj,bj->b...o", y, g)


class RBF(nn.Module):
    """Normalised radial basis functions, one hidden layer of them, and a read-out per step (SD Appendix D.1.1).

    The functions are exp(−‖x − c_k‖² / 2 w_k²), made to sum to 1; centres and widths are learned.
    """

    def __init__(self, dim: int, out_dim: int, T: int, units: int = 16):
        super().__init__()
        self.centres = nn.Parameter(torch.randn(units, dim))
        self.log_width = nn.Parameter(torch.full((units,), -1.0))
        self.readout = StepReadout(units, out_dim, T)

    def forward(self, x: Float[Tensor, "batch dim"], t: Float[Tensor, " batch"]) -> Float[Tensor, "batch out"]:
        square = ((x[:, None] - self.centres) ** 2).sum(-1)
        return self.readout(torch.softmax(-0.5 * square * torch.exp(-2 * self.log_width), dim=1), t)


class SigmoidMLP(nn.Module):
    """Sigmoid layers shared by all steps, and a read-out (SD Appendix D.1.2).

    ``bumps`` of time share one read-out (SD 62); ``bumps=0`` gives every step its own, as in the paper's heartbeat.
    """

    def __init__(self, dim: int, out_dim: int, T: int, width: int = 50, depth: int = 3, bumps: int = 16):
        super().__init__()
        widths = [dim] + [width] * depth
        self.hidden = nn.Sequential(*[layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.Sigmoid())])
        for layer in self.hidden[::2]:
            nn.init.xavier_normal_(layer.weight, gain=4.0)  # a sigmoid's slope is at most 1/4
            nn.init.zeros_(layer.bias)
        self.readout = BumpReadout(width, out_dim, T, bumps) if bumps else StepReadout(width, out_dim, T)

    def forward(self, x: Float[Tensor, "batch dim"], t: Float[Tensor, " batch"]) -> Float[Tensor, "batch out"]:
        return self.readout(self.hidden(x), t)
