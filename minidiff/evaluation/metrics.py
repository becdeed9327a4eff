"""How far samples are from data, by their features: Fréchet distance, Inception Score, kernel distance. In float64."""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

ROWS = 1024  # vectors that are held in float64 at a time


def check_features(name: str, features: Float[Tensor, "n dim"], least: int, reason: str) -> None:
    """Raise ValueError for fewer than ``least`` vectors (``reason`` says who needs them) and for NaN or infinity."""
    if len(features) < least:
        raise ValueError(f"{name} has n={len(features)}: {reason} at least {least} vectors.")
    # a sum that is finite had only finite terms; one that is not is looked at again, since sums may overflow
    bad = sum(int((~part.isfinite()).any(1).sum()) for part in features.split(ROWS) if not part.sum().isfinite())
    if bad:
        raise ValueError(f"{name}: {bad} of {len(features)} vectors hold NaN or infinity; look at what made them.")


def check_dims(names: tuple[str, str], dims: tuple[int, int]) -> None:
    """Raise ValueError for vectors of different lengths."""
    if dims[0] != dims[1]:
        raise ValueError(f"{names[0]} has {dims[0]} dimensions, {names[1]} {dims[1]}: both need the same extractor.")


class Moments:
    """Mean and covariance of vectors that arrive in parts, here or on several processes; float64, on the CPU.

    ``n``: how many vectors, None where a file does not say; ``mean`` (dim,). Each part is centred on its own mean, and
    its sums of products are joined with those before by the formula of Chan, Golub and LeVeque (1983), so no digits are
    lost to a mean far from 0, and parts in any order agree to 1e-12. At most 1,024 vectors are in float64 at a time.
    """

    def __init__(self, dim: int):
        self.n: int | None = 0
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64)  # Σ (x − mean)(x − mean)ᵀ, its lower triangle only

    @classmethod
    def of(cls, features: Float[Tensor, "n dim"]) -> "Moments":
        """The moments of these vectors."""
        moments = cls(features.shape[1])
        moments.update(features)
        return moments

    @classmethod
    def from_arrays(
        cls,
        mu: Float[np.ndarray | Tensor, " dim"],
        sigma: Float[np.ndarray | Tensor, "rows columns"],
        n: int | None = None,
    ) -> "Moments":
        """Moments from a file: the mean, the unbiased covariance, and of how many vectors if that is known.

        Raises ValueError for arrays that do not fit together, are not finite or not symmetric, and for n below 2.
        """
        mu, sigma = torch.as_tensor(mu).double(), torch.as_tensor(sigma).double()
        if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
            raise ValueError(f"mu {tuple(mu.shape)}, sigma {tuple(sigma.shape)}: they must be (dim,) and (dim, dim).")
        if not (mu.isfinite().all() and sigma.isfinite().all()):
            raise ValueError("mu or sigma holds NaN or infinity; look at what made them.")
        if (sigma - sigma.T).abs().max() > 1e-6 * sigma.abs().max():
            raise ValueError(
                "sigma is not symmetric, so it is no covariance: give the arrays in the order mu, sigma, n."
            )
        if n is not None and n < 2:
            raise ValueError(f"n={n}: a covariance is of at least 2 vectors; leave n out where it is not known.")
        moments = cls(len(mu))
        moments.n, moments.mean = n, mu.clone()
        moments._scatter += (sigma + sigma.T) / 2 * (1 if n is None else n - 1)
        return moments

    @property
    def covariance(self) -> Float[Tensor, "dim dim"]:
        """The unbiased covariance: the sum of products over n − 1. Raises ValueError for fewer than 2 vectors."""
        if self.n is not None and self.n < 2:
            raise ValueError(f"a covariance needs at least 2 vectors: these moments are of {self.n}.")
        lower = self._scatter.tril()
        return (lower + lower.tril(-1).T) / (1 if self.n is None else self.n - 1)

    def update(self, features: Float[Tensor, "n dim"]) -> None:
        """Take in these vectors, from any device. Raises ValueError for NaN or infinity, and then takes in none."""
        self._check_dim("features", features.shape[1])
        self._check_known(self)
        check_features("features", features, 0, "")
        from scipy.linalg.blas import dsyrk  # here, because importing scipy.linalg takes 0.3 seconds

        buffer = torch.empty(min(ROWS, len(features)) + 1, features.shape[1], dtype=torch.float64)
        for start in range(0, len(features), ROWS):
            part = features.detach()[start : start + ROWS]
            rows = buffer[: len(part) + 1]
            rows[:-1] = part
            mean = rows[:-1].mean(0)
            rows[:-1] -= mean
            rows[-1] = self._join(len(part), mean)  # the step between the means is one more row of the product
            # BLAS counts in columns: its upper triangle of the transpose is our lower one, written in place
            dsyrk(1.0, rows.numpy().T, beta=1.0, c=self._scatter.numpy().T, overwrite_c=1)

    def merge(self, other: "Moments") -> "Moments":
        """The moments of both sets together."""
        self._check_dim("other", len(other.mean))
        self._check_known(self, other)
        merged = Moments(len(self.mean))
        merged.n, merged.mean = self.n, self.mean.clone()
        step = merged._join(other.n, other.mean)
        merged._scatter = self._scatter + other._scatter + torch.outer(step, step)
        return merged

    def _join(self, n: int, mean: Float[Tensor, " dim"]) -> Float[Tensor, " dim"]:
        """Move n and the mean on by n vectors of this mean; the step s, of which s sᵀ is what their distance adds."""
        total = self.n + n
        step = mean - self.mean
        between = step * math.sqrt(self.n * n / max(total, 1))
        self.n, self.mean = total, self.mean + step * (n / max(total, 1))
        return between

    def _check_dim(self, name: str, dim: int) -> None:
        check_dims(("the moments", name), (len(self.mean), dim))

    @staticmethod
    def _check_known(*parts: "Moments") -> None:
        if any(part.n is None for part in parts):
            raise ValueError("moments of an unknown number of vectors can't be joined with others: give n.")


def frechet_distance(a: Moments | Float[Tensor, "n dim"], b: Moments | Float[Tensor, "m dim_b"]) -> float:
    """Squared Fréchet distance of the Gaussians with the means and covariances of two sets of vectors, or of moments.

    |m_a − m_b|² + tr(C_a + C_b − 2 (C_a^½ C_b C_a^½)^½) (Dowson and Landau, 1982). Of two samples of one distribution
    it is above zero, more so the smaller they are: compare numbers of equal n and m only.

    With C = R Rᵀ the last trace is the sum of the singular values of R_aᵀ R_b, so that no small eigenvalue is squared
    and rooted again. Eigenvalues below dim · 2.2e-16 of the largest (4.5e-13 of it in 2,048 dimensions) can't be told
    from rounding and count as 0; hence singular covariances, of n ≤ dim vectors for one, cost no digits. The absolute
    error is below 1e-12 of the sum of the traces, also where the distance is 0: one of 1e-6 of them has six digits.
    Raises ValueError for fewer than 2 vectors, NaN or infinity, unequal dimensions, and a sigma that is no covariance.
    """
    a, b = _moments("a", a), _moments("b", b)
    check_dims(("a", "b"), (len(a.mean), len(b.mean)))
    root_a, root_b = _root("a", a.covariance), _root("b", b.covariance)
    cross = torch.linalg.svdvals(root_a.T @ root_b).sum()
    squares = (a.mean - b.mean).square().sum() + root_a.square().sum() + root_b.square().sum()
    return max((squares - 2 * cross).item(), 0.0)  # the true one is never below 0


def _moments(name: str, x: Moments | Tensor) -> Moments:
    if isinstance(x, Moments):
        return x
    check_features(name, x, 2, "a covariance needs")
    return Moments.of(x)


def _root(name: str, covariance: Float[Tensor, "dim dim"]) -> Float[Tensor, "dim rank"]:
    """R of full column rank with R Rᵀ = the covariance."""
    values, vectors = torch.linalg.eigh(covariance)
    if values[0] < -1e-5 * values[-1].abs():
        raise ValueError(f"the covariance of {name} is none: it has an eigenvalue of {values[0]:.3g}.")
    kept = values > len(values) * torch.finfo(torch.float64).eps * values[-1]
    return vectors[:, kept] * values[kept].sqrt()


def inception_score(logits: Float[Tensor, "n classes"], splits: int = 10) -> tuple[float, float]:
    """Inception Score (Salimans et al., 2016) from a classifier's logits: mean and deviation over the splits.

    exp of the mean of KL(p(y|x) ‖ p(y)) within a split, where p(y) is the split's own mean; between 1 and the number
    of classes. Split i holds the images i · n // splits … (i + 1) · n // splits − 1, in the order they come in. The
    deviation is that of ``splits`` numbers, with divisor ``splits``. Raises ValueError for fewer images than splits,
    and for NaN or infinity.
    """
    if splits < 1:
        raise ValueError(f"splits={splits}: take at least 1.")
    n = len(logits)
    check_features("logits", logits, splits, f"{splits} splits need")
    scores = []
    for i in range(splits):
        log_p = logits[i * n // splits : (i + 1) * n // splits].detach().double().log_softmax(1)
        log_q = log_p.logsumexp(0) - math.log(len(log_p))  # finite also where every p underflows
        scores.append((log_p.exp() * (log_p - log_q)).sum(1).mean().exp().item())
    return float(np.mean(scores)), float(np.std(scores))


def kernel_distance(
    a: Float[Tensor, "n dim"],
    b: Float[Tensor, "m dim_b"],
    generator: torch.Generator,
    subsets: int = 100,
    subset_size: int = 1000,
) -> tuple[float, float]:
    """Kernel (Inception) distance (Bińkowski et al., 2018): mean and deviation of ``mmd2`` over random subsets.

    Each subset of a, then of b, is drawn without replacement. The estimate is unbiased, so it may fall below 0. The
    deviation, with divisor ``subsets``, is that of single subsets and no standard error of the mean. Raises ValueError
    for sets smaller than a subset, NaN or infinity, and unequal dimensions.
    """
    if subsets < 1 or subset_size < 2:
        raise ValueError(f"subsets={subsets}, subset_size={subset_size}: take at least 1 subset of at least 2.")
    for name, x in (("a", a), ("b", b)):
        check_features(name, x, subset_size, f"subset_size={subset_size} needs")
    check_dims(("a", "b"), (a.shape[1], b.shape[1]))

    def draw(x: Tensor) -> Tensor:
        return x[torch.randperm(len(x), generator=generator, device=generator.device)[:subset_size].to(x.device)]

    values = [mmd2(draw(a), draw(b)) for _ in range(subsets)]
    return float(np.mean(values)), float(np.std(values))


def mmd2(x: Float[Tensor, "n dim"], y: Float[Tensor, "m dim"]) -> float:
    """Unbiased squared maximum mean discrepancy under the kernel (x·y / dim + 1)³, in float64 (Gretton et al., 2012).

    The mean of k over pairs of different x, plus that over pairs of different y, less twice that over x and y.
    """
    x, y = x.detach().double(), y.detach().double()
    within = [(k.sum() - k.diagonal().sum()) / (len(k) * (len(k) - 1)) for k in (_kernel(x, x), _kernel(y, y))]
    return (sum(within) - 2 * _kernel(x, y).mean()).item()


def _kernel(x: Float[Tensor, "n dim"], y: Float[Tensor, "m dim"]) -> Float[Tensor, "n m"]:
    return (x @ y.T / x.shape[1] + 1) ** 3
