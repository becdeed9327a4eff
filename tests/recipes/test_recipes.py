"""Recipes hold the papers' numbers, and each of them can be built."""

import math
from dataclasses import asdict

import pytest
import torch

from minidiff import RECIPES, Config, UNet, linear_betas, recipe
from minidiff.diffusion import SCHEDULES
from minidiff.training import check


def network(config: Config, channels: int) -> UNet:
    """The recipe's network, its size known and its weights nowhere."""
    with torch.device("meta"):
        return UNet(channels, channels, **asdict(config.network))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_trained_and_carries_its_name(name):
    config = recipe(name)
    check(config)
    assert config.recipe == name
    assert len(SCHEDULES[config.process.schedule](config.process.T)) == config.process.T
    size = {"digits": 8, "ddpm-cifar10": 32}.get(name, 256)
    assert size % network(config, 3).divisor == 0


@pytest.mark.parametrize(
    "name, count, batch, steps, lr",
    [
        ("ddpm-cifar10", 35_746_307, 128, 800_000, 2e-4),
        ("ddpm-celebahq256", 113_673_219, 64, 500_000, 2e-5),
        ("ddpm-lsun-church256", 113_673_219, 64, 1_200_000, 2e-5),
        ("ddpm-lsun-bedroom256", 113_673_219, 64, 2_400_000, 2e-5),
        ("ddpm-lsun-cat256", 113_673_219, 64, 1_800_000, 2e-5),
    ],
)
def test_ddpm_has_the_settings_of_its_appendix(name, count, batch, steps, lr):
    config = recipe(name)
    assert sum(p.numel() for p in network(config, 3).parameters()) == count
    training, process = config.training, config.process
    assert (training.batch, training.lr, training.clip_grad) == (batch, lr, 1.0)
    assert training.images == pytest.approx(batch * steps, rel=1e-3)
    assert training.ramp == batch * 5_000
    (half_life,) = training.ema
    assert math.log(2) / -math.log(0.9999) * batch == pytest.approx(half_life, rel=1e-3)
    assert (process.predict, process.variance, process.loss) == ("eps", "large", "simple")
    assert torch.equal(SCHEDULES[process.schedule](process.T, **process.schedule_options), linear_betas(1000))
    assert config.network.dropout == (0.1 if "cifar" in name else 0.0)
    assert config.data.flip == ("bedroom" not in name)


def test_checkpoints_fall_on_ticks():
    for make in RECIPES.values():
        training = make().training
        assert training.checkpoint % training.tick == 0


@pytest.mark.parametrize("name, nearest", [("digit", "digits"), ("ddpm_cifar10", "ddpm-cifar10")])
def test_an_unknown_recipe_is_refused_with_the_nearest_and_all(name, nearest):
    with pytest.raises(ValueError, match=rf"no recipe '{name}'\. Did you mean {nearest}\? Known are: ") as refusal:
        recipe(name)
    assert all(known in str(refusal.value) for known in RECIPES)
