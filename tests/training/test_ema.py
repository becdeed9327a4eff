"""The moving average against its recurrence in numpy; buffers are copied."""

import numpy as np
import pytest
import torch
from torch import nn

from minidiff import EMA


def test_it_is_the_recurrence_with_a_half_life_that_grows_to_its_limit():
    model = nn.Linear(3, 2)
    ema = EMA(model, half_life=500)
    expected = model.weight.detach().double().numpy().copy()
    generator = np.random.default_rng(0)
    for step in range(200):
        new = generator.normal(size=(2, 3)).astype(np.float32)
        model.weight.data = torch.from_numpy(new)
        ema.update(model, 64 * step, 64)
        seen = 64 * step
        keep = 0.0 if seen == 0 else 2.0 ** (-64 / min(500, seen / 20))
        expected = keep * expected + (1 - keep) * new
        np.testing.assert_allclose(ema.model.weight.numpy(), expected, atol=1e-5)


def test_the_random_start_is_forgotten_after_one_step():
    model = nn.Linear(2, 2)
    ema = EMA(model, half_life=10**6)
    model.weight.data.fill_(3.0)
    ema.update(model, 0, 32)
    assert torch.equal(ema.model.weight, model.weight)


def test_half_of_the_past_is_gone_after_a_half_life():
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    ema = EMA(model, half_life=1000)
    model.weight.data.fill_(0.0)
    for step in range(10):
        ema.update(model, 10**6 + 100 * step, 100)
    assert ema.model.weight.item() == pytest.approx(0.5, rel=1e-5)


def test_buffers_are_copied_never_averaged():
    model = nn.BatchNorm1d(2)
    ema = EMA(model, half_life=10**6)
    for value in (5.0, 7.0):
        model.running_mean.fill_(value)
        ema.update(model, 10**5, 10)
        assert ema.model.running_mean.tolist() == [value, value]


def test_it_is_another_module_without_gradients_that_never_drops_out():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    ema = EMA(model, half_life=10)
    assert not ema.model.training and model.training
    assert not any(p.requires_grad for p in ema.model.parameters())
    assert all(p.requires_grad for p in model.parameters())
    model[0].weight.data.fill_(9.0)
    assert not (ema.model[0].weight == 9).any()


@pytest.mark.parametrize("anew", [False, True])
def test_it_goes_on_where_the_average_was_moved(anew):
    """As .to(device) does: buffers are other tensors then, and parameters too where torch makes them anew."""
    model = nn.BatchNorm1d(2)
    ema = EMA(model, half_life=1000)
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(anew)
    try:
        ema.model.double()
        model.double()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
    with torch.no_grad():
        model.weight.fill_(3.0)
        model.running_mean.fill_(5.0)
    ema.update(model, 10**5, 500)
    assert ema.model.weight.dtype == ema.model.running_mean.dtype == torch.float64
    assert ema.model.weight.tolist() == pytest.approx([3 - 2 / 2**0.5] * 2)  # from 1 to 3, half a half-life
    assert ema.model.running_mean.tolist() == [5.0, 5.0]
