"""Normal and Bernoulli distributions: divergences, entropies and masses, against quadrature, scipy and mpmath."""

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import log_mass
from scipy.integrate import quad
from scipy.stats import bernoulli, norm
from torch.distributions import Normal, kl_divergence

from minidiff import (
    bernoulli_entropy,
    bernoulli_kl,
    bernoulli_log_prob,
    discretised_normal_log_prob,
    flat_mean,
    normal_kl,
    standard_error,
)
from minidiff.diffusion.stats import gaussian_entropies

means, log_vars = st.floats(-3, 3), st.floats(-6, 3)


def scalar(value: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor([value], dtype=dtype)


def centres(levels: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.linspace(-1, 1, levels, dtype=dtype)


@given(means, log_vars, means, log_vars)
def test_kl_agrees_with_torch(m1, v1, m2, v2):
    theirs = kl_divergence(Normal(scalar(m1), scalar(v1 / 2).exp()), Normal(scalar(m2), scalar(v2 / 2).exp()))
    torch.testing.assert_close(normal_kl(*map(scalar, (m1, v1, m2, v2))), theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("m1, v1, m2, v2", [(0.3, -1.0, -0.4, 0.5), (-1.0, 0.7, 1.5, -0.2), (0.0, -2.0, 0.0, 1.0)])
def test_kl_is_its_integral(m1, v1, m2, v2):
    p, q = norm(m1, np.exp(v1 / 2)), norm(m2, np.exp(v2 / 2))
    span = (m1 - 12 * p.std(), m1 + 12 * p.std())
    integral, _ = quad(lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), *span, epsabs=1e-12, limit=200)
    assert normal_kl(*map(scalar, (m1, v1, m2, v2))).item() == pytest.approx(integral, abs=1e-9)


@given(levels=st.sampled_from([2, 3, 17, 256]), mean=st.floats(-3, 3), log_std=st.floats(-7, 4))
def test_masses_of_all_levels_sum_to_one(levels, mean, log_std):
    std = scalar(np.exp(log_std)).expand(levels)
    masses = discretised_normal_log_prob(centres(levels), scalar(mean).expand(levels), std, levels).exp()
    assert masses.sum().item() == pytest.approx(1, abs=1e-9)


@given(levels=st.sampled_from([2, 17, 256]), mean=st.floats(-1.5, 1.5), std=st.floats(0.01, 1))
def test_masses_sum_to_one_in_float32(levels, mean, std):
    x, mean, std = centres(levels, torch.float32), torch.full((levels,), mean), torch.full((levels,), std)
    assert discretised_normal_log_prob(x, mean, std, levels).exp().sum().item() == pytest.approx(1, abs=1e-4)


@given(levels=st.sampled_from([3, 17, 256]), k=st.integers(0, 255), mean=st.floats(-1.2, 1.2), std=st.floats(0.2, 3))
def test_mass_is_the_difference_of_two_normal_integrals(levels, k, mean, std):
    x = centres(levels)[k % levels]
    ours = discretised_normal_log_prob(x[None], scalar(mean), scalar(std), levels).item()
    assert ours == pytest.approx(float(log_mass(x.numpy(), np.array(mean), std, levels)), rel=1e-9, abs=1e-9)


def exact(x: float, mean: float, std: float, levels: int) -> mpmath.mpf:
    """Log mass in mpmath's working precision, by the integral's complement, which loses nothing in the tail."""
    x, mean, std, half = map(mpmath.mpf, (x, mean, std, 1 / mpmath.mpf(levels - 1)))
    near, far = abs(x - mean) - half, abs(x - mean) + half
    inner = mpmath.erfc(near / std / mpmath.sqrt(2))
    outer = 0 if abs(x) > 1 - half else mpmath.erfc(far / std / mpmath.sqrt(2))
    return mpmath.log((inner - outer) / 2)


@pytest.mark.parametrize("deviations", [3, 10, 40, 60, 200])
@pytest.mark.parametrize("x, mean", [(0.5, -0.25), (-0.5, 0.25), (1.0, 0.125), (-1.0, -0.125)])
@pytest.mark.parametrize("levels", [17, 257])
def test_far_bins_have_the_value_and_the_gradient_of_exact_arithmetic(deviations, x, mean, levels):
    std = (abs(x - mean) - 1 / (levels - 1)) / deviations
    m, s = scalar(mean).requires_grad_(), scalar(std).requires_grad_()
    value = discretised_normal_log_prob(scalar(x), m, s, levels)
    value.backward()
    with mpmath.workdps(60):
        expected = exact(x, mean, std, levels)
        by_mean = mpmath.diff(lambda v: exact(x, v, std, levels), mean)
        by_std = mpmath.diff(lambda v: exact(x, mean, v, levels), std)
    assert value.item() == pytest.approx(float(expected), rel=1e-10)
    assert m.grad.item() == pytest.approx(float(by_mean), rel=1e-6)
    assert s.grad.item() == pytest.approx(float(by_std), rel=1e-6)


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("std", [0.02, 1e-3])
def test_float32_stays_finite_a_thousand_deviations_away(levels, std):
    x = centres(levels, torch.float32)
    for offset in (-1.0, 0.013, 1.0):
        mean = torch.full_like(x, offset).requires_grad_()
        width = torch.full_like(x, std).requires_grad_()
        value = discretised_normal_log_prob(x, mean, width, levels)
        value.sum().backward()
        assert value.isfinite().all() and mean.grad.isfinite().all() and width.grad.isfinite().all()
        far = (x - offset).abs() > 40 * std
        assert (mean.grad[far].sign() == (x - offset)[far].sign()).all()  # it still points from the mean to the bin


@given(k=st.integers(0, 16), mean=st.floats(-2, 2), std=st.floats(1e-3, 5))
def test_mirrored_data_have_mirrored_mass(k, mean, std):
    x = centres(17)[k : k + 1]
    ours = discretised_normal_log_prob(x, scalar(mean), scalar(std), 17)
    mirrored = discretised_normal_log_prob(-x, scalar(-mean), scalar(std), 17)
    torch.testing.assert_close(ours, mirrored, rtol=1e-12, atol=1e-12)


def test_flat_mean_keeps_the_batch(generator):
    for shape in [(3, 2), (3, 1, 4, 5)]:
        x = torch.randn(shape, generator=generator)
        torch.testing.assert_close(flat_mean(x), torch.stack([row.mean() for row in x]))


def test_standard_error_is_that_of_the_mean(generator):
    x = torch.randn(50, generator=generator, dtype=torch.float64)
    assert standard_error(x) == pytest.approx(np.std(x.numpy(), ddof=1) / 50**0.5)


# ---- bits -----------------------------------------------------------------------------------------------------------

logits = st.floats(-60, 60)


def rate(z: float) -> tuple[mpmath.mpf, mpmath.mpf]:
    """Probabilities of 0 and 1 in mpmath's working precision."""
    return 1 / (1 + mpmath.exp(mpmath.mpf(z))), 1 / (1 + mpmath.exp(-mpmath.mpf(z)))


@given(z1=logits, z2=logits)
def test_bernoulli_numbers_are_those_of_exact_arithmetic(z1, z2):
    with mpmath.workdps(80):
        p, q = rate(z1), rate(z2)
        kl = float(sum(a * mpmath.log(a / b) for a, b in zip(p, q, strict=True)))
        entropy = float(-sum(a * mpmath.log(a) for a in p))
        zero, one = (float(mpmath.log(a)) for a in p)
    assert bernoulli_kl(scalar(z1), scalar(z2)).item() == pytest.approx(kl, rel=1e-9, abs=1e-14)
    assert bernoulli_entropy(scalar(z1)).item() == pytest.approx(entropy, rel=1e-9, abs=1e-14)
    assert bernoulli_log_prob(scalar(1), scalar(z1)).item() == pytest.approx(one, rel=1e-12)
    assert bernoulli_log_prob(scalar(0), scalar(z1)).item() == pytest.approx(zero, rel=1e-12)


@given(p=st.floats(0.001, 0.999))
def test_bernoulli_entropy_and_log_prob_are_scipys(p):
    z = scalar(p).logit()
    assert bernoulli_entropy(z).item() == pytest.approx(float(bernoulli(p).entropy()), rel=1e-9)
    x = torch.tensor([[0.0], [1.0]]).double()
    np.testing.assert_allclose(bernoulli_log_prob(x, z)[:, 0], bernoulli(p).logpmf([0, 1]), rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rates_of_0_and_1_are_exact(dtype):
    inf, half = float("inf"), float(np.log(3))  # log 3 is the rate 3/4
    kl = lambda a, b: bernoulli_kl(scalar(a, dtype), scalar(b, dtype)).item()
    assert [kl(inf, inf), kl(-inf, -inf)] == [0, 0] and [kl(inf, -inf), kl(-inf, inf), kl(half, inf)] == [inf] * 3
    assert kl(inf, half) == pytest.approx(-np.log(0.75)) and kl(-inf, half) == pytest.approx(-np.log(0.25))
    assert bernoulli_entropy(scalar(inf, dtype)).item() == pytest.approx(0, abs=1e-6 if dtype == torch.float32 else 0)
    found = bernoulli_log_prob(torch.tensor([0, 1, 0, 1], dtype=dtype), torch.tensor([inf, inf, -inf, -inf]).to(dtype))
    assert found.tolist() == [-inf, 0, 0, -inf]


@given(z1=st.one_of(logits, st.sampled_from([-np.inf, np.inf])), z2=st.floats(-30, 30))
def test_the_gradient_of_the_bernoulli_divergence_is_the_difference_of_rates(z1, z2):
    first, second = scalar(z1).requires_grad_(), scalar(z2).requires_grad_()
    bernoulli_kl(first, second).backward()
    slope = 0 if np.isinf(z1) else (first.sigmoid() * (-first).sigmoid() * (first - second)).item()
    assert first.grad.item() == pytest.approx(slope, abs=1e-12)
    assert second.grad.item() == pytest.approx((second.sigmoid() - first.sigmoid()).item(), abs=1e-12)


@given(beta=st.floats(1e-4, 0.99), alpha_bar=st.floats(0.01, 0.99))
def test_gaussian_entropies_are_scipys_in_bits(beta, alpha_bar):
    step, given_x0 = gaussian_entropies(scalar(beta), scalar(alpha_bar))
    assert step.item() == pytest.approx(norm(0, beta**0.5).entropy() / np.log(2))
    assert given_x0.item() == pytest.approx(norm(0, (1 - alpha_bar) ** 0.5).entropy() / np.log(2))
