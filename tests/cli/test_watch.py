"""What one sees while a run trains, and what ``minidiff plot`` draws of it; watching changes no bit of it."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_flags import TINY
from matplotlib.image import imread
from test_refusals import refused  # noqa: F401
from tiny import files, without_speed

from minidiff import ddim, generate, load, plots, read_metrics, subsequence
from minidiff.cli import plot
from minidiff.cli.watch import samples
from minidiff.data import load_data
from minidiff.evaluation import level_losses
from minidiff.training import newest

# ---- a line a tick --------------------------------------------------------------------------------------------------


def test_a_printed_line_a_tick_says_how_fast_and_how_large(minidiff):
    ended = minidiff("train", "digits", "--out", "run", *TINY)
    lines = [line for line in ended.out.splitlines() if "images   loss" in line]
    told = read_metrics(Path("run"))
    assert [int(line.split()[0]) for line in lines] == [line["images"] for line in told] == [16, 32, 48, 64, 80, 96]
    for line, known in zip(lines, told, strict=True):
        assert f"loss {known['loss']:.4f}   {known['images_per_second']:.0f}/s" in line
        assert "FLOP/s   " in line and line.endswith("iB")


# ---- grids of samples -----------------------------------------------------------------------------------------------


def test_grids_come_at_ticks_of_raw_and_averaged_weights_and_change_nothing(minidiff, run):
    """Every 40 images, where ticks are 16 apart."""
    assert minidiff("train", "digits", "--out", "watched", *TINY, "--samples-every", 40).code == 0
    names = [f"{images}-{kind}.png" for images in (48, 80) for kind in ("raw", "ema")]
    assert sorted(files(Path("watched/samples"))) == sorted(names)
    ours, theirs = files(newest(Path("watched"))), files(newest(run))
    assert ours == theirs  # dropout too goes on as if nothing had been drawn
    assert without_speed(read_metrics(Path("watched"))) == without_speed(read_metrics(run))


@pytest.mark.parametrize("kind, weights", [("raw", "model"), ("ema", "ema-50")])
def test_a_grid_is_of_fixed_seeds_in_few_steps(minidiff, kind, weights):
    assert minidiff("train", "digits", "--out", "run", *TINY, "--samples-every", 32).code == 0
    model, description = load("run", weights)
    few = lambda process, net, start, noise: ddim(process, net, start, noise, subsequence(30, 25))
    x = generate(model.process, model.net, description.shape, range(2), sampler=few)
    plots.save_samples(x, "expected.png", 17)
    assert Path(f"run/samples/96-{kind}.png").read_bytes() == Path("expected.png").read_bytes()


def test_a_run_that_is_resumed_goes_on_with_its_grids(minidiff):
    flags = ("train", "digits", "--out", "run", *TINY, "--samples-every", 32)
    assert minidiff(*flags, "--training.images", 64).code == 0
    before = files(Path("run/samples"))
    assert minidiff(*flags, "--resume", "--training.images", 96).code == 0
    after = files(Path("run/samples"))
    assert before.items() <= after.items() and after.keys() - before.keys() == {"96-raw.png", "96-ema.png"}


def test_edm_takes_its_own_steps_and_two_stages_the_datas_small_images():
    for name in ("digits-edm", "digits-classes", "mnist16-upsample"):
        model, description = load(name)
        data = description.config.data
        images = load_data(data.source, labels=data.labels, low_res=data.low_res)
        model.net.register_forward_hook(lambda *_, calls=(calls := []): calls.append(1))
        x = samples(model, description, images, 3, few=True)
        assert len(calls) == (2 * model.process.steps - 1 if name == "digits-edm" else 25)
        assert x.shape == (3, *description.shape) and x.isfinite().all()


def test_points_and_bits_are_drawn_too(minidiff):
    flags = [*"--process.T 6 --network.units 5 --training.images 32 --training.batch 16 --training.tick 16".split()]
    assert minidiff("train", "swissroll-sd", "--out", "run", *flags, "-n", 5, "--samples-every", 16).code == 0
    assert len(files(Path("run/samples"))) == 4


def test_what_can_not_be_watched_is_refused(refused, monkeypatch):  # noqa: F811
    assert "--samples-every -1" in refused("train", "digits", "--out", "x", *TINY, "--samples-every", -1)
    said = refused("train", "digits-classifier", "--out", "x", "--device", "cpu", "--samples-every", 8)
    assert "a classifier of noisy images draws none" in said
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said = refused("train", "digits", "--out", "x", *TINY, "--tensorboard")
    assert "--tensorboard: the package is not installed. Run pip install tensorboard" in said


# ---- TensorBoard ----------------------------------------------------------------------------------------------------


def test_tensorboard_has_what_metrics_have_also_after_a_run_was_cut_back(minidiff):
    pytest.importorskip("tensorboard", reason="the extra dev has it")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    flags = ("train", "digits", "--out", "run", *TINY, "--tensorboard", "--samples-every", 48, "--resume")
    assert minidiff(*flags, "--training.images", 80, "--training.checkpoint", 64).code == 0
    (newest(Path("run"))).rename("gone")  # so that it goes on from 64
    assert minidiff(*flags, "--training.checkpoint", 64).code == 0
    events = EventAccumulator("run/tensorboard")
    events.Reload()
    metrics = read_metrics(Path("run"))
    for key in metrics[0].keys() - {"images"}:
        found = [(each.step, each.value) for each in events.Scalars(key)]
        assert [step for step, _ in found] == [line["images"] for line in metrics] == [16, 32, 48, 64, 80, 96]
        assert [value for _, value in found] == pytest.approx([line[key] for line in metrics], rel=1e-6)
    assert [each.step for each in events.Images("samples/ema")] == [48, 96]


def test_without_being_asked_there_is_no_tensorboard(run):
    assert not (run / "tensorboard").exists() and not (run / "samples").exists()


# ---- plot -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def axes(monkeypatch):
    """The panels of the last picture, by what is on their axis upwards."""
    kept = []
    monkeypatch.setattr(plots.plt, "close", kept.append)
    yield lambda: {(ax.get_ylabel(), ax.get_xlabel()): ax for ax in kept[-1].axes if ax.axison}
    monkeypatch.undo()
    plots.plt.close("all")


def test_a_plot_shows_the_record_and_the_held_out_loss(minidiff, run, axes):
    ended = minidiff(
        "plot", run, "digits-edm", "--out", "a/plots.png", "-n", 40, "--levels", 6, "--seed", 3, "--batch", 9
    )
    assert ended.code == 0 and "picture  a/plots.png" in ended.out and imread("a/plots.png").shape[0] > 400
    panels, metrics = axes(), read_metrics(run)
    for key, label in plot.KEYS.items():
        ours, shipped = panels[label, "images seen"].lines
        np.testing.assert_array_equal(ours.get_xydata(), [[line["images"], line[key]] for line in metrics])
        assert len(shipped.get_xydata()) == 0
    held_out, (model, _) = load_data("digits", split="test").x[:40], load(run)
    steps = torch.tensor([2, 7, 12, 17, 22, 27])
    mean, error = level_losses(model.process, model.net, held_out, steps, torch.Generator().manual_seed(3))
    (curve,) = panels["held-out loss, ± its error", "t"].lines
    np.testing.assert_allclose(curve.get_xydata(), torch.stack([steps, mean], 1), rtol=1e-5)
    (band,) = panels["held-out loss, ± its error", "t"].collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.max() == pytest.approx((mean + error).max().item(), rel=1e-5)
    assert heights.min() == pytest.approx((mean - error).min().item(), rel=1e-5)
    ax = panels["held-out loss, ± its error", "σ"]
    sigmas = ax.lines[0].get_xdata()
    config = load("digits-edm")[1].config.process.column_options
    middle = np.exp(config.get("P_mean", -1.2))
    assert np.sqrt(sigmas[2] * sigmas[3]) == pytest.approx(middle, rel=1e-6) and ax.get_xscale() == "log"  # quantiles


def test_every_kind_of_run_is_drawn(minidiff, first_paper, axes):
    assert minidiff("plot", *first_paper.values(), "digits-classifier", "--levels", 3, "-n", 8).code == 0
    (panel,) = (ax for (label, _), ax in axes().items() if label.startswith("held-out"))
    assert len(panel.lines) == len(first_paper) + 1
    assert all(np.isfinite(line.get_ydata()).all() for line in panel.lines)


def test_a_record_from_before_a_key_is_drawn_without_it(minidiff, run, axes):
    lines = [{"images": 16, "loss": 1.0, "lr": 0.1}, *read_metrics(run)[1:]]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert minidiff("plot", run, "-n", 2, "--levels", 2).code == 0
    assert len(axes()["norm of the gradient", "images seen"].lines[0].get_xydata()) == len(lines) - 1


def test_a_long_path_leaves_the_panels_their_size(minidiff, run, axes):
    """Matplotlib warns where a panel has no room left, and a warning fails a test."""
    named = Path("runs", "a" * 100, "b" * 100)
    named.parent.mkdir(parents=True)
    named.symlink_to(run)
    assert minidiff("plot", named, "-n", 2, "--levels", 2).code == 0
    assert all(ax.get_position().width > 0.3 for ax in axes().values())


def test_what_can_not_be_drawn_is_refused(refused, run):  # noqa: F811
    assert "name at least one run" in refused("plot")
    assert "named twice" in refused("plot", run, run)
    assert "ends in .png, .svg, .pdf" in refused("plot", run, "--out", "plots.jpeg")
    assert "n and levels ≥ 2" in refused("plot", run, "--levels", 1)
    assert "was trained on (1, 8, 8) in 17 levels, not (1, 28, 28)" in refused("plot", run, "--data", "mnist")
