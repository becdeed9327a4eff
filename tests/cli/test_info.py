"""``minidiff info`` and ``minidiff recipes``."""

import json
import re

import pytest

from minidiff.cli.info import scaled
from minidiff.pretrained import load
from minidiff.recipes import RECIPES, describe

ONE_OF_EACH = {  # recipes with a network or a size that no other has
    (description.shape, str(description.config.network), type(description.config.process).__name__): name
    for name in RECIPES
    if (description := describe(name))
}


def rows(text: str) -> dict[str, str]:
    """What a table says, by its labels."""
    return dict(re.fullmatch(r"  (\S.*?)  +(\S.*)", line).groups() for line in text.splitlines()[1:])


@pytest.mark.parametrize("name", ONE_OF_EACH.values())
def test_info_of_every_recipe(minidiff, name):
    ended = minidiff("info", name)
    assert ended.code == 0 and ended.err == ""
    assert ended.out.startswith(f"{name}, on one h100 at 35% of its tf32 rate, 173 TFLOP/s\n")
    found = rows(ended.out)
    assert int(found["parameters"].replace(",", "")) > 1000
    assert not any(re.search(r"\b0 |nan|inf", value) for value in found.values())


def test_info_of_adm_in_figures(minidiff):
    """295,904,454 · 4 bytes are 1.102 GiB; 1,105,920,000 · 658.1 GFLOP at 0.35 · 494.5 TFLOP/s are 1,168 hours."""
    found = rows(minidiff("info", "adm-imagenet64").out)
    parameters, activations = found.pop("parameters"), found.pop("activations of an example")
    at_a_time = int(found.pop("examples at a time in 90% of 80 GiB"))
    assert found == {
        "forward pass of an example": "219.4 GFLOP",
        "training on an example": "658.1 GFLOP",
        "weights": "1.102 GiB",
        "gradients": "1.102 GiB",
        "Adam's moments": "2.205 GiB",
        "averaged weights": "1.102 GiB",
        "examples in all, in batches of 2,048": "1,105,920,000",
        "examples a second": "263.0",
        "GPU-hours": "1,168.0",
    }
    assert parameters == "295,904,454"
    number, unit = activations.split()
    each = float(number) / 1024
    assert unit == "MiB" and 5.51 + at_a_time * each < 72 < 5.52 + (at_a_time + 1) * each


def test_info_takes_another_gpu_precision_and_share(minidiff):
    h100, other = (
        rows(minidiff("info", "digits", *more).out) for more in ((), ("--gpu", "a100", "--precision", "bf16"))
    )
    speed = lambda found: float(found["examples a second"].replace(",", ""))
    assert speed(other) / speed(h100) == pytest.approx(312 / 494.5, rel=1e-3)
    half = rows(minidiff("info", "digits", "--utilisation", 0.175).out)
    assert speed(half) / speed(h100) == pytest.approx(0.5, rel=1e-3)
    assert "weights in 16 bits" in other and "weights in 16 bits" not in h100


@pytest.mark.parametrize("share", [0, 2])
def test_a_share_that_is_none_is_one_sentence(minidiff, share):
    for command in (["info", "digits"], ["recipes"]):
        ended = minidiff(*command, "--utilisation", share)
        assert ended.code == 2 and ended.out == "" and "give a share" in ended.err


def test_info_of_a_run_prints_its_size_and_the_whole_configuration(minidiff, run):
    table, configuration = minidiff("info", run).out.split("\n{", 1)
    model, description = load(run)
    assert rows(table)["parameters"] == f"{sum(p.numel() for p in model.parameters()):,}"
    assert rows(table)["examples in all, in batches of 16"] == "96"
    assert json.loads("{" + configuration) == json.loads(json.dumps(description.to_dict()))


def test_a_folder_is_a_run_though_it_is_called_as_a_recipe(minidiff, run):
    run.rename("digits")
    assert '"recipe": "digits"' in minidiff("info", "digits").out
    assert "examples in all, in batches of 16" in minidiff("info", "digits").out


def test_recipes_lists_each_with_its_size_its_cost_and_its_paper(minidiff, monkeypatch):
    """A few of them: what is counted for a line is counted for every recipe above."""
    some = {name: RECIPES[name] for name in ("digits", "heartbeat-sd", "adm-imagenet64", "edm-cifar10-cond-ve")}
    monkeypatch.setattr("minidiff.cli.recipes.RECIPES", some)
    head, _, labels, *lines = minidiff("recipes").out.splitlines()
    assert (
        "one h100 at 35% of its tf32 rate" in head and labels.split() == "recipe example parameters GPU-hours".split()
    )
    assert [line.split()[0] for line in lines] == list(some)
    found = {line.split()[0]: line.split()[1:4] for line in lines}
    assert found["adm-imagenet64"] == ["3×64×64", "295,904,454", "1,168.0"]
    assert found["heartbeat-sd"][:2] == ["20", "22,470"]
    assert all(RECIPES[line.split()[0]].__doc__.splitlines()[0] in line for line in lines)


@pytest.mark.parametrize(
    "value, step, text",
    [
        (0, 1000, "0 B"),
        (800, 1000, "800 B"),
        (219_356_037_120, 1000, "219.4 GB"),
        (999_999, 1000, "1,000 kB"),
        (3_964_669_526_016, 1000, "3.965 TB"),
        (1023, 1024, "1,023 B"),
        (3 * 2**20, 1024, "3 MiB"),
        (5 * 2**30, 1024, "5 GiB"),
    ],
)
def test_numbers_have_a_prefix(value, step, text):
    assert scaled(value, "B", step) == text
