"""Recipes hold the papers' numbers, and each of them can be built."""

import math
from dataclasses import asdict

import pytest
import torch

from minidiff import RECIPES, Config, UNet, UNetConfig, build, linear_betas, load_data, recipe
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
    if not isinstance(config.network, UNetConfig):
        return  # built below
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


@pytest.mark.parametrize(
    "name, T, ends, parameters",
    [
        ("swissroll-sd", 40, (1e-4, 0.5), 100 * 2 + 100 + 40 * 4 * 101 + 39),
        ("heartbeat-sd", 2000, (1 / 2000, 1.0), 21 * 50 + 2 * 51 * 50 + 16 * 20 * 51),
        (
            "dead-leaves-sd",
            1000,
            (1e-4, 0.05),
            3 * (10 * 24 + 2 * 217 * 24) + 25 * 24 + 10 * 2 * 25 + 999,
        ),
    ],
)
def test_the_first_papers_recipes_are_built_on_their_own_data(name, T, ends, parameters):
    config = recipe(name)
    data = load_data(config.data.source, "test")
    model = build(config, data.shape, data.levels)
    betas = model.process.betas
    assert (len(betas), betas[0].item(), betas[-1].item()) == (T, pytest.approx(ends[0]), pytest.approx(ends[1]))
    assert sum(p.numel() for p in model.parameters()) == parameters
    if name == "heartbeat-sd":
        assert model.process.m == 0.2 == pytest.approx(data.x.mean().item())
    else:
        assert (data.x**2).mean().item() == pytest.approx(1, abs=0.05)
    t = torch.randint(T, (4,), generator=torch.Generator().manual_seed(0))
    losses = model(data.x[:4], t, model.process.draw_noise(data.x[:4], torch.Generator().manual_seed(0)))
    assert losses["loss"].isfinite().all()


def test_checkpoints_fall_on_ticks():
    for make in RECIPES.values():
        training = make().training
        assert training.checkpoint % training.tick == 0


@pytest.mark.parametrize("name, nearest", [("digit", "digits"), ("ddpm_cifar10", "ddpm-cifar10")])
def test_an_unknown_recipe_is_refused_with_the_nearest_and_all(name, nearest):
    with pytest.raises(ValueError, match=rf"no recipe '{name}'\. Did you mean {nearest}\? Known are: ") as refusal:
        recipe(name)
    assert all(known in str(refusal.value) for known in RECIPES)
