"""Langevin dynamics: the exact variance of every iterate on a Gaussian, and modes in their proportions by annealing."""

import pytest
import torch

from minidiff import Mixture, annealed_langevin, batch_noise, langevin

M, V = 0.3, 0.64


@pytest.mark.parametrize("n", [0, 1, 7, 200])
def test_every_iterate_has_its_known_mean_and_variance(n):
    """x − m shrinks by 1 − ε/v and gains 2ε, so the variance tends to v / (1 − ε/2v): one row for each noise."""
    step, shrink = 0.1, 1 - 0.1 / V
    sources = torch.eye(n + 2).double()[:, :, None]
    end = langevin(lambda x: -(x - M) / V, 2 + sources[:, 0], step, n, lambda k: sources[:, k])
    assert end[-1].item() == pytest.approx(M + shrink**n * (2 - M))
    limit = V / (1 - step / (2 * V))
    variance = shrink ** (2 * n) + limit * (1 - shrink ** (2 * n))
    assert ((end[:-1] - end[-1]) ** 2).sum().item() == pytest.approx(variance)


def test_each_level_is_langevin_of_a_step_in_its_own_units(generator):
    noises = torch.randn(7, 4, 2, generator=generator, dtype=torch.float64)
    start, seen = torch.zeros(4, 2), []
    denoise = lambda x, sigma, shift: M + shift + V / (V + sigma**2) * (x - M - shift)
    cond = {"shift": torch.ones(1).double()}
    tell = lambda step, x, sigma, x0_hat: seen.append((step, x, sigma, x0_hat))
    sigmas = torch.tensor([2.0, 0.5]).double()
    end = annealed_langevin(denoise, start, sigmas, lambda k: noises[k], 0.2, 3, cond, tell)
    score = lambda sigma: lambda x: -(x - M - 1) / (V + sigma**2)
    first = langevin(score(2.0), start, 0.2 * 4, 3, lambda k: noises[k])
    torch.testing.assert_close(end, langevin(score(0.5), first, 0.2 * 0.25, 3, lambda k: noises[k + 3]))
    assert [(step, sigma) for step, _, sigma, _ in seen] == [(0, 2.0), (1, 0.5)] and end.dtype == torch.float64
    torch.testing.assert_close(seen[1][1], first)
    torch.testing.assert_close(seen[1][3], denoise(first, 0.5, **cond))
    clean = annealed_langevin(denoise, start, torch.cat([sigmas, torch.zeros(1)]), lambda k: noises[k], 0.2, 3, cond)
    torch.testing.assert_close(clean, denoise(end, 0.5, **cond))


def test_annealing_finds_the_modes_in_their_proportions_and_plain_langevin_does_not():
    mixture = Mixture(torch.tensor([0.8, 0.2]), torch.tensor([[5.0, 5.0], [-5.0, -5.0]]), 1.0)
    noise = batch_noise(torch.Generator().manual_seed(1), 2000, (2,))
    start = 16 * torch.rand(2000, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64) - 8
    share = lambda x: (x.sum(1) > 0).double().mean().item()
    plain = langevin(mixture.score, start, 0.1, 300, noise)
    sigmas = torch.logspace(1.3, -1, 20, dtype=torch.float64)
    annealed = annealed_langevin(lambda x, sigma: mixture.denoise(x, sigma=sigma), start, sigmas, noise)
    assert abs(share(annealed) - 0.8) < 0.036  # four standard errors
    assert abs(share(plain) - 0.5) < 0.05  # where it began
    near = torch.where((annealed.sum(1) > 0)[:, None], annealed - 5, annealed + 5)
    assert near.std().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("sigmas", [[], [0.0], [1.0, 2.0], [1.0, 1.0], [1.0, -1.0], [1.0, 0.0, 0.0]])
def test_levels_that_do_not_fall_are_refused(sigmas):
    with pytest.raises(ValueError, match="sigmas="):
        annealed_langevin(lambda x, sigma: x, torch.zeros(1, 2), torch.tensor(sigmas), lambda k: torch.zeros(1, 2))


@pytest.mark.parametrize(("step", "n"), [(0.0, 3), (0.1, -1)])
def test_steps_that_are_none_are_refused(step, n):
    with pytest.raises(ValueError, match=f"step={step}, n={n}"):
        langevin(lambda x: x, torch.zeros(1, 2), step, n, lambda k: torch.zeros(1, 2))
