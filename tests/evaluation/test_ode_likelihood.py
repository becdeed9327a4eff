"""Exact likelihood: Gaussians and mixtures whose density is known, the probe's mean, and what dequantising costs."""

from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from minidiff import (
    EDMPath,
    GeometricVEPath,
    Mixture,
    SubVPPath,
    VEPath,
    VPPath,
    bits_per_dim,
    decode,
    dequantise,
    ode_decode,
    ode_encode,
    ode_log_prob,
    rademacher,
)

MEAN = torch.tensor([0.3, -0.2, 0.1]).double()
COVARIANCE = torch.tensor([[1.0, 0.6, 0.2], [0.6, 0.5, -0.1], [0.2, -0.1, 0.9]]).double()
PATHS = [VPPath(), SubVPPath(), GeometricVEPath(0.02, 20), VEPath(0.02, 20), EDMPath(0.02, 20)]
by_name = pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)


def denoise(x, sigma):
    """E[x_0 | x_0 + σ n] for anisotropic Gaussian data, shaped as images of three pixels."""
    gain = COVARIANCE @ torch.linalg.inv(COVARIANCE + sigma**2 * torch.eye(3).double())
    return (MEAN + (x.flatten(1) - MEAN) @ gain.T).reshape(x.shape)


def density(path, t):
    """Log density of x(t)."""
    s, sigma = path.s(t).item(), path.sigma(t).item()
    normal = multivariate_normal(s * MEAN, s**2 * (COVARIANCE.numpy() + sigma**2 * np.eye(3)))
    return lambda x: torch.as_tensor(normal.logpdf(x.flatten(1).numpy()))


@pytest.fixture
def x(generator):
    return torch.randn(4, 1, 1, 3, generator=generator, dtype=torch.float64)


@by_name
def test_an_anisotropic_gaussian_to_a_ten_thousandth_of_a_nat(path, x):
    found = ode_log_prob(denoise, x, path, log_prior=density(path, path.t_max), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(found, density(path, path.t_min)(x), atol=1e-4, rtol=0)


def test_the_prior_is_the_noise_of_the_path(x):
    """Without one of its own, log p differs by what N(0, s²σ²) says of the latent."""
    path = EDMPath(0.02, 5.0)
    latent = ode_encode(denoise, x, path, 1e-8, 1e-8)
    exact, plain = (ode_log_prob(denoise, x, path, log_prior=p) for p in (density(path, 5.0), None))
    expected = torch.distributions.Normal(0, 5.0).log_prob(latent).sum((1, 2, 3)) - density(path, 5.0)(latent)
    torch.testing.assert_close(plain - exact, expected, atol=1e-4, rtol=0)
    assert expected.abs().max() > 0.01


def test_the_mean_over_all_probes_is_the_exact_divergence(x):
    path = VPPath()
    exact = ode_log_prob(denoise, x, path, rtol=1e-7, atol=1e-7)
    probes = [torch.tensor(signs).double().expand_as(x) for signs in product([-1, 1], repeat=3)]
    each = torch.stack([ode_log_prob(denoise, x, path, probe, rtol=1e-7, atol=1e-7) for probe in probes])
    torch.testing.assert_close(each.mean(0), exact, atol=1e-4, rtol=0)
    assert each.std(0).min() > 0.01


def test_a_mixture_has_its_density():
    mixture = Mixture(torch.tensor([0.7, 0.3]), torch.tensor([[1.0, 0.5], [-1.0, 0.0]]), 0.3)
    path = VPPath()
    x = mixture.sample(20, torch.Generator().manual_seed(3))
    at = lambda t: (path.s(t).item(), path.std(t).item())
    found = ode_log_prob(
        lambda x, sigma: mixture.denoise(x, sigma=sigma),
        x,
        path,
        log_prior=lambda x: mixture.log_prob(x, *at(path.t_max)),
        rtol=1e-7,
        atol=1e-7,
    )
    torch.testing.assert_close(found, mixture.log_prob(x, *at(path.t_min)), atol=1e-4, rtol=0)


@by_name
def test_the_latent_is_known_and_leads_back(path, x):
    """In the covariance's own axes each coordinate grows as its deviation does."""
    variance, axes = torch.linalg.eigh(COVARIANCE)
    latent = ode_encode(denoise, x, path, 1e-8, 1e-8)
    assert latent.shape == x.shape and not latent.requires_grad
    moved = {t: (variance + path.sigma(t) ** 2).sqrt() * path.s(t) for t in (path.t_min, path.t_max)}
    begin = (x.flatten(1) - path.s(path.t_min) * MEAN) @ axes
    expected = path.s(path.t_max) * MEAN + (begin * moved[path.t_max] / moved[path.t_min]) @ axes.T
    torch.testing.assert_close(latent.flatten(1), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ode_decode(denoise, latent, path, 1e-8, 1e-8), x, atol=1e-5, rtol=1e-5)


def test_conditions_and_single_precision_pass_through(x):
    given = {"shift": torch.ones(4, 1, 1, 1)}
    shifted = lambda x, sigma, shift: shift + denoise((x - shift).double(), sigma).to(x)
    path, x = VPPath(), x.float()
    near = {"atol": 1e-3, "rtol": 1e-3}
    log_prior = lambda z: density(path, 1.0)(z - path.s(1.0).item()).to(z)
    found = ode_log_prob(shifted, x + path.s(path.t_min).item(), path, None, log_prior, cond=given)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, density(path, path.t_min)(x).float(), **near)
    latent = ode_encode(shifted, x, path, cond=given)
    torch.testing.assert_close(ode_decode(shifted, latent, path, cond=given), x, **near)


def test_a_field_that_blows_up_is_said(x):
    with pytest.raises(FloatingPointError, match=r"the ODE at t = 0\.002"):
        ode_encode(lambda x, sigma: x * float("nan"), x, EDMPath())


def test_probes_are_signs(generator):
    probe = rademacher(torch.zeros(100, 50), generator)
    assert set(probe.unique().tolist()) == {-1.0, 1.0} and abs(probe.mean().item()) < 4 / 5000**0.5


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_dequantised_values_fill_their_bins_and_no_other(levels, generator):
    k = torch.arange(levels).repeat(2000, 1)
    x = dequantise(2 * k.double() / (levels - 1) - 1, levels, generator)
    assert torch.equal(decode(x.clamp(-1, 1), levels).long(), k)
    offset = (x + 1) * (levels - 1) / 2 - k  # in bins
    assert -0.5 <= offset.min() < -0.499 and 0.499 < offset.max() <= 0.5
    assert offset.var().item() == pytest.approx(1 / 12, rel=0.05) and abs(offset.mean().item()) < 0.02


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_values_that_are_equally_likely_cost_the_logarithm_of_their_number(levels):
    """Dequantised they are uniform on an interval as wide as all bins together."""
    log_density = -np.log(levels * 2 / (levels - 1))
    bits = bits_per_dim(torch.full((3,), 64 * log_density, dtype=torch.float64), 64, levels)
    assert bits.tolist() == pytest.approx([np.log2(levels)] * 3)
