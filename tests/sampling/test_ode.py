"""The probability-flow ODE: known trajectories of Gaussian data, orders of convergence, and DDIM as its Euler step."""

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, HeunDiscreteScheduler
from oracles import Chain

from minidiff import (
    EDMPath,
    GaussianDiffusion,
    GeometricVEPath,
    IDDPMPath,
    SubVPPath,
    VEPath,
    VPPath,
    ddim,
    linear_betas,
    ode,
    rk2,
)

M, S = 0.3, 0.5
ALL = [VPPath(), SubVPPath(), GeometricVEPath(), VEPath(), IDDPMPath(), EDMPath()]
by_name = pytest.mark.parametrize("path", ALL, ids=lambda path: type(path).__name__)


def denoise(x, sigma):
    """E[x_0 | x_0 + σ n] for x_0 ~ N(m, s²)."""
    return M + S**2 / (S**2 + sigma**2) * (x - M)


def moved(path, x, t, t_next):
    """Where the flow takes x: (x/s − m)/√(s² + σ²) does not change."""
    c = (x / path.s(t) - M) / (S**2 + path.sigma(t) ** 2).sqrt()
    return path.s(t_next) * (M + c * (S**2 + path.sigma(t_next) ** 2).sqrt())


@by_name
@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_order_of_convergence(path, solver, order, generator):
    x = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    t, t_next = path.t_of_sigma(10.0).item(), path.t_of_sigma(0.5).item()
    x = path.q_sample(torch.full_like(x, M), t, x)
    error = np.array([])
    for steps in (40, 80, 160):
        times = path.t_of_sigma(torch.logspace(1, np.log10(0.5), steps + 1, dtype=torch.float64))
        end = ode(denoise, x, path, times, solver)
        error = np.append(error, (end - moved(path, x, t, t_next)).abs().max().item())
    assert error[-1] < 0.05 and np.allclose(np.log2(error[:-1] / error[1:]), order, atol=0.2), error


def test_the_papers_18_steps_bring_gaussian_data_home(generator):
    path = EDMPath()
    start = 80 * torch.randn(50, 2, generator=generator, dtype=torch.float64)
    exact = moved(path, start, 80.0, 0.0)
    error = lambda n, solver: (ode(denoise, start, path, n, solver) - exact).abs().max().item()
    assert error(18, "heun") < 0.1 and error(36, "heun") < error(18, "heun") / 3.5
    assert error(18, "euler") > 2.5 * error(18, "heun")


# ---- the second-order family (EDM Alg. 3) ---------------------------------------------------------------------------

bent = lambda x, sigma, **cond: torch.tanh(x / (1 + sigma**2)) + sum(cond.values())


@by_name
def test_heun_is_the_family_at_alpha_1_to_the_bit(path, generator):
    start = path.std(path.t_max) * torch.randn(4, 3, generator=generator, dtype=torch.float64)
    cond = {"labels": torch.ones(1)}
    assert torch.equal(rk2(bent, start, path, 9, 1.0, cond), ode(bent, start, path, 9, "heun", cond))


@by_name
@pytest.mark.parametrize("alpha", [0.5, 2 / 3, 1.1])
def test_the_family_is_of_second_order(path, alpha, generator):
    """Or above: where s = 1 the midpoint rule is of third order on Gaussian data."""
    x = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    start, exact = ((path.t_of_sigma(sigma), (S**2 + sigma**2) ** 0.5) for sigma in (10.0, 0.2))
    start, exact = (path.s(t) * (M + spread * x) for t, spread in (start, exact))
    error = np.array([])
    for steps in (40, 80, 160):
        times = path.t_of_sigma(torch.logspace(1, np.log10(0.2), steps + 1, dtype=torch.float64))
        error = np.append(error, (rk2(denoise, start, path, times, alpha) - exact).abs().max().item())
    assert error[-1] < 1e-3 and (np.log2(error[:-1] / error[1:]) > 1.9).all(), error


@pytest.mark.parametrize("alpha", [0.5, 2 / 3, 1.0, 1.1])
def test_a_step_by_hand_and_where_it_looks(alpha):
    """Along σ = t from 4 to 3, and then to 0, where it looks again if that is above 0."""
    asked, seen = [], []
    record = lambda x, sigma: asked.append(sigma) or bent(x, sigma)
    tell = lambda step, x, sigma, x0_hat: seen.append((step, sigma))
    x = torch.tensor([[5.0]], dtype=torch.float64)
    end = rk2(record, x, EDMPath(), torch.tensor([4.0, 3.0, 0.0]), alpha, callback=tell)
    d = (x - bent(x, 4.0)) / 4
    x_seen, t_seen = x - alpha * d, 4 - alpha
    y = x - ((1 - 1 / (2 * alpha)) * d + (x_seen - bent(x_seen, t_seen)) / t_seen / (2 * alpha))
    d = (y - bent(y, 3.0)) / 3
    y_seen, left = y - 3 * alpha * d, 3 - 3 * alpha
    if left > 0:
        d = (1 - 1 / (2 * alpha)) * d + (y_seen - bent(y_seen, left)) / left / (2 * alpha)
    torch.testing.assert_close(end, y - 3 * d)
    assert asked == pytest.approx([4, t_seen, 3] + [left] * (left > 0)) and seen == [(0, 4.0), (1, 3.0)]


@pytest.mark.parametrize("alpha", [0.0, -1.0, 2.0, float("nan")])
def test_an_alpha_that_looks_where_there_is_nothing_is_refused(alpha):
    with pytest.raises(ValueError, match="alpha="):
        rk2(denoise, torch.zeros(1, 2), EDMPath(), 18, alpha)


# ---- independent solvers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "solver"), [(EulerDiscreteScheduler, "euler"), (HeunDiscreteScheduler, "heun")])
@pytest.mark.parametrize("n", [5, 18])
def test_every_step_is_that_of_diffusers(kind, solver, n, generator):
    """Their noise levels are Karras's too, from the ends of a chain; they compute in single precision."""
    scheduler = kind(use_karras_sigmas=True)
    scheduler.set_timesteps(n)
    levels = scheduler.sigmas.double()
    path = EDMPath(levels[-2].item(), levels[0].item())
    each = levels if solver == "euler" else levels[[0, *range(1, 2 * n - 1, 2), -1]]  # theirs name inner ones twice
    torch.testing.assert_close(path.steps(n), each, rtol=1e-5, atol=1e-6)

    x = levels[0] * torch.randn(4, 3, generator=generator, dtype=torch.float64)
    mine = []
    end = ode(bent, x, path, n, solver, callback=lambda **step: mine.append(step["x"]))
    theirs, firsts = x.float(), []
    for i, t in enumerate(scheduler.timesteps):
        if solver == "euler" or i % 2 == 0:
            firsts.append(theirs.double())
        eps = (theirs - bent(theirs, levels[i].float())) / levels[i].float()
        theirs = scheduler.step(eps, t, theirs).prev_sample
    for found, expected in zip([*mine, end], [*firsts, theirs.double()], strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)


# ---- both ways, and what is asked -----------------------------------------------------------------------------------


@by_name
def test_the_way_up_and_the_way_down(path, generator):
    x = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    low, high = path.t_of_sigma(0.1).item(), path.t_of_sigma(1.0).item()
    times = torch.linspace(low, high, 100, dtype=torch.float64)
    up = ode(denoise, x, path, times)
    torch.testing.assert_close(up, moved(path, x, low, high), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(ode(denoise, up, path, times.flip(0)), x, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("solver", "evaluations"), [("euler", 6), ("heun", 11)])
def test_evaluations_and_what_the_callback_sees(solver, evaluations, generator):
    asked, seen, path = [], [], EDMPath()
    record = lambda x, sigma, labels: asked.append(sigma) or denoise(x, sigma) + labels
    start = torch.randn(3, 2, generator=generator) * 80
    tell = lambda step, x, sigma, x0_hat: seen.append((step, x, sigma, x0_hat))
    end = ode(record, start, path, 6, solver, {"labels": torch.ones(1)}, tell)
    t = path.steps(6).tolist()
    inner = [t_next for _, t_next in pairwise(t[:-1])]
    between = [sigma for pair in zip(inner, inner, strict=True) for sigma in pair]
    assert asked == (t[:6] if solver == "euler" else t[:1] + between) and len(asked) == evaluations
    assert [step for step, *_ in seen] == list(range(6)) and [sigma for *_, sigma, _ in seen] == t[:6]
    assert torch.equal(seen[0][1], start.double()) and end.dtype == torch.float64
    for _, x, sigma, x0_hat in seen:
        torch.testing.assert_close(x0_hat, denoise(x, sigma) + 1)
    torch.testing.assert_close(end, seen[-1][3])  # with σ = t, Euler's step to 0 lands on x̂_0


def test_ddim_without_noise_is_its_euler_method_in_sigma(generator):
    """(DDIM 13) and (DDIM 14): any network, any kept steps, the same points."""
    process = GaussianDiffusion(linear_betas(50))
    net = lambda x, t: torch.sin(2 * x + t[:, None] / 9)
    start, kept = torch.randn(4, 3, generator=generator, dtype=torch.float64), [2, 7, 20, 49]
    sigmas = torch.cat([process.sigma[kept].flip(0), torch.zeros(1).double()])
    wide = start * (1 + sigmas[0] ** 2).sqrt()
    end = ode(process.denoiser(net), wide, EDMPath(), sigmas, "euler")
    torch.testing.assert_close(end, ddim(process, net, start, lambda step: start, kept))


def test_a_network_of_one_chain_runs_on_another_papers_path(generator):
    """DDPM's network of N(m, s²) data under VP's path: the solution is the data's, but for the rounding of σ."""
    betas = linear_betas(1000)
    process, path = GaussianDiffusion(betas, clip=False), VPPath()
    run = process.denoiser(Chain(betas, M, S).network("eps"))
    start = torch.randn(20, 2, generator=generator, dtype=torch.float64)
    end = ode(run, start * path.std(1.0), path, 200)
    torch.testing.assert_close(end, moved(path, start * path.std(1.0), 1.0, 0.0), atol=0.02, rtol=0.02)


@pytest.mark.parametrize("times", [[1.0], [1.0, 0.0, 0.5], [1.0, -0.5]])
def test_times_that_no_solver_can_take_are_refused(times):
    with pytest.raises(ValueError, match="steps="):
        ode(denoise, torch.zeros(1, 2), EDMPath(), torch.tensor(times))


def test_a_choice_that_does_not_exist_is_refused_where_types_are_not_checked():
    code = """
import minidiff as md, torch
x, path, noise = torch.zeros(1, 2), md.EDMPath(), lambda i: 0
for run in (
    lambda: md.ode(None, x, path, 3, "rk4"),
    lambda: md.sde(None, x, path, 3, noise, "milstein"),
    lambda: md.subsequence(10, 3, "linear"),
):
    try:
        run()
    except ValueError as error:
        print(error)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert out == [
        "solver='rk4': take one of heun, euler.",
        "predictor='milstein': take one of euler, reverse-diffusion.",
        "spacing='linear': take one of uniform, quadratic, leading, trailing.",
    ]
