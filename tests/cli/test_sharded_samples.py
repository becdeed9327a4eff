"""Samples in shards: any number of processes draw the same ones, and one that was killed loses no file."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_flags import TINY
from test_refusals import refused  # noqa: F401
from tiny import files

from minidiff import decode, generate, load
from minidiff.evaluation import open_images

TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "minidiff"]


def drawn(run: Path, seeds: range) -> torch.Tensor:
    model, description = load(run)
    return generate(model.process, model.net, description.shape, seeds)


@pytest.mark.parametrize("kind", ["png", "npz"])
def test_shards_hold_the_images_of_their_seeds(minidiff, run, kind):
    ended = minidiff("sample", run, "-n", 7, "--seed", 4, "--format", kind, "--shard", 3, "--batch", 2, "--out", "here")
    assert (
        ended.code == 0 and "7 to draw in this process of 1" in ended.out and "all 7 samples are in here" in ended.out
    )
    names = ["00000.npz", "00001.npz", "00002.npz"]
    names = [f"{k // 3:05d}/{k:06d}.png" for k in range(7)] if kind == "png" else names
    assert sorted(files(Path("here"))) == [*names, "samples.json"]
    found = open_images("here")
    assert found.levels == 17 and torch.equal(found.read(0, 7), decode(drawn(run, range(4, 11)), 17))
    ended = minidiff("evaluate", "here", "--reference", "digits", "--metrics", "fid")
    assert ended.code == 0 and "n = 7" in ended.out


def test_two_processes_draw_what_one_draws(minidiff, run, tmp_path):
    arguments = ("sample", str(run), "-n", "7", "--shard", "2")
    ended = subprocess.run([*TWO, *arguments, "--out", "two"], capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "4 to draw in this process of 2" in ended.stdout and "all 7 samples are in two" in ended.stdout
    assert minidiff(*arguments, "--format", "npz", "--out", "one").code == 0
    for k in range(4):
        one, two = (np.load(f"{folder}/{k:05d}.npz") for folder in ("one", "two"))
        assert one["seeds"].tolist() == two["seeds"].tolist() == list(range(2 * k, min(2 * k + 2, 7)))
        assert np.abs(one["arr_0"].astype(float) - two["arr_0"]).max() / 16 <= 1e-5
    before = files(Path("two"))
    assert minidiff(*arguments, "--format", "npz", "--out", "two").code == 0  # one finds nothing left by two
    assert files(Path("two")) == before


def test_continuous_samples_of_two_are_those_of_one_to_1e_5(minidiff, first_paper, tmp_path):
    arguments = ("sample", str(first_paper["swissroll-sd"]), "-n", "9", "--shard", "2", "--out", "two")
    ended = subprocess.run([*TWO, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    found = np.concatenate([np.load(f"two/{k:05d}.npz")["arr_0"] for k in range(5)])
    expected = drawn(first_paper["swissroll-sd"], range(9)).numpy()
    assert found.dtype == np.float32 and np.abs(found - expected).max() <= 1e-5


@pytest.mark.parametrize("kind", ["png", "npz"])
def test_killed_it_keeps_what_was_finished_and_draws_the_rest(minidiff, run, tmp_path, kind):
    arguments = [*("sample", str(run), "-n", "4000", "--shard", "8", "--batch", "4", "--format", kind, "--out", "here")]
    with subprocess.Popen([sys.executable, "-m", "minidiff", *arguments], stdout=subprocess.DEVNULL) as process:
        while len(list((tmp_path / "here").rglob(f"0*.{kind}"))) < 6 and process.poll() is None:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    there = sorted(path for path in Path("here").rglob(f"0*.{kind}"))
    assert process.returncode == -signal.SIGKILL and 6 <= len(there)
    n = max(int(path.stem) for path in there) * (8 if kind == "npz" else 1) + 10  # so that little is left to draw
    text = Path("here/samples.json").read_text().replace('"n": 4000', f'"n": {n}')
    Path("here/samples.json").write_text(text)
    kept = {
        path: (path.stat().st_mtime_ns, path.read_bytes()) for path in there if kind == "png" or int(path.stem) < n // 8
    }

    arguments[3] = str(n)
    assert minidiff(*arguments).code == 0
    assert kept == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in kept}
    found, places = open_images("here"), [0, 1, n // 2, n - 10, n - 1]
    expected = decode(drawn(run, places), 17)
    for place, image in zip(places, expected, strict=True):
        assert torch.equal(found.read(place, place + 1)[0], image)


def test_unless_told_they_are_in_a_folder_of_their_own(minidiff, run):
    assert minidiff("sample", run, "-n", 2, "--format", "npz", "--steps", 3).code == 0
    assert (Path("samples") / f"{run.parts[-2]}-run-ancestral-steps3-seed0-n2" / "00000.npz").exists()


def test_both_stages_and_classes_are_sharded(minidiff):
    flags = ("--upsample", "mnist16-upsample", "--upsample-steps", 3, "--steps", 3, "--classes", "3,7", "-n", 5)
    assert minidiff("sample", "mnist8", *flags, "--format", "npz", "--shard", 2, "--out", "here").code == 0
    assert minidiff("sample", "mnist8", *flags, "--out", "there").code == 0
    (path,) = Path("there").glob("*.npz")
    assert np.array_equal(open_images("here").read(0, 5), open_images(path).read(0, 5))
    labels = np.concatenate([np.load(f"here/{k:05d}.npz")["labels"] for k in range(3)])
    np.testing.assert_array_equal(labels, np.load(path)["labels"])


def test_what_can_not_go_on_is_refused(minidiff, run, refused, monkeypatch):  # noqa: F811
    line = ("sample", run, "-n", 6, "--format", "npz", "--shard", 3, "--out", "here")
    assert minidiff(*line).code == 0
    assert "here holds samples of steps None, not 5: give another" in refused(*line, "--steps", 5)
    assert "here holds samples of kind npz, not png" in refused(*line[:5], "png", *line[6:])
    assert "--shard 3: at least 1, and it has a meaning only with --format" in refused("sample", run, "--shard", 3)
    assert "--shard 0" in refused(*line, "--shard", 0)
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert "6 samples are 2 shards, for 3 processes. Give --shard 2 or less" in refused(*line)
    monkeypatch.delenv("WORLD_SIZE")
    assert minidiff("train", "digits", "--out", run, *TINY, "--resume", "--training.images", 128).code == 0
    assert "here holds samples of checkpoint of run 96, not 128" in refused(*line)


def test_points_are_no_pngs(refused, first_paper):  # noqa: F811
    assert "take npz" in refused("sample", first_paper["swissroll-sd"], "-n", 2, "--format", "png")
