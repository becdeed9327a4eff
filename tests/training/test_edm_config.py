"""EDM through configuration, training and checkpoints: everything that is typed arrives, and a killed run goes on."""

import json
from dataclasses import replace

import pytest
import tiny
import torch

from minidiff import (
    COLUMNS,
    EDM,
    DataConfig,
    EDMConfig,
    EDMPath,
    GaussianConfig,
    Images,
    RBFConfig,
    SigmaTimes,
    SongUNetConfig,
    UNetConfig,
    build,
    edm_column,
    resume,
    train,
)
from minidiff.training import check, differences, time_sampler
from minidiff.training.config import from_dict, to_dict

NETWORK = SongUNetConfig(channels=8, mult=(1, 2), blocks=1, attention=(1,), dropout=0.3, augment=9)


def config(process: EDMConfig | None = None, augment: float = 0.3, **training):
    process = process or EDMConfig(column_options={"sigma_data": 0.8})
    return replace(tiny.config(**training), data=DataConfig(augment=augment), process=process, network=NETWORK)


def images() -> Images:
    data = tiny.images()
    data.augment = 0.3
    return data


def test_a_configuration_survives_the_file():
    process = EDMConfig("vp", {"beta_d": 10.0, "M": 500}, True, 30)
    whole = replace(config(), process=process)
    assert from_dict(json.loads(json.dumps(to_dict(whole)))) == whole
    other = replace(whole, process=replace(process, column_options={}))
    assert differences(whole, other) == ["process.column_options: {'beta_d': 10.0, 'M': 500}, {}"]


@pytest.mark.parametrize("column", COLUMNS)
def test_every_column_is_built_by_its_name(column):
    process = build(config(EDMConfig(column, steps=7)), tiny.SHAPE, 17).process
    assert isinstance(process, EDM) and process.steps == 7 and process.path == COLUMNS[column]().path
    x = torch.ones(1, dtype=torch.float64)
    for name in ("c_skip", "c_out", "c_in", "c_noise", "weight"):
        assert getattr(process.column, name)(x) == getattr(COLUMNS[column](), name)(x)


def test_options_reach_the_column_and_the_law_of_sigma():
    options = {"sigma_data": 0.8, "P_mean": 0.4, "P_std": 0.9, "sigma_min": 0.01, "sigma_max": 20, "rho": 5}
    whole = config(EDMConfig(column_options=options))
    process, times = build(whole, tiny.SHAPE, None).process, time_sampler(whole)
    assert process.path == EDMPath(0.01, 20, 5) and isinstance(times, SigmaTimes)
    half = torch.full((1,), 0.8, dtype=torch.float64)
    assert process.column.c_skip(half).item() == pytest.approx(0.5)  # at σ = σ_d
    middle = times.quantile(torch.tensor([0.5, 0.8413447460685429], dtype=torch.float64)).log()
    assert middle.tolist() == pytest.approx([0.4, 1.3])


@pytest.mark.parametrize("other", ["vp", "ve", "iddpm"])
def test_a_run_may_be_trained_as_another_column(other):
    whole = config(EDMConfig(column_options={"sigma_data": 0.8}, training_column=other))
    assert from_dict(json.loads(json.dumps(to_dict(whole)))) == whole
    column, u = build(whole, tiny.SHAPE, 17).process.column, torch.tensor([0.1, 0.6], dtype=torch.float64)
    assert torch.equal(time_sampler(whole).quantile(u), COLUMNS[other]().quantile(u))
    assert torch.equal(column.weight(u), 1 / u**2) and torch.equal(column.c_skip(u), edm_column(0.8).c_skip(u))


def test_a_network_may_have_learned_a_variance():
    for learned, channels in ((False, 2), (True, 4)):
        whole = replace(config(EDMConfig("iddpm", learned_variance=learned)), network=UNetConfig(4, (1,), 1, ()))
        assert build(whole, (2, 4, 4), 17).net.conv_out.out_channels == channels


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"process": EDMConfig(column="vpx")}, "process.column='vpx' is not one of edm, vp, ve, iddpm"),
        ({"process": EDMConfig(training_column="ddpm")}, "process.training_column='ddpm' is not one of edm, vp"),
        ({"process": EDMConfig(column="")}, "process.column='' is not one of edm, vp"),
        ({"process": EDMConfig("ve", {"sigma_data": 0.5})}, "'ve' takes sigma_min, .*; leave out sigma_data"),
        ({"process": EDMConfig(column_options={"sigma_data": -1.0})}, "sigma_data=-1.0"),
        ({"process": EDMConfig(steps=0)}, "steps=0"),
    ],
)
def test_what_cannot_be_built_is_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        build(replace(config(), **changes), tiny.SHAPE, 17)


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"network": replace(NETWORK, augment=0)}, "data.augment=0.3 and network.augment=0"),
        ({"network": replace(NETWORK, augment=8)}, "data.augment=0.3 and network.augment=8"),
        ({"network": tiny.config().network}, "data.augment=0.3 and network.augment=0"),
        ({"data": DataConfig(), "network": RBFConfig()}, "EDM has no steps, and RBFConfig"),
        ({"training": tiny.config(times="importance").training}, "training.times=importance"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, sentence):
    check(config())
    check(config(augment=0.0))  # a network that can be told may go on without
    check(replace(config(), process=GaussianConfig(T=30)))  # augmentation is not EDM's alone
    with pytest.raises(ValueError, match=sentence):
        check(replace(config(), **changes))


def test_training_lowers_the_loss_from_one():
    """The network begins near 0, and these data have the root mean square 1 that the column is told."""
    data = Images(torch.tensor([0, 16], dtype=torch.uint8).reshape(2, 1, 1, 1).expand(2, *tiny.SHAPE), 17)
    whole = config(EDMConfig(column_options={"sigma_data": 1.0}), images=640, lr=1e-2, ramp=0)
    state = tiny.fresh(whole)
    sigma = torch.logspace(-1, 1, 200, dtype=torch.float64)
    x0 = data.x.repeat(100, 1, 1, 1)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    loss = lambda: state.model.eval()(x0, sigma, noise)["loss"].mean().item()
    assert loss() == pytest.approx(1, abs=0.03)
    train(state, data, whole.training)
    assert loss() < 0.7


def test_a_resumed_run_equals_an_unbroken_one(tmp_path):
    """σ and the warps are drawn anew from (seed, images seen) at every step, so a break changes no bit."""
    whole = config()
    unbroken = train(tiny.fresh(whole), images(), whole.training)
    train(tiny.fresh(whole), images(), replace(whole.training, images=80), tmp_path, tiny.describe(whole))
    state = tiny.fresh(whole, seed=1)
    assert resume(state, tmp_path)
    train(state, images(), whole.training)
    expected, found = tiny.weights(unbroken), tiny.weights(state)
    assert all(torch.equal(expected[key], found[key]) for key in expected) and state.images == 160
