"""The models that ship: small, whole, and reached by name."""

from dataclasses import replace

import pytest
import tiny
import torch

from minidiff import generate, is_heartbeat, load, swiss_roll_log_prob, train
from minidiff.pretrained import FOLDER, names
from minidiff.pretrained.ship import ship


def test_digits_ships():
    assert "digits" in names()


@pytest.mark.parametrize("name", names())
def test_a_model_that_ships_is_small_and_draws(name):
    assert sum(file.stat().st_size for file in (FOLDER / name).iterdir()) < 1_000_000
    model, description = load(name)
    assert all(p.isfinite().all() for p in model.parameters())
    x = generate(model.process, model.net, description.shape, [0])
    assert x.shape == (1, *description.shape)
    assert x.abs().max() <= (1 if description.levels else 3**0.5 + 1)  # dead leaves are uniform of variance 1


def test_the_heartbeat_that_ships_beats():
    model, description = load("heartbeat-sd")
    assert is_heartbeat(generate(model.process, model.net, description.shape, range(20))).sum() >= 15


def test_the_swiss_roll_that_ships_draws_the_swiss_roll():
    """Beside the roll the density falls to nothing: exp(−8) is nearly four deviations of its noise away."""
    model, description = load("swissroll-sd")
    log_p = swiss_roll_log_prob(generate(model.process, model.net, description.shape, range(200)))
    assert (log_p > -8).double().mean() > 0.9


@pytest.mark.parametrize("channels, stored", [(4, torch.float32), (32, torch.float16)])
def test_a_run_that_ships_is_its_longest_average_and_large_ones_in_half_precision(channels, stored, tmp_path):
    config = tiny.config(images=16)
    config = replace(config, network=replace(config.network, channels=channels))
    state = tiny.fresh(config)
    train(state, tiny.images(), config.training, tmp_path / "run", tiny.describe(config))
    ship(tmp_path / "run", tmp_path / "model")
    model, description = load(tmp_path / "model")
    assert description == tiny.describe(config)
    expected = state.ema.state_dict()
    assert (sum(p.numel() for p in model.parameters()) > 100_000) == (stored == torch.float16)
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, expected[name].to(stored).float())
    assert {path.suffix for path in (tmp_path / "model").iterdir()} == {".json", ".safetensors"}


def test_a_name_that_does_not_ship_is_refused():
    with pytest.raises(ValueError, match="no run cats, and no model of that name ships"):
        load("cats")


def test_a_folder_is_taken_before_a_name(tmp_path, monkeypatch):
    config = tiny.config(images=32)
    state = tiny.fresh(config)
    train(state, tiny.images(), config.training, tmp_path / "digits", tiny.describe(config))
    monkeypatch.chdir(tmp_path)
    model, _ = load("digits")
    assert torch.equal(model.net.conv_in.weight, state.ema.net.conv_in.weight)
