"""The likelihood from forward trajectories, against sums over all paths; entropies of the reverse and their bounds."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import BitChain, Chain
from scipy.special import expit
from scipy.stats import norm

from minidiff import (
    BinomialDiffusion,
    GaussianDiffusion,
    LearnedGaussian,
    entropy_bounds,
    geometric_betas,
    harmonic_betas,
    heartbeats,
    likelihood_bound,
    linear_betas,
    null_likelihood,
    trajectory_likelihood,
)

SHORT = torch.tensor([0.1, 0.3, 0.5, 0.7], dtype=torch.float64)
LOUD = torch.tensor([0.5, 0.6, 0.6, 0.7], dtype=torch.float64)  # no path is rare, so that errors can be estimated
TWO_BITS = [0.45, 0.05, 0.2, 0.3]  # of 00, 01, 10, 11
LN2 = math.log(2)


def wavy(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return 0.5 * x.roll(1, -1) - 0.3 * x + 0.4 * torch.cos(t[:, None].to(x) + 1) - 1


def paths() -> tuple[BitChain, np.ndarray]:
    """Two bits, and log p/q of every path under a network that is right about nothing."""
    chain = BitChain(LOUD, 0.2, TWO_BITS)

    def back(states: np.ndarray, t: int) -> np.ndarray:
        if t == 0:
            return chain.single[0][:, 1][states]
        return expit(wavy(torch.from_numpy(states).double(), torch.full((4,), float(t))).numpy())

    return chain, chain.log_model(back) - np.log(chain.given_x0)


# ---- the likelihood -------------------------------------------------------------------------------------------------


def test_the_estimate_is_the_likelihood_by_a_sum_over_all_paths(generator):
    """And K is the bound; and the errors that are told are those of sampling, from the ratios' own distribution."""
    chain, log_ratio = paths()
    n, x0 = 20_000, torch.from_numpy(chain.states).double()
    found = trajectory_likelihood(BinomialDiffusion(LOUD, 0.2, "rate"), wavy, x0, generator, n)
    mean = lambda values: chain.by_start(chain.given_x0 * values)
    p, K = mean(np.exp(log_ratio)), mean(log_ratio)
    p_error = np.sqrt(mean(np.exp(2 * log_ratio)) - p**2) / p / n**0.5 / LN2
    K_error = np.sqrt(mean(log_ratio**2) - K**2) / n**0.5 / LN2
    np.testing.assert_allclose(found.log_p_error, p_error, rtol=0.1)
    np.testing.assert_allclose(found.K_error, K_error, rtol=0.1)
    assert (np.abs(found.log_p.numpy() - np.log2(p)) < 4 * p_error).all()
    assert (np.abs(found.K.numpy() - K / LN2) < 4 * K_error).all()
    assert p.sum() == pytest.approx(1)


def test_a_single_path_is_an_unbiased_estimate_already(generator):
    """Means of p̂ over many estimates of two paths each: of the estimate itself, not of its logarithm."""
    chain, log_ratio = paths()
    p = chain.by_start(chain.given_x0 * np.exp(log_ratio))
    many = torch.from_numpy(chain.states).double().repeat(5_000, 1)
    found = trajectory_likelihood(BinomialDiffusion(LOUD, 0.2, "rate"), wavy, many, generator, 2)
    estimates = torch.exp2(found.log_p).reshape(5_000, 4)
    error = estimates.std(0) / 5_000**0.5
    assert ((estimates.mean(0) - torch.from_numpy(p)).abs() < 4 * error).all()


@pytest.mark.parametrize("predict", ["pull", "shift"])
def test_where_the_reverse_is_exact_every_path_gives_the_likelihood(predict, generator):
    """N(0, 1) is where the chain ends, so the first step is exact as well: no spread at any T."""
    betas = geometric_betas(7, 0.01, 0.6)
    x0 = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    process = LearnedGaussian(betas, predict=predict)
    found = trajectory_likelihood(process, Chain(betas, 0.0, 1.0).learned(predict), x0, generator, 5)
    expected = norm.logpdf(x0.numpy()).sum(1) / LN2
    for bits, error in ((found.log_p, found.log_p_error), (found.K, found.K_error)):
        np.testing.assert_allclose(bits, expected, rtol=1e-7)
        assert (error < 1e-7).all()


def test_the_spread_vanishes_and_the_estimate_is_the_density_as_steps_get_smaller(generator):
    """Quasi-static (SD §2.2), on N(0.6, 0.8²). The model is Gaussian too: one forward step from its x_1 to its x_0."""
    x0 = 0.6 + 0.8 * torch.randn(40, 1, generator=generator, dtype=torch.float64)
    data, spreads, gaps = norm.logpdf(x0.numpy()[:, 0], 0.6, 0.8) / LN2, [], []
    for T in (30, 120, 480):
        betas = linear_betas(T)
        chain, process = Chain(betas, 0.6, 0.8), LearnedGaussian(betas, predict="shift", learn_betas=False)
        mean = np.sqrt(1 - chain.betas[0]) * np.sqrt(chain.alpha_bar[0]) * 0.6
        variance = (1 - chain.betas[0]) * chain.marginal[0] + chain.betas[0]
        model = norm.logpdf(x0.numpy()[:, 0], mean, variance**0.5) / LN2
        found = trajectory_likelihood(process, chain.learned("shift"), x0, generator, 100)
        spreads.append((found.K_error * 10).square().mean().sqrt().item())
        gaps.append(np.abs(model - data).max())
        low = spreads[-1] ** 2 * LN2 / 2 / 100  # the logarithm of a mean of 100 is too low by this
        error = found.log_p_error.square().sum().sqrt().item() / 40
        # x_T still knows ᾱ_T = 4e-5 of x_0
        assert abs((found.log_p.numpy() - model).mean() + low) < 4 * error + low + chain.alpha_bar[-1] ** 0.5 * 0.6
    assert spreads[2] < 0.6 * spreads[1] < 0.36 * spreads[0] and spreads[2] < 0.2
    assert gaps[2] < 0.3 * gaps[1] < 0.09 * gaps[0] and gaps[2] < 0.005


def test_K_of_trajectories_is_the_bound_term_by_term(generator):
    betas = linear_betas(30)
    process, net = LearnedGaussian(betas, learn_betas=False), Chain(betas, 0.1, 0.7).learned("pull")
    x0 = torch.randn(300, 2, generator=generator, dtype=torch.float64)
    found, bound = (
        trajectory_likelihood(process, net, x0, generator, 30),
        likelihood_bound(process, net, x0, generator, 30, repeats=5),
    )
    difference = found.K + 2 * bound.per_example
    assert abs(difference.mean()) < 4 * difference.std() / 300**0.5


@given(seed=st.integers(0, 10**6), trajectories=st.integers(2, 9), gauss=st.booleans())
def test_the_estimate_is_never_below_its_K(seed, trajectories, gauss):
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.randint(2, (6, 2), generator=generator).double()
    if gauss:
        process, net = LearnedGaussian(SHORT), lambda x, t: torch.cat([x.sin(), x.cos()], 1)
    else:
        process, net = BinomialDiffusion(SHORT, 0.3), wavy
    found = trajectory_likelihood(process, net, x0, generator, trajectories)
    assert (found.log_p >= found.K - 1e-9).all() and found.log_p.isfinite().all()


@pytest.mark.parametrize("trajectories", [1, 0, -3])
def test_fewer_than_two_trajectories_are_refused(trajectories, generator):
    with pytest.raises(ValueError, match=f"trajectories={trajectories}: at least 2"):
        trajectory_likelihood(BinomialDiffusion(SHORT), wavy, torch.zeros(2, 2), generator, trajectories)


# ---- the reverse's entropy ------------------------------------------------------------------------------------------


def entropy(variance: np.ndarray) -> np.ndarray:
    return 0.5 * np.log2(2 * np.pi * np.e * variance)


@pytest.mark.parametrize("make", [GaussianDiffusion, LearnedGaussian])
@pytest.mark.parametrize("T", [25, 400])
def test_the_entropy_of_a_gaussian_reverse_step_lies_between_its_bounds(T, make):
    betas = linear_betas(T)
    for x0 in (torch.tensor([[0.5], [-0.5]]), torch.randn(9, 2, generator=torch.Generator().manual_seed(0))):
        lower, upper = (bound.detach().numpy() for bound in entropy_bounds(make(betas), x0))
        assert lower[0] == -np.inf and (lower <= upper).all()
        for m, s in ((0.0, 1.0), (0.6, 0.8), (0.96, 0.28), (1.0, 0.0)):  # m² + s² = 1
            with np.errstate(divide="ignore"):
                exact = entropy(Chain(betas, m, s).best_variance)
            assert (lower <= exact + 1e-9).all() and (exact <= upper + 1e-9).all()
            if s == 1:  # as at the chain's end: what is lost in a step is what it adds
                np.testing.assert_allclose(exact, upper, atol=1e-9)
            if s == 0:  # one point: knowing x_0 tells nothing new
                np.testing.assert_allclose(exact[1:], lower[1:], atol=1e-9)


def test_the_upper_bound_fails_for_wider_data():
    betas = linear_betas(25)
    _, upper = entropy_bounds(GaussianDiffusion(betas), torch.zeros(2, 1))
    assert (entropy(Chain(betas, 0.0, 2.0).best_variance) > upper.numpy()).all()


@pytest.mark.parametrize("betas", [SHORT, torch.tensor([0.25, 0.4, 1.0]).double()])
def test_the_entropy_of_a_binomial_reverse_step_lies_between_its_bounds(betas):
    """By sums over all paths, for two bits whose mean rate is m; beside them the cases of equality."""
    m, T = 0.425, len(betas)  # of TWO_BITS: (0.5 + 0.35) / 2
    cases = {"two": TWO_BITS, "prior": [(1 - m) ** 2, m * (1 - m), m * (1 - m), m**2], "point": [0, 1, 0, 0]}
    for name, data in cases.items():
        rate = 0.5 if name == "point" else m
        chain = BitChain(betas, rate, data)
        counts = (np.array(data) * 80_000).round().astype(int)
        x0 = torch.from_numpy(np.repeat(chain.states, counts, axis=0)).double()
        lower, upper = (bound.numpy() for bound in entropy_bounds(BinomialDiffusion(betas, rate), x0))
        exact = np.array([chain.entropy(t, t + 1) - chain.entropy(t + 1) for t in range(T)]) / 2
        assert lower[0] == pytest.approx(0, abs=1e-9) and (lower <= upper + 1e-12).all()
        assert (lower <= exact + 1e-6).all() and (exact <= upper + 1e-6).all()
        if name == "prior":
            np.testing.assert_allclose(exact, upper, atol=1e-4)
        if name == "point":
            np.testing.assert_allclose(exact, lower, atol=1e-6)
        if name == "two":
            assert (upper - exact > 1e-4)[:2].all() and (exact - lower > 1e-4)[:2].all()


def test_the_upper_bound_fails_for_bits_that_are_less_certain_than_the_prior():
    chain = BitChain(SHORT, 0.05, [0.5, 0.5])
    _, upper = entropy_bounds(BinomialDiffusion(SHORT, 0.05), torch.tensor([[0.0], [1.0]]))
    exact = np.array([chain.entropy(t, t + 1) - chain.entropy(t + 1) for t in range(4)])
    assert (exact > upper.numpy())[:2].all()


# ---- independent noise as a model -----------------------------------------------------------------------------------


def test_the_null_models_of_the_paper():
    """(SD Table 1): heartbeat 20 (0.2 log2 0.2 + 0.8 log2 0.8); unit-variance data −½ log2(2πe) a dimension."""
    bits = null_likelihood(BinomialDiffusion(harmonic_betas(9), 0.2), heartbeats())
    assert bits.tolist() == pytest.approx([-14.4386] * 5, abs=5e-5)
    x0 = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [2.0, 0.0]]).double()
    for process in (LearnedGaussian(SHORT), GaussianDiffusion(SHORT)):
        found = null_likelihood(process, x0).tolist()
        assert found[:2] == pytest.approx([-2 * 2.0471] * 2, abs=1e-4)  # of mean square 1
        assert found[2] == pytest.approx(norm.logpdf([2.0, 0.0]).sum() / LN2)
