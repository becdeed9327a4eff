"""What the commands do when all is well."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_flags import TINY
from matplotlib.image import imread
from tiny import files

from minidiff import Bound, UNet, decode, digits, generate, likelihood_bound, load, read_metrics, strata
from minidiff.cli.likelihood import table
from minidiff.cli.main import COMMANDS


def test_training_leaves_checkpoint_metrics_and_pictures_and_says_where(minidiff):
    ended = minidiff("train", "digits", "--out", "a/b", *TINY)
    assert ended.code == 0
    for path in ("a/b/checkpoints/96", "a/b/metrics.jsonl", "a/b/loss.png", "a/b/samples.png"):
        assert path in ended.out and Path(path).exists()
    assert [line["images"] for line in read_metrics(Path("a/b"))] == [16, 32, 48, 64, 80, 96]
    assert imread("a/b/samples.png").shape[:2] == (64 + 8, 2 * 64 + 12)  # two digits of 64 pixels, 4 between


def test_training_finds_its_own_folder(minidiff):
    assert minidiff("train", "digits", *TINY, "--training.images", 16).code == 0
    assert Path("runs/digits/checkpoints/16").is_dir()


def test_every_number_of_a_recipe_can_be_changed_and_is_kept(run):
    _, description = load(run)
    config = description.config
    assert (config.process.T, config.network.mult, config.network.dropout) == (30, (1, 2), 0.2)
    assert (config.training.images, config.training.ema, config.recipe) == (96, (50,), "digits")
    assert (description.shape, description.levels) == ((1, 8, 8), 17)


def test_a_finished_run_can_be_asked_for_again(minidiff, run):
    before = files(run)
    ended = minidiff("train", "digits", "--out", run, *TINY, "--resume")
    assert ended.code == 0 and "already trained on 96 images" in ended.out
    assert files(run) == before


def test_a_run_goes_on_with_its_own_settings_and_nothing_is_retyped(minidiff, run):
    before = files(run)
    ended = minidiff("train", "digits", "--out", run, "--resume", "-n", 4)
    assert ended.code == 0 and "already trained on 96 images" in ended.out and files(run).keys() == before.keys()
    other = minidiff("train", "ddpm-cifar10", "--out", run, "--resume")
    assert other.code == 2 and "is a run of digits, not of ddpm-cifar10" in other.err


def test_a_run_can_be_made_longer(minidiff, run):
    ended = minidiff("train", "digits", "--out", run, *TINY, "--resume", "--training.images", 128)
    assert ended.code == 0
    assert [line["images"] for line in read_metrics(run)][-3:] == [96, 112, 128]


def test_resume_begins_where_there_is_nothing_to_resume(minidiff):
    ended = minidiff("train", "digits", "--out", "new", *TINY, "--resume", "--training.images", 32)
    assert ended.code == 0 and Path("new/checkpoints/32").is_dir()


def test_init_from_takes_the_averaged_weights_and_nothing_else(minidiff, run):
    ended = minidiff(
        *("train", "digits", "--out", "next", *TINY, "--init-from", run),
        *("--training.images", 16, "--training.lr", 1e-30, "--training.ramp", 0),
    )
    assert ended.code == 0
    donor, next_one = load(run)[0].state_dict(), load("next", weights="model")[0].state_dict()
    assert all(torch.equal(value, donor[key]) for key, value in next_one.items())
    assert [line["images"] for line in read_metrics(Path("next"))] == [16]


def test_samples_are_the_same_whatever_their_number(minidiff, run):
    few, many = minidiff("sample", run, "-n", 2), minidiff("sample", run, "-n", 5, "--batch", 3)
    assert few.code == many.code == 0
    stem = f"samples/{run.parts[-2]}-run-seed0-n"  # so that runs of one name in two places keep their own
    assert f"{stem}2.png" in few.out and f"{stem}2.npz" in few.out
    two, five = np.load(f"{stem}2.npz"), np.load(f"{stem}5.npz")
    assert five["arr_0"].shape == (5, 8, 8, 1) and five["arr_0"].dtype == np.uint8 and five["arr_0"].max() <= 16
    np.testing.assert_array_equal(two["arr_0"], five["arr_0"][:2])
    assert five["seeds"].tolist() == [0, 1, 2, 3, 4]
    assert imread(f"{stem}5.png").shape[:2] == (2 * 68 + 4, 3 * 68 + 4)


def test_the_seed_is_that_of_the_first_image_and_weights_can_be_named(minidiff, run):
    assert minidiff("sample", run, "-n", 2, "--seed", 7, "--weights", "model", "--out", "here").code == 0
    model, description = load(run, "model")
    expected = decode(generate(model.process, model.net, description.shape, [7, 8]), 17)
    stored = np.load(f"here/{run.parts[-2]}-run-model-seed7-n2.npz")["arr_0"]
    np.testing.assert_array_equal(stored[..., 0], expected[:, 0].numpy())


def test_likelihood_prints_terms_that_add_up_to_the_bound(minidiff, run):
    ended = minidiff("likelihood", run, "-n", 20, "--count", 12, "--seed", 3)
    assert ended.code == 0
    *rows, last = ended.out.splitlines()
    numbers = [float(re.search(r"(-?\d+\.\d{4})$", row).group(1)) for row in rows]
    total, error = map(float, re.search(r"(\d+\.\d{4}) ± (\d+\.\d{4}) .*20 held-out", last).groups())
    assert sum(numbers) == pytest.approx(total, abs=5e-5 * (len(rows) + 1))
    assert rows[0].startswith("L_T") and rows[1].startswith("t = 1, the decoder")
    spans = [tuple(map(int, re.match(r"t = (\d+) … (\d+)", row).groups())) for row in rows[2:]]
    assert [1, *(last for _, last in spans)] == [first - 1 for first, _ in spans] + [30]  # every step in one row

    model, _ = load(run)
    generator = torch.Generator().manual_seed(3)
    bound = likelihood_bound(model.process, model.net, digits("test").x[:20].double(), generator, 12)
    assert (total, error) == pytest.approx((bound.total, bound.error), abs=6e-5)
    assert numbers[1] == pytest.approx(bound.terms[0].item(), abs=6e-5)


def test_the_network_sees_no_more_examples_than_it_is_given_at_a_time(minidiff, run, monkeypatch):
    sizes, forward = set(), UNet.forward
    monkeypatch.setattr(UNet, "forward", lambda self, x, t: sizes.add(len(x)) or forward(self, x, t))
    whole, parts = (minidiff("likelihood", run, "-n", 20, "--count", 5, "--batch", batch) for batch in (500, 6))
    assert sizes == {20, 6, 2} and whole.code == 0 and whole.out == parts.out


@pytest.mark.parametrize("T, count", [(1000, 100), (300, 300), (101, 101), (40, 7)])
def test_every_step_is_in_one_row_of_the_table(T, count, generator):
    edges = strata(T, count)
    terms = torch.rand(len(edges) - 1, generator=generator)
    prior = torch.full((4,), 0.25)
    bound = Bound(prior + terms.sum(), prior, edges, terms, terms, terms, terms)
    *rows, last = table(bound, 4, T).splitlines()
    assert sum(float(row.split()[-1]) for row in rows) == pytest.approx(0.25 + terms.sum().item(), abs=5e-4)
    assert f"{0.25 + terms.sum().item():.4f}" in last
    steps = [range(int(a), int(b) + 1) for a, b in re.findall(r"t = (\d+) … (\d+)", "\n".join(rows))]
    assert [1, *(t for part in steps for t in part)] == list(range(1, T + 1))


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_lists_the_commands(minidiff, arguments):
    ended = minidiff(*arguments)
    assert ended.code == 0 and ended.err == ""
    assert all(re.search(rf"^  {name} ", ended.out, re.MULTILINE) for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(minidiff, name):
    ended = minidiff(name, "--help")
    assert ended.code == 0 and "usage: minidiff " + name in ended.out


def test_both_ways_to_start_are_the_same_program():
    script = Path(sys.executable).parent / "minidiff"
    shown = [
        subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
        for command in ([script], [sys.executable, "-m", "minidiff"])
    ]
    assert shown[0] == shown[1] and "minidiff COMMAND" in shown[0]
