"""Exact answers for data N(m, s²), written from the papers' equations in numpy and apart from the library."""

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor


class Chain:
    """The forward chain of ``betas`` on scalar data N(m, s²), and the best networks for it."""

    def __init__(self, betas: Tensor, m: float, s: float):
        self.betas, self.m, self.s = betas.numpy().astype(np.float64), m, s
        self.alpha_bar = np.cumprod(1 - self.betas)
        self.before = np.append(1.0, self.alpha_bar[:-1])
        self.beta_tilde = (1 - self.before) / (1 - self.alpha_bar) * self.betas
        self.coefficient = np.sqrt(self.before) * self.betas / (1 - self.alpha_bar)  # of x_0 in (DDPM 7)
        self.marginal = self.alpha_bar * s**2 + 1 - self.alpha_bar  # Var x_t
        self.gain = np.sqrt(self.alpha_bar) * s**2 / self.marginal  # of x_t in E[x_0 | x_t]
        self.uncertain = s**2 * (1 - self.alpha_bar) / self.marginal  # Var(x_0 | x_t)
        self.best_variance = self.beta_tilde + self.coefficient**2 * self.uncertain  # Var(x_{t-1} | x_t)

    def network(self, predict: str, learned: bool = False):
        """``net(x, t)``: E[target | x_t]; with ``learned``, the logarithm of Var(x_{t-1} | x_t) as a second half."""

        def net(x: Tensor, t: Tensor) -> Tensor:
            def at(table: np.ndarray) -> Tensor:
                return torch.from_numpy(table)[t.long()].to(x).reshape(-1, *[1] * (x.ndim - 1))

            signal, noise = at(np.sqrt(self.alpha_bar)), at(np.sqrt(1 - self.alpha_bar))
            x0 = self.m + at(self.gain) * (x - signal * self.m)
            eps = (x - signal * x0) / noise
            into_mean = at(np.sqrt(1 - self.betas) * (1 - self.before) / (1 - self.alpha_bar))
            answers = {
                "x0": x0,
                "eps": eps,
                "v": signal * eps - noise * x0,
                "mean": at(self.coefficient) * x0 + into_mean * x,
            }
            if not learned:
                return answers[predict]
            return torch.cat([answers[predict], at(np.log(self.best_variance)).expand_as(x)], dim=1)

        return net

    def bound_terms(self, x0: np.ndarray, variance: np.ndarray, levels: int) -> np.ndarray:
        """(T + 1, n) bits: L_0 … L_{T−1} and L_T of each scalar x0 under the best unclipped network and these σ²."""
        x0 = np.asarray(x0, dtype=np.float64)
        nodes, weights = np.polynomial.hermite_e.hermegauss(80)
        weights = weights / weights.sum()
        shrink = 1 - self.gain * np.sqrt(self.alpha_bar)
        square = shrink[:, None] ** 2 * (x0 - self.m) ** 2 + (self.gain**2 * (1 - self.alpha_bar))[:, None]
        with np.errstate(divide="ignore"):
            ratio = self.beta_tilde / variance
            constant = (-np.log(ratio) - 1 + ratio)[:, None]
        kl = 0.5 * (constant + (self.coefficient**2 / variance)[:, None] * square)
        x1 = np.sqrt(self.alpha_bar[0]) * x0 + np.sqrt(1 - self.alpha_bar[0]) * nodes[:, None]
        mean = self.m + self.gain[0] * (x1 - np.sqrt(self.alpha_bar[0]) * self.m)
        kl[0] = -(weights[:, None] * log_mass(x0, mean, variance[0] ** 0.5, levels)).sum(0)
        last = self.alpha_bar[-1]
        prior = 0.5 * ((1 - last) + last * x0**2 - 1 - np.log(1 - last))
        return np.vstack([kl, prior]) / np.log(2)


def log_mass(x: np.ndarray, mean: np.ndarray, std: float, levels: int) -> np.ndarray:
    """Nats of N(mean, std²) in the bin of x, by the difference of two normal integrals; the ends reach to infinity."""
    half = 1 / (levels - 1)
    upper = np.where(x > 1 - half, np.inf, (x + half - mean) / std)
    lower = np.where(x < -1 + half, -np.inf, (x - half - mean) / std)
    flip = lower > 0
    near, far = norm.logcdf(np.where(flip, -lower, upper)), norm.logcdf(np.where(flip, -upper, lower))
    return near + np.log1p(-np.exp(far - near))
