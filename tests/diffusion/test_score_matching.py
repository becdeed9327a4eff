"""Denoising score matching has its minimum at the score, by quadrature over data and noise."""

import numpy as np
import pytest
import torch

from minidiff import EDMPath, ScoreMatching, SubVPPath, VPPath

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(20)
WEIGHTS = torch.from_numpy(WEIGHTS / WEIGHTS.sum())


def expectation(path, net, t, m, v):
    """E[loss] for x_0 ~ N(m, v) at one t: a polynomial of degree 4, so the quadrature is exact."""
    x0, noise = torch.meshgrid(m + v**0.5 * torch.from_numpy(NODES), torch.from_numpy(NODES), indexing="ij")
    x0, noise = x0.reshape(-1, 1), noise.reshape(-1, 1)
    loss = ScoreMatching(path).loss(net, x0, torch.full((len(x0),), t, dtype=torch.float64), noise)["loss"]
    return (loss * (WEIGHTS[:, None] * WEIGHTS).flatten()).sum()


@pytest.mark.parametrize(("path", "t"), [(VPPath(), 0.3), (VPPath(), 0.01), (SubVPPath(), 0.4), (EDMPath(), 0.7)])
def test_the_minimum_is_the_score_of_the_marginal(path, t):
    m, v = 0.4, 0.25
    s, sigma = path.s(t).item(), path.sigma(t).item()
    variance = s**2 * (v + sigma**2)
    slope = torch.tensor(-1 / variance, dtype=torch.float64, requires_grad=True)
    offset = torch.tensor(s * m / variance, dtype=torch.float64, requires_grad=True)
    loss = expectation(path, lambda x, t: slope * x + offset, t, m, v)
    assert loss.item() == pytest.approx(v / (v + sigma**2))  # what noise no one can tell from data
    gradient = torch.autograd.grad(loss, (slope, offset))
    assert [g.item() for g in gradient] == pytest.approx([0, 0], abs=1e-10)


def test_images_and_conditions_pass_through(generator):
    path, asked = VPPath(), []
    x0 = torch.randn(3, 1, 2, 2, generator=generator)
    objective, t = ScoreMatching(path), torch.tensor([0.1, 0.5, 0.9])
    noise = objective.draw_noise(x0, generator)
    net = lambda x, t, labels: asked.append((t, labels)) or -noise / path.std(t).float()[:, None, None, None]
    loss = objective.loss(net, x0, t, noise, labels=torch.arange(3))["loss"]
    torch.testing.assert_close(loss, torch.zeros(3), atol=1e-10, rtol=0)  # the score given x_0 is −n / (s σ)
    assert torch.equal(asked[0][0], t) and torch.equal(asked[0][1], torch.arange(3))
    zero = objective.loss(lambda x, t: torch.zeros_like(x), x0, t, noise)["loss"]
    torch.testing.assert_close(zero, (noise**2).mean((1, 2, 3)))
