"""The models that ship: small, whole, and reached by name."""

from dataclasses import replace
from functools import partial

import pytest
import tiny
import torch

from minidiff import (
    EDM,
    ClassLogProb,
    DigitsExtractor,
    GaussianDiffusion,
    Guided,
    NoisyClassifier,
    ddim,
    decode,
    denoising_error,
    digits,
    encode,
    gaussian_error,
    generate,
    is_heartbeat,
    load,
    respace,
    subsequence,
    swiss_roll_log_prob,
    train,
)
from minidiff.pretrained import FOLDER, names
from minidiff.pretrained.ship import ship
from minidiff.recipes import describe


def test_digits_ships():
    assert "digits" in names()


@pytest.mark.parametrize("name", names())
def test_a_model_that_ships_is_small_and_draws_or_guides(name):
    assert sum(file.stat().st_size for file in (FOLDER / name).iterdir()) < 1_000_000
    model, description = load(name)
    assert all(p.isfinite().all() for p in model.parameters())
    if isinstance(model.process, NoisyClassifier):
        return
    cond = {"labels": torch.tensor([3])} if description.config.data.labels else {}
    if (factor := description.config.data.low_res) > 1:
        channels, *sides = description.shape
        cond["low_res"] = torch.zeros(1, channels, *(side // factor for side in sides))
    process = respace(model.process, "20") if isinstance(model.process, GaussianDiffusion) else model.process
    x = generate(process, model.net, description.shape, [0], cond=cond)
    assert x.shape == (1, *description.shape)
    bound = 1 if description.levels else 3**0.5 + 1  # dead leaves are uniform of variance 1
    assert x.abs().max() <= bound + 0.1 * isinstance(model.process, EDM)  # which clips nothing


@pytest.mark.parametrize("name", sorted(set(names()) - {"digits"}))  # which was trained for longer than its recipe says
def test_a_model_that_ships_is_its_recipe_as_it_stands(name):
    assert load(name)[1] == describe(name)


def test_the_edm_that_ships_removes_more_noise_than_moments_can(generator):
    """Of held-out digits; at large σ no denoiser does."""
    model, _ = load("digits-edm")
    x0, sigmas = digits("test").x, torch.tensor([0.1, 0.3, 1.0])
    mse, error = denoising_error(model.process.denoiser(model.net), x0, sigmas, generator)
    assert (mse + 4 * error < 0.9 * gaussian_error(digits().x, sigmas)).all()


def test_the_classifier_that_ships_knows_digits_it_has_not_seen_until_noise_hides_them(generator):
    model, _ = load("digits-classifier")
    data = digits("test")
    right = []
    for t in (0, 100, 300, 999):
        x = model.process.process.q_sample(
            data.x, torch.full((len(data),), t), model.process.draw_noise(data.x, generator)
        )
        logits = model.net(x, torch.full((len(data),), float(t)))
        right.append((logits.argmax(1) == data.labels).double().mean())
    assert right[0] > 0.97 and right[1] > 0.95 and 0.5 < right[2] < 0.85 and right[3] < 0.2


def test_the_digits_by_class_that_ship_are_of_their_class_and_more_so_when_guided():
    """An extractor that took no part in it names them; 200 of them in 20 steps."""
    model, description = load("digits-classes")
    classifier, _ = load("digits-classifier")
    net, labels = DigitsExtractor().net, torch.arange(200) % 10
    log_p = ClassLogProb(classifier.process.process, classifier.net)
    sampler = partial(ddim, steps=subsequence(1000, 20))
    right = []
    for process in (model.process, Guided(model.process, log_p, 2.0)):
        told = {"sampler": sampler, "cond": {"labels": labels}}
        x = generate(process, model.net, description.shape, range(200), **told)
        right.append((net(encode(decode(x, 17), 17)).logits.argmax(1) == labels).double().mean())
    assert right[0] > 0.93 and right[1] > 0.97


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
