"""Precision and recall: what share of the samples looks like data, and what share of the data is covered."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .metrics import check_dims, check_features


def precision_recall(
    real: Float[Tensor, "n dim"], fake: Float[Tensor, "m dim_fake"], k: int = 3, block: int = 2048
) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al., 2019).

    Around each vector of a set lies a ball that just reaches its k-th nearest neighbour in the set, itself not counted
    (equal copies of it are). Precision is the share of ``fake`` inside at least one ball of ``real``, recall the share
    of ``real`` inside at least one ball of ``fake``; the surface belongs to a ball. The paper takes k = 3 and 50,000 of
    each, ADM k = 3 and 10,000 of ``real``, IDDPM k = 5; numbers of different k, n or m do not compare.

    Every answer is that of Euclidean distances summed in float64: products of matrices give them with a bound on their
    error, and what the bound leaves open is computed again, directly. ``block`` vectors of either set are compared at a
    time, which takes at most about 50 · block · (block + dim) bytes. Raises ValueError for k below 1, sets of k vectors
    or fewer, NaN or infinity, and unequal dimensions.
    """
    if k < 1 or block < 1:
        raise ValueError(f"k={k}, block={block}: take at least 1.")
    for name, x in (("real", real), ("fake", fake)):
        check_features(name, x, k + 1, f"k={k} needs")
    check_dims(("real", "fake"), (real.shape[1], fake.shape[1]))
    real, fake = real.detach(), fake.detach()
    compare = _Comparison(real, fake, k, block)
    radii_real, radii_fake = compare.radii(real), compare.radii(fake)
    # inside a ball for certain; and perhaps inside one
    fake_in, fake_open, real_in, real_open = (torch.zeros(len(x), dtype=torch.bool) for x in (fake, fake, real, real))
    for i in range(0, len(real), block):
        for j in range(0, len(fake), block):
            rows, columns = slice(i, i + block), slice(j, j + block)
            d = compare.squared(real[rows], fake[columns])
            margin = d - radii_real[rows, None]
            fake_in[columns] |= (margin <= -compare.slack).any(0)
            fake_open[columns] |= (margin <= compare.slack).any(0)
            margin = d - radii_fake[columns]
            real_in[rows] |= (margin <= -compare.slack).any(1)
            real_open[rows] |= (margin <= compare.slack).any(1)
    for inside, maybe, points, centres, radii in (
        (fake_in, fake_open, fake, real, radii_real),
        (real_in, real_open, real, fake, radii_fake),
    ):
        at = (maybe & ~inside).nonzero()[:, 0]
        inside[at] = compare.settle(points[at], centres, radii)
    return fake_in.double().mean().item(), real_in.double().mean().item()


class _Comparison:
    """Distances between blocks of vectors: squared ones by a product of matrices, and exact ones for a few pairs.

    ``slack`` bounds the error of the difference of two squared distances.
    """

    def __init__(self, real: Float[Tensor, "n dim"], fake: Float[Tensor, "m dim"], k: int, block: int):
        self.k, self.block = k, block
        parts = [part for x in (real, fake) for part in x.split(block)]
        self.centre = torch.stack([part.cpu().double().sum(0) for part in parts]).sum(0) / (len(real) + len(fake))
        largest = max(self._centred(part).square().sum(1).max().item() for part in parts)
        # |x|² + |y|² − 2 x·y: sums of dim terms whose moduli add up to at most (|x| + |y|)², which is below 4 · largest
        self.slack = 2 * 4 * (real.shape[1] + 8) * torch.finfo(torch.float64).eps * largest

    def _centred(self, x: Float[Tensor, "n dim"]) -> Float[Tensor, "n dim"]:
        return x.cpu().double() - self.centre

    def squared(self, x: Float[Tensor, "n dim"], y: Float[Tensor, "m dim"]) -> Float[Tensor, "n m"]:
        x, y = self._centred(x), self._centred(y)
        return (x.square().sum(1)[:, None] + y.square().sum(1)).addmm_(x, y.T, alpha=-2)

    def radii(self, x: Float[Tensor, "n dim"]) -> Float[Tensor, " n"]:
        """Squared distance of each vector to its k-th nearest other one; each pair of blocks is computed once."""
        nearest = torch.full((len(x), self.k), torch.inf, dtype=torch.float64)
        for i in range(0, len(x), self.block):
            for j in range(i, len(x), self.block):
                rows, columns = slice(i, i + self.block), slice(j, j + self.block)
                d = self.squared(x[rows], x[columns])
                if i == j:
                    d.fill_diagonal_(torch.inf)
                else:
                    nearest[columns] = self._smallest(nearest[columns], d.T)
                nearest[rows] = self._smallest(nearest[rows], d)
        return nearest.max(1).values

    def settle(
        self, points: Float[Tensor, "p dim"], centres: Float[Tensor, "n dim"], radii: Float[Tensor, " n"]
    ) -> Bool[Tensor, " p"]:
        """Whether each point is inside a ball, by exact distances; ``radii`` as ``radii(centres)`` returns them."""
        inside = torch.zeros(len(points), dtype=torch.bool)
        for j in range(0, len(centres), self.block):
            columns = torch.arange(len(centres))[j : j + self.block]
            for i in range(0, len(points), self.block):
                rows = (~inside[i : i + self.block]).nonzero()[:, 0] + i
                near = self.squared(points[rows], centres[columns]) - radii[columns] <= self.slack
                of = near.any(0).nonzero()[:, 0]
                d = self._exact(points[rows], centres[columns[of]], near[:, of])
                inside[rows] = (d <= self._exact_radii(centres, columns[of], radii)).any(1)
        return inside

    def _exact_radii(
        self, x: Float[Tensor, "n dim"], at: Int[Tensor, " c"], radii: Float[Tensor, " n"]
    ) -> Float[Tensor, " c"]:
        """Distance of the vectors at these places to their k-th nearest other one."""
        nearest = torch.full((len(at), self.k), torch.inf, dtype=torch.float64)
        for j in range(0, len(x), self.block):
            columns = torch.arange(len(x))[j : j + self.block]
            near = self.squared(x[at], x[columns]) - radii[at, None] <= self.slack
            near &= at[:, None] != columns
            nearest = self._smallest(nearest, self._exact(x[at], x[columns], near))
        return nearest.max(1).values

    def _exact(
        self, x: Float[Tensor, "n dim"], y: Float[Tensor, "m dim"], where: Bool[Tensor, "n m"]
    ) -> Float[Tensor, "n m"]:
        """The root of Σ (x − y)² for these pairs, infinity for the others."""
        d = torch.full(where.shape, torch.inf, dtype=torch.float64)
        for pairs in where.nonzero().split(self.block):
            # pair by pair, so that a distance rounds the same whatever it is computed with, and a tie stays one
            u, v = x[pairs[:, 0], None].cpu().double(), y[pairs[:, 1], None].cpu().double()
            d[pairs[:, 0], pairs[:, 1]] = torch.cdist(u, v, compute_mode="donot_use_mm_for_euclid_dist").flatten()
        return d

    def _smallest(self, nearest: Float[Tensor, "n k"], d: Float[Tensor, "n m"]) -> Float[Tensor, "n k"]:
        return torch.cat([nearest, d], dim=1).topk(self.k, dim=1, largest=False, sorted=False).values
