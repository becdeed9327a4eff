"""Uniform times: every step equally often, every weight one, and nothing but the generator decides."""

import torch

from minidiff import UniformTimes


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
