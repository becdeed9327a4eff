"""Shorter chains: the published lists, the marginalised chain, diffusers, and the network's view of it all."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st
from oracles import Chain

from minidiff import (
    GaussianDiffusion,
    ancestral,
    batch_noise,
    cosine_betas,
    ddim,
    generate,
    harmonic_betas,
    likelihood_bound,
    linear_betas,
    respace,
    sections,
    subsequence,
)

TABLES = ["betas", "alpha_bar", "alpha_bar_prev", "signal", "noise", "sigma", "beta_tilde", "log_beta_tilde"]
TABLES += ["log_beta", "mean_from_x0", "mean_from_xt", "weight", "fed"]


# ---- which steps are kept -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "T, counts, n, first, last",
    [
        (1000, "250", 250, [0, 4, 8, 12], [991, 995, 999]),
        (4000, "250", 250, [0, 16, 32], [3999]),
        (1000, "25", 25, [0, 42, 83, 125], [999]),
        (1000, "ddim25", 25, [0, 40], [960]),
        (1000, "90,60,60,20,20", 250, [0, 2, 4, 7, 9], [968, 978, 989, 999]),
        (300, "10,15,20", 45, [0, 11, 22, 33, 44], [299]),
        (10, "3,1", 4, [0, 2, 4, 5], [5]),
        (11, "2,2", 4, [0, 5, 6, 10], [10]),
        (7, "1", 1, [0], [0]),
    ],
)
def test_strings_keep_the_published_steps(T, counts, n, first, last):
    steps = sections(T, counts)
    assert len(steps) == n and steps == sorted(set(steps))
    assert steps[: len(first)] == first and steps[-len(last) :] == last


@given(T=st.integers(2, 1200), data=st.data())
def test_one_section_is_even_to_half_a_step_and_holds_both_ends(T, data):
    n = data.draw(st.integers(2, T))
    steps = np.array(sections(T, str(n)))
    assert len(steps) == n and steps[0] == 0 and steps[-1] == T - 1
    assert np.abs(steps - np.linspace(0, T - 1, n)).max() <= 0.5 + 1e-9


@given(T=st.integers(1, 400), data=st.data())
def test_each_section_keeps_what_it_says_within_its_own_bounds(T, data):
    k = data.draw(st.integers(1, min(T, 5)))
    counts = data.draw(st.lists(st.integers(1, T // k), min_size=k, max_size=k))
    steps = sections(T, ",".join(map(str, counts)))
    assert len(steps) == len(set(steps)) == sum(counts)
    for count, part in zip(counts, np.array_split(np.arange(T), k), strict=True):
        kept = [step for step in steps if part[0] <= step <= part[-1]]
        assert len(kept) == count and kept[0] == part[0] and (count == 1 or kept[-1] == part[-1])


@given(T=st.integers(1, 1000), data=st.data())
def test_ddim_strings_keep_every_kth_step_for_the_least_whole_k(T, data):
    k = data.draw(st.integers(1, T))
    n = -(-T // k)
    steps = sections(T, f"ddim{n}")
    stride = steps[1] - steps[0] if n > 1 else T
    assert steps == list(range(0, T, stride)) and stride <= k
    assert stride == 1 or -(-T // (stride - 1)) != n


@pytest.mark.parametrize("counts", ["", "ddim", "x", "-3", "1.5", "0", "ddim10,10", "5,,5", "5,0", "²", " 250"])
def test_strings_that_say_nothing_are_refused(counts):
    with pytest.raises(ValueError, match=r"steps='.*': say how many each section keeps"):
        sections(1000, counts)


def test_more_steps_than_there_are_are_refused():
    with pytest.raises(ValueError, match="a section of 1000 steps cannot keep 1001"):
        sections(1000, "1001")
    with pytest.raises(ValueError, match="a section of 333 steps cannot keep 334"):
        sections(1000, "10,10,334")
    with pytest.raises(ValueError, match=r"steps='ddim37': no whole stride keeps that many of 1000 steps. Take 37"):
        sections(1000, "ddim37")


# ---- the shorter chain ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [linear_betas, cosine_betas, harmonic_betas])
@pytest.mark.parametrize("rescale", [True, False])
def test_all_steps_kept_are_the_chain_itself(schedule, rescale):
    process = GaussianDiffusion(
        schedule(300), "x0", "range", "hybrid", torch.linspace(1, 2, 300), 17, False, 0.3, rescale_times=rescale
    )
    same = respace(process, "300")
    for name in TABLES:
        torch.testing.assert_close(getattr(same, name), getattr(process, name), rtol=1e-9, atol=1e-15)
    assert set(TABLES) == set(dict(process.named_buffers()))
    for name in ("T", "predict", "variance", "loss_kind", "levels", "clip", "lambda_vlb"):
        assert getattr(same, name) == getattr(process, name)


@given(
    betas=st.lists(st.floats(0.02, 0.8), min_size=3, max_size=8).map(lambda b: torch.tensor(b, dtype=torch.float64)),
    x0=st.floats(-1, 1),
    xt=st.floats(-2, 2),
    data=st.data(),
)
def test_the_posterior_is_that_of_the_chain_with_the_other_steps_integrated_out(betas, x0, xt, data):
    """x_1 … x_T given x_0 are jointly Gaussian: covariances step by step, then condition x_s on x_t."""
    T = len(betas)
    steps = sorted(data.draw(st.lists(st.integers(0, T - 1), min_size=2, max_size=T, unique=True)))
    covariance, keep = np.zeros((T, T)), np.sqrt(1 - betas.numpy())
    for t in range(T):
        covariance[t, :t] = covariance[:t, t] = keep[t] * covariance[t - 1, :t] if t else 0
        covariance[t, t] = betas[t] + keep[t] ** 2 * (covariance[t - 1, t - 1] if t else 0)
    mean = np.cumprod(keep) * x0
    process = respace(GaussianDiffusion(betas), steps)
    column = lambda value: torch.full((len(steps), 1), value, dtype=torch.float64)
    ours = process.q_posterior(column(x0), column(xt), torch.arange(len(steps)))
    for k in range(1, len(steps)):
        s, t = steps[k - 1], steps[k]
        gain = covariance[s, t] / covariance[t, t]
        assert ours[0][k].item() == pytest.approx(mean[s] + gain * (xt - mean[t]), abs=1e-9)
        assert ours[1][k].item() == pytest.approx(covariance[s, s] - gain * covariance[s, t], abs=1e-9)
        one_step = process.q_step(column(xt), torch.full((len(steps),), k))
        slope = np.prod(keep[s + 1 : t + 1])
        assert one_step.mean[k].item() == pytest.approx(slope * xt, abs=1e-9)
        assert one_step.variance[k].item() == pytest.approx(1 - slope**2, abs=1e-9)
    assert ours[0][0].item() == pytest.approx(x0, abs=1e-9) and ours[1][0].item() == 0
    noisy = process.q_sample(column(x0), torch.arange(len(steps)), column(1.0))[:, 0].numpy()
    np.testing.assert_allclose(noisy, mean[steps] + np.sqrt(np.diag(covariance)[steps]), rtol=1e-10)


def wavy(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.tanh(0.9 * x) + 0.001 * t.reshape(-1, 1)


@pytest.mark.parametrize("variance", ["large", "small"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_a_reverse_step_is_that_of_diffusers_on_the_same_steps(variance, spacing):
    T, n = 200, 20
    betas = linear_betas(T)
    theirs = DDPMScheduler(
        num_train_timesteps=T,
        trained_betas=betas.tolist(),
        variance_type=f"fixed_{variance}",
        timestep_spacing=spacing,
        clip_sample=False,
    )
    theirs.set_timesteps(n)
    process = respace(GaussianDiffusion(betas, variance=variance, clip=False), subsequence(T, n, spacing))
    x = torch.linspace(-2, 2, 5)[:, None].double()
    for k, t in zip(range(n - 1, 0, -1), theirs.timesteps.tolist(), strict=False):
        kernel = process.reverse(wavy, x, torch.full((5,), k))
        eps, generator = wavy(x, torch.full((5,), t)), torch.Generator().manual_seed(k)
        theirs_next = theirs.step(eps, t, x, generator=generator).prev_sample
        noise = torch.randn(5, 1, generator=generator.manual_seed(k), dtype=torch.float64)
        torch.testing.assert_close(kernel.mean + kernel.scale * noise, theirs_next, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", ["12", "ddim8", "6,3,2", [3, 11, 30, 39]])
def test_the_bound_has_its_closed_form_on_the_chain_of_the_kept_steps(steps):
    """Gaussian data, the best variance, a network that knows the steps by the numbers of the whole chain."""
    betas = linear_betas(40)
    whole, m, s = Chain(betas, -0.3, 0.4), -0.3, 0.4
    kept = sections(40, steps) if isinstance(steps, str) else steps
    ratio = np.diff(np.log(whole.alpha_bar[kept]), prepend=0.0)
    short = Chain(torch.from_numpy(-np.expm1(ratio)), m, s)
    low = np.log(np.append(short.beta_tilde[1], short.beta_tilde[1:]))
    share = 2 * (np.log(short.best_variance) - low) / (np.log(short.betas) - low) - 1
    heads = np.full(40, np.nan)
    heads[kept] = share

    def net(x, t):
        return torch.cat([whole.network("eps")(x, t), torch.from_numpy(heads)[t.long(), None].expand_as(x)], 1)

    process = respace(GaussianDiffusion(betas, "eps", "range", "hybrid", levels=17, clip=False), steps)
    nodes, weights = np.polynomial.hermite_e.hermegauss(150)
    noise = torch.from_numpy(nodes)[:, None]
    x0, n = torch.full_like(noise, 0.25), len(kept)
    terms = [process.bound_term(net, x0, torch.full((150,), t), noise)["bits"].numpy() for t in range(n)]
    found = [*(weights @ term / weights.sum() for term in terms), process.prior_term(x0[:1]).item()]
    closed = short.bound_terms(np.array([0.25]), short.best_variance, 17)[:, 0]
    np.testing.assert_allclose(found, closed, rtol=1e-5, atol=1e-8)
    bound = likelihood_bound(process, net, x0, torch.Generator().manual_seed(1))
    assert len(bound.terms) == n


def test_samples_of_a_shorter_chain_have_the_moments_of_the_affine_chain(generator):
    m, s, n = 0.3, 0.5, 20_000
    whole = Chain(cosine_betas(100), m, s)
    process = respace(GaussianDiffusion(cosine_betas(100), variance="small", clip=False), "10")
    mean, variance = 0.0, 1.0
    for t in reversed(range(10)):
        at = sections(100, "10")[t]
        a, b = process.mean_from_x0[t].item(), process.mean_from_xt[t].item()
        slope = a * whole.gain[at] + b
        mean = slope * mean + a * m * (1 - whole.gain[at] * whole.alpha_bar[at] ** 0.5)
        variance = slope**2 * variance + (process.beta_tilde[t].item() if t else 0.0)
    noise = batch_noise(generator, n, (1,))
    x = ancestral(process, whole.network("eps"), noise(0), noise)
    assert abs(x.mean().item() - mean) < 4.5 * (variance / n) ** 0.5
    assert abs(x.var().item() - variance) < 4.5 * variance * (2 / n) ** 0.5
    assert abs(mean - m) < 0.01 and variance < s**2  # a few steps with the small variance lose spread


def test_ddim_does_on_the_shorter_chain_what_it_does_on_those_steps_of_the_whole():
    process, start = GaussianDiffusion(cosine_betas(100)), torch.linspace(-2, 2, 6)[:, None].double()
    fixed = torch.sin(torch.arange(120.0)).double()
    noise = lambda step: fixed[6 * step : 6 * step + 6, None]
    kept = sections(100, "10")
    for eta in (0.0, 1.0):
        short = ddim(respace(process, kept), wavy, start, noise, eta=eta)
        torch.testing.assert_close(short, ddim(process, wavy, start, noise, steps=kept, eta=eta))
    small = respace(GaussianDiffusion(cosine_betas(100), variance="small"), kept)  # η = 1 is the chain itself
    torch.testing.assert_close(ancestral(small, wavy, start, noise), ddim(process, wavy, start, noise, kept, eta=1.0))


@pytest.mark.parametrize("rescale, scale", [(True, 0.25), (False, 1.0)])
def test_the_network_is_fed_the_steps_of_the_whole_chain(rescale, scale):
    seen = []

    def net(x, t):
        seen.append(t[0].item())
        return torch.zeros_like(x)

    process = GaussianDiffusion(linear_betas(4000), rescale_times=rescale)
    short = respace(process, "7")
    generate(short, net, (2,), range(3))
    assert seen == [scale * step for step in reversed(sections(4000, "7"))]
    seen.clear()
    twice = respace(short, [0, 3, 6])
    generate(twice, net, (2,), range(3))
    assert seen == [scale * sections(4000, "7")[k] for k in (6, 3, 0)]
    torch.testing.assert_close(twice.alpha_bar, process.alpha_bar[[0, 2000, 3999]])
    seen.clear()
    short.denoiser(net)(torch.zeros(1, 2).double(), process.sigma[2666])
    assert seen == [scale * 2666]


@pytest.mark.parametrize("steps", [[3], [], [5, 3], [1, 1, 4], [-1, 4], [4, 20], "1"])
def test_steps_that_make_no_chain_are_refused(steps):
    with pytest.raises(ValueError, match=r"steps=.*keep at least 2 of 0 … 19"):
        respace(GaussianDiffusion(linear_betas(50)[:20]), steps)
