"""The reverse SDE: exact moments of what the sampler makes of Gaussian data, and its steps by hand."""

import numpy as np
import pytest
import torch

from minidiff import EDMPath, GeometricVEPath, SubVPPath, VEPath, VPPath, sde

M, S = 0.3, 0.5


def denoise(x, sigma):
    return M + S**2 / (S**2 + sigma**2) * (x - M)


def moments(path, n, predictor, times):
    """Mean and variance of x at the last time: the sampler is affine in its noises, and each row carries one."""
    sources = torch.eye(n + 2).double()[:, :, None]  # the last row carries none
    t = path.t_of_sigma(times[0])
    start = path.s(t) * M + path.s(t) * (S**2 + path.sigma(t) ** 2).sqrt() * sources[:, 0]
    steps = path.t_of_sigma(torch.logspace(*np.log10(times), n + 1, dtype=torch.float64))
    end = sde(denoise, start, path, steps, lambda k: sources[:, k], predictor)
    return end[-1].item(), ((end[:-1] - end[-1]) ** 2).sum().item()


@pytest.mark.parametrize("predictor", ["euler", "reverse-diffusion"])
@pytest.mark.parametrize(
    "path", [VPPath(), SubVPPath(), GeometricVEPath(), VEPath(), EDMPath()], ids=lambda path: type(path).__name__
)
def test_samples_have_the_marginals_of_the_path_up_to_first_order(path, predictor):
    t = path.t_of_sigma(0.5)
    mean, variance = path.s(t).item() * M, (path.s(t) ** 2 * (S**2 + path.sigma(t) ** 2)).item()
    found = np.array([moments(path, n, predictor, (5.0, 0.5)) for n in (40, 80, 160)])
    error = np.abs(found[:, 1] / variance - 1)
    assert error[-1] < 0.05 and np.allclose(error[:-1] / error[1:], 2, atol=0.3), error
    assert abs(found[-1, 0] / mean - 1) < 0.02


@pytest.mark.parametrize("predictor", ["euler", "reverse-diffusion"])
def test_one_step_of_vp_by_hand(predictor, generator):
    x, z = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    path, t, t_next = VPPath(), 0.5, 0.45
    end = sde(denoise, x, path, torch.tensor([t, t_next]).double(), lambda k: z if k == 1 else None, predictor)
    integral = lambda t: 0.1 * t + 19.9 * t**2 / 2
    alpha = np.exp(-integral(t))
    score = -(x - alpha**0.5 * M) / (alpha * S**2 + 1 - alpha)
    if predictor == "euler":
        beta = (0.1 + 19.9 * t) * (t - t_next)
        expected = x + beta / 2 * x + beta * score + beta**0.5 * z
    else:  # the discrete chain's own: x_{t−1} = (2 − √(1−β)) x_t + β score + √β z
        beta = 1 - np.exp(-integral(t) + integral(t_next))
        expected = (2 - (1 - beta) ** 0.5) * x + beta * score + beta**0.5 * z
    torch.testing.assert_close(end, expected, rtol=1e-6, atol=1e-6)


def test_the_corrector_comes_first_and_takes_each_examples_own_size(generator):
    x, z1, z2, z3 = torch.randn(4, 3, 2, 5, generator=generator, dtype=torch.float64)
    path, noises = VPPath(), {1: z1, 2: z2, 3: z3}
    times = torch.tensor([0.5, 0.4]).double()
    end = sde(denoise, x, path, times, noises.get, corrections=2, snr=0.2)
    alpha, alpha_next = (path.s(t).item() ** 2 for t in (0.5, 0.4))
    for i in range(3):
        y = x[i]
        for z in (z1[i], z2[i]):
            score = -(y - alpha**0.5 * M) / (alpha * S**2 + 1 - alpha)
            eps = 2 * alpha / alpha_next * (0.2 * z.norm() / score.norm()) ** 2
            y = y + eps * score + (2 * eps).sqrt() * z
        alone = sde(denoise, y[None], path, times, lambda k, i=i: z3[i : i + 1])
        torch.testing.assert_close(end[i], alone[0])


def test_corrections_alone_bring_many_dimensions_to_the_marginal(generator):
    """At one time, from too small a deviation; 2,000 dimensions make the norms certain."""
    path = EDMPath()
    x = torch.zeros(1, 2000).double()
    noise = lambda k: torch.randn(1, 2000, generator=generator, dtype=torch.float64)
    times = torch.tensor([1.0, 1 - 1e-12]).double()
    end = sde(denoise, x, path, times, noise, corrections=300, snr=0.16)
    # with ε = 2 r² ‖z‖²/‖score‖², a step keeps the variance v at which 2ε = v − v (1 − ε/V)², V = s² + 1 the true one
    assert end.mean().item() == pytest.approx(M, abs=0.15)
    assert end.var().item() == pytest.approx((S**2 + 1) / (1 - 0.16**2), rel=0.1)


def test_the_last_step_is_the_belief_and_draws_nothing(generator):
    x, drawn, seen = torch.randn(4, 3, generator=generator), [], []
    noise = lambda k: drawn.append(k) or torch.ones(4, 3)
    tell = lambda step, x, sigma, x0_hat: seen.append((step, sigma, x, x0_hat))
    shifted = lambda x, sigma, shift: denoise(x, sigma) + shift
    path = VPPath()
    end = sde(shifted, x, path, 5, noise, cond={"shift": torch.ones(1)}, callback=tell)
    assert drawn == [1, 2, 3, 4] and [step for step, *_ in seen] == [0, 1, 2, 3, 4]
    assert [sigma for _, sigma, *_ in seen] == pytest.approx(path.sigma(path.steps(5)[:-1]).tolist())
    assert torch.equal(seen[0][2], x.double()) and torch.equal(end, seen[-1][3]) and end.dtype == torch.float64
    sigma, x = seen[-1][1:3]
    torch.testing.assert_close(end, denoise(x * (1 + sigma**2) ** 0.5, sigma) + 1)


@pytest.mark.parametrize(("option", "named"), [({"corrections": -1}, "corrections=-1"), ({"snr": 0.0}, "snr=0.0")])
def test_what_makes_no_sampler_is_refused(option, named):
    with pytest.raises(ValueError, match=named):
        sde(denoise, torch.zeros(1, 2), EDMPath(), 3, lambda k: torch.zeros(1, 2), **option)
