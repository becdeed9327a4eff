"""The multi-scale network: one layer against scipy's correlation, its symmetry, and what reaches what."""

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d
from torch import nn

from minidiff import MultiScale, temporal_bumps
from minidiff.networks.multiscale import MultiScaleConv


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def awake(net: MultiScale) -> MultiScale:
    for parameter in net.readout.parameters():
        nn.init.normal_(parameter)
    return net


@pytest.mark.parametrize("scales", [1, 2, 3])
def test_a_layer_is_means_correlated_and_spread_again(scales, float64, generator):
    layer, x = MultiScaleConv(2, 3, scales), torch.randn(2, 2, 8, 12, generator=generator)
    expected = np.zeros((2, 3, 8, 12))
    for k, conv in enumerate(layer.convs):
        size, weight, bias = 2**k, conv.weight.detach().numpy(), conv.bias.detach().numpy()
        means = x.numpy().reshape(2, 2, 8 // size, size, 12 // size, size).mean((3, 5))
        for image in range(2):
            for out in range(3):
                found = sum(correlate2d(means[image, c], weight[out, c], "same") for c in range(2)) + bias[out]
                expected[image, out] += np.kron(found, np.ones((size, size)))
    np.testing.assert_allclose(layer(x).detach(), expected / np.sqrt(scales), rtol=1e-9, atol=1e-12)


def test_it_is_layers_then_a_small_network_at_every_pixel(float64, generator):
    net = awake(MultiScale(2, 3, T=20, features=4, layers=2, dense=2, scales=2, bumps=5))
    x, t = torch.randn(3, 2, 4, 6, generator=generator), torch.tensor([0.0, 11, 19])
    h = x
    for layer in net.convs:
        h = layer(h).exp().add(1).log()  # softplus
    h, g = h.detach().numpy(), temporal_bumps(t, 20, 5).numpy()
    expected = np.zeros((3, 3, 4, 6))
    for b, i, j in np.ndindex(3, 4, 6):
        pixel = h[b, :, i, j]
        for layer in net.dense:
            pixel = np.tanh(layer.weight.detach().numpy() @ pixel + layer.bias.detach().numpy())
        y = net.readout.y.weight.detach().numpy() @ pixel + net.readout.y.bias.detach().numpy()
        expected[b, :, i, j] = y.reshape(3, 5) @ g[b]
    np.testing.assert_allclose(net(x, t).detach(), expected, rtol=1e-9, atol=1e-12)


def test_far_from_the_border_a_shift_by_the_coarsest_pixel_shifts_the_answer(float64, generator):
    net = awake(MultiScale(1, 2, T=10, features=4, layers=2, scales=3))
    assert net.divisor == 4
    x, t = torch.randn(1, 1, 64, 64, generator=generator), torch.tensor([3.0])
    here, there = net(x, t), net(x.roll((4, 8), (2, 3)), t).roll((-4, -8), (2, 3))
    inside = (slice(None), slice(None), slice(16, 40), slice(16, 40))  # two layers reach 2 · 7 pixels, and the roll's 8
    torch.testing.assert_close(here[inside], there[inside])
    odd = net(x.roll(2, 2), t).roll(-2, 2)
    assert (here[inside] - odd[inside]).abs().max() > 1e-3  # not so by half of it: the means are over a grid


def test_how_far_a_pixel_reaches(float64, generator):
    """One layer of three scales: the coarsest convolution sees 4 pixels beyond the block of 4 that a pixel lies in."""
    net = awake(MultiScale(1, 1, T=10, features=4, layers=1, dense=1, scales=3))
    x = torch.randn(1, 1, 32, 32, generator=generator)
    poked = x.clone()
    poked[0, 0, 13, 13] += 1
    changed = (net(x, torch.zeros(1)) != net(poked, torch.zeros(1)))[0, 0]
    rows, columns = changed.nonzero().T
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (8, 19, 8, 19)


def test_any_size_that_its_scales_divide(generator):
    net = MultiScale(3, 6, T=10, features=4, layers=2, scales=2)
    for height, width in [(8, 8), (2, 16), (6, 10)]:
        answer = net(torch.randn(2, 3, height, width, generator=generator), torch.zeros(2))
        assert answer.shape == (2, 6, height, width) and not answer.any()  # untrained it answers zero


def test_learning_reaches_every_parameter(generator):
    net = awake(MultiScale(1, 2, T=10, features=4, layers=3, dense=2, scales=3))
    (net(torch.randn(5, 1, 16, 16, generator=generator), torch.tensor([0.0, 2, 4, 7, 9])) ** 3).sum().backward()
    assert all((p.grad != 0).all() for p in net.parameters())


def test_its_size_is_known_before_its_weights_are():
    with torch.device("meta"):
        net = MultiScale(1, 2, T=1000, features=24, layers=3, dense=1)
    convs = 3 * ((9 * 1 * 24 + 24) + 2 * (9 * 24 * 24 + 24))
    assert sum(p.numel() for p in net.parameters()) == convs + (24 * 24 + 24) + 10 * 2 * (24 + 1)
    assert net(torch.zeros(2, 1, 8, 8, device="meta"), torch.zeros(2, device="meta")).shape == (2, 2, 8, 8)
