"""A configuration travels through JSON unchanged, and every slip in it is named."""

import json
from copy import deepcopy
from dataclasses import replace

import pytest
import tiny
from torch import nn

from minidiff import RECIPES, GaussianConfig, UNetConfig, build, recipe
from minidiff.training import check, differences
from minidiff.training.config import from_dict, to_dict


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_the_file(name):
    config = recipe(name)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


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
        ("training.lr", "fast", "training.lr='fast'"),
        ("training.ema", 50, "training.ema=50"),
        ("training.ema", ["long"], "training.ema="),
        ("network.mult", [1, 2.5], "network.mult="),
        ("network", [1, 2], "network"),
        ("data.flip", "yes", "data.flip='yes'"),
        ("process.schedule_options", [1], "process.schedule_options="),
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


@pytest.mark.parametrize("name", ["images", "batch", "lr", "clip_grad", "tick", "checkpoint"])
@pytest.mark.parametrize("value", [0, -1])
def test_durations_and_rates_are_above_zero(name, value):
    with pytest.raises(ValueError, match=f"training.{name}={value}"):
        check(tiny.config(**{name: value}))


@pytest.mark.parametrize("changes", [{"ramp": -1}, {"seed": -1}, {"ema": ()}, {"ema": (100, -1)}])
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
        ({}, (5,), r"\(5,\)"),
    ],
)
def test_what_cannot_be_built_is_refused(changes, shape, sentence):
    with pytest.raises(ValueError, match=sentence):
        build(replace(tiny.config(), **changes), shape, 17)
