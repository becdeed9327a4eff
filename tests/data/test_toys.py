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

from minidiff import Mixture, Points, heartbeats, is_heartbeat, swiss_roll, swiss_roll_log_prob

PLANE = Mixture(torch.tensor([2.0, 1.0, 1.0]), torch.tensor([[0.0, 1.0], [-1.0, -0.5], [1.5, 0.0]]), std=0.3)
LINE = Mixture(torch.tensor([1.0, 3.0]), torch.tensor([[-1.0], [0.5]]), std=0.2)
noise_levels = st.tuples(st.floats(0.1, 1.0), st.floats(0.0, 3.0))


def test_points_are_a_training_set(generator):
    points = Points(torch.arange(10.0).reshape(5, 2))
    x, cond = points.batch(torch.tensor([4, 1]), generator)
    assert len(points) == 5 and x.tolist() == [[8, 9], [2, 3]] and cond == {}
    assert points.shape == (2,) and points.levels is None
    pictures = Points(torch.zeros(3, 1, 4, 6), levels=2)
    assert (pictures.shape, pictures.levels, pictures.batch(torch.tensor([0]), generator)[0].ndim) == ((1, 4, 6), 2, 4)


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


@pytest.mark.parametrize("noise", [0.02, 0.05, 0.3])
def test_swiss_roll_density_is_its_integral(noise):
    """∫ du N(x; roll(u), noise²), everything divided by √(1 + noise²); at points on, beside and far off the roll."""
    scale = math.sqrt((quad(lambda u: (1.5 * math.pi * (1 + 2 * u)) ** 2 / 2, 0, 1)[0]) * (1 + noise**2))
    sd = noise / math.sqrt(1 + noise**2)

    def density(u: float, x: tuple[float, float]) -> float:
        a = 1.5 * math.pi * (1 + 2 * u)
        square = (x[0] - a * math.cos(a) / scale) ** 2 + (x[1] - a * math.sin(a) / scale) ** 2
        return math.exp(-square / (2 * sd**2)) / (2 * math.pi * sd**2)

    for u in (0.0, 0.37, 0.8, 1.0):
        a = 1.5 * math.pi * (1 + 2 * u)
        for beside in (0.0, 1.0, 3.0):
            x = (a / scale + beside * sd) * math.cos(a), (a / scale + beside * sd) * math.sin(a)
            span = {"points": sorted({max(u - 0.05, 0), u, min(u + 0.05, 1)}), "epsabs": 1e-13, "limit": 400}
            expected = quad(density, 0, 1, args=(x,), **span)[0]
            found = swiss_roll_log_prob(torch.tensor([x], dtype=torch.float64), noise).exp().item()
            assert found == pytest.approx(expected, rel=1e-7)


def test_swiss_roll_density_is_that_of_its_samples(generator):
    """It integrates to 1; its mean square is 1, its entropy and its mass in quadrants those of the samples."""
    axis = torch.linspace(-3, 3, 301, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)
    density = torch.cat([swiss_roll_log_prob(part, 0.1).exp() for part in z.split(20_000)]) * 0.02**2
    assert density.sum().item() == pytest.approx(1, abs=1e-6)
    assert (density @ z.square()).sum().item() == pytest.approx(2, abs=0.05)  # over both elements
    x, n = swiss_roll(20_000, generator, 0.1), 20_000
    log_p = swiss_roll_log_prob(x, 0.1)
    entropy = -(density * density.div(0.02**2).clamp(min=1e-300).log()).sum()
    assert abs(log_p.mean() + entropy) < 4 * log_p.std() / n**0.5
    for quadrant in (lambda v: (v > 0).all(1), lambda v: (v[:, 0] > 0.3) & (v[:, 1] < -0.4), lambda v: v[:, 0] < -1):
        p = density[quadrant(z)].sum().item()
        assert abs(quadrant(x).double().mean().item() - p) < 4 * (p * (1 - p) / n) ** 0.5 + 0.005


def test_float32_points_have_a_float64_density(generator):
    x = swiss_roll(1_500, generator)
    torch.testing.assert_close(swiss_roll_log_prob(x.float()), swiss_roll_log_prob(x), rtol=1e-3, atol=1e-3)
    assert swiss_roll_log_prob(x.float()).dtype == torch.float64


def test_heartbeats_beat_once_a_period():
    x = heartbeats()
    assert x.shape == (5, 20) and x.dtype == torch.float32
    for row in x.tolist():
        places = [k for k, bit in enumerate(row) if bit]
        assert len(places) == 4 and set(np.diff(places)) == {5}
    assert sorted(row.index(1.0) for row in x.tolist()) == [0, 1, 2, 3, 4]
    assert is_heartbeat(x).all() and is_heartbeat(heartbeats(7, 3).double(), period=3).all()


def test_nothing_else_is_a_heartbeat():
    """Of all sequences of 8 bits, exactly the 3 of period 3; and one wrong bit is enough."""
    everything = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 8)
    assert is_heartbeat(everything, 3).sum() == 3
    wrong = heartbeats().repeat_interleave(20, 0)
    wrong[torch.arange(100), torch.arange(100) % 20] = 1 - wrong[torch.arange(100), torch.arange(100) % 20]
    assert not is_heartbeat(wrong).any()


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
