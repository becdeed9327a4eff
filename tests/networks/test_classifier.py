"""The noisy classifier: its pooling head by head in numpy, its shape, and what it refuses."""

import numpy as np
import pytest
import torch
from formula import fill, wave

from minidiff.networks import Classifier
from minidiff.networks.classifier import AttentionPool
from minidiff.networks.layers import Attention, Average, ResBlock


def small(**changes) -> Classifier:
    defaults = {"in_channels": 1, "size": (8, 12), "classes": 5, "channels": 32, "mult": (1, 1), "blocks": 1}
    return Classifier(**{**defaults, "attention": (1,), "head_channels": 16, **changes})


@pytest.mark.parametrize("head_channels", [2, 4, 12])
def test_pooling_asks_from_the_mean_over_it_and_all_pixels(head_channels, float64):
    pool, x = fill(AttentionPool(12, (2, 3), head_channels, 5)), wave(2, 12, 2, 3, phase=1)
    weight, bias = pool.qkv.weight.detach().numpy(), pool.qkv.bias.detach().numpy()
    expected = np.zeros((2, 5))
    for b in range(2):
        pixels = x[b].reshape(12, 6).numpy()
        tokens = np.column_stack([pixels.mean(1), pixels]) + pool.positions.detach().numpy()  # the mean comes first
        q, k, v = (weight[i : i + 12] @ tokens + bias[i : i + 12, None] for i in (0, 12, 24))
        found = np.zeros(12)
        for start in range(0, 12, head_channels):
            head = slice(start, start + head_channels)
            share = np.exp(q[head, 0] @ k[head] / np.sqrt(head_channels))
            found[head] = v[head] @ share / share.sum()
        expected[b] = pool.out.weight.detach().numpy() @ found + pool.out.bias.detach().numpy()
    np.testing.assert_allclose(pool(x).detach().numpy(), expected, rtol=1e-9, atol=1e-12)


def test_positions_begin_normal_with_the_variance_of_one_over_the_width():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        positions = AttentionPool(256, (4, 4), 64, 10).positions
    assert positions.shape == (256, 17)
    assert (positions.std() * 16).item() == pytest.approx(1, abs=4 / (2 * 256 * 17) ** 0.5)


def test_it_is_the_way_down_in_adms_style():
    net = small(blocks=2, mult=(1, 2, 3), attention=(1, 2))
    shapes = [[type(layer) for layer in row] for row in net.down]
    with_attention, without, down = [ResBlock, Attention], [ResBlock], [ResBlock]
    assert shapes == [without, without, down, with_attention, with_attention, down, with_attention, with_attention]
    assert [type(row[0].resample) is Average for row in net.down] == [
        False,
        False,
        True,
        False,
        False,
        True,
        False,
        False,
    ]
    blocks = [module for module in net.modules() if isinstance(module, ResBlock)]
    assert all(block.time.out_features == 2 * block.conv1.out_channels for block in blocks)
    assert {module.heads for module in net.modules() if isinstance(module, Attention)} == {4, 6}


def test_it_sees_the_time(float64):
    net, x = fill(small()), wave(2, 1, 8, 12)
    assert (net(x, torch.tensor([1.0, 1])) - net(x, torch.tensor([2.0, 2]))).abs().max() > 1e-3


@pytest.mark.parametrize("size", [(12, 8), (8, 8), (16, 24)])
def test_an_image_of_another_size_is_refused(size):
    with pytest.raises(ValueError, match=rf"images of {size[0]}×{size[1]}: this classifier was made for \(8, 12\)"):
        small()(torch.zeros(1, 1, *size), torch.zeros(1))


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"size": (8, 10), "mult": (1, 1, 1)}, "images of 8×10: both sides must divide by 4"),
        ({"classes": 1}, "classes=1: .* at least 2"),
        ({"channels": 48}, "channels=48: .*multiple of 32"),
        ({"attention": (2,)}, "level 2 is not one of 0 to 1"),
        ({"head_channels": 24}, "head_channels=24.*over 32 channels"),
        ({"head_channels": 0}, "head_channels=0"),
        ({"blocks": 0}, "blocks=0"),
    ],
)
def test_a_classifier_that_cannot_be_is_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        small(**changes)
