"""The U-Net: published parameter counts, and the numbers of diffusers' network with the same weights."""

import pytest
import torch
from diffusers import UNet2DModel

from minidiff import UNet


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    "mult, attention, count",
    [((1, 2, 2, 2), (1,), 35_746_307), ((1, 1, 2, 2, 4, 4), (4,), 113_673_219)],
    ids=["CIFAR-10", "CelebA-HQ"],
)
def test_published_networks_have_their_published_size(mult, attention, count):
    with torch.device("meta"):
        net = UNet(3, 3, 128, mult, 2, attention)
        size = 8 * net.divisor
        assert net(torch.zeros(2, 3, size, size), torch.zeros(2)).shape == (2, 3, size, size)
    assert parameters(net) == count


def test_tensors_of_the_cifar_network_are_those_of_the_published_file():
    """328 there; each of the 6 attentions has query, key and value apart, and here as one."""
    with torch.device("meta"):
        net = UNet(3, 3, 128, (1, 2, 2, 2), 2, (1,))
    attentions = sum(name.endswith("qkv.weight") for name, _ in net.named_parameters())
    assert attentions == 6
    assert len(list(net.parameters())) + 4 * attentions == 328


def twin(layers: int, levels: tuple[int, ...], attention: int, channels: int = 3) -> UNet2DModel:
    """diffusers' network of DDPM with every weight drawn at random, norms and final layers too."""
    kinds = ["AttnDownBlock2D" if k == attention else "DownBlock2D" for k in range(len(levels))]
    model = UNet2DModel(
        in_channels=channels,
        out_channels=channels,
        layers_per_block=layers,
        block_out_channels=tuple(128 * factor for factor in levels),
        down_block_types=tuple(kinds),
        up_block_types=tuple(kind.replace("Down", "Up") for kind in reversed(kinds)),
        downsample_padding=0,
        freq_shift=1,
        flip_sin_to_cos=False,
        norm_eps=1e-6,
        attention_head_dim=None,
    )
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        fan = parameter[0].numel() if parameter.ndim > 1 else 1
        parameter.data = torch.randn(parameter.shape, generator=generator) / max(fan, 4) ** 0.5
    return model.double().eval()


def copied(model: UNet2DModel, levels: tuple[int, ...], layers: int, attention: int, channels: int = 3) -> UNet:
    """Our network with diffusers' weights, key by key; strict loading proves that none is missing or left over."""
    ours, theirs = {}, model.state_dict()
    taken = set()

    def take(mine: str, key: str) -> None:
        for kind in ("weight", "bias"):
            ours[f"{mine}.{kind}"] = theirs[f"{key}.{kind}"]
            taken.add(f"{key}.{kind}")

    def take_block(mine: str, key: str) -> None:
        for name in ("norm1", "conv1", "norm2", "conv2"):
            take(f"{mine}.{name}", f"{key}.{name}")
        take(f"{mine}.time", f"{key}.time_emb_proj")
        if f"{key}.conv_shortcut.weight" in theirs:
            take(f"{mine}.skip", f"{key}.conv_shortcut")

    def take_attention(mine: str, key: str) -> None:
        take(f"{mine}.norm", f"{key}.group_norm")
        take(f"{mine}.out", f"{key}.to_out.0")
        ours[f"{mine}.out.weight"] = ours[f"{mine}.out.weight"][:, :, None, None]
        for kind in ("weight", "bias"):
            names = [f"{key}.to_{part}.{kind}" for part in "qkv"]
            taken.update(names)
            ours[f"{mine}.qkv.{kind}"] = torch.cat([theirs[name] for name in names])
        ours[f"{mine}.qkv.weight"] = ours[f"{mine}.qkv.weight"][:, :, None, None]

    for mine, key in {
        "time.0": "time_embedding.linear_1",
        "time.2": "time_embedding.linear_2",
        "conv_in": "conv_in",
        "norm_out": "conv_norm_out",
        "conv_out": "conv_out",
    }.items():
        take(mine, key)
    row = 0
    for level in range(len(levels)):
        for k in range(layers):
            take_block(f"down.{row}.0", f"down_blocks.{level}.resnets.{k}")
            if level == attention:
                take_attention(f"down.{row}.1", f"down_blocks.{level}.attentions.{k}")
            row += 1
        if level < len(levels) - 1:
            take(f"down.{row}.0.conv", f"down_blocks.{level}.downsamplers.0.conv")
            row += 1
    take_block("middle.0", "mid_block.resnets.0")
    take_attention("middle.1", "mid_block.attentions.0")
    take_block("middle.2", "mid_block.resnets.1")
    row = 0
    for level in reversed(range(len(levels))):
        up = f"up_blocks.{len(levels) - 1 - level}"
        for k in range(layers + 1):
            take_block(f"up.{row}.0", f"{up}.resnets.{k}")
            if level == attention:
                take_attention(f"up.{row}.1", f"{up}.attentions.{k}")
            row += 1
        if level > 0:
            take(f"up.{row - 1}.{2 if level == attention else 1}.conv", f"{up}.upsamplers.0.conv")
    assert taken == set(theirs)
    net = UNet(channels, channels, 128, levels, layers, (attention,), dropout=0.3).double().eval()
    net.load_state_dict(ours)
    return net


@pytest.fixture(scope="module")
def pair() -> tuple[UNet, UNet2DModel]:
    model = twin(2, (1, 2), attention=1)
    return copied(model, (1, 2), 2, attention=1), model


@torch.no_grad()
def test_answers_are_those_of_diffusers(pair, generator):
    """At t = 0 the embedding of diffusers, which is float32, is exact, so everything else is compared in float64."""
    ours, theirs = pair
    x = torch.randn(2, 3, 6, 10, generator=generator, dtype=torch.float64)
    expected = theirs(x, torch.tensor([0, 0])).sample
    assert expected.std() > 0.1
    torch.testing.assert_close(ours(x, torch.zeros(2).double()), expected, rtol=0, atol=1e-10)


@torch.no_grad()
def test_answers_at_every_time_are_those_of_diffusers(pair, generator):
    ours, theirs = pair
    t = torch.tensor([1, 37, 500, 999])
    x = torch.randn(4, 3, 4, 4, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(ours(x, t.double()), theirs(x, t).sample, rtol=0, atol=1e-4)
    assert (ours(x, t.double()) - ours(x, t.double() + 1)).abs().max() > 1e-3


@torch.no_grad()
def test_three_levels_of_one_block_with_attention_in_the_middle_are_those_of_diffusers(generator):
    model = twin(1, (1, 1, 2), attention=1, channels=1)
    net = copied(model, (1, 1, 2), 1, attention=1, channels=1)
    x = torch.randn(1, 1, 8, 4, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(net(x, torch.zeros(1).double()), model(x, 0).sample, rtol=0, atol=1e-10)


def small(**changes) -> UNet:
    return UNet(**{"in_channels": 1, "out_channels": 1, "channels": 8, "mult": (1, 1, 2), "blocks": 1, **changes})


def test_untrained_it_answers_zero_but_can_learn(generator):
    net, x = small(), torch.randn(2, 1, 8, 8, generator=generator)
    answer = net(x, torch.tensor([1.0, 2.0]))
    assert not answer.any()
    (answer - 1).square().mean().backward()
    assert net.conv_out.bias.grad.any() and net.conv_out.weight.grad.any()


@pytest.mark.parametrize("channels, size", [(1, (16, 24)), (3, (24, 16)), (2, (4, 4))])
def test_any_channels_and_any_sides_that_can_be_halved(channels, size, generator):
    net = small(in_channels=channels, out_channels=2 * channels)
    x = torch.randn(2, channels, *size, generator=generator)
    assert net(x, torch.zeros(2)).shape == (2, 2 * channels, *size)


@pytest.mark.parametrize("height, width", [(9, 8), (8, 6), (2, 8)])
def test_sides_that_cannot_be_halved_are_refused(height, width):
    with pytest.raises(ValueError, match=rf"images of {height}×{width}: both sides must divide by 4"):
        small()(torch.zeros(1, 1, height, width), torch.zeros(1))


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"channels": 10}, "channels=10: .*multiple of 4"),
        ({"channels": 0}, "channels=0"),
        ({"channels": -8}, "channels=-8"),
        ({"attention": (3,)}, "level 3 is not one of 0 to 2"),
        ({"attention": (-1,)}, "level -1"),
        ({"blocks": 0}, "blocks=0"),
        ({"mult": ()}, "mult="),
        ({"mult": (1, 0)}, "mult="),
        ({"dropout": 1.5}, "dropout"),
    ],
)
def test_a_network_that_cannot_be_is_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        small(**{"attention": (), **changes})


@torch.no_grad()
def test_each_image_is_answered_apart_from_its_batch(generator):
    net = small().eval()
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 4
    x, t = torch.randn(3, 1, 8, 8, generator=generator), torch.tensor([1.0, 50.0, 900.0])
    alone = torch.cat([net(x[k : k + 1], t[k : k + 1]) for k in range(3)])
    torch.testing.assert_close(net(x, t), alone, rtol=1e-4, atol=1e-5)
