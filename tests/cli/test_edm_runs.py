"""EDM's runs on the command line: trained, sampled and scored with no more flags than any other."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from minidiff import (
    RECIPES,
    Config,
    DataConfig,
    EDMConfig,
    EDMPath,
    SongUNetConfig,
    TrainingConfig,
    churn,
    dpmpp,
    generate,
    load,
    per_image_noise,
    vp_column,
)
from minidiff.data import decode


def small(name: str, column: str, steps: int) -> Config:
    return Config(
        name,
        DataConfig(augment=0.2),
        EDMConfig(column, {"sigma_data": 0.85} if column == "edm" else {}, steps=steps),
        SongUNetConfig(channels=8, mult=(1, 1), blocks=1, attention=(), augment=9),
        TrainingConfig(images=64, batch=32, ramp=0, ema=(50,), tick=32, checkpoint=64),
    )


@pytest.fixture(autouse=True)
def recipes(monkeypatch):
    monkeypatch.setitem(RECIPES, "edm-small", lambda: small("edm-small", "edm", 5))
    monkeypatch.setitem(RECIPES, "vp-small", lambda: small("vp-small", "vp", 4))
    ten = lambda: replace(small("ten", "iddpm", 3), process=EDMConfig("iddpm", {"M": 10, "j_0": 1}, steps=3))
    monkeypatch.setitem(RECIPES, "iddpm-small", ten)


def test_train_then_sample_without_a_flag(minidiff, tmp_path):
    ended = minidiff("train", "edm-small", "--out", "run", "-n", 4)
    assert ended.code == 0 and (tmp_path / "run" / "samples.png").exists()
    assert minidiff("sample", "run", "-n", 3).code == 0
    assert minidiff("sample", "run", "-n", 3, "--sampler", "heun", "--steps", 5).code == 0
    assert minidiff("sample", "run", "-n", 3, "--sampler", "euler", "--steps", 9).code == 0
    usual, same, other = (
        np.load(tmp_path / "samples" / f"run{kind}-seed0-n3.npz")["arr_0"]
        for kind in ("", "-heun-steps5", "-euler-steps9")
    )
    assert np.array_equal(usual, same) and not np.array_equal(usual, other)
    model, description = load(tmp_path / "run")
    x = generate(model.process, model.net, description.shape, range(3))
    assert np.array_equal(usual, decode(x, 17).numpy().transpose(0, 2, 3, 1))


def test_another_rule_and_other_steps(minidiff, tmp_path):
    """--rho takes the noise levels of the run, and x without VP's s, which is nearly 0 at the start."""
    assert minidiff("train", "vp-small", "--out", "run").code == 0
    assert minidiff("sample", "run", "-n", 3, "--rho", 5, "--sampler", "dpmpp", "--batch", 2).code == 0
    found = np.load(tmp_path / "samples" / "run-dpmpp-rho5.0-seed0-n3.npz")["arr_0"][..., 0]
    model, description = load(tmp_path / "run")
    path, noise = model.process.path, per_image_noise(range(3), description.shape)
    low, high = (path.sigma(t).item() for t in (path.t_min, path.t_max))
    x = dpmpp(model.process.denoiser(model.net), high * noise(0), EDMPath(low, high, 5.0), 4)
    np.testing.assert_array_equal(found, decode(x.float(), 17)[:, 0].numpy())

    assert minidiff("sample", "run", "-n", 3, "--sampler", "churn", "--S-churn", 2, "--steps", 6).code == 0
    found = np.load(tmp_path / "samples" / "run-churn-steps6-S_churn2.0-seed0-n3.npz")["arr_0"][..., 0]
    start = model.process.prior.stddev * noise(0)
    x = churn(model.process.denoiser(model.net), start, noise, 6, path, 2.0)
    np.testing.assert_array_equal(found, decode(x.float(), 17)[:, 0].numpy())


def test_a_run_trained_as_another_column(minidiff, tmp_path):
    command = ("train", "edm-small", "--process.training-column", "vp", "--out", "run")
    assert minidiff(*command).code == 0 and minidiff("sample", "run", "-n", 2).code == 0
    column, vp = load(tmp_path / "run")[0].process.column, vp_column()
    u = torch.tensor([0.2, 0.7], dtype=torch.float64)
    assert torch.equal(column.quantile(u), vp.quantile(u)) and torch.equal(column.weight(u), vp.weight(u))


def test_a_resumed_run_is_the_same_run(minidiff, tmp_path):
    assert minidiff("train", "vp-small", "--out", "run").code == 0
    ended = minidiff("train", "vp-small", "--out", "run", "--resume", "--training.images", 96)
    assert ended.code == 0 and "going on after 64 images" in ended.out
    ended = minidiff("train", "vp-small", "--out", "run", "--resume", "--process.column", "ve")
    assert ended.code == 2 and "process.column: vp, ve" in ended.err


def test_likelihood_is_that_of_the_ode(minidiff):
    assert minidiff("train", "edm-small", "--out", "run").code == 0
    ended = minidiff("likelihood", "run", "-n", 2, "--ode")
    assert ended.code == 0 and "bits/dim by the ODE" in ended.out
    ended = minidiff("likelihood", "run")
    assert ended.code == 2 and "EDM has no chain and no bound: add --ode" in ended.err


def test_what_edm_has_not_is_refused(minidiff):
    assert minidiff("train", "iddpm-small", "--out", "run").code == 0
    for flags, sentence in [
        (("--sampler", "ancestral"), "--sampler ancestral: EDM has no chain; take one of euler, heun, rk2"),
        (("--sampler", "ddim"), "--sampler ddim: EDM has no chain"),
        (("--eta", 0.5), "--eta 0.5: only --sampler ddim"),
        (("--steps", "ddim25"), "--steps ddim25: heun takes a number of steps"),
        (("--steps", 0), "--steps 0: n=0"),
        (("--steps", 10), "--steps 10: n=10: from j_0=1 there are 9 levels"),
    ]:
        ended = minidiff("sample", "run", "-n", 2, *flags)
        assert ended.code == 2 and sentence in ended.err


def test_weights_of_another_column_are_refused(minidiff):
    assert minidiff("train", "vp-small", "--out", "run").code == 0
    ended = minidiff("train", "edm-small", "--out", "other", "--init-from", "run")
    assert ended.code == 2 and "its process.column is vp, not edm" in ended.err
