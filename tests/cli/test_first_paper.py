"""The commands on the first paper's recipes: points, sequences and images; densities and bits."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_flags import FIRST_PAPER, TINY
from matplotlib.image import imread
from test_refusals import refused  # noqa: F401

from minidiff import (
    generate,
    likelihood_bound,
    load,
    load_data,
    null_likelihood,
    read_metrics,
    trajectory_likelihood,
)
from minidiff.training import newest

NAMES = list(FIRST_PAPER)


@pytest.mark.parametrize("name", NAMES)
def test_training_leaves_checkpoint_metrics_and_pictures(first_paper, name):
    run = first_paper[name]
    assert [folder.name for folder in sorted((run / "checkpoints").iterdir())] == ["32", "64", "96"]
    assert [line["images"] for line in read_metrics(run)] == [16, 32, 48, 64, 80, 96]
    shape = {"swissroll-sd": (480, 480), "heartbeat-sd": (5 * 8, 20 * 8), "dead-leaves-sd": (2 * 68 + 4, 3 * 68 + 4)}
    assert imread(run / "samples.png").shape[:2] == shape[name]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_in_two_parts_is_the_run_in_one(minidiff, first_paper, name):
    half = minidiff("train", name, "--out", "run", *FIRST_PAPER[name], "--training.images", 64)
    rest = minidiff("train", name, "--out", "run", "--resume", "--training.images", 96, "-n", 5)
    assert half.code == rest.code == 0 and "going on after 64 images" in rest.out
    for file in ("model.safetensors", "ema-50.safetensors", "config.json"):
        assert (newest(Path("run")) / file).read_bytes() == (newest(first_paper[name]) / file).read_bytes()
    assert Path("run/samples.png").read_bytes() == (first_paper[name] / "samples.png").read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_samples_are_those_of_their_seeds(minidiff, first_paper, name):
    ended = minidiff("sample", first_paper[name], "-n", 4, "--seed", 3, "--batch", 3, "--out", "here")
    assert ended.code == 0 and ("2 levels" if name == "heartbeat-sd" else "continuous") in ended.out
    (stored,) = Path("here").glob("*.npz")
    (picture,) = Path("here").glob("*.png")
    assert str(stored) in ended.out and str(picture) in ended.out
    model, description = load(first_paper[name])
    expected = generate(model.process, model.net, description.shape, [3, 4, 5, 6])
    found = np.load(stored)
    assert found["seeds"].tolist() == [3, 4, 5, 6] and found["arr_0"].dtype == np.float32
    expected = expected.movedim(1, -1) if expected.ndim == 4 else expected
    np.testing.assert_allclose(found["arr_0"], expected, atol=1e-5)
    if name == "heartbeat-sd":
        assert set(np.unique(found["arr_0"])) <= {0.0, 1.0}


def printed(text: str, label: str) -> list[float]:
    """The numbers of a row: bits per example, their error, bits per dimension."""
    (row,) = (line for line in text.splitlines() if line.startswith(label))
    return [float(number) for number in re.findall(r"-?\d+\.\d{4}", row)]


@pytest.mark.parametrize("name", NAMES)
def test_likelihood_prints_the_librarys_numbers(minidiff, first_paper, name):
    ended = minidiff("likelihood", first_paper[name], "-n", 30, "--count", 6, "--seed", 4, "--trajectories", 3)
    assert ended.code == 0
    model, description = load(first_paper[name])
    process, net, generator = model.process, model.net, torch.Generator().manual_seed(4)
    x0 = load_data(description.config.data.source, "test").x[:30].double()
    bound = likelihood_bound(process, net, x0, generator, 6)
    dims, null = x0[0].numel(), null_likelihood(process, x0)
    exact = trajectory_likelihood(process, net, x0, generator, 3)
    K = -dims * bound.per_example
    rows = {"K, log2 p": K, "L_null": null, "K - L_null": K - null, "log2 p by": exact.log_p}
    for label, bits in rows.items():
        expected = [bits.mean().item(), bits.std().item() / 30**0.5, bits.mean().item() / dims]
        assert printed(ended.out, label) == pytest.approx(expected, abs=6e-5)
    assert printed(ended.out, "bits/dim, at most") == pytest.approx([bound.total, bound.error], abs=6e-5)
    if name == "heartbeat-sd":
        assert printed(ended.out, "L_null")[0] == pytest.approx(-14.4386, abs=6e-5)


def test_without_trajectories_their_row_is_missing_and_nothing_else(minidiff, first_paper):
    call = lambda *more: minidiff("likelihood", first_paper["heartbeat-sd"], "-n", 5, *more).out.splitlines()
    assert call() == call("--trajectories", 2)[:-1]


@pytest.mark.parametrize("name", NAMES)
def test_info_prints_what_kinds_they_are(minidiff, first_paper, name):
    rest = "{" + minidiff("info", first_paper[name]).out.split("\n{", 1)[1]
    values = json.loads(rest)
    kinds = {
        "swissroll-sd": ("LearnedGaussianConfig", "RBFConfig", [2], None),
        "heartbeat-sd": ("BinomialConfig", "SigmoidMLPConfig", [20], 2),
        "dead-leaves-sd": ("LearnedGaussianConfig", "MultiScaleConfig", [1, 8, 8], None),
    }
    config, examples = values["config"], values["examples"]
    found = (config["process"]["kind"], config["network"]["kind"], examples["shape"], examples["levels"])
    assert found == kinds[name]


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trajectories", [1, -2])
def test_trajectories_that_cannot_be_counted(refused, first_paper, trajectories):  # noqa: F811
    said = refused("likelihood", first_paper["heartbeat-sd"], "--trajectories", trajectories)
    assert f"--trajectories {trajectories}: at least 2, or 0" in said


def test_trajectories_of_grey_levels(refused, run):  # noqa: F811
    assert "ends on grey levels" in refused("likelihood", run, "--trajectories", 5)


@pytest.mark.parametrize("name, other", [("heartbeat-sd", "swiss-roll"), ("swissroll-sd", "heartbeat")])
def test_a_bound_of_other_data(refused, first_paper, name, other):  # noqa: F811
    said = refused("likelihood", first_paper[name], "--data", other)
    assert "(2,) in no levels" in said or "(20,) in 2 levels" in said
    assert "mean nothing" in said


@pytest.mark.parametrize(
    "name, change, sentence",
    [
        ("heartbeat-sd", ("--data.source", "swiss-roll"), "data of 0 and 1; these have no levels"),
        ("digits", ("--data.source", "dead-leaves-8"), "take LearnedGaussian"),
        ("swissroll-sd", ("--data.source", "dead-leaves-8"), r"(1, 8, 8): RBF takes (dim,)"),
        ("dead-leaves-sd", ("--data.source", "swiss-roll"), r"(2,): MultiScale takes (channel, height, width)"),
        ("dead-leaves-sd", ("--data.source", "dead-leaves-9"), "9×9: both sides must divide by 2 with scales=2"),
        ("heartbeat-sd", ("--process.m", 0), "m=0"),
        ("swissroll-sd", ("--process.schedule", "harmonic"), "process.schedule_options={'first': 0.0001"),
        ("swissroll-sd", ("--process.T", 1), "T=1"),
        ("swissroll-sd", ("--data.source", "dead-leaves-4"), "sides of 8 to 256"),
    ],
)
def test_data_and_processes_that_do_not_fit(refused, name, change, sentence):  # noqa: F811
    flags = TINY if name == "digits" else FIRST_PAPER[name]
    assert sentence in refused("train", name, "--out", "x", *flags, *change)


@pytest.mark.parametrize(
    "name, change", [("heartbeat-sd", ("--process.m", 0.3)), ("swissroll-sd", ("--process.no-learn-betas",))]
)
def test_a_run_is_resumed_with_its_own_process(refused, first_paper, name, change):  # noqa: F811
    said = refused("train", name, "--out", first_paper[name], "--resume", *change)
    assert "was trained with other settings (process." in said


def test_weights_of_another_prediction(refused, first_paper):  # noqa: F811
    said = refused(
        *("train", "swissroll-sd", "--out", "x", *FIRST_PAPER["swissroll-sd"]),
        *("--process.predict", "pull", "--init-from", first_paper["swissroll-sd"]),
    )
    assert "its process.predict is shift, not pull" in said
