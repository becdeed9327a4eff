"""Multiplying a chain with what is known: quadrature, sums over paths, and the closed form of the whole sampler."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import BitChain, Chain
from scipy.integrate import quad
from scipy.stats import norm
from torch.distributions import Bernoulli, Normal

from minidiff import (
    BinomialDiffusion,
    GaussianDiffusion,
    LearnedGaussian,
    Posterior,
    ancestral,
    batch_noise,
    draw,
    generate,
    geometric_betas,
    known,
    linear_betas,
)

SHORT = torch.tensor([0.1, 0.3, 0.5, 0.7], dtype=torch.float64)
TWO_BITS = [0.45, 0.05, 0.2, 0.3]  # of 00, 01, 10, 11
INF = float("inf")
GRID = np.linspace(-16, 16, 8_001)


class OneKernel:
    """A process that always takes the same step."""

    T, noise_at_end = 4, True

    def __init__(self, kernel: Normal | Bernoulli):
        self.kernel = kernel
        ours = {"validate_args": False}
        self.prior = Normal(0.0, 1.0) if isinstance(kernel, Normal) else Bernoulli(logits=torch.tensor(0.4), **ours)

    def reverse(self, net, x, t):
        return self.kernel


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def gaussian(mean: float, variance: float) -> OneKernel:
    return OneKernel(Normal(column(mean), column(variance).sqrt()))


def step(posterior: Posterior, t: int = 2) -> Normal | Bernoulli:
    return posterior.reverse(lambda x, t: x, column(0.0), torch.tensor([t]))


# ---- one step -------------------------------------------------------------------------------------------------------


@given(mean=st.floats(-2, 2), scale=st.floats(0.2, 2), y=st.floats(-2, 2), sd=st.floats(0.2, 2), t=st.integers(0, 3))
def test_a_normal_r_is_multiplied_exactly(mean, scale, y, sd, t):
    for over_time, power in (("constant", 1.0), ("rising", (4 - t) / 4)):  # step t leads to x^t of the papers' count
        r = Normal(column(y), column(sd))
        ours = step(Posterior(gaussian(mean, scale**2), r, over_time), t)
        mass = norm.pdf(GRID, mean, scale) * norm.pdf(GRID, y, sd) ** power
        mass = mass / mass.sum()
        expected = mass @ GRID
        assert ours.mean.item() == pytest.approx(expected, abs=1e-7)
        assert ours.variance.item() == pytest.approx(mass @ (GRID - expected) ** 2, rel=1e-6)


def test_certainty_and_ignorance_are_exact():
    for over_time, t in product(("constant", "rising"), range(4)):
        delta = Normal(column(-1.7), column(0.0), validate_args=False)
        fixed = step(Posterior(gaussian(0.3, 0.5), delta, over_time), t)
        assert fixed.mean.item() == pytest.approx(-1.7, abs=1e-15) and fixed.scale.item() == 0
        free = step(Posterior(gaussian(0.3, 0.5), Normal(column(-1.7), column(INF)), over_time), t)
        assert (free.mean.item(), free.variance.item()) == pytest.approx((0.3, 0.5), abs=1e-15)


@given(c=st.floats(0.01, 0.99), d=st.floats(0.01, 0.99), t=st.integers(0, 3))
def test_a_bernoulli_r_is_multiplied_exactly(c, d, t):
    for over_time, power in (("constant", 1.0), ("rising", (4 - t) / 4)):
        kernel = Bernoulli(logits=column(c).logit())
        ours = step(Posterior(OneKernel(kernel), Bernoulli(probs=column(d)), over_time), t)
        one, zero = c * d**power, (1 - c) * (1 - d) ** power
        assert ours.probs.item() == pytest.approx(one / (one + zero), rel=1e-6)


@pytest.mark.parametrize("over_time", ["constant", "rising"])
@pytest.mark.parametrize("logit", [-INF, -30.0, 0.0, INF])
def test_a_bit_that_is_certain_is_certain_under_any_r_and_any_rate(logit, over_time):
    kernel = lambda z: OneKernel(Bernoulli(logits=column(z), validate_args=False))
    for t in range(4):
        for d, rate in ((INF, 1.0), (-INF, 0.0)):
            r = Bernoulli(logits=column(d), validate_args=False)
            assert step(Posterior(kernel(logit), r, over_time), t).probs.item() == rate
        silent = step(Posterior(kernel(logit), Bernoulli(logits=column(0.0)), over_time), t)
        assert silent.logits.item() == logit


@given(mean=st.floats(-2, 2), scale=st.floats(0.1, 2), t=st.integers(0, 3))
def test_a_function_moves_the_mean_by_its_slope_there(mean, scale, t):
    """(SD 61), the slope by finite differences; and the function is told which x it is given."""
    asked = []

    def log_r(x, t):
        asked.append(t.tolist())
        return (torch.sin(2 * x) - 0.1 * x**4 + 3 * t[:, None]).sum(1)

    value = lambda x: np.sin(2 * x) - 0.1 * x**4
    slope = (value(mean + 1e-5) - value(mean - 1e-5)) / 2e-5
    for over_time, power in (("constant", 1.0), ("rising", (4 - t) / 4)):
        ours = step(Posterior(gaussian(mean, scale**2), log_r, over_time), t)
        assert ours.mean.item() == pytest.approx(mean + power * scale**2 * slope, abs=1e-7)
        assert ours.scale.item() == pytest.approx(scale)
    assert asked == [[t - 1], [t - 1]]


CURVES = {
    "parabola": lambda x, lib: -((x - 1.5) ** 2),
    "quartic": lambda x, lib: x - x**4 / 3,
    "wave": lambda x, lib: lib.sin(2 * x),
}


@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
def test_the_shift_errs_by_the_square_of_the_variance(curve):
    """Against mean and variance of the exact product, by quadrature: halve Σ, and a quarter of the error is left."""
    errors = []
    for variance in (0.02, 0.01, 0.005):
        width = variance**0.5
        density = lambda x: norm.pdf(x, 0.6, width) * np.exp(curve(x, np))  # noqa: B023
        span = (0.6 - 12 * width, 0.6 + 12 * width)
        total, first, second = (quad(lambda x: x**k * density(x), *span, epsabs=1e-15)[0] for k in range(3))  # noqa: B023
        mean = first / total
        ours = step(Posterior(gaussian(0.6, variance), lambda x, t: curve(x, torch).sum(1)))
        errors.append([ours.mean.item() - mean, ours.variance.item() - (second / total - mean**2)])
    ratios = np.array(errors)[:-1] / np.array(errors)[1:]
    assert ((ratios > 3.7) & (ratios < 4.3)).all()


def test_the_steps_of_a_batch_have_powers_of_their_own():
    process, r = LearnedGaussian(SHORT, learn_betas=False), Normal(torch.tensor([1.0, -0.5]), torch.tensor([0.4, 2.0]))
    posterior, x = Posterior(process, r, "rising"), torch.randn(4, 2, generator=torch.Generator().manual_seed(1))
    net = Chain(SHORT, 0.3, 0.6).learned("pull")
    together = posterior.reverse(net, x.double(), torch.tensor([3, 0, 1, 2]))
    for row, t in enumerate([3, 0, 1, 2]):
        alone = posterior.reverse(net, x[row : row + 1].double(), torch.tensor([t]))
        torch.testing.assert_close(together.mean[row : row + 1], alone.mean)
        torch.testing.assert_close(together.variance[row : row + 1], alone.variance)
    powers = 1 / (1 / together.variance - 1 / process.reverse(net, x.double(), torch.tensor([3, 0, 1, 2])).variance)
    torch.testing.assert_close(powers[:, 0], 0.4**2 / torch.tensor([0.25, 1.0, 0.75, 0.5]).double(), rtol=1e-5, atol=0)


def test_the_start_is_multiplied_too():
    gauss, bits = LearnedGaussian(SHORT, learn_betas=False), BinomialDiffusion(SHORT, 0.2)
    r = Normal(torch.tensor([0.8, 0.8, 0.8]), torch.tensor([0.5, 0.0, INF]), validate_args=False)
    d = Bernoulli(probs=torch.tensor([0.3]))
    prior = Posterior(gauss, r).prior
    np.testing.assert_allclose(prior.mean, [0.8 / 1.25, 0.8, 0.0], rtol=1e-7)
    np.testing.assert_allclose(prior.variance, [0.25 / 1.25, 0.0, 1.0], rtol=1e-7)
    assert Posterior(bits, d).prior.probs.item() == pytest.approx(0.2 * 0.3 / (0.2 * 0.3 + 0.8 * 0.7))
    for unchanged in (Posterior(gauss, r, "rising"), Posterior(gauss, lambda x, t: -x.square().sum(1))):
        assert (unchanged.prior.mean == 0).all() and (unchanged.prior.variance == 1).all()
    assert Posterior(bits, d, "rising").prior.probs.item() == pytest.approx(0.2)
    certain = Posterior(bits, Bernoulli(logits=torch.tensor([INF]), validate_args=False))
    assert certain.prior.probs.item() == 1


def test_it_is_a_process_with_the_methods_of_the_one_inside():
    for process in (GaussianDiffusion(SHORT), LearnedGaussian(SHORT, learn_betas=False)):
        posterior, x, mean = Posterior(process, Normal(0.0, 1.0)), column(0.1, 0.2), column(-0.4, 0.9)
        t = torch.tensor([1, 3])
        assert (posterior.T, posterior.noise_at_end) == (process.T, process.noise_at_end)
        assert torch.equal(posterior.x0_from_mean(mean, x, t), process.x0_from_mean(mean, x, t))


@pytest.mark.parametrize(
    "process, r, sentence",
    [
        (BinomialDiffusion(SHORT), Normal(0.0, 1.0), "r is a Normal, but the steps of BinomialDiffusion are Bernoulli"),
        (LearnedGaussian(SHORT), Bernoulli(0.5), "r is a Bernoulli, but the steps of LearnedGaussian are Normal"),
        (GaussianDiffusion(SHORT), Bernoulli(0.5), "r is a Bernoulli, but the steps of GaussianDiffusion are Normal"),
        (BinomialDiffusion(SHORT), lambda x, t: x.sum(1), "r: a binomial process takes a torch Bernoulli"),
    ],
)
def test_an_r_that_does_not_fit_the_process_is_refused(process, r, sentence):
    with pytest.raises(ValueError, match=sentence):
        Posterior(process, r)


# ---- the whole sampler, Gaussian ------------------------------------------------------------------------------------


class Pair:
    """Two standard normals of correlation ρ, and the exact reverse of their chain, element by element."""

    def __init__(self, betas: torch.Tensor, rho: float = 0.9):
        self.b = betas.numpy()
        self.a = np.cumprod(1 - self.b)
        before = np.append(1.0, self.a[:-1])
        data, one = np.array([[1, rho], [rho, 1]]), np.eye(2)
        self.S = self.a[:, None, None] * data + (1 - self.a)[:, None, None] * one
        S_before = before[:, None, None] * data + (1 - before)[:, None, None] * one
        inverse, keep = np.linalg.inv(self.S), np.sqrt(1 - self.b)[:, None, None]
        self.M = keep * S_before @ inverse  # E[x_{t−1} | x_t] = M x_t
        self.V = np.diagonal(S_before - keep**2 * S_before @ inverse @ S_before, axis1=1, axis2=2)
        self.to_x0 = np.sqrt(self.a)[:, None, None] * data @ inverse  # E[x_0 | x_t]
        self.x0_variance = np.diagonal(data - self.a[:, None, None] * data @ inverse @ data, axis1=1, axis2=2)

    def shift(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """z^μ and z^Σ."""
        at, logit = lambda table: torch.from_numpy(table)[t.long()].to(x), lambda p: np.log(p / (1 - p))
        mean = (at(self.M) @ x[:, :, None])[:, :, 0]
        z = (mean - at(np.sqrt(1 - self.b))[:, None] * x) / at(np.sqrt(self.b))[:, None]
        return torch.cat([z, at(logit(self.V) - logit(self.b)[:, None])], 1)

    def mean(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The posterior mean and log σ², for the other Gaussian process."""
        at = lambda table: torch.from_numpy(table)[t.long()].to(x)
        return torch.cat([(at(self.M) @ x[:, :, None])[:, :, 0], at(np.log(self.V))], 1)


def moments(process, net) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of x_0 where every step is affine: read off at three points, then carried down the chain."""
    points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]).double().repeat(process.T, 1)
    kernel = process.reverse(net, points, torch.arange(process.T).repeat_interleave(3))
    at = kernel.mean.reshape(-1, 3, 2).numpy()
    slope, variance = (at[:, 1:] - at[:, :1]).transpose(0, 2, 1), kernel.variance.reshape(-1, 3, 2)[:, 0].numpy()
    mean, covariance = process.prior.mean.expand(2).numpy(), np.diag(process.prior.variance.expand(2).numpy())
    for t in reversed(range(process.T)):
        mean = at[t, 0] + slope[t] @ mean
        covariance = slope[t] @ covariance @ slope[t].T + (np.diag(variance[t]) if t or process.noise_at_end else 0)
    return mean, covariance


def by_hand(pair: Pair, y: float) -> tuple[float, float]:
    """Mean and variance of the unknown element, where the known one is y at every step."""
    mean, variance = 0.0, 1.0
    for t in reversed(range(1, len(pair.b))):
        mean = pair.M[t, 1, 0] * y + pair.M[t, 1, 1] * mean
        variance = pair.M[t, 1, 1] ** 2 * variance + pair.V[t, 1]
    return np.sqrt(1 - pair.b[0]) * mean, (1 - pair.b[0]) * variance + pair.b[0]


MASK, EVIDENCE = torch.tensor([True, False]), torch.tensor([1.5, 0.0])


def test_inpainting_a_gaussian_keeps_the_bias_of_a_constant_r():
    """Mean 1.090 and variance 0.311 in many steps, where the truth is 1.35 and 0.19."""
    for betas in (linear_betas(60), linear_betas(2000)):
        pair, process = Pair(betas), LearnedGaussian(betas, learn_betas=False, predict="shift")
        mean, covariance = moments(Posterior(process, known(EVIDENCE, MASK, process)), pair.shift)
        expected = by_hand(pair, 1.5)
        np.testing.assert_allclose([mean[1], covariance[1, 1]], expected, rtol=1e-6)
        np.testing.assert_allclose([mean[0], covariance[0, 0]], [1.5, 0.0], atol=1e-9)
    assert expected == pytest.approx((1.090, 0.311), abs=0.003)


def test_with_the_r_that_the_theory_asks_for_the_bias_goes_away():
    """r(x_t) = E[r(x_0) | x_t] (SD 21) for r(x_0) = N(x_0; 1.5, 0.05²) of the first element: 1.347 and 0.192."""
    truth = np.array([0.9 * 1.5 / 1.0025, 1 - 0.81 / 1.0025])
    errors = []
    for T in (500, 2000, 8000):
        pair = Pair(linear_betas(T))
        to_x0 = torch.from_numpy(np.concatenate([[[1.0, 0.0]], pair.to_x0[:, 0]]))  # row t + 1; −1 is the data
        spread = torch.from_numpy(np.append(0.0, pair.x0_variance[:, 0])) + 0.05**2

        def log_r(x, t):
            x0_hat = (to_x0[t + 1] * x).sum(1)  # noqa: B023
            return -((1.5 - x0_hat) ** 2) / (2 * spread[t + 1]) - spread[t + 1].log() / 2  # noqa: B023

        process = LearnedGaussian(linear_betas(T), learn_betas=False, predict="shift")
        mean, covariance = moments(Posterior(process, log_r), pair.shift)
        errors.append(np.abs([mean[1] - truth[0], covariance[1, 1] - truth[1]]))
    assert (errors[1] < 0.4 * errors[0]).all() and (errors[2] < 0.4 * errors[1]).all() and (errors[2] < 0.004).all()


@pytest.mark.parametrize("over_time", ["constant", "rising"])
@pytest.mark.parametrize("kind", ["learned", "gaussian"])
def test_samples_have_the_moments_of_the_affine_sampler(kind, over_time, generator):
    betas, n = linear_betas(40), 20_000
    pair = Pair(betas)
    if kind == "learned":
        process, net = LearnedGaussian(betas, learn_betas=False, predict="shift"), pair.shift
    else:
        process, net = GaussianDiffusion(betas, "mean", "learned", loss="bound", clip=False), pair.mean
    posterior = Posterior(process, Normal(torch.tensor([1.5, -1.0]), torch.tensor([0.3, 2.0])), over_time)
    noise = batch_noise(generator, n, (2,))
    x = ancestral(posterior, net, draw(posterior.prior, noise(0)), noise).numpy()
    mean, covariance = moments(posterior, net)
    deviation = np.sqrt(np.diag(covariance))
    assert (np.abs(x.mean(0) - mean) < 4 * deviation / n**0.5).all()
    error = np.sqrt((np.outer(deviation, deviation) ** 2 + covariance**2) / n)
    assert (np.abs(np.cov(x.T) - covariance) < 4 * error).all()


def test_known_elements_of_images_stay_and_each_seed_has_its_own_picture(generator):
    betas = geometric_betas(20, 1e-3, 0.5)
    process, net = LearnedGaussian(betas, learn_betas=False), Chain(betas, 0.0, 1.0).learned("pull")
    image = torch.randn(1, 4, 4, generator=generator)
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[:, 1:3] = True
    posterior = Posterior(process, known(image, mask, process))
    x = generate(posterior, net, (1, 4, 4), [5, 6, 7])
    torch.testing.assert_close(x[:, mask], image[mask].expand(3, 8), rtol=0, atol=1e-6)
    assert (x[0, ~mask] - x[1, ~mask]).abs().min() > 1e-4
    torch.testing.assert_close(generate(posterior, net, (1, 4, 4), [7, 5], batch=1), x[[2, 0]], rtol=0, atol=1e-6)
    free = generate(process, net, (1, 4, 4), [5, 6, 7])
    torch.testing.assert_close(x[:, ~mask], free[:, ~mask], rtol=0, atol=1e-6)  # independent pixels: nothing to tell


# ---- the whole sampler, bits ----------------------------------------------------------------------------------------


def bit_sampler(chain: BitChain, m: float, d: np.ndarray, over_time: str) -> np.ndarray:
    """Distribution over the states of two bits after the chain with c → c d^p / (c d^p + (1 − c)(1 − d)^p)."""

    def bend(c: np.ndarray, power: float) -> np.ndarray:
        return c * d**power / (c * d**power + (1 - c) * (1 - d) ** power)

    def law(rate: np.ndarray) -> np.ndarray:  # of independent bits, over the states
        return np.where(chain.states == 1, rate[..., None, :], 1 - rate[..., None, :]).prod(-1)

    T = chain.T
    p = law(bend(np.full(2, m), 1.0 if over_time == "constant" else 0.0))
    for t in reversed(range(T)):
        joint = chain.joint(t, t + 1)
        exact = (joint.T @ chain.states) / joint.sum(0)[:, None]
        first = np.array([chain.single[0][bit, 1] for bit in (0, 1)])[chain.states]
        p = p @ law(bend(exact if t else first, 1.0 if over_time == "constant" else (T - t) / T))
    return p


@pytest.mark.parametrize("over_time", ["constant", "rising"])
@pytest.mark.parametrize("d", [(0.5, 0.5), (0.8, 0.3), (1.0, 0.5), (0.5, 0.0)])
def test_bits_are_drawn_as_the_sum_over_all_paths_says(d, over_time, generator):
    chain, process, n = BitChain(SHORT, 0.3, TWO_BITS), BinomialDiffusion(SHORT, 0.3), 20_000
    logits = torch.tensor([np.inf if p == 1 else -np.inf if p == 0 else np.log(p / (1 - p)) for p in d])
    posterior = Posterior(process, Bernoulli(logits=logits, validate_args=False), over_time)
    x = torch.from_numpy(generate_many(posterior, chain.network(), n, generator))
    found = torch.bincount((x[:, 0] * 2 + x[:, 1]).long(), minlength=4).numpy() / n
    expected = bit_sampler(chain, 0.3, np.array(d), over_time)
    assert expected.sum() == pytest.approx(1)
    assert (np.abs(found - expected) <= 4 * np.sqrt(expected * (1 - expected) / n)).all()


def generate_many(process, net, n: int, generator: torch.Generator) -> np.ndarray:
    noise = batch_noise(generator, n, (2,))
    return ancestral(process, net, draw(process.prior, noise(0)), noise).numpy()


def test_known_bits_stay_at_every_step(generator):
    chain, process = BitChain(SHORT, 0.3, TWO_BITS), BinomialDiffusion(SHORT, 0.3)
    x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]).double()
    mask = torch.tensor([[False, True], [True, False], [True, True]])
    posterior, noise, seen = Posterior(process, known(x, mask, process)), batch_noise(generator, 3, (2,)), []
    start = draw(posterior.prior, noise(0))
    end = ancestral(posterior, chain.network(), start, noise, callback=lambda **point: seen.append(point["x"]))
    assert len(seen) == 4 and all(torch.equal(point[mask], x[mask]) for point in [*seen, end])
