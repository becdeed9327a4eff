"""A configuration travels through JSON unchanged, and every slip in it is named."""

import json
from copy import deepcopy
from dataclasses import replace

import pytest
import tiny
import torch
from torch import nn

from minidiff import (
    RBF,
    RECIPES,
    BinomialConfig,
    BinomialDiffusion,
    ClassifierConfig,
    DataConfig,
    GaussianConfig,
    GaussianDiffusion,
    LearnedGaussian,
    LearnedGaussianConfig,
    MultiScale,
    MultiScaleConfig,
    RBFConfig,
    SigmoidMLP,
    SigmoidMLPConfig,
    SongUNetConfig,
    UNet,
    UNetConfig,
    build,
    geometric_betas,
    recipe,
)
from minidiff.diffusion import NoisyClassifier
from minidiff.networks import Classifier, SongUNet
from minidiff.training import check, differences
from minidiff.training.config import from_dict, to_dict


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_the_file(name):
    config = recipe(name)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


PROCESSES = [  # with what they make, and the levels of data that they take
    (GaussianConfig(T=25, predict="v", clip=False), GaussianDiffusion, 17),
    (LearnedGaussianConfig("linear", 25, {"last": 0.01}, False, "pull"), LearnedGaussian, None),
    (BinomialConfig("harmonic", 25, {}, 0.3, "rate"), BinomialDiffusion, 2),
]
NETWORKS = [
    (UNetConfig(channels=4, mult=(1, 2), attention=()), UNet),
    (SongUNetConfig(channels=4, mult=(1, 2), blocks=1, embedding="fourier", encoder="residual"), SongUNet),
    (RBFConfig(units=7), RBF),
    (SigmoidMLPConfig(6, 2, 0), SigmoidMLP),
    (MultiScaleConfig(4, 1, 1, 2, 3), MultiScale),
]


@pytest.mark.parametrize("process, made, levels", PROCESSES)
@pytest.mark.parametrize("network, net", NETWORKS)
def test_every_kind_survives_the_file_and_is_built_as_what_it_says(process, made, levels, network, net):
    config = replace(tiny.config(), process=process, network=network)
    values = json.loads(json.dumps(to_dict(config)))
    assert from_dict(values) == config and type(from_dict(values).process) is type(process)
    assert (values["process"]["kind"], values["network"]["kind"]) == (type(process).__name__, type(network).__name__)
    shape = (3, 8, 8) if isinstance(network, UNetConfig | SongUNetConfig | MultiScaleConfig) else (3,)
    model = build(config, shape, levels)
    assert (type(model.process), type(model.net), model.process.T) == (made, net, 25)
    answer = model.net(torch.zeros(2, *shape), torch.tensor([0.0, 24.0]))
    assert answer.shape == (2, 6 if isinstance(process, LearnedGaussianConfig) else 3, *shape[1:])


def test_every_argument_reaches_the_process_and_the_network():
    gauss, learned, bits = (
        build(replace(tiny.config(), process=config, network=RBFConfig(units=7)), (3,), levels).process
        for config, _, levels in PROCESSES
    )
    assert (gauss.predict, gauss.clip, gauss.levels) == ("v", False, 17)
    assert (learned.predict, learned.logits.requires_grad) == ("pull", False)
    torch.testing.assert_close(learned.betas[-1].item(), 0.01 * 40)
    assert (bits.m, bits.predict) == (0.3, "rate") and bits.betas[-1] == 1
    moving = build(replace(tiny.config(), process=LearnedGaussianConfig(T=9), network=RBFConfig()), (3,), None)
    assert moving.process.logits.requires_grad and moving.net.centres.shape == (16, 3)
    torch.testing.assert_close(moving.process.betas.detach(), geometric_betas(9))
    deep = build(replace(tiny.config(), network=SigmoidMLPConfig(6, 2, 5)), (3,), 17).net
    assert [layer.out_features for layer in deep.hidden[::2]] == [6, 6] and deep.readout.bumps == 5
    wide = build(replace(tiny.config(), network=MultiScaleConfig(5, 3, 1, 2, 4)), (2, 6, 6), 17).net
    assert (len(wide.convs), len(wide.dense), wide.dense[0].in_features, wide.divisor) == (3, 1, 5, 2)
    assert wide.readout.bumps == 4 and len(wide.convs[0].convs) == 2


def test_options_of_a_schedule_survive_the_file():
    config = replace(tiny.config(), process=GaussianConfig(schedule="cosine", schedule_options={"s": 0.1}))
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def edited(path: str, value: object) -> dict:
    """The file's content with one key set, or, for ..., removed."""
    values = deepcopy(json.loads(json.dumps(to_dict(tiny.config()))))
    *parents, key = path.split(".")
    table = values
    for parent in parents:
        table = table[parent]
    if value is ...:
        del table[key]
    else:
        table[key] = value
    return values


@pytest.mark.parametrize(
    "path, value, sentence",
    [
        ("training.colour", 3, "unknown key training.colour"),
        ("flavour", {}, "unknown key flavour"),
        ("process.T", ..., "key process.T is missing"),
        ("network", ..., "key network is missing"),
        ("process.T", "many", "process.T='many'"),
        ("process.T", 10.5, "process.T=10.5"),
        ("process.predict", "eps2", "process.predict='eps2'"),
        ("process.T", True, "process.T=True"),
        ("training.lr", "fast", "training.lr='fast'"),
        ("training.lr", True, "training.lr=True"),
        ("training.ema", [True], r"training.ema=\[True\]"),
        ("data.flip", 1, "data.flip=1"),
        ("process.schedule_options", {"s": True}, "process.schedule_options="),
        ("process.schedule_options", {"s": "much"}, "process.schedule_options="),
        ("training.ema", 50, "training.ema=50"),
        ("training.ema", ["long"], "training.ema="),
        ("network.mult", [1, "2"], "network.mult="),
        ("network.blocks", 2.5, "network.blocks=2.5"),
        ("network.inject", "multiply", "network.inject='multiply'"),
        ("data.low_res", 1.5, "data.low_res=1.5"),
        ("network", [1, 2], "network"),
        ("data.flip", "yes", "data.flip='yes'"),
        ("process.schedule_options", [1], "process.schedule_options="),
        ("process.kind", "PoissonConfig", "process.kind should be one of GaussianConfig, LearnedGaussianConfig, Binom"),
        ("process.kind", ..., "process.kind should be one of"),
        (
            "network.kind",
            "BinomialConfig",
            "network.kind should be one of UNetConfig, SongUNetConfig, ClassifierConfig, RBFConfig",
        ),
        ("process.kind", "BinomialConfig", "unknown key process.clip"),
        ("network.kind", "RBFConfig", "unknown key network.attention"),
    ],
)
def test_a_slip_is_refused_by_its_key(path, value, sentence):
    with pytest.raises(ValueError, match=sentence):
        from_dict(edited(path, value))


def test_whole_numbers_will_do_where_a_real_one_is_meant():
    assert from_dict(edited("training.lr", 1)).training.lr == 1


def test_differences_name_the_keys_and_both_values():
    a = tiny.config()
    b = replace(a, process=replace(a.process, T=40, schedule_options={"first": 2e-4}))
    assert differences(a, a) == []
    assert differences(a, b) == ["process.T: 30, 40", "process.schedule_options: {}, {'first': 0.0002}"]


def test_differences_between_kinds_name_the_kinds_and_what_only_one_has():
    a = tiny.config()
    b = replace(a, process=BinomialConfig(T=30, m=0.3, predict="rate"))
    found = differences(a, b)
    assert "process.kind: GaussianConfig, BinomialConfig" in found and "process.m: None, 0.3" in found
    assert "process.predict: eps, rate" in found and "process.clip: True, None" in found
    assert not any(line.startswith(("process.T:", "network", "training")) for line in found)


@pytest.mark.parametrize("name", ["images", "batch", "lr", "tick", "checkpoint"])
@pytest.mark.parametrize("value", [0, -1])
def test_durations_and_rates_are_above_zero(name, value):
    with pytest.raises(ValueError, match=f"training.{name}={value}"):
        check(tiny.config(**{name: value}))


@pytest.mark.parametrize(
    "changes",
    [{"ramp": -1}, {"seed": -1}, {"ema": ()}, {"ema": (100, -1)}, {"clip_grad": -1.0}, {"weight_decay": -0.1}],
)
def test_ramp_seed_and_half_lives_are_not_negative(changes):
    with pytest.raises(ValueError, match=f"training.{next(iter(changes))}"):
        check(tiny.config(**changes))


def test_what_is_built_is_what_is_described():
    config = tiny.config()
    model = build(config, (2, 4, 8), 17)
    assert (model.net.conv_in.in_channels, model.net.conv_out.out_channels) == (2, 2)
    assert (model.process.T, model.process.levels, model.process.predict) == (30, 17, "eps")
    assert {layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)} == {0.3}
    learned = replace(config, process=replace(config.process, variance="learned", loss="bound"))
    assert build(learned, (2, 4, 8), 17).net.conv_out.out_channels == 4


@pytest.mark.parametrize(
    "changes, shape, sentence",
    [
        ({"process": GaussianConfig(schedule="sine")}, (1, 4, 4), "process.schedule='sine' is not one of linear"),
        ({"process": GaussianConfig(schedule_options={"middle": 1.0})}, (1, 4, 4), "process.schedule_options.*middle"),
        ({"process": GaussianConfig(T=1)}, (1, 4, 4), "T=1"),
        ({"network": UNetConfig(mult=(1, 1, 1))}, (1, 9, 9), "images of 9×9: both sides must divide by 4"),
        ({"network": UNetConfig(channels=-4)}, (1, 4, 4), "channels=-4"),
        ({}, (5,), r"data shaped \(5,\): UNet takes \(channel, height, width\)"),
        ({"network": MultiScaleConfig()}, (5,), r"data shaped \(5,\): MultiScale takes"),
        ({"network": MultiScaleConfig(scales=3)}, (1, 8, 6), "8×6: both sides must divide by 4 with scales=3"),
        ({"network": RBFConfig()}, (1, 4, 4), r"data shaped \(1, 4, 4\): RBF takes \(dim,\)"),
        ({"network": SigmoidMLPConfig()}, (1, 4, 4), r"SigmoidMLP takes \(dim,\)"),
        ({"process": BinomialConfig()}, (1, 4, 4), "binomial diffusion takes data of 0 and 1; these have 17 levels"),
        ({"process": LearnedGaussianConfig("harmonic", 30)}, (1, 4, 4), "betas: .*both excluded"),
    ],
)
def test_what_cannot_be_built_is_refused(changes, shape, sentence):
    with pytest.raises(ValueError, match=sentence):
        build(replace(tiny.config(), **changes), shape, 17)


@pytest.mark.parametrize(
    "process, sentence",
    [(GaussianConfig(T=30), "continuous.*take LearnedGaussian"), (BinomialConfig(), "0 and 1; these have no levels")],
)
def test_continuous_data_are_refused_by_processes_that_count_levels(process, sentence):
    with pytest.raises(ValueError, match=sentence):
        build(replace(tiny.config(), process=process), (1, 4, 4), None)


CLASSIFIER = ClassifierConfig(classes=5, channels=32, mult=(1, 1), blocks=1, attention=(1,), head_channels=16)


@pytest.mark.parametrize(
    "data, network, sentence",
    [
        ({"labels": True}, UNetConfig(), "data.labels=True and network.classes=0"),
        ({}, UNetConfig(classes=10), "data.labels=False and network.classes=10"),
        ({"labels": True}, RBFConfig(), "data.labels=True and network.classes=0"),
        ({}, CLASSIFIER, "data.labels=False and network.classes=5"),
        ({"low_res": 4}, UNetConfig(), "data.low_res=4 and network.low_res=False"),
        ({}, UNetConfig(low_res=True), "data.low_res=1 and network.low_res=True"),
        ({"low_res": 2}, SongUNetConfig(), "data.low_res=2 and network.low_res=False"),
    ],
)
def test_data_and_network_agree_on_their_conditions(data, network, sentence):
    with pytest.raises(ValueError, match=sentence):
        check(replace(tiny.config(), data=DataConfig(**data), network=network))


def test_conditions_that_agree_pass():
    everything = UNetConfig(classes=10, low_res=True)
    check(replace(tiny.config(), data=DataConfig(labels=True, low_res=2), network=everything))
    check(replace(tiny.config(), data=DataConfig(labels=True), network=CLASSIFIER))


def test_a_classifier_needs_gaussian_noise():
    config = replace(tiny.config(), data=DataConfig(labels=True), network=CLASSIFIER, process=BinomialConfig())
    with pytest.raises(ValueError, match="process: a classifier of noisy images takes a GaussianConfig"):
        check(config)


def test_a_classifier_is_built_for_the_size_of_the_data_with_its_own_objective():
    config = replace(tiny.config(), data=DataConfig(labels=True), network=CLASSIFIER)
    values = json.loads(json.dumps(to_dict(config)))
    assert from_dict(values) == config
    model = build(config, (3, 4, 8), 17)
    assert (type(model.net), type(model.process), model.process.T) == (Classifier, NoisyClassifier, 30)
    assert model.process.process.levels == 17 and model.net.size == (4, 8)
    losses = model(torch.zeros(2, 3, 4, 8), torch.tensor([0, 29]), torch.zeros(2, 3, 4, 8), labels=torch.tensor([4, 0]))
    assert losses["loss"].shape == (2,)
    with pytest.raises(ValueError, match="images of 4×7: both sides must divide by 2"):
        build(config, (3, 4, 7), 17)


def test_every_argument_reaches_the_papers_networks():
    options = {"heads": 2, "inject": "scale", "resample": "block", "rescale": True, "classes": 3, "low_res": True}
    config = UNetConfig(32, (1, 2), 1, (0,), 0.2, **options, convention="openai", checkpoint=True)
    net = build(replace(tiny.config(), network=config), (1, 4, 4), 17).net
    same = UNet(1, 1, 32, (1, 2), 1, (0,), 0.2, **options, convention="openai", checkpoint=True)
    assert str(net) == str(same) and net.label.num_embeddings == 3 and net.conv_in.in_channels == 2
    assert (net.convention, net.checkpoint) == ("openai", True)
    assert net.down[0][0].style == same.down[0][0].style and net.down[0][0].style.rescale
    options = {"classes": 3, "augment": 4, "embedding": "fourier", "taps": (1, 3, 3, 1), "encoder": "skip"}
    song = build(replace(tiny.config(), network=SongUNetConfig(8, (1, 2), 1, (0,), 0.2, **options)), (1, 4, 4), 17).net
    assert str(song) == str(SongUNet(1, 1, 8, (1, 2), 1, (0,), 0.2, **options))
    assert song.encoder == "skip" and song.shrink.kernel.shape == (4, 4) and song.frequencies.shape == (8,)
