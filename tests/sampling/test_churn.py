"""EDM's stochastic sampler: Algorithm 1 without churn, the algorithm by hand, and the distribution that noise keeps."""

import pytest
import torch
from scipy import stats

from minidiff import EDMPath, Mixture, SubVPPath, VEPath, VPPath, batch_noise, churn, ode

PATHS = [EDMPath(), VEPath(), VPPath(), SubVPPath()]
by_name = pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
bent = lambda x, sigma, **cond: torch.tanh(x / (1 + sigma**2)) + sum(cond.values())


@by_name
def test_without_churn_it_is_algorithm_1_to_the_bit(path, generator):
    start = torch.randn(4, 3, generator=generator, dtype=torch.float64) * path.std(path.t_max)
    cond = {"labels": torch.ones(1)}
    expected = ode(bent, start, path, 9, cond=cond)
    refuse = lambda i: pytest.fail("no noise is added")
    assert torch.equal(churn(bent, start, refuse, 9, path, cond=cond), expected)
    assert torch.equal(churn(bent, start, refuse, 9, path, S_churn=5, S_tmin=200, cond=cond), expected)
    assert torch.equal(churn(bent, start, refuse, 9, path, S_churn=5, S_tmax=1e-4, cond=cond), expected)


@pytest.mark.parametrize("S_churn", [2.0, 1e9])
@pytest.mark.parametrize("window", [(0.0, float("inf")), (0.06, 5.0)])
def test_the_algorithm_by_hand(S_churn, window, generator):
    """(EDM Alg. 2) line by line; 1e9 is far beyond the largest γ."""
    start, *z = torch.randn(9, 4, 3, generator=generator, dtype=torch.float64)
    t, N = EDMPath(0.05, 10.0, 3.0).steps(8).tolist(), 8
    seen = []
    record = lambda step, x, sigma, x0_hat: seen.append((step, sigma))
    path = EDMPath(0.05, 10.0, 3.0)
    end = churn(bent, start, lambda i: z[i - 1], N, path, S_churn, *window, S_noise=1.05, callback=record)
    x, levels = start, []
    for i in range(N):
        gamma = min(S_churn / N, 2**0.5 - 1) if window[0] <= t[i] <= window[1] else 0
        t_hat = t[i] + gamma * t[i]
        x_hat = x + (t_hat**2 - t[i] ** 2) ** 0.5 * 1.05 * z[i]
        d = (x_hat - bent(x_hat, t_hat)) / t_hat
        x = x_hat + (t[i + 1] - t_hat) * d
        if t[i + 1] != 0:
            d_next = (x - bent(x, t[i + 1])) / t[i + 1]
            x = x_hat + (t[i + 1] - t_hat) * (d + d_next) / 2
        levels.append(t_hat)
    torch.testing.assert_close(end, x, rtol=1e-12, atol=1e-12)
    assert seen == [(i, pytest.approx(level)) for i, level in enumerate(levels)]


def test_the_window_has_both_its_ends(generator):
    times, noises = torch.tensor([4.0, 2.0, 1.0, 0.5]).double(), []
    note = lambda i: noises.append(i) or torch.zeros(1, 1)
    churn(bent, torch.ones(1, 1), note, times, S_churn=1, S_tmin=1.0, S_tmax=2.0)
    assert noises == [2, 3]


def variance(path, n, S_churn, S_noise=1.0, spread=0.5):
    """Of x at the last time, exactly, for data N(0, spread²): the sampler is linear, and each row has one source."""
    denoise = lambda x, sigma: spread**2 / (spread**2 + sigma**2) * x
    sources = torch.eye(n + 1, dtype=torch.float64)[:, :, None]
    times = path.t_of_sigma(torch.logspace(1, -1, n + 1, dtype=torch.float64))
    start = path.s(times[0]) * (spread**2 + 10**2) ** 0.5 * sources[:, 0]
    end = churn(denoise, start, lambda i: sources[:, i % (n + 1)], times, path, S_churn, S_noise=S_noise)
    return (end**2).sum().item() / (path.s(times[-1]) ** 2 * (spread**2 + 0.1**2)).item()


@by_name
def test_noise_put_back_keeps_the_variance_of_gaussian_data(path):
    """What is wrong is the solver's own error: of second order where γ = S_churn/N falls with the step."""
    wrong = [variance(path, n, 8.0) - 1 for n in (40, 80, 160)]
    assert abs(wrong[-1]) < 2e-3 and wrong[0] / wrong[1] == pytest.approx(4, rel=0.1) == wrong[1] / wrong[2]
    assert variance(path, 80, 8.0, S_noise=1.05) > 1.03 and variance(path, 80, 8.0, S_noise=0.95) < 0.97


def test_a_mixture_stays_that_mixture(generator):
    """Kolmogorov–Smirnov between 4,000 ends and 4,000 draws at level 1e-3; noise a fifth wrong does not pass."""
    mixture = Mixture(torch.tensor([1.0, 2.0]), torch.tensor([[-1.0], [0.8]]), 0.2)
    denoise = lambda x, sigma: mixture.denoise(x, sigma=sigma)
    path, exact = EDMPath(0.01, 20.0), mixture.sample(4000, generator)
    start = mixture.sample(4000, generator) + 20 * torch.randn(4000, 1, generator=generator, dtype=torch.float64)

    def p(S_noise):
        noise = batch_noise(generator, 4000, (1,))
        end = churn(denoise, start, noise, 50, path, S_churn=20, S_noise=S_noise)
        return stats.ks_2samp(end[:, 0], exact[:, 0]).pvalue

    assert p(1.0) > 1e-3 and p(1.2) < 1e-3 and p(0.8) < 1e-3


@pytest.mark.parametrize(
    "wrong",
    [
        {"S_churn": -1.0},
        {"S_noise": -0.1},
        {"S_churn": float("nan")},
        {"S_noise": float("inf")},
        {"S_tmin": 2.0, "S_tmax": 1.0},
        {"S_tmin": float("nan")},
        {"S_tmax": float("nan")},
    ],
)
def test_no_such_noise_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        churn(bent, torch.ones(1, 1), lambda i: None, 3, **wrong)
