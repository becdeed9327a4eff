"""A step of a chain: its draws follow its law, and its log probabilities are scipy's."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bernoulli, norm
from torch.distributions import Bernoulli, Normal

from minidiff import draw, kernel_log_prob

QUANTILES = torch.from_numpy(norm.ppf((np.arange(10_000) + 0.5) / 10_000))  # noise that holds every share once


@given(mean=st.floats(-3, 3), scale=st.floats(0.01, 3), x=st.floats(-5, 5))
def test_a_normal_is_moved_and_scaled_noise(mean, scale, x):
    kernel = Normal(torch.tensor([mean]).double(), torch.tensor([scale]).double())
    mean, scale = kernel.mean.item(), kernel.scale.item()
    np.testing.assert_allclose(np.sort(draw(kernel, QUANTILES)), mean + scale * QUANTILES, rtol=1e-12, atol=1e-12)
    found = kernel_log_prob(kernel, torch.tensor([x]).double()).item()
    assert found == pytest.approx(norm(mean, scale).logpdf(np.float32(x)), rel=1e-6)


@given(p=st.floats(0.01, 0.99))
def test_a_bernoulli_is_one_for_its_share_of_the_noise_the_lowest(p):
    kernel = Bernoulli(logits=torch.tensor(p, dtype=torch.float64).logit().expand(10_000))
    bits = draw(kernel, QUANTILES)
    assert bits.dtype == torch.float64 and abs(bits.sum().item() - 10_000 * p) <= 1
    assert (bits.diff() <= 0).all()
    both = torch.tensor([0.0, 1.0]).double()
    one = Bernoulli(logits=kernel.logits[:2])
    np.testing.assert_allclose(kernel_log_prob(one, both), bernoulli(p).logpmf([0, 1]), rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_certain_bits_are_certain(dtype, generator):
    certain = torch.tensor([-torch.inf, torch.inf], dtype=dtype)
    kernel = Bernoulli(logits=certain, validate_args=False)
    noise = torch.randn(5_000, 2, generator=generator, dtype=dtype)
    assert torch.equal(draw(kernel, noise), torch.tensor([0.0, 1.0]).to(dtype).expand(5_000, 2))
    assert kernel_log_prob(kernel, torch.tensor([0.0, 1.0]).to(dtype)).tolist() == [0, 0]
    assert kernel_log_prob(kernel, torch.tensor([1.0, 0.0]).to(dtype)).tolist() == [-np.inf, -np.inf]
