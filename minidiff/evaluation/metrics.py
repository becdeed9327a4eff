"""How far samples are from data."""

import torch
from jaxtyping import Float
from torch import Tensor


def frechet_distance(a: Float[Tensor, "n dim"], b: Float[Tensor, "m dim"]) -> float:
    """Squared Fréchet distance of the Gaussians with the means and covariances of two sets of vectors, in float64.

    |m_a − m_b|² + tr(C_a + C_b − 2 (C_a^½ C_b C_a^½)^½). Of two samples of one distribution it is above zero, more so
    the smaller they are: compare numbers of equal n and m only. Raises ValueError for fewer than 2 vectors.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"{len(a)} and {len(b)} vectors: a covariance needs at least 2.")
    a, b = a.double(), b.double()
    cov_a, cov_b = torch.cov(a.T).reshape(a.shape[1], -1), torch.cov(b.T).reshape(b.shape[1], -1)
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return (((a.mean(0) - b.mean(0)) ** 2).sum() + cov_a.trace() + cov_b.trace() - 2 * cross).item()
