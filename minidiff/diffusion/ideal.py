"""The best of all denoisers for a finite set of data: what a network that learned its training set by heart answers."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .paths import Data


class IdealDenoiser:
    """``denoise(x, sigma, labels=None) -> x0_hat``: the mean of the data by their share in p(x; σ) (EDM 57).

    Args:
        data: (n, *dims), each with weight 1/n.
        labels: of the data, for means over one class at a time.
        batch: how many data are compared with x at once; it changes the memory alone.

    Computed in float64. The shares are taken relative to the nearest datum's, so that σ may be as small as one likes;
    at 0 the answer is the nearest datum. Raises ValueError for no data, or labels of another number.
    """

    def __init__(self, data: Data, labels: Int[Tensor, " n"] | None = None, batch: int = 4096):
        if len(data) == 0 or batch < 1:
            raise ValueError(f"data of {len(data)}, in batches of {batch}: both must be at least 1.")
        if labels is not None and len(labels) != len(data):
            raise ValueError(f"labels: {len(labels)} of them for {len(data)} data; give one each.")
        self.data, self.labels, self.batch = data.double(), labels, batch

    def __call__(
        self, x: Data, sigma: Float[Tensor, "*t"] | float, labels: Int[Tensor, " batch"] | None = None
    ) -> Data:
        """x̂_0 of x = x_0 + σ n at noise level sigma, a number or one for each example, in x's precision.

        Labels, one for each example, restrict the mean to the data of that label. Raises ValueError for labels that no
        datum has, and for an x of another shape than the data's.
        """
        if x.shape[1:] != self.data.shape[1:]:
            raise ValueError(f"x {tuple(x.shape)}: each of the data is {tuple(self.data.shape[1:])}, and so must x be.")
        if labels is not None:
            self._check(labels)
        flat, far = x.double().flatten(1), torch.finfo(torch.float64).max
        sigma = torch.as_tensor(sigma, dtype=torch.float64, device=x.device).expand(len(x))
        twice = 2 * sigma[:, None] ** 2 + torch.finfo(torch.float64).tiny
        nearest, total, mean = torch.full_like(flat[:, :1], far), torch.zeros_like(flat[:, :1]), torch.zeros_like(flat)
        for k in range(0, len(self.data), self.batch):
            y = self.data[k : k + self.batch].to(x.device).flatten(1)
            distance = (y**2).sum(1) - 2 * flat @ y.T  # squared, less |x|², which is common to all
            if labels is not None:
                distance = distance.masked_fill(labels[:, None] != self.labels[k : k + self.batch].to(x.device), far)
            before, nearest = nearest, torch.minimum(nearest, distance.amin(1, keepdim=True))
            kept, share = torch.exp((nearest - before) / twice), torch.exp((nearest - distance) / twice)
            total, mean = kept * total + share.sum(1, keepdim=True), kept * mean + share @ y
        return (mean / total).reshape(x.shape).to(x.dtype)

    def _check(self, labels: Int[Tensor, " batch"]) -> None:
        if self.labels is None:
            raise ValueError("labels: these data have none; leave them out, or give IdealDenoiser the data's.")
        if not torch.isin(labels.cpu(), self.labels.cpu()).all():
            raise ValueError(f"labels={labels.unique().tolist()}: the data have {self.labels.unique().tolist()} alone.")
