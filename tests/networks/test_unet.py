"""The U-Net: it must give the answers and gradients of diffusers' network with the same weights; what it refuses."""

import pytest
import torch
from diffusers import UNet2DModel
from formula import fill, wave

from minidiff import UNet

OPENAI = {"convention": "openai", "dropout": 0.0}
# our options, with diffusers' for the same; on 128 channels or more DDPM's norms have 32 groups
TWINS = {
    "DDPM": (
        {"channels": 128, "mult": (1, 2), "blocks": 1, "attention": (1,)},
        {},
    ),
    "DDPM, three levels, attention in the middle": (
        {"channels": 128, "mult": (1, 1, 2), "blocks": 1, "attention": (1,)},
        {},
    ),
    "many heads, all around, other times": (
        {**OPENAI, "channels": 32, "mult": (1, 2), "blocks": 1, "attention": (0, 1), "head_channels": 8},
        {"attention_head_dim": 8, "downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0, "norm_eps": 1e-5},
    ),
    "ADM": (
        {
            **OPENAI,
            "channels": 32,
            "mult": (1, 2, 3),
            "blocks": 2,
            "attention": (1, 2),
            "head_channels": 16,
            "inject": "scale",
            "resample": "block",
            "classes": 7,
        },
        {
            "attention_head_dim": 16,
            "downsample_type": "resnet",
            "upsample_type": "resnet",
            "resnet_time_scale_shift": "scale_shift",
            "attn_norm_num_groups": 32,
            "flip_sin_to_cos": True,
            "freq_shift": 0,
            "norm_eps": 1e-5,
            "num_class_embeds": 7,
        },
    ),
}


def twin(ours: dict, theirs: dict) -> UNet2DModel:
    """diffusers' network of the same shape; by itself it is DDPM's."""
    kind = "Resnet{}sampleBlock2D" if ours.get("resample") == "block" else "{}Block2D"
    kinds = [("Attn{}Block2D" if k in ours["attention"] else kind) for k in range(len(ours["mult"]))]
    ddpm = {"attention_head_dim": None, "downsample_padding": 0, "freq_shift": 1, "flip_sin_to_cos": False}
    return UNet2DModel(
        in_channels=3,
        out_channels=3,
        layers_per_block=ours["blocks"],
        block_out_channels=tuple(ours["channels"] * factor for factor in ours["mult"]),
        down_block_types=tuple(kind.format("Down") for kind in kinds),
        up_block_types=tuple(kind.format("Up") for kind in reversed(kinds)),
        **{**ddpm, "norm_eps": 1e-6, **theirs},
    )


def by_our_names(theirs: dict[str, torch.Tensor], ours: dict) -> dict[str, torch.Tensor]:
    """diffusers' tensors, be they weights or gradients, under our names; every one must be used."""
    found, taken = {}, set()

    def take(mine: str, key: str) -> None:
        for kind in ("weight", "bias"):
            if f"{key}.{kind}" in theirs:
                found[f"{mine}.{kind}"] = theirs[f"{key}.{kind}"]
                taken.add(f"{key}.{kind}")

    def take_block(mine: str, key: str) -> None:
        names = {name: name for name in ("norm1", "conv1", "norm2", "conv2")}
        for name, other in {**names, "time": "time_emb_proj", "skip": "conv_shortcut"}.items():
            take(f"{mine}.{name}", f"{key}.{other}")

    def take_attention(mine: str, key: str) -> None:
        take(f"{mine}.norm", f"{key}.group_norm")
        take(f"{mine}.out", f"{key}.to_out.0")
        for kind in ("weight", "bias"):
            names = [f"{key}.to_{part}.{kind}" for part in "qkv"]
            taken.update(names)
            found[f"{mine}.qkv.{kind}"] = torch.cat([theirs[name] for name in names])
        for part in ("qkv", "out"):
            found[f"{mine}.{part}.weight"] = found[f"{mine}.{part}.weight"][:, :, None, None]

    def take_sides(mine: str, key: str) -> None:
        if ours.get("resample") == "block":
            take_block(mine, f"{key}.0")
        else:
            take(f"{mine}.conv", f"{key}.0.conv")

    for mine, key in {
        "time.0": "time_embedding.linear_1",
        "time.2": "time_embedding.linear_2",
        "label": "class_embedding",
        "conv_in": "conv_in",
        "norm_out": "conv_norm_out",
        "conv_out": "conv_out",
    }.items():
        take(mine, key)
    last, row = len(ours["mult"]) - 1, 0
    for level in range(last + 1):
        for k in range(ours["blocks"]):
            take_block(f"down.{row}.0", f"down_blocks.{level}.resnets.{k}")
            if level in ours["attention"]:
                take_attention(f"down.{row}.1", f"down_blocks.{level}.attentions.{k}")
            row += 1
        if level < last:
            take_sides(f"down.{row}.0", f"down_blocks.{level}.downsamplers")
            row += 1
    take_block("middle.0", "mid_block.resnets.0")
    take_attention("middle.1", "mid_block.attentions.0")
    take_block("middle.2", "mid_block.resnets.1")
    row = 0
    for level in reversed(range(last + 1)):
        for k in range(ours["blocks"] + 1):
            take_block(f"up.{row}.0", f"up_blocks.{last - level}.resnets.{k}")
            if level in ours["attention"]:
                take_attention(f"up.{row}.1", f"up_blocks.{last - level}.attentions.{k}")
            row += 1
        if level > 0:
            take_sides(f"up.{row - 1}.{1 + (level in ours['attention'])}", f"up_blocks.{last - level}.upsamplers")
    assert taken == set(theirs)
    return found


@pytest.mark.parametrize("name", TWINS)
def test_answers_and_all_gradients_are_those_of_diffusers(name, float64):
    """The times are small where diffusers' embedding, which is float32, rounds little."""
    options, other = TWINS[name]
    theirs, ours = fill(twin(options, other)), UNet(3, 3, **options).eval()
    ours.load_state_dict(by_our_names(theirs.state_dict(), options))  # strict: none is missing or left over
    x, t = wave(2, 3, 4, 8, phase=1), torch.tensor([0.0, 3.0])
    labels = torch.tensor([6, 2]) if "classes" in options else None
    weight, seen, answers = wave(2, 3, 4, 8, phase=2), [x.clone().requires_grad_() for _ in range(2)], []
    answers.append(ours(seen[0], t, labels=labels))
    answers.append(theirs(seen[1], t, class_labels=labels).sample)
    for answer in answers:
        (answer * weight).sum().backward()
    assert answers[1].std() > 0.1
    torch.testing.assert_close(answers[0], answers[1], rtol=0, atol=1e-5 * answers[1].std().item())
    torch.testing.assert_close(seen[0].grad, seen[1].grad, rtol=0, atol=1e-5 * seen[1].grad.std().item())
    gradients = by_our_names({name: p.grad for name, p in theirs.named_parameters()}, options)
    for name, parameter in ours.named_parameters():
        expected = gradients[name]
        torch.testing.assert_close(parameter.grad, expected, rtol=0, atol=1e-5 * expected.abs().max().item() + 1e-10)


@torch.no_grad()
def test_answers_at_every_time_are_those_of_diffusers(float64):
    options, other = TWINS["DDPM"]
    theirs, ours = fill(twin(options, other)), UNet(3, 3, **options).eval()
    ours.load_state_dict(by_our_names(theirs.state_dict(), options))
    t, x = torch.tensor([1.0, 37, 500, 999]), wave(4, 3, 4, 4, phase=1)
    torch.testing.assert_close(ours(x, t), theirs(x, t).sample, rtol=0, atol=1e-4)
    assert (ours(x, t) - ours(x, t + 1)).abs().max() > 1e-3


# ---- conditions -----------------------------------------------------------------------------------------------------


def small(**changes) -> UNet:
    return UNet(**{"in_channels": 1, "out_channels": 1, "channels": 8, "mult": (1, 1, 2), "blocks": 1, **changes})


def test_the_label_is_added_to_the_time_before_its_last_activation(float64):
    """A class whose row shifts the time's bias gives what a network with that bias gives."""
    net, plain = fill(small(classes=3)), fill(small())
    x, t = wave(2, 1, 8, 8), torch.tensor([4.0, 5.0])
    with torch.no_grad():
        plain.time[2].bias += net.label.weight[2]
    torch.testing.assert_close(net(x, t, labels=torch.tensor([2, 2])), plain(x, t))
    assert (net(x, t, labels=torch.tensor([2, 1]))[1] - plain(x, t)[1]).abs().max() > 1e-3


@pytest.mark.parametrize("size", [(2, 2), (4, 2), (3, 5), (8, 8)])
def test_a_smaller_image_is_laid_behind_x_brought_to_its_size_between_the_pixels_centres(size, float64):
    net, wide = fill(small(low_res=True)), fill(small(in_channels=2))
    x, low, t = wave(2, 1, 8, 8), wave(2, 1, *size, phase=4), torch.tensor([4.0, 5.0])
    rows = [interpolation(size[axis], 8) for axis in (0, 1)]
    brought = torch.einsum("ih,jw,bchw->bcij", *rows, low)
    torch.testing.assert_close(net(x, t, low_res=low), wide(torch.cat([x, brought], dim=1), t))


def interpolation(few: int, many: int) -> torch.Tensor:
    """How each of many pixels mixes the two nearest of few, where both rows of pixels cover the same line."""
    matrix = torch.zeros(many, few)
    for i in range(many):
        place = min(max((i + 0.5) * few / many - 0.5, 0), few - 1)
        left = min(int(place), few - 2)
        matrix[i, left], matrix[i, left + 1] = 1 - (place - left), place - left
    return matrix


@pytest.mark.parametrize(
    "options, given, sentence",
    [
        ({}, {"labels": torch.zeros(2, dtype=torch.long)}, "labels: this network knows no labels"),
        ({}, {"low_res": torch.zeros(2, 1, 4, 4)}, "low_res: this network knows no low_res"),
        ({"classes": 3}, {}, "labels: this network is conditioned on labels"),
        ({"low_res": True}, {}, "low_res: this network is conditioned on low_res"),
        ({"classes": 3, "low_res": True}, {"labels": torch.zeros(2, dtype=torch.long)}, "low_res: .* conditioned"),
    ],
)
def test_a_condition_that_is_missing_or_not_known_is_refused(options, given, sentence):
    with pytest.raises(ValueError, match=sentence):
        small(**options)(torch.zeros(2, 1, 8, 8), torch.zeros(2), **given)


# ---- sizes, and what cannot be --------------------------------------------------------------------------------------


def test_untrained_it_can_learn_though_it_answers_zero(generator):
    net, x = small(), torch.randn(2, 1, 8, 8, generator=generator)
    answer = net(x, torch.tensor([1.0, 2.0]))
    assert not answer.any()
    (answer - 1).square().mean().backward()
    assert net.conv_out.bias.grad.any() and net.conv_out.weight.grad.any()


def test_openais_weights_begin_as_pytorch_draws_them_and_ddpms_by_both_fans():
    """Uniform in both, on the first convolution up to 1/√(fan in), or √(6 / (fan in + fan out)); biases zero or not."""
    for convention, limit in (("openai", 27**-0.5), ("ddpm", (6 / (27 + 32 * 9)) ** 0.5)):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = UNet(3, 3, 32, (1, 1), 1, (), convention=convention)
        assert net.conv_in.weight.abs().max().item() == pytest.approx(limit, rel=0.02)
        assert bool(net.conv_in.bias.any()) == (convention == "openai")


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
        ({"channels": 8, "mult": (0.25, 1)}, r"channels=8 times mult=\(0.25, 1\): take a multiple of 4"),
        ({"channels": 48, "convention": "openai"}, "channels=48: .*multiple of 32"),
        ({"channels": 32, "mult": (0.5, 1), "convention": "openai"}, "channels=32 times mult.*multiple of 32"),
        ({"attention": (3,)}, "level 3 is not one of 0 to 2"),
        ({"attention": (-1,)}, "level -1"),
        ({"blocks": 0}, "blocks=0"),
        ({"mult": ()}, "mult="),
        ({"mult": (1, 0)}, "mult="),
        ({"dropout": 1.5}, "dropout"),
        ({"classes": -1}, "classes=-1"),
        ({"heads": 3}, "heads=3.*over 16 channels"),
        ({"heads": 0}, "heads=0"),
        ({"head_channels": 3}, "head_channels=3.*over 16 channels"),
    ],
)
def test_a_network_that_cannot_be_is_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        small(**{"attention": (), **changes})
