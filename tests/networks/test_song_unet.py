"""DDPM++ and NCSN++: filters against zeros put in and sums taken, embeddings, encoders, where attention stands."""

import numpy as np
import pytest
import torch
from formula import fill, wave
from scipy.signal import convolve2d
from torch import nn

from minidiff.networks import SongUNet
from minidiff.networks.layers import Attention, ResBlock
from minidiff.networks.song_unet import Filter, FilteredConv

pytestmark = pytest.mark.usefixtures("float64")
TAPS = [(1, 1), (1, 3, 3, 1), (1, 5, 10, 10, 5, 1)]


def array(x: torch.Tensor) -> np.ndarray:
    return x.detach().numpy()


def kernel(taps: tuple[int, ...]) -> np.ndarray:
    return np.outer(taps, taps) / sum(taps) ** 2


def small(**changes) -> SongUNet:
    defaults = {"in_channels": 2, "out_channels": 2, "channels": 8, "mult": (1, 2, 2), "blocks": 1, "attention": (1,)}
    return SongUNet(**{**defaults, **changes})


NCSN = {"embedding": "fourier", "taps": (1, 3, 3, 1), "encoder": "residual"}


# ---- filters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("taps", TAPS)
def test_halving_is_the_filter_and_then_every_second_pixel(taps):
    x, half = wave(2, 3, 8, 10), len(taps) // 2
    full = np.stack([[convolve2d(channel, kernel(taps)) for channel in image] for image in array(x)])
    # of the full convolution the place o + taps/2 is centred between pixels o and o + 1
    expected = full[:, :, half : half + 8 : 2, half : half + 10 : 2]
    np.testing.assert_allclose(array(Filter(taps)(x)), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("taps", TAPS)
def test_doubling_puts_zeros_in_and_keeps_the_mean(taps):
    x, margin = wave(2, 3, 5, 4), len(taps) // 2 - 1
    spread = np.zeros((2, 3, 10, 8))
    spread[:, :, ::2, ::2] = array(x)
    full = np.stack([[convolve2d(channel, 4 * kernel(taps)) for channel in image] for image in spread])
    expected = full[:, :, margin : margin + 10, margin : margin + 8]
    np.testing.assert_allclose(array(Filter(taps, up=True)(x)), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("taps", TAPS)
@pytest.mark.parametrize("up", [False, True])
def test_filters_lean_to_no_side_and_leave_a_constant_alone(taps, up):
    layer, x = Filter(taps, up), wave(1, 1, 8, 12)
    torch.testing.assert_close(layer(x.flip(2, 3)), layer(x).flip(2, 3))
    inside = (
        layer(torch.ones(1, 1, 12, 12))[0, 0, 4:-4, 4:-4] if up else layer(torch.ones(1, 1, 12, 12))[0, 0, 2:-2, 2:-2]
    )
    torch.testing.assert_close(inside, torch.ones_like(inside), rtol=0, atol=1e-6)


def test_two_equal_taps_are_the_mean_of_four_and_the_pixel_four_times():
    x = wave(1, 2, 4, 6)
    means = array(x).reshape(1, 2, 2, 2, 3, 2).mean((3, 5))
    np.testing.assert_allclose(array(Filter((1, 1))(x)), means, rtol=1e-12)
    np.testing.assert_allclose(array(Filter((1, 1), up=True)(x)), np.kron(array(x), np.ones((2, 2))), rtol=1e-12)


@pytest.mark.parametrize("taps", TAPS)
def test_a_filtered_convolution_sees_zeros_around_its_input_only(taps):
    """At full resolution on an image with a wide margin of zeros: convolve, filter, take every second."""
    layer, x, margin = fill(FilteredConv(2, 3, taps)), wave(2, 2, 6, 8), 10
    wide = np.pad(array(x), ((0, 0), (0, 0), (margin, margin), (margin, margin)))
    weight, bias, half = array(layer.conv.weight), array(layer.conv.bias), len(taps) // 2
    expected = np.zeros((2, 3, 3, 4))
    for b in range(2):
        for out in range(3):
            turned = [convolve2d(wide[b, c], weight[out, c, ::-1, ::-1], "same") for c in range(2)]
            full = convolve2d(sum(turned) + bias[out], kernel(taps))
            start = margin + half
            expected[b, out] = full[start : start + 6 : 2, start : start + 8 : 2]
    np.testing.assert_allclose(array(layer(x)), expected, rtol=1e-6, atol=1e-7)


# ---- embeddings -----------------------------------------------------------------------------------------------------


def embedded(net: SongUNet, t: torch.Tensor, **cond) -> np.ndarray:
    """What goes into the network's map of the time."""
    seen = []
    handle = net.time.register_forward_pre_hook(lambda _, inputs: seen.append(array(inputs[0])))
    net(wave(len(t), 2, 8, 8), t, **cond)
    handle.remove()
    return seen[0]


def test_positions_are_sines_then_cosines_with_both_ends_of_the_frequencies():
    t = np.array([3.0, 0.7])
    frequencies = 10_000.0 ** (-np.arange(4) / 3)
    angles = t[:, None] * frequencies
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    np.testing.assert_allclose(embedded(small(), torch.from_numpy(t)), expected, rtol=1e-9, atol=1e-12)


def test_fourier_features_are_sines_then_cosines_of_two_pi_f_t():
    net, t = small(embedding="fourier"), np.array([3.0, -0.7])
    angles = 2 * np.pi * t[:, None] * array(net.frequencies)
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    assert expected.shape == (2, 16)
    np.testing.assert_allclose(embedded(net, torch.from_numpy(t)), expected, rtol=1e-9, atol=1e-12)


def test_fourier_frequencies_are_normal_with_deviation_16_and_travel_with_the_weights():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = small(embedding="fourier", channels=256, mult=(1,), attention=())
    f = net.frequencies
    assert f.shape == (256,) and abs(f.mean()) < 4 * 16 / 16 and abs(f.std() / 16 - 1) < 4 / 512**0.5
    assert "frequencies" in net.state_dict() and "frequencies" not in dict(net.named_parameters())


def test_a_class_is_one_number_that_is_the_root_of_how_many_there_are():
    net, t = fill(small(classes=9)), torch.tensor([3.0, 0.7])
    one_hot = 3 * np.eye(9)[[8, 2]]
    shift = one_hot @ array(net.label.weight).T + array(net.label.bias)
    plain = embedded(small(), t)
    np.testing.assert_allclose(embedded(net, t, labels=torch.tensor([8, 2])), plain + shift, rtol=1e-9, atol=1e-12)


def test_what_tells_of_augmentation_is_linear_without_bias_and_nothing_where_it_is_left_out():
    net, t, told = fill(small(augment=4)), torch.tensor([3.0, 0.7]), wave(2, 4)
    plain = embedded(small(), t)
    shift = array(told) @ array(net.augmentation.weight).T
    np.testing.assert_allclose(embedded(net, t, augment=told), plain + shift, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(embedded(net, t), plain, rtol=1e-9, atol=1e-12)
    assert np.abs(shift).max() > 0.1 and net.augmentation.bias is None


def test_the_embedding_is_mapped_twice_and_activated_after_both():
    net, t, seen = fill(small()), torch.tensor([3.0, 0.7]), []
    for module in net.modules():
        if isinstance(module, ResBlock):
            module.time.register_forward_pre_hook(lambda _, inputs: seen.append(array(inputs[0])))
    y = embedded(net, t)
    for layer in (net.time[0], net.time[2]):
        y = y @ array(layer.weight).T + array(layer.bias)
        y = y / (1 + np.exp(-y))
    assert len(seen) == sum(isinstance(module, ResBlock) for module in net.modules())
    for block in seen:
        np.testing.assert_allclose(block, y, rtol=1e-9, atol=1e-12)


# ---- structure ------------------------------------------------------------------------------------------------------


def test_attention_stands_after_every_block_on_the_way_down_and_after_the_last_on_the_way_up():
    net = small(mult=(1, 1, 1), blocks=3, attention=(0, 2))
    attends = lambda rows: [any(isinstance(layer, Attention) for layer in row) for row in rows]
    block, none = [True] * 3, [False] * 3
    assert attends(net.down) == [*block, False, *none, False, *block]
    assert attends([net.middle]) == [True]
    assert attends(net.up) == [*none, True, *none, False, *none, True]
    assert all(module.heads == 1 for module in net.modules() if isinstance(module, Attention))


def test_every_sum_with_a_residual_is_divided_by_the_root_of_two():
    """With branches of nothing, what is left of an image is 1/√2 for every block and every attention it passed."""
    net = small(blocks=2, attention=(0, 1), mult=(1, 1))
    for module in net.modules():
        if isinstance(module, ResBlock):
            nn.init.zeros_(module.conv2.weight)
        elif isinstance(module, Attention):
            nn.init.zeros_(module.out.weight)
    x, time = wave(2, 8, 4, 4), wave(2, 32)
    torch.testing.assert_close(net.down[0](x, time), x / 2)
    torch.testing.assert_close(net.middle(x, time), x / 2**1.5)


def test_blocks_that_halve_or_double_project_their_residual_though_the_width_stays():
    net = small(mult=(1, 1))
    skips = {name: len(list(m.skip.parameters())) for name, m in net.named_modules() if isinstance(m, ResBlock)}
    assert skips == {
        **dict.fromkeys(["down.0.0", "down.2.0", "middle.0", "middle.2"], 0),
        **dict.fromkeys(["down.1.0", "up.0.0", "up.1.0", "up.2.0", "up.3.0"], 2),
        "up.1.2": 2,
    }


def walked(net: SongUNet, x: torch.Tensor) -> list[dict[str, np.ndarray]]:
    """What goes into and out of each row of the way down, and into the middle."""
    seen = []
    for row in [*net.down, net.middle]:
        row.register_forward_hook(lambda _, inputs, out: seen.append({"in": array(inputs[0]), "out": array(out)}))
    net(x, torch.tensor([0.3, -1.0]))
    return seen


@pytest.mark.parametrize("taps", TAPS[:2])
def test_the_residual_encoder_halves_what_it_made_last_and_meets_the_features_half_and_half(taps):
    net, x = fill(small(encoder="residual", taps=taps)), wave(2, 2, 8, 12)
    rows, seen = walked(net, x), array(x)
    assert sorted(net.beside) == ["1", "3"]
    for k in (1, 3):
        halved = array(net.beside[str(k)](torch.from_numpy(seen)))
        seen = (halved + rows[k]["out"]) / np.sqrt(2)
        np.testing.assert_allclose(rows[k + 1]["in"], seen, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("taps", TAPS[:2])
def test_the_skip_encoder_halves_the_image_and_adds_a_projection_of_it(taps):
    net, x = fill(small(encoder="skip", taps=taps)), wave(2, 2, 8, 12)
    rows, seen = walked(net, x), x
    for k in (1, 3):
        seen, layer = Filter(taps)(seen), net.beside[str(k)]
        shown = (
            np.einsum("oc,bchw->bohw", array(layer.weight)[:, :, 0, 0], array(seen)) + array(layer.bias)[:, None, None]
        )
        np.testing.assert_allclose(rows[k + 1]["in"], rows[k]["out"] + shown, rtol=1e-9, atol=1e-12)


def test_the_way_up_gets_what_the_encoder_added_too():
    """The row after a halving and the row that it is laid beside on the way up see the same sum."""
    net, x = fill(small(**NCSN)), wave(2, 2, 8, 12)
    rows, joined = walked(net, x), []
    for row in net.up:
        row.register_forward_pre_hook(lambda _, inputs: joined.append(array(inputs[0])))
    net(x, torch.tensor([0.3, -1.0]))
    for k in (1, 3):  # of the way down; its output is skip k + 1 of 6, which the way up takes last first
        skip = joined[len(net.down) - 1 - k]
        np.testing.assert_array_equal(skip[:, -rows[k + 1]["in"].shape[1] :], rows[k + 1]["in"])


# ---- the beginning, and what cannot be ------------------------------------------------------------------------------


def test_weights_begin_uniform_by_both_fans_with_smaller_queries_and_almost_nothing_where_branches_end():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = SongUNet(3, 3, 64, (1,), 1, (0,))
    block, attention = net.down[0][0], net.down[0][1]
    for layer, factor in [(block.conv1, 1), (block.conv2, 1e-5), (attention.qkv, 0.2**0.5), (attention.out, 1e-5)]:
        outs, ins = layer.weight[:, 0].numel(), layer.weight[0].numel()
        assert layer.weight.abs().max().item() == pytest.approx(factor * (6 / (outs + ins)) ** 0.5, rel=1e-2)
        assert not layer.bias.any()
    assert net.conv_out.weight.abs().max().item() == pytest.approx(1e-5 * (6 / (9 * 67)) ** 0.5, rel=1e-2)


@pytest.mark.parametrize(
    "options, given, sentence",
    [
        ({}, {"labels": torch.zeros(2, dtype=torch.long)}, "labels: this network knows no labels"),
        ({}, {"augment": torch.zeros(2, 4)}, "augment: this network knows no augment"),
        ({"classes": 3}, {}, "labels: this network is conditioned on labels"),
    ],
)
def test_a_condition_that_is_missing_or_not_known_is_refused(options, given, sentence):
    with pytest.raises(ValueError, match=sentence):
        small(**options)(torch.zeros(2, 2, 8, 8), torch.zeros(2), **given)


@pytest.mark.parametrize("size", [(9, 8), (8, 6), (2, 8)])
def test_sides_that_cannot_be_halved_are_refused(size):
    with pytest.raises(ValueError, match=f"images of {size[0]}×{size[1]}: both sides must divide by 4"):
        small()(torch.zeros(1, 2, *size), torch.zeros(1))


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"channels": 6}, "channels=6: .*multiple of 4"),
        ({"attention": (3,)}, "level 3 is not one of 0 to 2"),
        ({"blocks": 0}, "blocks=0"),
        ({"taps": (1, 2, 1)}, r"taps=\(1, 2, 1\): give an even number"),
        ({"taps": ()}, "taps="),
        ({"taps": (1, -1)}, r"taps=\(1, -1\)"),
        ({"classes": -1}, "classes=-1"),
        ({"augment": -1}, "augment=-1"),
    ],
)
def test_a_network_that_cannot_be_is_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        small(**changes)
