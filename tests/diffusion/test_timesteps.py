"""Uniform times: every step equally often, every weight one, and nothing but the generator decides; kept steps."""

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st

from minidiff import UniformTimes, subsequence


def test_every_step_is_drawn_equally_often(generator):
    t, weight = UniformTimes(20).draw(40_000, generator)
    count = torch.bincount(t, minlength=20).double()
    assert len(count) == 20
    chi_square = ((count - 2000) ** 2 / 2000).sum()
    assert chi_square < 43.8  # 99.9 % quantile for 19 degrees of freedom; the seed is fixed
    assert torch.equal(weight, torch.ones(40_000))


def test_the_generator_alone_decides():
    torch.manual_seed(1)
    first, _ = UniformTimes(1000).draw(64, torch.Generator().manual_seed(5))
    torch.manual_seed(2)
    again, _ = UniformTimes(1000).draw(64, torch.Generator().manual_seed(5))
    other, _ = UniformTimes(1000).draw(64, torch.Generator().manual_seed(6))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_there_is_nothing_to_save(generator):
    times = UniformTimes(10)
    t, _ = times.draw(5, generator)
    times.update(t, torch.ones(5))
    assert times.state_dict() == {}
    times.load_state_dict({})


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((1000, 10, "uniform"), range(0, 1000, 100)),
        ((1000, 10, "quadratic"), [0, 9, 39, 88, 158, 246, 355, 483, 632, 800]),
        ((10, 4, "uniform"), [0, 2, 5, 7]),
        ((10, 4, "leading"), [0, 2, 4, 6]),
        ((10, 4, "trailing"), [1, 4, 7, 9]),
        ((1000, 4, "trailing"), [249, 499, 749, 999]),
        ((50, 1, "uniform"), [0]),
        ((50, 1, "trailing"), [49]),
    ],
)
def test_the_steps_that_are_kept(arguments, expected):
    assert subsequence(*arguments) == list(expected)


@pytest.mark.parametrize("spacing", ["uniform", "leading", "trailing"])
@pytest.mark.parametrize("T", [1, 7, 1000])
def test_as_many_steps_as_there_are_is_all_of_them(T, spacing):
    assert subsequence(T, T, spacing) == list(range(T))


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@given(T=st.integers(1, 400), data=st.data())
def test_diffusers_spacing(spacing, T, data):
    n = data.draw(st.sampled_from([n for n in range(1, T + 1) if T % n == 0]))
    scheduler = DDIMScheduler(T, timestep_spacing=spacing)
    scheduler.set_timesteps(n)
    assert subsequence(T, n, spacing) == scheduler.timesteps.flip(0).tolist()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((10, 0, "uniform"), "n=0"),
        ((10, 11, "uniform"), "n=11"),
        ((10, 9, "quadratic"), "twice"),
    ],
)
def test_what_cannot_be_kept_is_refused(arguments, named):
    with pytest.raises(ValueError, match=named):
        subsequence(*arguments)
