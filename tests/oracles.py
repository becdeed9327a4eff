"""Exact answers for data N(m, s²), and for a few bits, written from the papers' equations in numpy and apart from the
library."""

from collections.abc import Callable
from itertools import product

import numpy as np
import torch
from scipy.special import xlogy
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

    def learned(self, predict: str):
        """``net(x, t)``: the z^μ and z^Σ with which (SD 64, SD 65) give mean and variance of q(x_{t-1} | x_t)."""
        means = self.network("mean")
        logit = lambda p: np.log(p / (1 - p))
        z_sigma = logit(self.best_variance) - logit(self.betas)

        def net(x: Tensor, t: Tensor) -> Tensor:
            def at(table: np.ndarray) -> Tensor:
                return torch.from_numpy(table)[t.long()].to(x).reshape(-1, *[1] * (x.ndim - 1))

            mean, variance = means(x, t), at(self.best_variance)
            pull = (mean - (1 - variance) * x) / variance
            shift = (mean - at(np.sqrt(1 - self.betas)) * x) / at(np.sqrt(self.betas))
            return torch.cat([{"pull": pull, "shift": shift}[predict], at(z_sigma).expand_as(x)], dim=1)

        return net

    def density_terms(self, x0: np.ndarray) -> np.ndarray:
        """(T + 1, n) bits: −K of scalars x0 by steps, x_T's last, under the best reverse but for its first step.

        That is the forward kernel (SD 44), and the data have no levels: bits of a density.
        """
        x0 = np.asarray(x0, dtype=np.float64)
        terms = self.bound_terms(x0, self.best_variance, levels=2) * np.log(2)
        nodes, weights = np.polynomial.hermite_e.hermegauss(80)
        x1 = np.sqrt(1 - self.betas[0]) * x0 + np.sqrt(self.betas[0]) * nodes[:, None]
        back = norm.logpdf(x0, np.sqrt(1 - self.betas[0]) * x1, np.sqrt(self.betas[0]))
        terms[0] = -(weights / weights.sum()) @ back
        return terms / np.log(2)


def log_mass(x: np.ndarray, mean: np.ndarray, std: float, levels: int) -> np.ndarray:
    """Nats of N(mean, std²) in the bin of x, by the difference of two normal integrals; the ends reach to infinity."""
    half = 1 / (levels - 1)
    upper = np.where(x > 1 - half, np.inf, (x + half - mean) / std)
    lower = np.where(x < -1 + half, -np.inf, (x - half - mean) / std)
    flip = lower > 0
    near, far = norm.logcdf(np.where(flip, -lower, upper)), norm.logcdf(np.where(flip, -upper, lower))
    return near + np.log1p(-np.exp(far - near))


class BitChain:
    """The binomial forward chain on a few bits: every path of it, with its probability.

    ``states`` (S, d) are the values that d bits can take; ``data`` (S,) their probabilities at the start.
    """

    def __init__(self, betas: Tensor, m: float, data: list[float]):
        self.T, self.d = len(betas), int(np.log2(len(data)))
        self.data, self.states = np.array(data), np.array(list(product([0, 1], repeat=self.d)))
        self.single = [(1 - b) * np.eye(2) + b * np.array([1 - m, m]) for b in betas.tolist()]  # [now, next]
        self.step = []  # of all bits together
        for one in self.single:
            together = np.ones((1, 1))
            for _ in range(self.d):
                together = np.kron(together, one)
            self.step.append(together)
        ones = self.states.sum(1)
        self.end = m**ones * (1 - m) ** (self.d - ones)  # π of each state
        self.paths = np.array(list(product(range(len(data)), repeat=self.T + 1)))  # x_0 … x_T
        self.given_x0 = np.prod([self.step[t][self.paths[:, t], self.paths[:, t + 1]] for t in range(self.T)], axis=0)

    def joint(self, *times: int) -> np.ndarray:
        """P(x at these times), times counted 0 … T with x_0 the data; an array with an axis for each."""
        table = np.zeros([len(self.data)] * len(times))
        np.add.at(table, tuple(self.paths[:, k] for k in times), self.data[self.paths[:, 0]] * self.given_x0)
        return table

    def entropy(self, *times: int) -> float:
        """Joint entropy of x at these times, in bits."""
        p = self.joint(*times)
        return -xlogy(p, p).sum() / np.log(2)

    def network(self) -> Callable[[Tensor, Tensor], Tensor]:
        """``net(x, t)``: the logit of P(x_0 = 1 | x_t), bit by bit."""
        tables = []
        for t in range(self.T):
            together = self.joint(0, t + 1)
            with np.errstate(invalid="ignore"):
                rate = (together.T @ self.states) / together.sum(0)[:, None]
            tables.append(rate)
        logit = torch.from_numpy(np.array(tables)).logit()
        powers = 2 ** torch.arange(self.d - 1, -1, -1)

        def net(x: Tensor, t: Tensor) -> Tensor:
            return logit[t.long(), (x.long() * powers).sum(-1)].to(x)

        return net

    def log_model(self, back: Callable[[np.ndarray, int], np.ndarray]) -> np.ndarray:
        """log p(x_0 … x_T) of every path, where ``back(states, t)`` is the rate of each bit of x_t given x_{t+1}."""
        total = np.log(self.end)[self.paths[:, -1]]
        for t in range(self.T):
            rate = back(self.states, t)  # of x_t, for each state of x_{t+1}
            log_p = (xlogy(self.states, rate[:, None]) + xlogy(1 - self.states, 1 - rate[:, None])).sum(2)
            total = total + log_p[self.paths[:, t + 1], self.paths[:, t]]
        return total

    def by_start(self, values: np.ndarray) -> np.ndarray:
        """Sum over the paths that begin in each state."""
        return np.bincount(self.paths[:, 0], values, minlength=len(self.data))
