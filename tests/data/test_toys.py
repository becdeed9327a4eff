"""Toys with known answers: are the answers right?"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import ndtr
from scipy.stats import kstest

from minidiff import Mixture, Points, swiss_roll

PLANE = Mixture(torch.tensor([2.0, 1.0, 1.0]), torch.tensor([[0.0, 1.0], [-1.0, -0.5], [1.5, 0.0]]), std=0.3)
LINE = Mixture(torch.tensor([1.0, 3.0]), torch.tensor([[-1.0], [0.5]]), std=0.2)
noise_levels = st.tuples(st.floats(0.1, 1.0), st.floats(0.0, 3.0))


def test_points_are_a_training_set(generator):
    points = Points(torch.arange(10.0).reshape(5, 2))
    x, cond = points.batch(torch.tensor([4, 1]), generator)
    assert len(points) == 5 and x.tolist() == [[8, 9], [2, 3]] and cond == {}


def test_swiss_roll_has_unit_mean_square(generator):
    x = swiss_roll(200_000, generator)
    assert (x**2).mean().item() == pytest.approx(1, abs=0.01)
    assert x.dtype == torch.float64


def test_swiss_roll_lies_on_its_spiral_when_there_is_no_noise(generator):
    """radius = angle, from 1.5π to 4.5π, the angle uniform: undo the scale and compare."""
    x = swiss_roll(5_000, generator, noise=0.0).numpy()
    radius = np.linalg.norm(x, axis=1)
    mean_square = quad(lambda u: (1.5 * math.pi * (1 + 2 * u)) ** 2 / 2, 0, 1)[0]
    angle = radius * mean_square**0.5
    np.testing.assert_allclose(x, radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1), atol=1e-9)
    assert kstest((angle - 1.5 * math.pi) / (3 * math.pi), "uniform").pvalue > 0.01


@given(scale_sigma=noise_levels, x=st.floats(-3, 3))
def test_density_of_the_line_is_a_convolution(scale_sigma, x):
    scale, sigma = scale_sigma
    deviation = math.hypot(scale * 0.2, sigma)
    density = sum(w * math.exp(-0.5 * ((x - scale * m) / deviation) ** 2) for w, m in [(0.25, -1.0), (0.75, 0.5)])
    density /= deviation * math.sqrt(2 * math.pi)
    ours = LINE.log_prob(torch.tensor([[x]], dtype=torch.float64), scale, sigma).exp().item()
    assert ours == pytest.approx(density, rel=1e-9, abs=1e-300)


@given(scale_sigma=st.tuples(st.floats(0.3, 1.0), st.floats(0.0, 2.0)))
@settings(max_examples=15)
def test_density_of_the_plane_integrates_to_one(scale_sigma):
    axis = torch.linspace(-12, 12, 481, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)
    assert PLANE.log_prob(z, *scale_sigma).exp().sum().item() * 0.05**2 == pytest.approx(1, abs=1e-4)


@given(scale_sigma=noise_levels, seed=st.integers(0, 1000))
def test_score_is_the_gradient_of_the_log_density(scale_sigma, seed):
    z = 2 * torch.randn(8, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    z.requires_grad_()
    (gradient,) = torch.autograd.grad(PLANE.log_prob(z, *scale_sigma).sum(), z)
    torch.testing.assert_close(PLANE.score(z.detach(), *scale_sigma), gradient, rtol=1e-8, atol=1e-8)


@given(scale_sigma=noise_levels, seed=st.integers(0, 1000))
def test_denoised_is_the_score_by_tweedie(scale_sigma, seed):
    scale, sigma = scale_sigma
    z = 2 * torch.randn(8, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    tweedie = (z + sigma**2 * PLANE.score(z, scale, sigma)) / scale
    torch.testing.assert_close(PLANE.denoise(z, scale, sigma), tweedie, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("z, scale, sigma", [(0.1, 1.0, 0.5), (-0.6, 0.4, 0.9), (2.0, 0.8, 0.6)])
def test_denoised_is_the_posterior_mean_by_quadrature(z, scale, sigma):
    def joint(x: float) -> float:
        data = sum(w * math.exp(-0.5 * ((x - m) / 0.2) ** 2) for w, m in [(0.25, -1.0), (0.75, 0.5)])
        return data * math.exp(-0.5 * ((z - scale * x) / sigma) ** 2)

    options = {"epsabs": 1e-13, "limit": 400, "points": [-1.0, 0.5]}
    mean = quad(lambda x: x * joint(x), -4, 4, **options)[0] / quad(joint, -4, 4, **options)[0]
    assert LINE.denoise(torch.tensor([[z]], dtype=torch.float64), scale, sigma).item() == pytest.approx(mean, abs=1e-8)


def test_samples_follow_the_density(generator):
    x = LINE.sample(5_000, generator)[:, 0].numpy()
    cdf = lambda v: 0.25 * ndtr((v + 1) / 0.2) + 0.75 * ndtr((v - 0.5) / 0.2)
    assert kstest(x, cdf).pvalue > 0.01
