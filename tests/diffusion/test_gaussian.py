"""The Gaussian process against Bayes, closed forms for Gaussian data, brute-force integrals, and diffusers."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers import scheduling_ddpm
from hypothesis import given
from hypothesis import strategies as st
from oracles import Chain, log_mass
from torch import nn

from minidiff import GaussianDiffusion, cosine_betas, flat_mean, harmonic_betas, linear_betas

PREDICTIONS = ["eps", "x0", "mean", "v"]
SHORT = torch.tensor([0.05, 0.2, 0.35, 0.5, 0.7], dtype=torch.float64)
few_betas = st.lists(st.floats(0.05, 0.9), min_size=2, max_size=6).map(lambda b: torch.tensor(b, dtype=torch.float64))


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def every_step(process: GaussianDiffusion) -> torch.Tensor:
    return torch.arange(process.T)


def zero(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(x)


def wavy(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A network that is right about nothing, smooth, and different at every step."""
    return torch.tanh(0.9 * x) + 0.1 * (t[:, None] - 1)


# ---- the forward chain ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [linear_betas, cosine_betas, harmonic_betas])
def test_q_sample_is_t_steps_of_the_kernel(schedule):
    betas = schedule(500)
    process = GaussianDiffusion(betas, predict="x0")
    t, mean, variance = every_step(process), [1.0], [0.0]
    for beta in betas.tolist():  # x_t = √(1−β) x_{t−1} + √β ε: mean and variance of x_t for x_0 = 1
        mean.append(mean[-1] * (1 - beta) ** 0.5)
        variance.append((1 - beta) * variance[-1] + beta)
    ones, zeros = torch.ones(len(t), 1).double(), torch.zeros(len(t), 1).double()
    torch.testing.assert_close(process.q_sample(ones, t, zeros), column(*mean[1:]), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(process.q_sample(zeros, t, ones) ** 2, column(*variance[1:]), rtol=1e-9, atol=1e-12)


@given(betas=few_betas, x0=st.floats(-1, 1), xt=st.floats(-2, 2), data=st.data())
def test_q_posterior_is_bayes_on_a_grid(betas, x0, xt, data):
    t = data.draw(st.integers(1, len(betas) - 1))
    alpha_bar = torch.cumprod(1 - betas, 0)
    prior_mean, prior_var = alpha_bar[t - 1].sqrt() * x0, 1 - alpha_bar[t - 1]
    y = prior_mean + prior_var.sqrt() * torch.linspace(-12, 12, 40_001, dtype=torch.float64)
    log_density = -((y - prior_mean) ** 2) / (2 * prior_var) - (xt - (1 - betas[t]).sqrt() * y) ** 2 / (2 * betas[t])
    mass = log_density.softmax(0)
    mean = (mass * y).sum()
    ours = GaussianDiffusion(betas).q_posterior(column(x0), column(xt), torch.tensor([t]))
    assert ours[0].item() == pytest.approx(mean.item(), abs=1e-7)
    assert ours[1].item() == pytest.approx((mass * (y - mean) ** 2).sum().item(), abs=1e-7)


def test_the_first_step_has_x0_itself_as_posterior():
    mean, variance = GaussianDiffusion(SHORT).q_posterior(column(0.3), column(-1.7), torch.tensor([0]))
    assert mean.item() == pytest.approx(0.3, abs=1e-15) and variance.item() == 0


def test_noise_is_the_generators(generator):
    process, x0 = GaussianDiffusion(SHORT), torch.zeros(20_000, 2, dtype=torch.float64)
    noise = process.draw_noise(x0, generator)
    assert noise.dtype == x0.dtype
    assert torch.equal(noise, process.draw_noise(x0, torch.Generator().manual_seed(2020)))
    assert noise.mean().abs() < 5 / 200 and (noise.var() - 1).abs() < 5 * 2**0.5 / 200


def test_tables_are_float64_and_in_no_checkpoint():
    process = GaussianDiffusion(linear_betas(10, last=0.001).float())
    assert process.state_dict() == {}
    assert {buffer.dtype for buffer in process.buffers()} == {torch.float64}


# ---- four parametrisations ------------------------------------------------------------------------------------------


@given(betas=few_betas, predict=st.sampled_from(PREDICTIONS), x0=st.floats(-1, 1), noise=st.floats(-3, 3))
def test_the_right_answer_gives_x0_back(betas, predict, x0, noise):
    process = GaussianDiffusion(betas, predict)
    t = every_step(process)
    x0, noise = column(x0).expand(len(t), 1), column(noise).expand(len(t), 1)
    xt = process.q_sample(x0, t, noise)
    target = process.target(x0, t, noise)
    torch.testing.assert_close(process.x0_from(target, xt, t), x0, rtol=1e-7, atol=1e-7)


def test_targets_are_noise_data_posterior_mean_and_velocity(generator):
    x0 = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    t = torch.arange(5)
    target = {predict: GaussianDiffusion(SHORT, predict).target(x0, t, noise) for predict in PREDICTIONS}
    theirs = exact_scheduler(SHORT)
    xt = theirs.add_noise(x0, noise, t)
    b, a = SHORT[:, None], torch.cumprod(1 - SHORT, 0)[:, None]
    assert torch.equal(target["eps"], noise) and torch.equal(target["x0"], x0)
    torch.testing.assert_close(target["v"], theirs.get_velocity(x0, noise, t))
    torch.testing.assert_close(target["mean"], (xt - b / (1 - a).sqrt() * noise) / (1 - b).sqrt())


@pytest.mark.parametrize("predict", PREDICTIONS)
def test_the_reverse_mean_is_the_same_whatever_the_network_predicts(predict):
    chain = Chain(SHORT, 0.3, 0.4)
    x, t = column(-1.5, -0.2, 0.0, 0.8, 2.0), torch.arange(5)
    process = GaussianDiffusion(SHORT, predict, clip=False)
    x0_hat = chain.network("x0")(x, t)
    expected = process.q_posterior(x0_hat, x, t)[0]
    torch.testing.assert_close(process.reverse(chain.network(predict), x, t).mean, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(process.x0_from_mean(expected, x, t), x0_hat, rtol=1e-10, atol=1e-10)


# ---- the reverse chain ----------------------------------------------------------------------------------------------


def exact_scheduler(betas: torch.Tensor, **settings) -> DDPMScheduler:
    """diffusers' own formulas, on tables in float64."""
    scheduler = DDPMScheduler(num_train_timesteps=len(betas), trained_betas=betas.tolist(), **settings)
    scheduler.betas, scheduler.alphas = betas, 1 - betas
    scheduler.alphas_cumprod, scheduler.one = torch.cumprod(1 - betas, 0), torch.tensor(1.0, dtype=torch.float64)
    return scheduler


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("variance", ["large", "small"])
@pytest.mark.parametrize("predict, theirs", [("eps", "epsilon"), ("x0", "sample"), ("v", "v_prediction")])
def test_every_reverse_step_is_that_of_diffusers(predict, theirs, variance, clip, generator, monkeypatch):
    betas = linear_betas(100)
    settings = {"prediction_type": theirs, "variance_type": f"fixed_{variance}", "clip_sample": clip}
    scheduler, process = exact_scheduler(betas, **settings), GaussianDiffusion(betas, predict, variance, clip=clip)
    x = torch.randn(1, 3, 4, 4, generator=generator, dtype=torch.float64)
    answer = torch.randn(1, 3, 4, 4, generator=generator, dtype=torch.float64)
    for t in range(100):
        ours = process.reverse(lambda x, t: answer, x, torch.tensor([t]))
        monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda shape, **_: torch.zeros(shape).double())
        mean = scheduler.step(answer, t, x).prev_sample
        torch.testing.assert_close(ours.mean, mean, rtol=1e-9, atol=1e-9)
        if t > 0:  # diffusers has no width for the decoder at t = 0
            monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda shape, **_: torch.ones(shape).double())
            width = scheduler.step(answer, t, x).prev_sample - mean
            torch.testing.assert_close(ours.scale, width, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("variance", ["large", "small"])
def test_the_decoder_has_the_posterior_width_of_the_second_step(variance):
    process = GaussianDiffusion(linear_betas(1000), variance=variance)
    width = process.reverse(zero, column(0.0), torch.tensor([0])).scale
    assert width.item() ** 2 == pytest.approx(5.4531877e-5, abs=5e-13)


def test_large_variance_is_exact_for_standard_normal_data():
    """x_t ~ N(0, 1) at every t, so q(x_{t−1} | x_t) = N(√(1−β) x_t, β)."""
    process = GaussianDiffusion(SHORT, "eps", "large", clip=False)
    t, x = torch.arange(1, 5), column(-2.0, -0.5, 1.0, 3.0)
    kernel = process.reverse(Chain(SHORT, 0.0, 1.0).network("eps"), x, t)
    torch.testing.assert_close(kernel.mean, (1 - SHORT[1:, None]).sqrt() * x)
    torch.testing.assert_close(kernel.scale**2, SHORT[1:, None])


def test_small_variance_is_exact_for_a_single_point():
    process = GaussianDiffusion(SHORT, "eps", "small", clip=False)
    t, x = torch.arange(1, 5), column(-2.0, -0.5, 1.0, 3.0)
    kernel = process.reverse(Chain(SHORT, 0.25, 0.0).network("eps"), x, t)
    mean, variance = process.q_posterior(torch.full_like(x, 0.25), x, t)
    torch.testing.assert_close(kernel.mean, mean)
    torch.testing.assert_close(kernel.scale**2, variance)


@pytest.mark.parametrize("predict", PREDICTIONS)
def test_learned_variance_can_keep_the_exact_marginals_of_gaussian_data(predict):
    chain = Chain(linear_betas(60), 0.3, 0.5)
    process = GaussianDiffusion(linear_betas(60), predict, "learned", loss="bound", clip=False)
    net = chain.network(predict, learned=True)
    mean, variance = chain.alpha_bar[-1] ** 0.5 * 0.3, chain.marginal[-1]
    for t in reversed(range(60)):
        kernel = process.reverse(net, column(0.0, 1.0), torch.tensor([t, t]))
        offset, slope = kernel.mean[0].item(), (kernel.mean[1] - kernel.mean[0]).item()
        mean, variance = offset + slope * mean, slope**2 * variance + kernel.scale[0].item() ** 2
        assert mean == pytest.approx(chain.before[t] ** 0.5 * 0.3, abs=1e-10)
        assert variance == pytest.approx(chain.before[t] * 0.25 + 1 - chain.before[t], abs=1e-10)


def test_the_caller_can_override_clipping():
    x, t = column(1.0), torch.tensor([2])
    far = lambda x, t: torch.full_like(x, 5.0)
    for own in (True, False):
        process = GaussianDiffusion(SHORT, "x0", clip=own)
        x0_hat = {c: process.x0_from_mean(process.reverse(far, x, t, clip=c).mean, x, t).item() for c in (True, False)}
        assert x0_hat == pytest.approx({True: 1.0, False: 5.0})
        assert process.reverse(far, x, t).mean == process.reverse(far, x, t, clip=own).mean


def test_the_network_keeps_its_own_precision_and_gets_its_conditioning():
    class Spy(nn.Linear):
        def forward(self, x, t, labels):
            self.seen = (x.dtype, t.dtype, t.tolist(), labels.tolist())
            return super().forward(x)

    net, process = Spy(2, 2), GaussianDiffusion(SHORT)
    kernel = process.reverse(net, torch.zeros(2, 2).double(), torch.tensor([4, 1]), labels=torch.tensor([7, 8]))
    assert net.seen == (torch.float32, torch.float32, [4.0, 1.0], [7, 8])
    assert kernel.mean.dtype == torch.float64


# ---- objectives -----------------------------------------------------------------------------------------------------


def test_simple_loss_is_the_weighted_squared_error(generator):
    weight = torch.tensor([5.0, 1.0, 0.0, 2.0, 0.5], dtype=torch.float64)
    x0 = torch.randn(5, 2, 3, generator=generator, dtype=torch.float64)
    noise, t = torch.randn(5, 2, 3, generator=generator, dtype=torch.float64), torch.tensor([3, 0, 2, 1, 4])
    losses = GaussianDiffusion(SHORT, weight=weight).loss(zero, x0, t, noise)
    square = torch.stack([(row**2).mean() for row in noise])
    torch.testing.assert_close(losses["mse"], square)
    torch.testing.assert_close(losses["loss"], torch.tensor([2.0, 5.0, 0.0, 1.0, 0.5]).double() * square)


def test_bound_loss_is_the_bound_without_its_constant(generator):
    process = GaussianDiffusion(SHORT, loss="bound", levels=17, clip=True)
    x0, t = column(*[0.25] * 5), torch.arange(5)
    noise = torch.randn(5, 1, generator=generator, dtype=torch.float64)
    losses = process.loss(wavy, x0, t, noise)
    terms = process.bound_term(wavy, x0, t, noise, clip=False)["bits"]
    torch.testing.assert_close(losses["loss"].mean(), terms.sum())


@pytest.mark.parametrize("variance", ["large", "small"])
def test_the_bound_weighs_errors_of_the_noise_as_the_paper_says(variance, generator):
    """(DDPM 12): a term and β² / (2σ²α(1−ᾱ)) ‖ε − ε̂‖² differ by what no network changes."""
    process = GaussianDiffusion(SHORT, variance=variance, clip=False)
    t, x0 = torch.arange(1, 5), torch.rand(4, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    a = torch.cumprod(1 - SHORT, 0)
    sigma2 = (SHORT if variance == "large" else torch.tensor(Chain(SHORT, 0, 1).beta_tilde))[1:]
    weight = SHORT[1:] ** 2 / (2 * sigma2 * (1 - SHORT[1:]) * (1 - a[1:]))
    answers = {net: net(process.q_sample(x0, t, noise), t.double()) for net in (wavy, zero)}
    bits = {net: process.bound_term(net, x0, t, noise)["bits"] for net in (wavy, zero)}
    square = {net: flat_mean((noise - answer) ** 2) for net, answer in answers.items()}
    difference = weight * (square[wavy] - square[zero]) / np.log(2)
    torch.testing.assert_close(bits[wavy] - bits[zero], difference)


def expected_bound(process: GaussianDiffusion, net, x0: float) -> tuple[np.ndarray, float]:
    """The library's terms, each averaged over ε by Gauss–Hermite quadrature, and its prior term, in bits."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(150)
    noise, weights = torch.from_numpy(nodes)[:, None], weights / weights.sum()
    start = torch.full_like(noise, x0)
    terms = [process.bound_term(net, start, torch.full((150,), t), noise)["bits"].numpy() for t in range(process.T)]
    return np.array([weights @ term for term in terms]), process.prior_term(start[:1]).item()


@pytest.mark.parametrize("m, s", [(0.0, 1.0), (-0.4, 0.3)])
@pytest.mark.parametrize("variance", ["large", "small", "learned"])
@pytest.mark.parametrize("predict", PREDICTIONS)
def test_bound_terms_of_gaussian_data_have_their_closed_form(predict, variance, m, s):
    betas = linear_betas(40)
    chain, learned = Chain(betas, m, s), variance == "learned"
    kind = "bound" if learned else "simple"
    process = GaussianDiffusion(betas, predict, variance, loss=kind, levels=17, clip=False)
    sigma2 = {"large": chain.betas.copy(), "small": chain.beta_tilde.copy(), "learned": chain.best_variance}[variance]
    if not learned:
        sigma2[0] = chain.beta_tilde[1]
    closed = chain.bound_terms(np.array([0.375]), sigma2, levels=17)[:, 0]
    terms, prior = expected_bound(process, chain.network(predict, learned), 0.375)
    np.testing.assert_allclose(np.append(terms, prior), closed, rtol=1e-6, atol=1e-9)


class FiveLevels:
    """A chain of four steps on five values and one smooth network, integrated without the library's formulas."""

    betas = torch.tensor([0.1, 0.3, 0.5, 0.7], dtype=torch.float64)

    def __init__(self, variance: str):
        self.variance, self.T = variance, 4
        self.b = self.betas.numpy()
        self.a = np.cumprod(1 - self.b)
        tilde = self.b[1:] * (1 - self.a[:-1]) / (1 - self.a[1:])
        self.sigma = np.sqrt(np.append(tilde[0], self.b[1:] if variance == "large" else tilde))

    def mean(self, x: np.ndarray, t: int) -> np.ndarray:
        """(DDPM 11), t from 0."""
        eps = np.tanh(0.9 * x) + 0.1 * (t - 1)
        return (x - self.b[t] / np.sqrt(1 - self.a[t]) * eps) / np.sqrt(1 - self.b[t])

    def bound(self, x0: float) -> float:
        """(DDPM 3) in bits: E_q[−log p(x_T) − Σ log p(x_{t−1}|x_t) / q(x_t|x_{t−1})], each pair integrated."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(150)
        weights = weights / weights.sum()
        pair = weights[:, None] * weights
        xT = np.sqrt(self.a[-1]) * x0 + np.sqrt(1 - self.a[-1]) * nodes
        total = weights @ -log_normal(xT, 0, 1)
        for t in range(self.T):
            before = self.a[t - 1] if t else 1.0
            x = np.sqrt(before) * x0 + np.sqrt(1 - before) * nodes[:, None]
            y = np.sqrt(1 - self.b[t]) * x + np.sqrt(self.b[t]) * nodes
            forward = log_normal(y, np.sqrt(1 - self.b[t]) * x, np.sqrt(self.b[t]))
            if t:
                back = log_normal(x, self.mean(y, t), self.sigma[t])
            else:
                back = log_mass(np.array(x0), self.mean(y, 0), self.sigma[0], 5)
            total += (pair * (forward - back)).sum()
        return total / np.log(2)

    def surprise(self, x0: np.ndarray) -> np.ndarray:
        """−log2 p(x_0) of each, with every p(x_{t−1}) = ∫ p(x_{t−1}|x_t) p(x_t) dx_t on a grid."""
        grid = np.linspace(-35, 35, 1401)
        step = grid[1] - grid[0]
        density = np.exp(log_normal(grid, 0, 1))
        for t in reversed(range(1, self.T)):
            kernel = np.exp(log_normal(grid[:, None], self.mean(grid, t), self.sigma[t]))
            density = kernel @ density * step
        return -np.log2(np.exp(log_mass(x0[:, None], self.mean(grid, 0), self.sigma[0], 5)) @ density * step)


def log_normal(x: np.ndarray, mean: np.ndarray | float, std: float) -> np.ndarray:
    return -((x - mean) ** 2) / (2 * std**2) - np.log(std) - 0.5 * np.log(2 * np.pi)


@pytest.mark.parametrize("variance", ["large", "small"])
def test_the_terms_add_up_to_the_definition_of_the_bound_and_lie_above_the_truth(variance):
    brute = FiveLevels(variance)
    process = GaussianDiffusion(brute.betas, "eps", variance, levels=5, clip=False)
    levels = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    surprise = brute.surprise(levels)
    assert np.exp2(-surprise).sum() == pytest.approx(1, abs=1e-8)
    for x0, truth in zip(levels, surprise, strict=True):
        terms, prior = expected_bound(process, wavy, x0)
        assert terms.sum() + prior == pytest.approx(brute.bound(x0), abs=1e-7)
        assert terms.sum() + prior > truth


@pytest.mark.parametrize("square, bits", [(0.25, 7.2787e-6), (1.0, 2.9113e-5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_prior_term_of_the_linear_schedule(square, bits, dtype):
    x0 = torch.tensor([1.0, -1.0], dtype=dtype).repeat(3, 4) * square**0.5
    prior = GaussianDiffusion(linear_betas(1000)).prior_term(x0)
    assert prior.dtype == dtype
    assert prior.tolist() == pytest.approx([bits] * 3, rel=1e-4)


def test_a_chain_that_erases_everything_has_no_prior_term():
    assert GaussianDiffusion(harmonic_betas(20), "x0").prior_term(column(1.0, -0.5)).tolist() == [0, 0]


def test_x0_error_is_that_of_the_clipped_estimate():
    process = GaussianDiffusion(SHORT, "x0", levels=17)
    far = lambda x, t: torch.full_like(x, 3.0)
    x0, t, noise = column(0.5, 0.5), torch.tensor([0, 3]), column(0.1, -0.4)
    assert process.bound_term(far, x0, t, noise)["x0_mse"].tolist() == pytest.approx([0.25, 0.25])
    assert process.bound_term(far, x0, t, noise, clip=False)["x0_mse"].tolist() == pytest.approx([6.25, 6.25])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("T", [100, 1000])
def test_gradients_of_the_bound_stay_finite_under_a_bad_network(T, dtype, generator):
    process = GaussianDiffusion(linear_betas(T), loss="bound", levels=17)
    scale = torch.full((), 20.0, dtype=dtype, requires_grad=True)
    x0 = torch.full((T, 4), 1.0, dtype=dtype)
    losses = process.loss(lambda x, t: scale * x, x0, torch.arange(T), process.draw_noise(x0, generator))
    losses["loss"].mean().backward()
    assert losses["loss"].isfinite().all() and scale.grad.isfinite() and scale.grad > 0


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"betas": SHORT[:1]}, "betas: .*at least 2"),
        ({"betas": torch.tensor([0.1, 0.0])}, "betas: .*above 0"),
        ({"betas": torch.tensor([0.1, 1.5])}, "betas: .*at most 1"),
        ({"betas": torch.tensor([0.1, float("nan")])}, "betas"),
        ({"betas": harmonic_betas(5)}, "β_T = 1"),
        ({"levels": 1}, "levels=1"),
        ({"variance": "learned"}, 'variance="learned" gets no gradient'),
        ({"variance": "range"}, 'variance="range" gets no gradient'),
        ({"loss": "hybrid"}, 'loss="hybrid" teaches the variance, and "large" is fixed'),
        ({"loss": "hybrid", "variance": "small"}, '"small" is fixed'),
        ({"lambda_vlb": 0.0}, "lambda_vlb=0.0"),
        ({"lambda_vlb": float("nan")}, "lambda_vlb=nan"),
        ({"weight": torch.ones(5), "loss": "bound"}, "weight"),
        ({"betas": torch.tensor([0.1, 1.0, 0.5]), "predict": "x0"}, "betas"),
    ],
)
def test_arguments_that_make_no_process_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        GaussianDiffusion(**{"betas": SHORT, **arguments})


def test_a_choice_that_does_not_exist_is_refused_where_types_are_not_checked():
    code = """
import minidiff as md
for wrong in ({"predict": "epsilon"}, {"variance": "fixed"}, {"loss": "mse"}):
    try:
        md.GaussianDiffusion(md.linear_betas(100), **wrong)
    except ValueError as error:
        print(error)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert out == [
        "predict='epsilon': take one of eps, x0, mean, v.",
        "variance='fixed': take one of large, small, learned, range.",
        "loss='mse': take one of simple, bound, hybrid.",
    ]
