"""The bricks, each against its definition: what shapes cannot show."""

import math

import numpy as np
import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from formula import fill, wave
from torch import nn

from minidiff.networks.layers import (
    Attention,
    Average,
    Downsample,
    Repeat,
    ResBlock,
    Style,
    Upsample,
    initialise,
    norm,
    norm_of_32,
    time_embedding,
)

pytestmark = pytest.mark.usefixtures("float64")


def array(x: torch.Tensor) -> np.ndarray:
    return x.detach().numpy()


def swish(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def group_norm(x: np.ndarray, groups: int, eps: float, layer: nn.GroupNorm) -> np.ndarray:
    parts = x.reshape(len(x), groups, -1)
    parts = (parts - parts.mean(2, keepdims=True)) / np.sqrt(parts.var(2, keepdims=True) + eps)
    return parts.reshape(x.shape) * array(layer.weight)[:, None, None] + array(layer.bias)[:, None, None]


def convolved(x: np.ndarray, layer: nn.Conv2d) -> np.ndarray:
    """A 3×3 convolution with zeros around, as nine shifted products."""
    weight, (height, width) = array(layer.weight), x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    shifts = [(i, j) for i in range(3) for j in range(3)]
    parts = [
        np.einsum("oc,bchw->bohw", weight[:, :, i, j], padded[:, :, i : i + height, j : j + width]) for i, j in shifts
    ]
    return sum(parts) + array(layer.bias)[:, None, None]


# ---- time -----------------------------------------------------------------------------------------------------------


def test_ddpms_time_embedding_is_sines_then_cosines_with_both_ends_of_the_frequencies():
    embedded = time_embedding(torch.tensor([7.0]), 8)[0]
    frequencies = [10_000 ** (-k / 3) for k in range(4)]  # 1 … 1/10000: half − 1 in the denominator
    expected = [math.sin(7 * f) for f in frequencies] + [math.cos(7 * f) for f in frequencies]
    torch.testing.assert_close(embedded, torch.tensor(expected))


def test_openais_time_embedding_is_cosines_then_sines_without_the_lower_end():
    embedded = time_embedding(torch.tensor([7.0]), 8, convention="openai")[0]
    frequencies = [10_000 ** (-k / 4) for k in range(4)]  # 1 … 1/1000: half in the denominator
    expected = [math.cos(7 * f) for f in frequencies] + [math.sin(7 * f) for f in frequencies]
    torch.testing.assert_close(embedded, torch.tensor(expected))


@pytest.mark.parametrize("convention, swap, shift", [("ddpm", False, 1), ("openai", True, 0)])
def test_time_embeddings_are_those_of_diffusers(convention, swap, shift):
    t = torch.tensor([0, 1, 37, 500, 999])
    theirs = get_timestep_embedding(t, 128, flip_sin_to_cos=swap, downscale_freq_shift=shift)
    ours = time_embedding(t.double(), 128, convention=convention)
    torch.testing.assert_close(ours, theirs.double(), rtol=0, atol=1e-4)  # theirs is float32


# ---- normalisation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, channels, groups, eps",
    [(norm, c, 32, 1e-6) for c in (128, 256, 384, 640)]
    + [(norm_of_32, c, 32, 1e-5) for c in (32, 64, 96, 192, 512, 1152)],
)
def test_groups_and_the_constant_under_the_root(make, channels, groups, eps):
    """Where the variance is as small as the constant, both decide the answer."""
    layer = fill(make(channels))
    x = 1e-3 * wave(2, channels, 3, 2)
    np.testing.assert_allclose(array(layer(x)), group_norm(array(x), groups, eps, layer), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("channels", range(4, 400, 4))
def test_small_and_odd_widths_have_groups_of_four_channels_or_more(channels):
    groups = norm(channels).num_groups
    assert channels % groups == 0 and channels // groups >= 4 and groups <= 32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_normalisation_in_half_precision_survives_what_overflows_there(dtype):
    """64² values of about 3,000: their squares are beyond 65,504, and so is their sum."""
    layer, x = fill(norm(4)), (3000 * (1 + wave(1, 4, 64, 64))).to(dtype)
    assert not torch.isfinite(x.to(torch.float16).square()).all()
    expected = group_norm(array(x.double()), norm(4).num_groups, 1e-6, layer)
    answer = layer.to(dtype)(x)
    assert answer.dtype == dtype
    error = np.abs(array(answer.double()) - expected).max()
    assert error < 4 * torch.finfo(dtype).eps * np.abs(expected).max()


# ---- sides ----------------------------------------------------------------------------------------------------------


def picking(layer: nn.Module, row: int, column: int) -> nn.Module:
    """The layer with a convolution that takes one pixel of its window."""
    nn.init.zeros_(layer.conv.weight)
    nn.init.zeros_(layer.conv.bias)
    layer.conv.weight.data[0, 0, row, column] = 1.0
    return layer


def test_ddpms_downsampling_pads_right_and_below_only():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert picking(Downsample(1), 0, 0)(x)[0, 0].tolist() == [[0, 2], [8, 10]]
    assert picking(Downsample(1), 2, 2)(x)[0, 0].tolist() == [[10, 0], [0, 0]]


def test_openais_downsampling_pads_all_around():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert picking(Downsample(1, "openai"), 0, 0)(x)[0, 0].tolist() == [[0, 0], [0, 5]]
    assert picking(Downsample(1, "openai"), 2, 2)(x)[0, 0].tolist() == [[5, 7], [13, 15]]


def test_upsampling_repeats_pixels_before_the_convolution():
    x = torch.tensor([[[[1.0, 2.0]]]])
    assert picking(Upsample(1), 1, 1)(x)[0, 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2]]
    assert picking(Upsample(1), 1, 0)(x)[0, 0].tolist() == [[0, 1, 1, 2], [0, 1, 1, 2]]


def test_averaging_takes_the_mean_of_four_and_repeating_undoes_it_on_blocks():
    x = wave(2, 3, 4, 6)
    means = array(x).reshape(2, 3, 2, 2, 3, 2).mean((3, 5))
    np.testing.assert_allclose(array(Average()(x)), means, rtol=1e-12)
    np.testing.assert_allclose(array(Repeat()(Average()(x))), np.kron(means, np.ones((2, 2))), rtol=1e-12)


# ---- attention ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make, channels", [(norm, 16), (norm_of_32, 32)])
@pytest.mark.parametrize("heads, head_channels", [(1, 0), (4, 0), (1, 8), (3, 4)])
@pytest.mark.parametrize("rescale", [False, True])
def test_attention_is_its_formula_head_by_head(make, channels, heads, head_channels, rescale):
    style = Style(8, norm=make, heads=heads, head_channels=head_channels, rescale=rescale)
    layer, x = fill(Attention(channels, style)), wave(2, channels, 3, 5, phase=1)
    n = channels // head_channels if head_channels else heads
    c = channels // n
    h = group_norm(array(x), make(channels).num_groups, make(channels).eps, layer.norm).reshape(2, channels, 15)
    rows, bias = array(layer.qkv.weight)[:, :, 0, 0], array(layer.qkv.bias)
    found = np.zeros((2, channels, 15))
    for b in range(2):
        for head in range(n):
            here = [slice(part * channels + head * c, part * channels + (head + 1) * c) for part in range(3)]
            q, k, v = (rows[part] @ h[b] + bias[part, None] for part in here)  # each (c, pixel)
            share = np.exp(q.T @ k / np.sqrt(c))
            found[b, head * c : (head + 1) * c] = v @ (share / share.sum(1, keepdims=True)).T
    branch = array(layer.out.weight)[:, :, 0, 0] @ found + array(layer.out.bias)[:, None]
    expected = (array(x) + branch.reshape(x.shape)) / (np.sqrt(2) if rescale else 1)
    np.testing.assert_allclose(array(layer(x)), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "channels, options", [(16, {"heads": 3}), (16, {"head_channels": 6}), (16, {"head_channels": 32})]
)
def test_channels_that_heads_cannot_share_are_refused(channels, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}={next(iter(options.values()))}.*over 16 channels"):
        Attention(channels, Style(8, **options))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_attention_in_half_precision_survives_logits_that_overflow_there(dtype):
    """Queries and keys of some hundreds: their products pass 65,504; each pixel then looks at one other alone."""
    layer, x = fill(Attention(32, Style(8))), wave(1, 32, 4, 4, phase=1)
    layer.qkv.weight.data[:64] *= 300
    expected = layer(x)
    h = layer.norm(x).flatten(2)[0]
    q, k, _ = (layer.qkv.weight[:, :, 0, 0] @ h + layer.qkv.bias[:, None]).chunk(3)
    assert (q.T @ k).abs().max() > 65_504
    answer = layer.to(dtype)(x.to(dtype))
    assert torch.isfinite(answer).all() and answer.dtype == dtype
    torch.testing.assert_close(answer.double(), expected, rtol=0, atol=30 * torch.finfo(dtype).eps)


# ---- residual blocks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inject", ["add", "scale"])
@pytest.mark.parametrize("out", [8, 12])
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("resample", [None, Average(), Repeat()])
@pytest.mark.parametrize("project", [False, True])
def test_a_residual_block_is_its_formula(inject, out, rescale, resample, project):
    style = Style(6, inject=inject, rescale=rescale, project=project)
    block, x, time = fill(ResBlock(8, out, style, resample)), wave(2, 8, 4, 6, phase=1), wave(2, 6, phase=2)
    sides = (lambda h: h) if resample is None else lambda h: array(resample(torch.from_numpy(h)))
    h = convolved(sides(swish(group_norm(array(x), 2, 1e-6, block.norm1))), block.conv1)
    y = array(time) @ array(block.time.weight).T + array(block.time.bias)
    y, groups = y[:, :, None, None], norm(out).num_groups
    if inject == "scale":
        assert y.shape[1] == 2 * out
        h = group_norm(h, groups, 1e-6, block.norm2) * (1 + y[:, :out]) + y[:, out:]
    else:
        h = group_norm(h + y, groups, 1e-6, block.norm2)
    h, skip = convolved(swish(h), block.conv2), sides(array(x))
    if out != 8 or (project and resample is not None):
        skip = np.einsum("oc,bchw->bohw", array(block.skip.weight)[:, :, 0, 0], skip)
        skip = skip + array(block.skip.bias)[:, None, None]
    else:
        assert not list(block.skip.parameters())
    expected = (skip + h) / (np.sqrt(2) if rescale else 1)
    np.testing.assert_allclose(array(block(x, time)), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("inject", ["add", "scale"])
def test_dropout_falls_on_the_second_convolution_alone(inject):
    block, x, time = fill(ResBlock(4, 8, Style(6, dropout=1.0, inject=inject))), wave(2, 4, 3, 3), wave(2, 6)
    block.train()
    everything_dropped = block.skip(x) + block.conv2.bias[:, None, None]
    torch.testing.assert_close(block(x, time), everything_dropped)
    block.dropout.p = 0.5
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kept = []
        block.conv2.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
        block(x, time)
        block.eval()(x, time)
    dropped, whole = kept
    assert torch.equal(torch.where(dropped == 0, 0, 2 * whole), dropped) and 20 < (dropped == 0).sum() < 124


def test_initial_weights_are_uniform_with_the_mean_of_both_fans():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = initialise(torch.nn.Conv2d(64, 32, 3))
    limit = math.sqrt(6 / (64 * 9 + 32 * 9))
    assert layer.weight.abs().max().item() == pytest.approx(limit, rel=1e-3)
    assert layer.weight.var().item() == pytest.approx(limit**2 / 3, rel=0.05)
    assert not layer.bias.any()
