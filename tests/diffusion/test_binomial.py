"""The binomial process against every path of short chains: matrices, Bayes' rule and the bound by enumeration."""

import subprocess
import sys
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import BitChain
from scipy.special import expit, xlogy

from minidiff import BinomialDiffusion, harmonic_betas, heartbeats, likelihood_bound

SHORT = torch.tensor([0.1, 0.3, 0.5, 0.7], dtype=torch.float64)
ERASED = torch.tensor([0.25, 0.4, 1.0], dtype=torch.float64)  # β_T = 1
TWO_BITS = [0.45, 0.05, 0.2, 0.3]  # of 00, 01, 10, 11: neither independent nor alike
chains = st.tuples(st.lists(st.floats(0.02, 0.95), min_size=1, max_size=5), st.booleans()).map(
    lambda drawn: torch.tensor([*drawn[0], 1.0 if drawn[1] else 0.5], dtype=torch.float64)
)
rates = st.floats(0.02, 0.98)


def bits(*values: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)[:, None]


def wavy(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A network that is right about nothing: every bit looks at its neighbour and at the step."""
    return 1.3 * x.roll(1, -1) - 0.6 * x + 0.4 * torch.cos(t[:, None].to(x) + 1) - 0.2


# ---- the forward chain ----------------------------------------------------------------------------------------------


@given(betas=chains, m=rates)
def test_marginals_are_products_of_the_step_matrices(betas, m):
    process, product_so_far = BinomialDiffusion(betas, m), np.eye(2)
    for t, beta in enumerate(betas.tolist()):
        step = np.array([[1 - beta * m, beta * m], [beta * (1 - m), 1 - beta * (1 - m)]])
        product_so_far = product_so_far @ step
        x, at = bits(0, 1), torch.tensor([t, t])
        np.testing.assert_allclose(process.q_step(x, at).probs[:, 0], step[:, 1], rtol=1e-12)
        np.testing.assert_allclose(process.q_marginal(x, at).probs[:, 0], product_so_far[:, 1], rtol=1e-12)
        np.testing.assert_allclose(process.alpha_bar[t], product_so_far[1, 1] - product_so_far[0, 1], atol=1e-12)


@pytest.mark.parametrize("m", [0.5, 0.2])
def test_q_sample_is_one_for_the_marginals_share_of_the_noise(m):
    process, n = BinomialDiffusion(SHORT, m), 10_000
    noise = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    for t, x0 in product(range(4), (0.0, 1.0)):
        keep = np.prod(1 - SHORT.numpy()[: t + 1])
        at, start = torch.full((n,), t), torch.full((n, 1), x0, dtype=torch.float64)
        xt = process.q_sample(start, at, noise[:, None])
        assert set(xt.unique().tolist()) == {0.0, 1.0} and xt.dtype == torch.float64
        assert xt.mean().item() == pytest.approx(keep * x0 + (1 - keep) * m, abs=0.51 / n)


def test_noise_is_uniform_and_the_generators(generator):
    process, x0 = BinomialDiffusion(SHORT), torch.zeros(20_000, 2)
    noise = process.draw_noise(x0, generator)
    assert torch.equal(noise, process.draw_noise(x0, torch.Generator().manual_seed(2020)))
    assert noise.dtype == x0.dtype and 0 <= noise.min() and noise.max() < 1
    assert (noise.mean() - 0.5).abs() < 4 * (1 / 12 / 40_000) ** 0.5
    assert (noise.var() - 1 / 12).abs() < 4 * (1 / 180 / 40_000) ** 0.5


@given(betas=chains, m=rates)
def test_the_posterior_is_bayes_over_all_paths(betas, m):
    process, chain = BinomialDiffusion(betas, m), BitChain(betas, m, [0.5, 0.5])
    for t in range(len(betas)):
        joint = chain.joint(0, t, t + 1)  # t = 0: x_{t−1} is x_0 itself
        for x0, xt in product((0, 1), (0, 1)):
            q = process.q_posterior(bits(x0), bits(xt), torch.tensor([t]))
            assert q.probs.item() == pytest.approx(joint[x0, 1, xt] / joint[x0, :, xt].sum(), rel=1e-9, abs=0)


def test_a_rate_of_exactly_0_or_1_stays_exact():
    """At t = 0 the posterior is x_0 itself, whatever x_1 is; every other rate lies between."""
    for betas in (SHORT, ERASED):
        process = BinomialDiffusion(betas, 0.3)
        x0, xt = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[0.0, 1.0, 0.0, 1.0]])
        assert process.q_posterior(x0, xt, torch.tensor([0])).logits.tolist() == [[-np.inf] * 2 + [np.inf] * 2]
        for t in range(1, process.T):
            assert process.q_posterior(x0, xt, torch.tensor([t])).logits.isfinite().all()
    last = BinomialDiffusion(ERASED, 0.3).q_marginal(torch.tensor([[0.0, 1.0]]).double(), torch.tensor([2]))
    assert last.probs.flatten().tolist() == pytest.approx([0.3, 0.3])  # β_T = 1: nothing is left


def test_the_prior_is_where_the_chain_stays():
    process = BinomialDiffusion(SHORT, 0.2)
    pi = process.prior.probs.item()
    zero, one = process.q_step(bits(0, 1), torch.tensor([2, 2])).probs[:, 0].tolist()
    assert pi == pytest.approx(0.2) and (1 - pi) * zero + pi * one == pytest.approx(pi)


# ---- the reverse chain ----------------------------------------------------------------------------------------------


@given(betas=chains, m=rates, z=st.floats(-30, 30))
def test_a_belief_in_x0_gives_the_mixture_of_the_posteriors(betas, m, z):
    process, chain = BinomialDiffusion(betas, m, "x0"), BitChain(betas, m, [0.5, 0.5])
    for t, xt in product(range(len(betas)), (0, 1)):
        kernel = process.reverse(lambda x, t: torch.full_like(x, z), bits(xt), torch.tensor([t]))
        if t == 0:
            expected = chain.single[0][xt, 1]  # the forward kernel (SD 44)
        else:
            joint = chain.joint(0, t, t + 1)[:, :, xt]
            zero, one = joint[:, 1] / joint.sum(1)
            expected = expit(z) * one + expit(-z) * zero
        assert kernel.probs.item() == pytest.approx(expected, rel=1e-9, abs=0)
        if t:
            belief = process.x0_from_mean(kernel.probs, bits(xt), torch.tensor([t])).item()
            assert belief == pytest.approx(expit(z), abs=1e-6)


@given(betas=chains, m=rates, z=st.floats(-30, 30))
def test_a_predicted_rate_is_the_rate_but_for_the_first_step(betas, m, z):
    process = BinomialDiffusion(betas, m, "rate")
    for t, xt in product(range(len(betas)), (0, 1)):
        kernel = process.reverse(lambda x, t: torch.full_like(x, z), bits(xt), torch.tensor([t]))
        first = (1 - betas[0].item()) * xt + betas[0].item() * m
        assert kernel.probs.item() == pytest.approx(first if t == 0 else expit(z), rel=1e-9)


@pytest.mark.parametrize("betas", [SHORT, ERASED])
@pytest.mark.parametrize("m", [0.5, 0.3])
def test_the_exact_belief_gives_the_exact_conditional_of_every_bit(betas, m):
    """Of two bits that depend on each other: P(x_{t−1,i} = 1 | x_t), summed over all paths; and in one batch."""
    chain = BitChain(betas, m, TWO_BITS)
    process, x = BinomialDiffusion(betas, m), torch.from_numpy(chain.states).double()
    t = torch.arange(1, len(betas)).repeat_interleave(4)
    ours = process.reverse(chain.network(), x.repeat(len(betas) - 1, 1), t).probs.reshape(-1, 4, 2)
    for k in range(1, len(betas)):
        joint = chain.joint(k, k + 1)
        np.testing.assert_allclose(ours[k - 1], (joint.T @ chain.states) / joint.sum(0)[:, None], rtol=1e-9)


# ---- the bound ------------------------------------------------------------------------------------------------------


def exact_terms(process: BinomialDiffusion, net, x0: torch.Tensor, loss: bool = False) -> np.ndarray:
    """The library's terms at every step, (T, n) bits per dimension, each averaged over all values of x_t."""
    (n, d), T = x0.shape, process.T
    start, t, total = x0.repeat(T, 1), torch.arange(T).repeat_interleave(n), 0.0
    rate = process.q_marginal(start, t).probs
    for xt in torch.tensor(list(product([0.0, 1.0], repeat=d)), dtype=x0.dtype):
        noise = torch.where(xt > 0, 0.0, 1 - 2**-24).to(x0).expand(n * T, d)  # below any rate, above any
        assert torch.equal(process.q_sample(start, t, noise), xt.expand(n * T, d))
        found = process.loss(net, start, t, noise) if loss else process.bound_term(net, start, t, noise)
        total = total + torch.where(xt > 0, rate, 1 - rate).prod(1) * found["loss" if loss else "bits"]
    return total.reshape(T, n).numpy()


@pytest.mark.parametrize("betas", [SHORT, ERASED])
@pytest.mark.parametrize("m", [0.5, 0.2])
@pytest.mark.parametrize("predict", ["x0", "rate"])
def test_the_terms_add_up_to_the_definition_of_K_and_lie_below_the_truth(predict, m, betas):
    """(SD 12) by a sum over all paths; each x_0's log p(x_0) by another."""
    chain, process = BitChain(betas, m, TWO_BITS), BinomialDiffusion(betas, m, predict)
    x0 = torch.from_numpy(chain.states).double()

    def back(states: np.ndarray, t: int) -> np.ndarray:
        if t == 0:
            return (1 - betas[0].item()) * states + betas[0].item() * m
        z = wavy(torch.from_numpy(states).double(), torch.full((4,), float(t))).numpy()
        if predict == "rate":
            return expit(z)
        single = BitChain(betas, m, [0.5, 0.5]).joint(0, t, t + 1)
        posterior = single[:, 1] / single.sum(1)  # of x_t = 1, by [x_0, x_{t+1}]
        return expit(z) * posterior[1, states] + expit(-z) * posterior[0, states]

    log_p = chain.log_model(back)
    K = chain.by_start(chain.given_x0 * (log_p - np.log(chain.given_x0))) / np.log(2)
    truth = np.log2(chain.by_start(np.exp(log_p)))
    assert np.exp2(truth).sum() == pytest.approx(1)

    ours = -2 * (exact_terms(process, wavy, x0).sum(0) + process.prior_term(x0).numpy())
    np.testing.assert_allclose(ours, K, rtol=1e-9)
    assert (ours < truth).all()
    by_loss = -2 * (exact_terms(process, wavy, x0, loss=True).mean(0) + process.prior_term(x0).numpy())
    np.testing.assert_allclose(by_loss, K, rtol=1e-9)


def test_the_bound_as_estimated_is_the_sum_over_all_paths(generator):
    process, x0 = BinomialDiffusion(SHORT, 0.2), torch.tensor([[0.0, 1.0], [1.0, 1.0]]).double()
    exact = exact_terms(process, wavy, x0).sum(0) + process.prior_term(x0).numpy()
    many = x0.repeat(5_000, 1)
    bound = likelihood_bound(process, wavy, many, generator, count=4)
    for k in (0, 1):
        ours = bound.per_example[k::2]
        assert abs(ours.mean().item() - exact[k]) < 4 * ours.std().item() / 5_000**0.5


def single_bit_gap(T: int, p: float, m: float) -> float:
    """E log2 p(x_0) of the data minus K, for one bit of rate p and the exact reverse."""
    process, a = BinomialDiffusion(harmonic_betas(T), m), np.cumprod(1 - harmonic_betas(T).numpy())
    one, zero = a + (1 - a) * m, (1 - a) * m  # P(x_t = 1 | x_0)
    logit = np.log(p / (1 - p)) + np.log([(1 - one) / (1 - zero), one / zero])  # of x_0, by [x_t, t]
    net = lambda x, t: torch.from_numpy(logit)[x[:, 0].long(), t.long()][:, None]
    K = -(exact_terms(process, net, bits(0, 1)).sum(0) + process.prior_term(bits(0, 1)).numpy())
    share = np.array([1 - p, p])
    return share @ np.log2(share) - share @ K


def test_the_bound_of_one_bit_reaches_its_entropy_as_steps_get_smaller():
    """The fixed first step costs a share of β_1 = 1/T; all else is exact."""
    assert single_bit_gap(30, 0.3, 0.3) == pytest.approx(0, abs=1e-12)  # data that begin where the chain ends
    gaps = {T: single_bit_gap(T, 0.2, 0.5) for T in (30, 300, 900)}
    assert all(gap > 0 for gap in gaps.values())
    assert 300 * gaps[300] == pytest.approx(900 * gaps[900], rel=0.02)
    assert gaps[900] < 1e-3 < gaps[30]


def heartbeat_net(process: BinomialDiffusion):
    """Logit of P(x_0 = 1 | x_t), bit by bit, of five sequences equally likely."""
    beats = heartbeats().double()
    alpha_bar = process.alpha_bar

    def net(x, t):
        a = alpha_bar[t.long(), None, None]
        rate = a * beats + (1 - a) * process.m
        share = torch.where(x[:, None] > 0, rate, 1 - rate).log().sum(2).softmax(1)
        one = share @ beats
        return torch.log(one) - torch.log(share @ (1 - beats))

    return net


@pytest.mark.parametrize("T, bits_per_sequence", [(100, -2.976), (500, -2.487)])
def test_the_best_bound_of_the_heartbeat_is_the_one_found_elsewhere(T, bits_per_sequence, generator):
    process = BinomialDiffusion(harmonic_betas(T), m=0.2)
    x0 = heartbeats().double().repeat(30, 1)
    bound = likelihood_bound(process, heartbeat_net(process), x0, generator, count=T)
    assert abs(-20 * bound.total - bits_per_sequence) < 4 * 20 * bound.error + 0.002
    assert 20 * bound.error < 0.07


@given(betas=chains, m=rates)
def test_what_is_left_in_the_last_step_is_the_divergence_from_the_prior(betas, m):
    keep = np.prod(1 - betas.numpy())
    p = keep * np.array([0, 1]) + (1 - keep) * m
    kl = xlogy(p, p / m) + xlogy(1 - p, (1 - p) / (1 - m))
    ours = BinomialDiffusion(betas, m).prior_term(bits(0, 1))
    np.testing.assert_allclose(ours, kl / np.log(2), rtol=1e-9, atol=1e-12)
    mixed = BinomialDiffusion(betas, m).prior_term(torch.tensor([[0.0, 1.0, 1.0]]).double()).item()
    assert mixed == pytest.approx((ours[0] + 2 * ours[1]).item() / 3, abs=1e-12)  # a mean over dimensions


@given(betas=chains, m=rates, ones=st.integers(1, 99))
def test_entropies_are_those_of_all_paths(betas, m, ones):
    chain = BitChain(betas, m, [1 - ones / 100, ones / 100])
    x0 = (torch.arange(100)[:, None] < ones).float()
    step, given_x0 = BinomialDiffusion(betas, m).entropies(x0)
    for t in range(len(betas)):
        assert step[t].item() == pytest.approx(chain.entropy(t, t + 1) - chain.entropy(t), abs=1e-9)
        assert given_x0[t].item() == pytest.approx(chain.entropy(0, t + 1) - chain.entropy(0), abs=1e-9)


def test_x0_error_is_that_of_the_belief():
    process = BinomialDiffusion(SHORT, 0.3)
    x0, t = bits(0, 1, 1), torch.tensor([1, 2, 3])
    sure = lambda x, t: torch.full_like(x, np.log(0.8 / 0.2))
    found = process.bound_term(sure, x0, t, bits(0.1, 0.5, 0.9))["x0_mse"]
    assert found.tolist() == pytest.approx([0.64, 0.04, 0.04])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("predict", ["x0", "rate"])
@pytest.mark.parametrize("size", [0.0, 1.0, 40.0, 1e4])
@pytest.mark.parametrize("betas", [SHORT, ERASED, harmonic_betas(2000)[[0, 1, 1000, 1998, 1999]]])
def test_losses_and_gradients_stay_finite_at_rates_of_0_and_1(betas, size, predict, dtype, generator):
    process = BinomialDiffusion(betas, 0.2, predict)
    T = len(betas)
    x0 = torch.tensor([[0.0, 1.0, 0.0, 1.0]], dtype=dtype).expand(T, 4)
    noise = process.draw_noise(x0, generator)
    for sign in (1, -1):
        z = torch.full((T, 4), sign * size, dtype=dtype, requires_grad=True)
        losses = process.loss(lambda x, t: z, x0, torch.arange(T), noise)  # noqa: B023
        losses["loss"].sum().backward()
        assert losses["loss"].isfinite().all() and z.grad.isfinite().all()
        assert not z.grad[0].any() and (z.grad[1:] != 0).any() == (size <= 40 or predict == "rate")
        assert losses["loss"].dtype == dtype


def test_float32_gives_the_terms_of_float64():
    process, x0 = BinomialDiffusion(harmonic_betas(50), 0.2), torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    np.testing.assert_allclose(
        exact_terms(process, wavy, x0), exact_terms(process, wavy, x0.double()), rtol=2e-4, atol=1e-7
    )


def test_tables_are_in_no_checkpoint():
    process = BinomialDiffusion(SHORT.float(), 0.2)
    assert process.state_dict() == {} and {buffer.dtype for buffer in process.buffers()} == {torch.float64}


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"betas": SHORT[:1]}, "betas: .*at least 2"),
        ({"betas": torch.tensor([0.1, 0.0])}, "betas: .*above 0"),
        ({"betas": torch.tensor([0.1, 1.5])}, "betas: .*at most 1"),
        ({"betas": torch.tensor([1.0, 0.5])}, "betas: .*1 only at the end"),
        ({"betas": torch.tensor([0.1, float("nan")])}, "betas"),
        ({"m": 0.0}, r"m=0\.0"),
        ({"m": 1.0}, r"m=1\.0"),
        ({"m": -0.2}, r"m=-0\.2"),
    ],
)
def test_arguments_that_make_no_process_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        BinomialDiffusion(**{"betas": SHORT, **arguments})


@pytest.mark.parametrize("value", [0.5, -1.0, 2.0, float("nan")])
def test_data_that_are_not_bits_are_refused(value):
    with pytest.raises(ValueError, match=r"x0: .*0 and 1 only"):
        BinomialDiffusion(SHORT).loss(wavy, bits(0, value, 1), torch.tensor([0, 1, 2]), bits(0.5, 0.5, 0.5))


def test_a_choice_that_does_not_exist_is_refused_where_types_are_not_checked():
    code = """
import minidiff as md
for make in (lambda: md.BinomialDiffusion(md.harmonic_betas(9), predict="eps"),
             lambda: md.LearnedGaussian(md.geometric_betas(9), predict="x0"),
             lambda: md.Posterior(md.BinomialDiffusion(md.harmonic_betas(9)), None),
             lambda: md.Posterior(md.LearnedGaussian(md.geometric_betas(9)), lambda x, t: x, over_time="falling")):
    try:
        make()
    except ValueError as error:
        print(error)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert out == [
        "predict='eps': take one of x0, rate.",
        "predict='x0': take one of pull, shift.",
        "r: a binomial process takes a torch Bernoulli, with a logit for each bit.",
        "over_time='falling': take one of constant, rising.",
    ]
