"""The first paper's Gaussian process: closed forms, its bound by quadrature, the gradient of its schedule."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import Chain
from scipy.integrate import quad
from scipy.special import expit, logit
from scipy.stats import norm

from minidiff import (
    EMA,
    RBF,
    Description,
    GaussianDiffusion,
    LearnedGaussian,
    LearnedGaussianConfig,
    Model,
    Points,
    RBFConfig,
    TrainingConfig,
    UniformTimes,
    begin,
    geometric_betas,
    harmonic_betas,
    likelihood_bound,
    linear_betas,
    load,
    train,
)

SHORT = torch.tensor([0.05, 0.2, 0.35, 0.5, 0.7], dtype=torch.float64)
STEPS = ["pull", "shift"]
few_betas = st.lists(st.floats(0.05, 0.9), min_size=2, max_size=6).map(lambda b: torch.tensor(b, dtype=torch.float64))
NEGENTROPY = -0.5 * np.log2(2 * np.pi * np.e)  # of N(0, 1), in bits


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def nothing(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.zeros_like(x)] * 2, 1)


def wavy(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """z^μ and z^Σ that are right about nothing, smooth, and different at every step."""
    t = t.to(x).reshape(-1, *[1] * (x.ndim - 1))
    return torch.cat([0.7 * torch.tanh(0.9 * x) + 0.1 * (t - 1), 0.5 * torch.sin(x + t)], 1)


# ---- the chain ------------------------------------------------------------------------------------------------------


@given(betas=few_betas, seed=st.integers(0, 99))
def test_the_forward_chain_is_that_of_the_other_gaussian_process(betas, seed):
    ours, theirs = LearnedGaussian(betas), GaussianDiffusion(betas)
    t = torch.arange(len(betas))
    x0, noise = normals(len(t), 2, 3, seed=seed), normals(len(t), 2, 3, seed=seed + 100)
    xt = theirs.q_sample(x0, t, noise)
    torch.testing.assert_close(ours.q_sample(x0, t, noise), xt)
    for a, b in zip(ours.q_posterior(x0, xt, t), theirs.q_posterior(x0, xt, t), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    mean = theirs.q_posterior(x0, xt, t)[0]
    torch.testing.assert_close(ours.x0_from_mean(mean, xt, t), x0, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(ours.prior_term(x0), theirs.prior_term(x0), rtol=1e-9, atol=1e-12)
    marginal, alpha_bar = ours.q_marginal(x0, t), torch.cumprod(1 - betas, 0)[:, None, None]
    torch.testing.assert_close(marginal.mean, alpha_bar.sqrt() * x0)
    torch.testing.assert_close(marginal.variance, (1 - alpha_bar).expand_as(x0))
    for step in (ours.q_step(x0, t), theirs.q_step(x0, t)):
        torch.testing.assert_close(step.mean, (1 - betas[:, None, None]).sqrt() * x0)
        torch.testing.assert_close(step.variance, betas[:, None, None].expand_as(x0))
    assert ours.prior.log_prob(torch.tensor(0.7)).item() == pytest.approx(norm.logpdf(0.7))


def test_the_tables_are_those_of_the_betas_that_were_given():
    process = LearnedGaussian(geometric_betas(30, 1e-5, 0.5).float())
    torch.testing.assert_close(process.betas, geometric_betas(30, 1e-5, 0.5), rtol=1e-6, atol=0)
    alpha_bar = torch.cumprod(1 - process.betas, 0)
    assert process.betas.dtype == torch.float64 and torch.equal(process.alpha_bar, alpha_bar)
    assert process.alpha_bar_prev[0] == 1 and torch.equal(process.alpha_bar_prev[1:], alpha_bar[:-1])
    torch.testing.assert_close(process.sigma**2, (1 - alpha_bar) / alpha_bar)
    assert process.state_dict().keys() == {"logits"}  # all that a checkpoint holds: β_1 is in its configuration


@pytest.mark.parametrize("predict", STEPS)
@given(betas=few_betas, x=st.floats(-3, 3), z_mu=st.floats(-3, 3), z_sigma=st.floats(-4, 4))
def test_a_reverse_step_is_the_papers_formula(predict, betas, x, z_mu, z_sigma):
    t, n = torch.arange(len(betas)), len(betas)
    net = lambda x, t: torch.tensor([[z_mu, z_sigma]], dtype=x.dtype).expand(n, 2)
    kernel = LearnedGaussian(betas, predict=predict).reverse(net, torch.full((n, 1), x, dtype=torch.float64), t)
    b = betas.numpy()
    variance = expit(z_sigma + logit(b))
    mean = (x - z_mu) * (1 - variance) + z_mu if predict == "pull" else np.sqrt(1 - b) * x + np.sqrt(b) * z_mu
    mean[0], variance[0] = np.sqrt(1 - b[0]) * x, b[0]  # the first step is the forward kernel (SD 44)
    np.testing.assert_allclose(kernel.mean.detach()[:, 0], mean, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(kernel.variance.detach()[:, 0], variance, rtol=1e-9)


def test_channels_are_halved_and_not_interleaved():
    x = normals(1, 3, 2, 2)
    net = lambda x, t: torch.arange(6.0).double().reshape(1, 6, 1, 1).expand(1, 6, 2, 2)
    kernel = LearnedGaussian(SHORT, predict="shift").reverse(net, x, torch.tensor([3]))
    z = ((kernel.mean - 0.5**0.5 * x) / 0.5**0.5).detach()
    np.testing.assert_allclose(z[0, :, 0, 0], [0, 1, 2], atol=1e-12)
    np.testing.assert_allclose(logit(kernel.variance.detach()[0, :, 0, 0].numpy()), [3, 4, 5], atol=1e-12)  # β = ½


@pytest.mark.parametrize("predict", STEPS)
def test_the_best_network_keeps_the_exact_marginals_of_gaussian_data(predict):
    betas = linear_betas(60)
    chain, process = Chain(betas, 0.6, 0.8), LearnedGaussian(betas, predict=predict)
    net = chain.learned(predict)
    mean, variance = chain.alpha_bar[-1] ** 0.5 * 0.6, chain.marginal[-1]
    for t in reversed(range(1, 60)):
        kernel = process.reverse(net, torch.tensor([[0.0], [1.0]]).double(), torch.tensor([t, t]))
        offset, slope = kernel.mean[0].item(), (kernel.mean[1] - kernel.mean[0]).item()
        mean, variance = offset + slope * mean, slope**2 * variance + kernel.variance[0].item()
        assert mean == pytest.approx(chain.before[t] ** 0.5 * 0.6, abs=1e-10)
        assert variance == pytest.approx(chain.marginal[t - 1], abs=1e-10)


# ---- the bound ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def exact_terms(process: LearnedGaussian, net, x0: float, nodes: int = 150) -> tuple[np.ndarray, float]:
    """The library's terms of one scalar, each averaged over the noise by Gauss–Hermite, and its prior term, in bits."""
    places, weights = np.polynomial.hermite_e.hermegauss(nodes)
    noise = torch.from_numpy(places).repeat(process.T)[:, None]
    t, start = torch.arange(process.T).repeat_interleave(nodes), torch.full_like(noise, x0)
    terms = process.bound_term(net, start, t, noise)["bits"].reshape(process.T, nodes).numpy()
    return terms @ weights / weights.sum(), process.prior_term(start[:1]).item()


@pytest.mark.parametrize("predict", STEPS)
@pytest.mark.parametrize("x0", [-1.4, 0.3])
def test_terms_of_gaussian_data_have_their_closed_form(predict, x0):
    for betas, m, s in [(SHORT, 0.6, 0.8), (linear_betas(40), -0.2, 0.5), (geometric_betas(20, 1e-3, 0.4), 0.0, 1.0)]:
        chain, process = Chain(betas, m, s), LearnedGaussian(betas, predict=predict)
        terms, prior = exact_terms(process, chain.learned(predict), x0)
        np.testing.assert_allclose(np.append(terms, prior), chain.density_terms(x0)[:, 0], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("predict", STEPS)
@pytest.mark.parametrize("x0", [-0.8, 1.1])
def test_the_terms_add_up_to_the_definition_of_K(predict, x0):
    """(SD 12): E_q[log2 p(x_T) + Σ log2 p(x_{t−1}|x_t) / q(x_t|x_{t−1})], each pair integrated, under any network."""
    b, a = SHORT.numpy(), np.cumprod(1 - SHORT.numpy())
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    weights = weights / weights.sum()
    K = weights @ norm.logpdf(np.sqrt(a[-1]) * x0 + np.sqrt(1 - a[-1]) * nodes)
    for t in range(5):
        before = a[t - 1] if t else 1.0
        x = np.sqrt(before) * x0 + np.sqrt(1 - before) * nodes[:, None]
        y = np.sqrt(1 - b[t]) * x + np.sqrt(b[t]) * nodes
        z_mu, z_sigma = 0.7 * np.tanh(0.9 * y) + 0.1 * (t - 1), 0.5 * np.sin(y + t)
        variance = expit(z_sigma + logit(b[t])) if t else b[0]
        shrunk = np.sqrt(1 - b[t]) * y
        mean = (y - z_mu) * (1 - variance) + z_mu if predict == "pull" else shrunk + np.sqrt(b[t]) * z_mu
        back = norm.logpdf(x, mean if t else shrunk, np.sqrt(variance))
        K += weights @ (back - norm.logpdf(y, np.sqrt(1 - b[t]) * x, np.sqrt(b[t]))) @ weights
    terms, prior = exact_terms(LearnedGaussian(SHORT, predict=predict), wavy, x0)
    assert -(terms.sum() + prior) == pytest.approx(K / np.log(2), abs=1e-7)


def test_the_fixed_first_term_is_its_integral():
    process, b = LearnedGaussian(geometric_betas(5, 0.01, 0.5)), 0.01
    for x0 in (-2.0, 0.0, 0.7):
        q = norm(np.sqrt(1 - b) * x0, np.sqrt(b))
        integral, _ = quad(
            lambda x1: -q.pdf(x1) * norm.logpdf(x0, np.sqrt(1 - b) * x1, np.sqrt(b)),  # noqa: B023
            *(q.mean() - 1.2, q.mean() + 1.2),
            epsabs=1e-12,
        )
        start = torch.full((1, 1), x0).double()
        term = process.bound_term(nothing, start, torch.tensor([0]), start)["bits"].item()
        assert term == pytest.approx(integral / np.log(2), abs=1e-9)


def expected_K(T: int, predict: str, m: float, s: float) -> float:
    """K of data N(m, s²) with the best reverse: terms are quadratic in x_0 and noise, so few nodes integrate them."""
    betas = linear_betas(T)
    net, process = Chain(betas, m, s).learned(predict), LearnedGaussian(betas, predict=predict)
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    each = []
    for x0 in m + s * nodes:
        terms, prior = exact_terms(process, net, x0, nodes=5)
        each.append(-(terms.sum() + prior))
    return weights / weights.sum() @ each


@pytest.mark.parametrize("predict", STEPS)
def test_K_reaches_the_negative_entropy_of_gaussian_data_from_below(predict):
    assert expected_K(30, predict, 0.0, 1.0) == pytest.approx(NEGENTROPY, abs=1e-9)  # x_0 as at the chain's end: exact
    truth = NEGENTROPY - np.log2(0.8)
    gaps = {T: truth - expected_K(T, predict, 0.6, 0.8) for T in (30, 120, 480)}
    assert all(gap > 0 for gap in gaps.values())
    assert gaps[120] < 0.4 * gaps[30] and gaps[480] < 0.4 * gaps[120] and gaps[480] < 0.005


@pytest.mark.parametrize("predict", STEPS)
@pytest.mark.parametrize("scale", [1.0, 2.0, 0.5])
def test_of_data_of_unit_mean_square_K_is_the_papers_sum(scale, predict):
    """(SD 14): −Σ_{t=2} E D_KL + H_q(X_T|X_0) − H_q(X_1|X_0) − H_p(X_T), whatever the network.

    Of other data the first and the last term know the mean square, and the paper's sum is no bound.
    """
    x0 = normals(200, 2)
    x0 = scale * x0 / (x0**2).mean().sqrt()
    process, a = LearnedGaussian(SHORT, predict=predict), np.cumprod(1 - SHORT.numpy())
    kl, whole, H = 0.0, 0.0, lambda variance: 0.5 * np.log2(2 * np.pi * np.e * variance)
    for t in range(5):
        noise, at = normals(200, 2, seed=t + 1), torch.full((200,), t)
        whole -= process.loss(wavy, x0, at, noise)["loss"].mean().item() / 5
        if t:
            xt = torch.from_numpy(np.sqrt(a[t]) * x0.numpy() + np.sqrt(1 - a[t]) * noise.numpy())
            mean, variance = GaussianDiffusion(SHORT).q_posterior(x0, xt, at)
            q, p = torch.distributions.Normal(mean, variance.sqrt()), process.reverse(wavy, xt, at)
            kl += torch.distributions.kl_divergence(q, p).mean().item()
    K = -kl / np.log(2) + H(1 - a[-1]) - H(SHORT[0].item()) - H(1.0)
    excess = (SHORT[0].item() + a[-1]) * (scale**2 - 1) / 2 / np.log(2)
    assert whole == pytest.approx(K - excess, abs=1e-9)


def test_the_loss_and_the_estimated_bound_are_one_number(generator):
    process, x0 = LearnedGaussian(SHORT, learn_betas=False), normals(1, 3)
    many = x0.expand(4_000, 3)
    bound = likelihood_bound(process, wavy, many, generator, count=5)
    t = torch.arange(5).repeat(800)
    loss = process.loss(wavy, many, t, process.draw_noise(many, generator))["loss"].reshape(800, 5)
    error = (bound.error**2 + (loss.var(0) / 800).sum().item() / 25) ** 0.5
    assert abs(loss.mean().item() - bound.total) < 4 * error


def test_x0_error_is_that_of_the_belief():
    process = LearnedGaussian(SHORT, predict="shift")
    chain = Chain(SHORT, 0.0, 1.0)
    x0, noise, t = normals(5, 1), normals(5, 1, seed=1), torch.arange(5)
    found = process.bound_term(nothing, x0, t, noise)["x0_mse"].detach()
    xt = process.q_sample(x0, t, noise).detach()
    expected = (chain.network("x0")(xt, t) - x0)[:, 0] ** 2  # z = 0 is right for N(0, 1)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


# ---- the schedule ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("predict", STEPS)
@pytest.mark.parametrize("t", range(5))
def test_the_gradient_of_every_term_by_the_schedule_is_that_of_finite_differences(t, predict):
    process, x0, noise = LearnedGaussian(SHORT, predict=predict), normals(3, 2), normals(3, 2, seed=1)
    value = lambda: process.loss(wavy, x0, torch.full((3,), t), noise)["loss"].sum()
    value().backward()
    numeric = torch.zeros(4).double()
    with torch.no_grad():
        for k in range(4):
            for sign in (1, -1):
                process.logits[k] += sign * 1e-5
                numeric[k] += sign * value() / 2e-5
                process.logits[k] -= sign * 1e-5
    torch.testing.assert_close(process.logits.grad, numeric, rtol=1e-6, atol=1e-7)
    assert (process.logits.grad != 0).all()  # the prior's term knows of all of them


def toy(learn_betas: bool, images: int, seed: int = 0) -> tuple[Model, Points, TrainingConfig]:
    torch.manual_seed(seed)
    process = LearnedGaussian(geometric_betas(6, 0.02, 0.3), learn_betas, "shift")
    data = Points(torch.tensor([[0.8, -0.6]]) + 0.5 * normals(500, 2).float())
    config = TrainingConfig(images=images, batch=100, lr=0.02, ramp=0, ema=(500,), tick=1000)
    return Model(RBF(2, 4, 6, units=8), process), data, config


@pytest.mark.parametrize("learn_betas", [True, False])
def test_training_moves_all_betas_but_the_first_and_K_rises(learn_betas):
    with torch.random.fork_rng():
        model, data, config = toy(learn_betas, images=20_000)
        x0, before = data.x.double(), model.process.betas.detach().clone()
        measure = lambda: likelihood_bound(model.process, model.net, x0, torch.Generator().manual_seed(0), 6, 4)
        first = measure().total
        train(begin(model, UniformTimes(6), config), data, config)
    after, last = model.process.betas.detach(), measure()
    assert after[0] == before[0] and first - last.total > 10 * last.error
    moved = (after[1:] - before[1:]).abs()
    assert (moved > 1e-3).all() if learn_betas else not moved.any()
    assert ((after > 0) & (after < 1)).all()


def test_an_average_of_the_schedule_is_one_of_its_parameter():
    model, _, _ = toy(True, 100)
    ema, start = EMA(model, half_life=1000), model.process.logits.detach().clone()
    model.process.logits.data += 1.0
    ema.update(model, 10**6, 1000)
    torch.testing.assert_close(ema.model.process.logits.data, start + 0.5)
    torch.testing.assert_close(ema.model.process.betas[1:], torch.sigmoid(start + 0.5))
    assert ema.model.process.betas[0] == model.process.betas[0]


def test_a_learned_schedule_comes_back_from_a_checkpoint(tmp_path):
    _, data, training = toy(True, 2_000)
    process = LearnedGaussianConfig("geometric", 6, {"first": 0.02, "last": 0.3})
    config = replace(tiny.config(), process=process, network=RBFConfig(units=4), training=training)
    description = Description(config, (2,), None)
    state = train(begin(description.build(), UniformTimes(6), training), data, training, tmp_path, description)
    for weights, expected in ((None, state.ema), ("model", state.model)):
        found, read = load(tmp_path, weights)
        assert torch.equal(found.process.betas, expected.process.betas) and read == description
        assert not torch.equal(found.process.betas[1:], geometric_betas(6, 0.02, 0.3)[1:])
        assert found.process.betas.dtype == torch.float64
    assert not torch.equal(state.ema.process.betas, state.model.process.betas)


def test_its_denoiser_is_the_textbook_one_on_standard_normal_data():
    process = LearnedGaussian(geometric_betas(40, 1e-3, 0.3), predict="shift", learn_betas=False)
    sigma, x = process.sigma, normals(40, 2)
    torch.testing.assert_close(process.denoiser(nothing)(x, sigma), x / (1 + sigma[:, None] ** 2), rtol=1e-7, atol=1e-9)


def test_float32_data_stay_float32_and_agree_with_float64(generator):
    process, x0 = LearnedGaussian(geometric_betas(30, 1e-3, 0.3)), torch.randn(30, 2, generator=generator)
    noise, t = process.draw_noise(x0, generator), torch.arange(30)
    single, double = (process.loss(wavy, x, t, n)["loss"] for x, n in [(x0, noise), (x0.double(), noise.double())])
    assert noise.dtype == single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-4)


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "betas, sentence",
    [
        (SHORT[:1], "at least 2"),
        (torch.tensor([0.1, 0.0]), "between 0 and 1"),
        (torch.tensor([0.1, float("nan")]), "between 0 and 1"),
        (harmonic_betas(5), "between 0 and 1, both excluded"),
    ],
)
def test_betas_that_make_no_process_are_refused(betas, sentence):
    with pytest.raises(ValueError, match=f"betas: .*{sentence}"):
        LearnedGaussian(betas)
