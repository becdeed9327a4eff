"""DPM-Solver++(2M): order 2 on Gaussian data along every path, its first steps by hand, and diffusers' scheduler."""

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from minidiff import EDMPath, GeometricVEPath, IDDPMPath, SubVPPath, VEPath, VPPath, dpmpp

M, S = 0.3, 0.5
PATHS = [VPPath(), SubVPPath(), GeometricVEPath(), VEPath(), IDDPMPath(), EDMPath()]
by_name = pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
bent = lambda x, sigma, **cond: torch.tanh(x / (1 + sigma**2)) + sum(cond.values())


def gaussian(x, sigma):
    """E[x_0 | x_0 + σ n] for x_0 ~ N(m, s²)."""
    return M + S**2 / (S**2 + sigma**2) * (x - M)


@by_name
def test_it_is_of_second_order(path, generator):
    x = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    start = path.s(path.t_of_sigma(5.0)) * (M + (S**2 + 5**2) ** 0.5 * x)
    t_next = path.t_of_sigma(0.1)
    exact, errors = path.s(t_next) * (M + (S**2 + 0.1**2) ** 0.5 * x), []
    for n in (40, 80, 160):
        times = path.t_of_sigma(torch.logspace(np.log10(5), -1, n + 1, dtype=torch.float64))
        errors.append((dpmpp(gaussian, start, path, times) - exact).abs().max().item())
    errors = np.array(errors)
    assert errors[-1] < 1e-4 and np.allclose(np.log2(errors[:-1] / errors[1:]), 2, atol=0.1), errors


@by_name
def test_only_the_noise_levels_count(path, generator):
    """x/s at the same σ is the same on every path; a step to 0 ends at x̂_0."""
    x = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    sigmas = torch.tensor([8.0, 3.0, 1.0, 0.9, 0.2, 0.0], dtype=torch.float64)
    times, seen = path.t_of_sigma(sigmas), []
    end = dpmpp(bent, path.s(times[0]) * 8 * x, path, times, callback=lambda **step: seen.append(step))
    torch.testing.assert_close(end, dpmpp(bent, 8 * x, EDMPath(), sigmas))
    torch.testing.assert_close(end, seen[-1]["x0_hat"])
    assert [step["sigma"] for step in seen] == pytest.approx(sigmas[:-1].tolist())
    assert [step["step"] for step in seen] == list(range(5))


def test_two_steps_by_hand_with_a_condition():
    """σ halves, then falls to a third: e^−h = ½ and ⅓, and x̂_0 is taken on at half the second step."""
    cond, asked = {"labels": torch.tensor([2.0])}, []
    record = lambda x, sigma, **cond: asked.append(sigma) or bent(x, sigma, **cond)
    x = torch.tensor([[1.0]], dtype=torch.float64)
    first = bent(x, 6.0, **cond)
    y = x / 2 + first / 2
    second = bent(y, 3.0, **cond)
    line = second + np.log(3) / (2 * np.log(2)) * (second - first)
    end = dpmpp(record, x, EDMPath(), torch.tensor([6.0, 3.0, 1.0]), cond)
    torch.testing.assert_close(end, y / 3 + 2 * line / 3)
    assert asked == [6.0, 3.0] and end.dtype == torch.float64


@pytest.mark.parametrize("n", [6, 25])
def test_every_step_is_that_of_diffusers(n, generator):
    """On Karras's noise levels; that scheduler holds x s, with s = 1/√(1 + σ²), in single precision."""
    scheduler = DPMSolverMultistepScheduler(
        use_karras_sigmas=True, prediction_type="sample", solver_order=2, algorithm_type="dpmsolver++"
    )
    scheduler.set_timesteps(n)
    sigmas = scheduler.sigmas.double()
    x = sigmas[0] * torch.randn(4, 3, generator=generator, dtype=torch.float64)
    mine = []
    end = dpmpp(bent, x, EDMPath(), sigmas, callback=lambda **step: mine.append(step["x"]))
    s = 1 / (1 + sigmas**2).sqrt()
    theirs = (s[0] * x).float()
    for i, t in enumerate(scheduler.timesteps):
        torch.testing.assert_close(theirs.double() / s[i], mine[i], rtol=2e-5, atol=2e-5)
        theirs = scheduler.step(bent(theirs / s[i].float(), sigmas[i].float()), t, theirs).prev_sample
    torch.testing.assert_close(theirs.double(), end, rtol=2e-5, atol=2e-5)


def test_times_that_no_solver_can_take_are_refused():
    with pytest.raises(ValueError, match="steps="):
        dpmpp(bent, torch.ones(1, 1), EDMPath(), torch.tensor([1.0, 0.0, 0.5]))
