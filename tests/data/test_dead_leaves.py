"""Dead leaves against the closed form of their theory: two pixels show one leaf as often as geometry says."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import kstest

from minidiff import dead_leaves


def overlap(r: float, d: float) -> float:
    """Area of two discs of radius r whose centres are d apart."""
    return 2 * r**2 * math.acos(d / (2 * r)) - d / 2 * math.sqrt(4 * r**2 - d**2) if d < 2 * r else 0.0


def same_leaf(d: float, a: float, b: float) -> float:
    """P(two points d apart show one leaf) = γ(d) / (2γ(0) − γ(d)), γ the mean overlap, for p(r) ∝ r⁻³ on [a, b].

    Of the leaves that cover either point the topmost decides, and it covers both in that share of the cases.
    """
    gamma = lambda d: quad(lambda r: r**-3 * overlap(r, d), a, b, points=[max(a, min(b, d / 2))], limit=200)[0]
    return gamma(d) / (2 * gamma(0.0) - gamma(d))


@pytest.mark.parametrize("r_min, r_max", [(1.0, 8.0), (2.0, 5.0), (0.6, 30.0)])
def test_two_pixels_are_alike_as_often_as_geometry_says(r_min, r_max, generator):
    """Grey levels of different leaves are independent and all variance is the leaves', but for the noise's 2⁻¹⁶."""
    n = 6_000
    x = dead_leaves(n, 16, generator, r_min, r_max)[:, 0].double()
    pairs = [((5, 5), (5, 6)), ((0, 0), (0, 2)), ((15, 3), (12, 7)), ((1, 14), (9, 8)), ((0, 15), (15, 0))]
    for (i, j), (k, m) in pairs:  # at the border as in the middle: the image is a window on an endless plane
        distance = math.hypot(i - k, j - m)
        expected = same_leaf(distance, r_min, r_max) * (1 - 2**-16)
        products = x[:, i, j] * x[:, k, m]
        assert abs(products.mean() - expected) < 4 * products.std() / n**0.5
        alike = ((x[:, i, j] - x[:, k, m]).abs() < 12**0.5 / 256).double().mean()
        chance = 1 / 256 + (1 - 1 / 256) / 256  # two leaves of one level, or of neighbours whose noise is close
        assert abs(alike - expected - (1 - expected) * chance) < 4 * 0.5 / n**0.5


def test_every_pixel_is_uniform_of_mean_zero_and_variance_one(generator):
    n = 4_000
    x = dead_leaves(n, 8, generator)
    assert x.shape == (n, 1, 8, 8) and x.dtype == torch.float32
    for i, j in [(0, 0), (3, 4), (7, 7)]:
        pixel = x[:, 0, i, j].numpy() / 12**0.5 + 0.5
        assert kstest(pixel, "uniform").pvalue > 0.001
    corner = x[:, 0, 0, 7].double()
    assert abs(corner.mean()) < 4 / n**0.5 and abs((corner**2).mean() - 1) < 4 * (0.8 / n) ** 0.5
    assert x.abs().max() <= 3**0.5 + 1e-6


def test_the_noise_is_one_level_wide_and_differs_from_pixel_to_pixel(generator):
    """Discs that are far larger than the image show one level in all of it; what is left is the noise."""
    x = dead_leaves(200, 8, generator, 4_000.0, 8_000.0).double() * (256 / 12**0.5) + 128
    flat = x.floor().amax((1, 2, 3)) == x.floor().amin((1, 2, 3))
    assert flat.double().mean() > 0.95
    assert kstest((x[flat] % 1).flatten().numpy(), "uniform").pvalue > 0.001


def test_they_are_the_generators_and_each_image_is_another():
    draw = lambda seed: dead_leaves(300, 8, torch.Generator().manual_seed(seed))
    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))
    assert len(draw(1).flatten(1).unique(dim=0)) == 300
    correlation = np.corrcoef(draw(1)[:256].flatten(1).numpy()[:44, 0], draw(1)[256:].flatten(1).numpy()[:, 0])[0, 1]
    assert abs(correlation) < 5 / 44**0.5  # one part of 256 and the next


@pytest.mark.parametrize("r_min, r_max", [(0.0, 4.0), (3.0, 3.0), (5.0, 2.0), (9.0, None)])
def test_radii_out_of_order_are_refused(r_min, r_max, generator):
    with pytest.raises(ValueError, match=rf"r_min={r_min}, r_max={r_max or 4.0}"):
        dead_leaves(2, 8, generator, r_min, r_max)
