"""Schedules: the papers' numbers, the property that defines each, and refusals that tell the way out."""

import math
import re
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minidiff import (
    SCHEDULES,
    constant_betas,
    cosine_betas,
    geometric_betas,
    harmonic_betas,
    linear_betas,
    quadratic_betas,
)


def alpha_bar(betas: torch.Tensor) -> torch.Tensor:
    return torch.cumprod(1 - betas, 0)


def beta_tilde(betas: torch.Tensor, t: int) -> float:
    """β̃_t in the paper's count, t = 1 … T."""
    a = alpha_bar(betas)
    return ((1 - a[t - 2]) / (1 - a[t - 1]) * betas[t - 1]).item()


def test_linear_schedule_of_the_paper():
    betas = linear_betas(1000)
    assert betas[0].item() == 1e-4 and betas[-1].item() == 0.02
    assert alpha_bar(betas)[499].item() == pytest.approx(0.0785872, abs=5e-8)
    assert alpha_bar(betas)[999].item() == pytest.approx(4.0358298e-5, abs=5e-13)
    assert beta_tilde(betas, 2) == pytest.approx(5.4531877e-5, abs=5e-13)
    assert beta_tilde(betas, 1000) == pytest.approx(0.019999984, abs=5e-10)


def test_linear_schedule_of_4000_steps():
    betas = linear_betas(4000)
    assert betas[0].item() == pytest.approx(2.5e-5, rel=1e-15) and betas[-1].item() == pytest.approx(0.005, rel=1e-15)
    assert alpha_bar(betas)[-1].item() == pytest.approx(4.24665e-5, abs=5e-11)
    assert beta_tilde(betas, 2) == pytest.approx(1.28036e-5, abs=5e-11)


def test_cosine_schedule_of_the_paper():
    betas = cosine_betas(1000)
    assert betas[0].item() == pytest.approx(4.128422e-5, abs=5e-12)
    assert alpha_bar(betas)[499].item() == pytest.approx(0.4938436, abs=5e-8)
    assert alpha_bar(betas)[999].item() == pytest.approx(2.42877e-9, abs=5e-15)
    assert beta_tilde(betas, 2) == pytest.approx(2.17895e-5, abs=5e-11)
    assert (betas == 0.999).nonzero().flatten().tolist() == [999]


def test_cosine_schedule_of_4000_steps():
    betas = cosine_betas(4000)
    assert betas[0].item() == pytest.approx(9.865819e-6, abs=5e-13)
    assert alpha_bar(betas)[-1].item() == pytest.approx(1.51798e-10, abs=5e-16)
    assert (betas == 0.999).nonzero().flatten().tolist() == [3999]


@given(T=st.integers(2, 3000), data=st.data())
def test_cosine_alpha_bar_is_a_squared_cosine_until_beta_is_clipped(T, data):
    betas = cosine_betas(T)
    t = data.draw(st.integers(1, T - 1))
    first = math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    expected = math.cos((t / T + 0.008) / 1.008 * math.pi / 2) ** 2 / first
    assert alpha_bar(betas[:t])[-1].item() == pytest.approx(expected, rel=1e-9)


@given(T=st.integers(2, 2000), data=st.data())
def test_harmonic_steps_erase_equal_shares_of_the_signal(T, data):
    betas = harmonic_betas(T)
    t = data.draw(st.integers(1, T))
    assert betas[t - 1].item() == float(Fraction(1, T - t + 1))
    assert torch.prod(1 - betas[:t]).item() == pytest.approx(1 - t / T, abs=1e-12)


@given(T=st.integers(21, 3000))
def test_square_root_of_quadratic_betas_is_a_straight_line(T):
    root = quadratic_betas(T).sqrt()
    assert root[0].item() == pytest.approx((1e-4 * 1000 / T) ** 0.5)
    assert root[-1].item() == pytest.approx((0.02 * 1000 / T) ** 0.5)
    torch.testing.assert_close(root.diff(), root.diff()[:1].expand(T - 1), rtol=1e-6, atol=1e-12)


@given(T=st.integers(2, 3000), first=st.floats(1e-6, 1e-2), last=st.floats(0.02, 0.99))
def test_geometric_betas_grow_by_one_factor_between_their_ends_whatever_T(T, first, last):
    betas = geometric_betas(T, first, last)
    assert betas[0].item() == pytest.approx(first, rel=1e-12) and betas[-1].item() == pytest.approx(last, rel=1e-12)
    torch.testing.assert_close(betas[1:] / betas[:-1], torch.full((T - 1,), (last / first) ** (1 / (T - 1))).double())


def test_constant_betas_keep_the_noise_of_a_thousand_steps():
    assert constant_betas(1000).unique().tolist() == [0.01]
    assert constant_betas(250).unique().tolist() == [0.04]


@given(name=st.sampled_from(sorted(SCHEDULES)), T=st.integers(21, 5000))
def test_every_schedule_gives_t_betas_in_float64(name, T):
    betas = SCHEDULES[name](T)
    assert betas.shape == (T,) and betas.dtype == torch.float64
    assert ((betas > 0) & (betas <= 1)).all()


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("T", [1, 0, -5])
def test_less_than_two_steps_are_refused(name, T):
    with pytest.raises(ValueError, match=rf"T={T}: .*at least 2 steps"):
        SCHEDULES[name](T)


@pytest.mark.parametrize(
    "make",
    [linear_betas, quadratic_betas, lambda T: constant_betas(T, 0.5), lambda T: linear_betas(T, 1e-4, 0.05)],
    ids=["linear", "quadratic", "constant", "steeper"],
)
def test_a_chain_too_short_for_its_last_beta_is_refused_with_the_shortest_that_is_not(make):
    with pytest.raises(ValueError, match="too short") as refusal:
        make(5)
    shortest = int(re.search(r"T above (\d+)", str(refusal.value)).group(1)) + 1
    assert make(shortest).max() < 1
    with pytest.raises(ValueError, match="too short"):
        make(shortest - 1)
