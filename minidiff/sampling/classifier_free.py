"""Guidance without a classifier: away from what the network says of no class in particular."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn


class ClassifierFree(nn.Module):
    """A network again, F(x, t, ∅) + s (F(x, t, y) − F(x, t, ∅)), made of one that was trained with dropped labels.

    ∅ is the label −1. ``scale`` s = 1 gives the conditional network and 0 the unconditional one, both exactly; others
    give the slope of p(x_t) p(y | x_t)^s, where p(y | x_t) is what the two answers imply. Where the network answers a
    variance too, in as many channels again, it is the conditional one's. Raises ValueError for a scale that is not
    finite, and where labels are missing.
    """

    def __init__(self, net: Callable[..., Tensor], scale: float):
        super().__init__()
        check_scale(scale)
        self.net, self.scale = net, scale

    def forward(
        self,
        x: Float[Tensor, "batch *dims"],
        t: Num[Tensor, " batch"],
        labels: Int[Tensor, " batch"] | None = None,
        **cond: Tensor,
    ) -> Float[Tensor, "batch *out"]:
        if labels is None:
            raise ValueError('labels: guidance leads to a class; give that of each example, as cond={"labels": …}.')
        nobody = self.net(x, t, labels=torch.full_like(labels, -1), **cond)
        told = self.net(x, t, labels=labels, **cond)
        c = x.shape[1]
        return torch.cat([torch.lerp(nobody[:, :c], told[:, :c], self.scale), told[:, c:]], dim=1)


def check_scale(scale: float) -> None:
    """Raises ValueError for a strength of guidance that is not finite."""
    if not math.isfinite(scale):
        raise ValueError(f"scale={scale}: give a finite number, such as 1.5.")
