"""DDIM against the ancestral chain, diffusers' scheduler, the marginals that it promises, and the ODE behind it."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from oracles import Chain

from minidiff import (
    GaussianDiffusion,
    ancestral,
    batch_noise,
    cosine_sine,
    ddim,
    ddim_encode,
    linear_betas,
    slerp,
    subsequence,
)

T = 40
BETAS = linear_betas(T)
ALPHA_BAR = torch.cumprod(1 - BETAS, 0)


def curved(x, t):
    """No solution of anything, but different at every x and t."""
    return torch.sin(2 * x + t[:, None] / 9) + 0.3 * x.roll(1, 1)


@pytest.fixture
def start(generator):
    return torch.randn(5, 3, generator=generator, dtype=torch.float64)


def noise_of(seed=1, shape=(5, 3)):
    drawn = batch_noise(torch.Generator().manual_seed(seed), *shape[:1], shape[1:])
    table = [drawn(k) for k in range(T + 2)]
    return lambda k: table[k]


def silent(step):
    pytest.fail("no noise is drawn here")


def record(into):
    return lambda step, x, t, x0_hat: into.append((step, t, x, x0_hat))


@pytest.mark.parametrize(("variance", "larger"), [("small", False), ("large", True)])
@pytest.mark.parametrize("clip", [True, False])
def test_with_eta_1_and_every_step_it_is_the_ancestral_chain_term_by_term(start, variance, larger, clip):
    process, ours, theirs = GaussianDiffusion(BETAS, variance=variance, clip=clip), [], []
    end = ddim(process, curved, start, noise_of(), eta=1.0, larger=larger, callback=record(ours))
    expected = ancestral(process, curved, start, noise_of(), callback=record(theirs))
    torch.testing.assert_close(end, expected)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine[:2] == other[:2]
        torch.testing.assert_close(mine[2:], other[2:])


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("predict", "kind"), [("eps", "epsilon"), ("x0", "sample"), ("v", "v_prediction")])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("n", [T, 8, 1])
def test_diffusers_takes_the_same_steps(start, spacing, eta, predict, kind, clip, n):
    scheduler = DDIMScheduler(
        T, trained_betas=BETAS.numpy(), clip_sample=clip, prediction_type=kind, timestep_spacing=spacing
    )
    scheduler.alphas_cumprod, scheduler.final_alpha_cumprod = ALPHA_BAR, torch.ones(()).double()  # theirs are float32
    scheduler.set_timesteps(n)
    ours, noise, x = [], noise_of(), start
    process = GaussianDiffusion(BETAS, predict, clip=clip)
    end = ddim(process, curved, start, noise, subsequence(T, n, spacing), eta, callback=record(ours))
    for k, t in enumerate(scheduler.timesteps):
        assert ours[k][:2] == (k, t.item())
        torch.testing.assert_close(ours[k][2], x, rtol=1e-9, atol=1e-9)
        answer = curved(x, torch.full((5,), float(t), dtype=torch.float64))
        step = scheduler.step(answer, t, x, eta, use_clipped_model_output=True, variance_noise=noise(k + 1))
        torch.testing.assert_close(ours[k][3], step.pred_original_sample, rtol=1e-9, atol=1e-9)
        x = step.prev_sample
    torch.testing.assert_close(end, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [None, [0, 3, 4, 20, 39], [5, 39]])
def test_any_eta_keeps_the_marginals(eta, steps):
    """With x_0 known, x_t ~ N(√ᾱ x_0, 1 − ᾱ) at every step: one row for each source of noise, squared and summed."""
    kept = steps or list(range(T))
    process = GaussianDiffusion(BETAS, "x0", clip=False)
    sources, seen = torch.eye(len(kept)).double()[:, :, None], []
    start = 0.7 * ALPHA_BAR[-1].sqrt() + (1 - ALPHA_BAR[-1]).sqrt() * sources[:, 0]
    ddim(
        process,
        lambda x, t: torch.full_like(x, 0.7),
        start,
        lambda k: sources[:, k],
        steps,
        eta,
        callback=lambda step, x, t, x0_hat: seen.append((t, x)),
    )
    for t, x in seen:
        mean = ALPHA_BAR[t].sqrt() * 0.7
        assert ((x - mean) ** 2).sum().item() == pytest.approx(1 - ALPHA_BAR[t].item())


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_larger_variance_is_in_the_noise_alone(start, eta):
    """One step from 39 to 9, then the last: what differs is the deviation of the one noise."""
    process, steps, seen = GaussianDiffusion(BETAS, clip=False), [9, 39], {}
    for larger in (False, True):
        for z in (0.0, 1.0):
            x = []
            ddim(process, curved, start, lambda k, z=z: torch.full((5, 3), z), steps, 1.0, larger, callback=record(x))
            seen[larger, z] = x[1][2]
    torch.testing.assert_close(seen[True, 0.0], seen[False, 0.0])
    ratio = 1 - ALPHA_BAR[39] / ALPHA_BAR[9]
    torch.testing.assert_close(seen[True, 1.0] - seen[True, 0.0], ratio.sqrt().expand(5, 3))
    small = (1 - ALPHA_BAR[9]) / (1 - ALPHA_BAR[39]) * ratio
    torch.testing.assert_close(seen[False, 1.0] - seen[False, 0.0], small.sqrt().expand(5, 3))


def test_the_larger_variance_stays_finite_on_coarse_steps():
    betas = linear_betas(1000)
    process = GaussianDiffusion(betas)
    a = torch.cumprod(1 - betas, 0)[::100]
    assert (1 - a[:-1] < 1 - a[1:] / a[:-1]).sum() == 3  # there σ̂ is more noise than x_{t−1} has
    noise = batch_noise(torch.Generator().manual_seed(1), 4, (2,))
    end = ddim(process, Chain(betas, 0.0, 0.5).network("eps"), noise(0), noise, range(0, 1000, 100), 1.0, larger=True)
    assert end.isfinite().all()


@pytest.mark.parametrize("k", [0, 17, 39])
def test_after_the_last_step_alpha_bar_is_1_and_nothing_is_added(start, k):
    process = GaussianDiffusion(BETAS)
    end = ddim(process, curved, start, silent, [k], 1.0, larger=True)
    torch.testing.assert_close(end, process.believe(curved, start, torch.full((5,), k))[0])


def test_the_network_is_asked_at_the_kept_steps_and_no_noise_is_drawn_without_eta(start):
    asked = []
    net = lambda x, t, shift: asked.append(t[0].item()) or curved(x, t) + shift
    ddim(GaussianDiffusion(BETAS), net, start, silent, (3, 11, 30), cond={"shift": torch.ones(5, 1).double()})
    assert asked == [30, 11, 3]


def test_noise_left_over_is_that_of_the_clipped_belief(start):
    """x̂_0 = 4 is clipped to 1, and ε is what 1 leaves of x_t: the one step from 39 to 9 by hand."""
    process, seen = GaussianDiffusion(BETAS, "x0", clip=False), []
    far = lambda x, t: torch.full_like(x, 4.0)
    end = ddim(process, far, start, silent, [9, 39], clip=True, callback=record(seen))
    eps = (start - ALPHA_BAR[39].sqrt()) / (1 - ALPHA_BAR[39]).sqrt()
    torch.testing.assert_close(seen[1][2], ALPHA_BAR[9].sqrt() + (1 - ALPHA_BAR[9]).sqrt() * eps)
    assert end.unique().tolist() == [1.0]
    assert ddim(process, far, start, silent, [9, 39]).unique().tolist() == pytest.approx([4.0])
    assert ddim(GaussianDiffusion(BETAS, "x0"), far, start, silent, [9, 39]).unique().tolist() == [1.0]


# ---- the ODE behind it: on N(m, v) data x̄ = x/√ᾱ keeps (x̄ − m)/√(v + σ²) ----

LONG, M, S = linear_betas(4000, first=2.5e-5, last=0.005), 0.3, 0.5


def errors(run):
    return np.array([run(subsequence(4000, n, "trailing")).abs().max().item() for n in (100, 200, 400)])


def test_without_noise_it_solves_the_ode_to_first_order(start):
    process, net = GaussianDiffusion(LONG, clip=False), Chain(LONG, M, S).network("eps")
    end = process.alpha_bar[-1].rsqrt() * start - M
    exact = M + S * end / (S**2 + process.sigma[-1] ** 2).sqrt()
    error = errors(lambda steps: ddim(process, net, start, silent, steps) - exact)
    assert error[2] < 0.01 and np.allclose(error[:-1] / error[1:], 2, atol=0.25), error


def test_encoding_climbs_the_same_ode_to_first_order(start):
    process, net = GaussianDiffusion(LONG, clip=True), Chain(LONG, M, S).network("eps")
    exact = process.alpha_bar[-1].sqrt() * (M + (start - M) / S * (S**2 + process.sigma[-1] ** 2).sqrt())
    error = errors(lambda steps: ddim_encode(process, net, start, steps) - exact)
    assert error[2] < 0.05 and np.allclose(error[:-1] / error[1:], 2, atol=0.25), error
    there = subsequence(4000, 400, "trailing")
    back = ddim(process, net, ddim_encode(process, net, start, there), silent, there, clip=False)
    assert (back - start).abs().max() < 0.05


def test_encoding_begins_at_the_first_kept_step(start):
    asked = []
    net = lambda x, t: asked.append((t[0].item(), x)) or curved(x, t)
    end = ddim_encode(GaussianDiffusion(BETAS), net, start, [3, 11])
    assert [t for t, _ in asked] == [3, 3]
    torch.testing.assert_close(asked[0][1], start)  # at σ = 0 nothing is scaled
    sigma = ((1 - ALPHA_BAR) / ALPHA_BAR).sqrt()
    x_bar = start + sigma[3] * curved(start, torch.full((5,), 3.0).double())
    eps = curved(x_bar * ALPHA_BAR[3].sqrt(), torch.full((5,), 3.0).double())
    torch.testing.assert_close(end, ALPHA_BAR[11].sqrt() * (x_bar + (sigma[11] - sigma[3]) * eps))


# ---- between two latents ----


def test_slerp_keeps_to_the_circle(generator):
    a, b = torch.randn(2, 4, 1, 5, 5, generator=generator, dtype=torch.float64)
    a, b = (3 * x / x.flatten(1).norm(dim=1)[:, None, None, None] for x in (a, b))
    angle = lambda x, y: torch.acos((x * y).flatten(1).sum(1) / 9)
    for w in (0.0, 0.25, 0.5, 1.0):
        x = slerp(a, b, w)
        torch.testing.assert_close(x.flatten(1).norm(dim=1), torch.full((4,), 3.0).double())
        torch.testing.assert_close(angle(a, x.clone()).cos(), (w * angle(a, b)).cos())
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    assert torch.equal(slerp(a, a, 0.3), a)


def test_cosine_and_sine_make_a_normal_latent_of_two(generator):
    """x(θ) is standard normal and has the correlation cos θ with its beginning; x(θ) and x'(θ) turn into each other."""
    a, b = torch.randn(2, 4, 1, 200, 200, generator=generator, dtype=torch.float64)
    for theta in (0.3, np.pi / 3, 1.2):
        x = cosine_sine(a, b, theta)
        assert abs((x * x).mean() - 1) < 0.02 and abs((x * a).mean() - np.cos(theta)) < 0.02
        assert abs((x * b).mean() - np.sin(theta)) < 0.02
        torch.testing.assert_close(cosine_sine(x, cosine_sine(-a, b, np.pi / 2 - theta), np.pi / 2 - theta), b)
    assert torch.equal(cosine_sine(a, b, 0), a)
    quarter = torch.tensor(np.pi / 2, dtype=torch.float32).item()  # a little more than π/2
    torch.testing.assert_close(cosine_sine(a, b, quarter), b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("theta", [-0.1, 45, float("nan")])
def test_an_angle_that_leads_past_the_second_latent_is_refused(start, theta):
    with pytest.raises(ValueError, match=r"theta=.*radians"):
        cosine_sine(start, start, theta)


@pytest.mark.parametrize("steps", [[], [3, 2], [1, 1], [-1, 4], [0, T]])
def test_steps_that_are_none_of_the_chains_are_refused(start, steps):
    for sampler in (
        lambda: ddim(GaussianDiffusion(BETAS), curved, start, silent, steps),
        lambda: ddim_encode(GaussianDiffusion(BETAS), curved, start, steps),
    ):
        with pytest.raises(ValueError, match=r"steps=.* of 0 … 39"):
            sampler()


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_an_eta_that_is_none_is_refused(start, eta):
    with pytest.raises(ValueError, match="eta="):
        ddim(GaussianDiffusion(BETAS), curved, start, silent, eta=eta)
