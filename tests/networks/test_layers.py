"""The bricks, each against its definition: what shapes cannot show."""

import math

import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch.nn import functional as F

from minidiff.networks.layers import Attention, Downsample, ResBlock, Upsample, initialise, norm, time_embedding

pytestmark = pytest.mark.usefixtures("float64")


def test_time_embedding_is_sines_then_cosines_with_both_ends_of_the_frequencies():
    embedded = time_embedding(torch.tensor([7.0]), 8)[0]
    frequencies = [10_000 ** (-k / 3) for k in range(4)]  # 1 … 1/10000: half − 1 in the denominator
    expected = [math.sin(7 * f) for f in frequencies] + [math.cos(7 * f) for f in frequencies]
    torch.testing.assert_close(embedded, torch.tensor(expected))


def test_time_embedding_is_that_of_diffusers():
    t = torch.tensor([0, 1, 37, 500, 999])
    theirs = get_timestep_embedding(t, 128, flip_sin_to_cos=False, downscale_freq_shift=1)
    torch.testing.assert_close(time_embedding(t.float(), 128), theirs, rtol=0, atol=1e-4)  # theirs is float32


@pytest.mark.parametrize("channels, groups", [(128, 32), (256, 32), (384, 32), (640, 32)])
def test_normalisation_of_the_papers_widths(channels, groups):
    layer = norm(channels)
    assert (layer.num_groups, layer.eps) == (groups, 1e-6)


@pytest.mark.parametrize("channels", range(4, 400, 4))
def test_small_and_odd_widths_have_groups_of_four_channels_or_more(channels):
    groups = norm(channels).num_groups
    assert channels % groups == 0 and channels // groups >= 4 and groups <= 32


def test_downsampling_pads_right_and_below_only():
    layer = Downsample(1)
    layer.conv.weight.data, layer.conv.bias.data = torch.zeros(1, 1, 3, 3), torch.zeros(1)
    layer.conv.weight.data[0, 0, 0, 0] = 1.0  # picks the top left pixel of every window
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert layer(x)[0, 0].tolist() == [[0, 2], [8, 10]]
    layer.conv.weight.data = layer.conv.weight.data.flip(-1, -2)  # bottom right
    assert layer(x)[0, 0].tolist() == [[10, 0], [0, 0]]


def test_upsampling_repeats_pixels_before_the_convolution():
    layer = Upsample(1)
    layer.conv.weight.data, layer.conv.bias.data = torch.zeros(1, 1, 3, 3), torch.zeros(1)
    layer.conv.weight.data[0, 0, 1, 1] = 1.0
    assert layer(torch.tensor([[[[1.0, 2.0]]]]))[0, 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2]]


def test_attention_is_one_head_scaled_by_the_root_of_its_width(generator):
    layer = Attention(8)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    x = torch.randn(2, 8, 3, 5, generator=generator)
    h = F.group_norm(x, layer.norm.num_groups, layer.norm.weight, layer.norm.bias, 1e-6).flatten(2)
    rows, bias = layer.qkv.weight[:, :, 0, 0], layer.qkv.bias[:, None]
    q, k, v = (rows[i : i + 8] @ h + bias[i : i + 8] for i in (0, 8, 16))
    share = (q.transpose(1, 2) @ k / 8**0.5).softmax(-1)  # (pixel that asks, pixel that answers)
    found = (share @ v.transpose(1, 2)).transpose(1, 2)
    expected = x + (layer.out.weight[:, :, 0, 0] @ found + layer.out.bias[:, None]).reshape(x.shape)
    torch.testing.assert_close(layer(x), expected)


def test_time_enters_between_the_convolutions_and_dropout_before_the_second(generator):
    block = ResBlock(4, 8, 6, dropout=1.0)
    x, time = torch.randn(2, 4, 3, 3, generator=generator), torch.randn(2, 6, generator=generator)
    block.train()
    everything_dropped = block.skip(x) + block.conv2.bias[:, None, None]
    torch.testing.assert_close(block(x, time), everything_dropped)
    block.eval()
    h = block.conv1(F.silu(block.norm1(x))) + block.time(F.silu(time))[:, :, None, None]
    torch.testing.assert_close(block(x, time), block.skip(x) + block.conv2(F.silu(block.norm2(h))))


def test_initial_weights_are_uniform_with_the_mean_of_both_fans():
    layer = initialise(torch.nn.Conv2d(64, 32, 3))
    limit = math.sqrt(6 / (64 * 9 + 32 * 9))
    assert layer.weight.abs().max().item() == pytest.approx(limit, rel=1e-3)
    assert layer.weight.var().item() == pytest.approx(limit**2 / 3, rel=0.05)
    assert not layer.bias.any()
