"""Noise of an image: a function of its seed and the step, and standard normal."""

import pytest
import torch

from minidiff import batch_noise, per_image_noise, tempered


def test_an_image_has_the_same_noise_in_any_batch_and_order():
    together = per_image_noise([3, 1, 2], (1, 4, 4))
    for step in (0, 5, 2):
        noise = together(step)
        assert noise.shape == (3, 1, 4, 4)
        for row, seed in enumerate([3, 1, 2]):
            assert torch.equal(per_image_noise([seed], (1, 4, 4))(step)[0], noise[row])


def test_steps_can_be_asked_in_any_order_and_again():
    noise = per_image_noise(range(2), (3,))
    first = noise(7)
    noise(0)
    torch.manual_seed(9)
    assert torch.equal(noise(7), first)


def test_seeds_and_steps_are_independent():
    rows = torch.stack([per_image_noise(range(8), (400,))(step) for step in range(8)]).flatten(0, 1)
    correlation = rows @ rows.T / 400
    off_diagonal = correlation - torch.diag(correlation.diag())
    assert off_diagonal.abs().max() < 5 / 400**0.5


def test_noise_is_standard_normal():
    x = per_image_noise(range(100), (1000,))(1).flatten()
    n = len(x)
    assert abs(x.mean()) < 4 / n**0.5
    assert abs((x**2).mean() - 1) < 4 * (2 / n) ** 0.5
    assert abs((x**4).mean() - 3) < 4 * (96 / n) ** 0.5


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="non-negative"):
        per_image_noise([-1], (2,))(0)


def test_batch_noise_comes_in_order_from_its_generator():
    noise = batch_noise(torch.Generator().manual_seed(4), 3, (2,))
    drawn = torch.stack([noise(1), noise(2)])
    generator = torch.Generator().manual_seed(4)
    expected = torch.stack([torch.randn(3, 2, generator=generator, dtype=torch.float64) for _ in range(2)])
    assert torch.equal(drawn, expected)


def test_a_temperature_scales_every_noise_but_the_starts():
    noise = per_image_noise(range(3), (2,))
    for tau in (0.0, 0.9, 1.0):
        cool = tempered(noise, tau)
        assert torch.equal(cool(0), noise(0))
        for step in (1, 2, 40):
            assert torch.equal(cool(step), tau * noise(step))


@pytest.mark.parametrize("tau", [-0.1, float("nan")])
def test_a_temperature_below_zero_is_refused(tau):
    with pytest.raises(ValueError, match="tau="):
        tempered(per_image_noise([0], (2,)), tau)
