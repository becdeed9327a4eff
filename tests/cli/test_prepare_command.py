"""``minidiff prepare`` as people call it: a folder as it is, in a process of its own, then a run that trains on it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_flags import TINY
from photographs import CORRUPT, photographs


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return photographs(tmp_path_factory.mktemp("photographs") / "photos")


def in_a_process(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "minidiff", "prepare", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_hundred_files_of_all_kinds_in_a_process_of_its_own(folder, tmp_path):
    out = tmp_path / "out"
    ended = in_a_process(folder, out, "--size", 16, "--workers", 2)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr and ended.stdout == ""
    assert all(f"\n  {name}: " in ended.stderr for name in CORRUPT) and "again with --skip-corrupt" in ended.stderr
    ended = in_a_process(folder, out, "--size", 16, "--skip-corrupt")
    assert (ended.returncode, ended.stderr) == (0, "")
    for line in (
        f"{out}: images of 16×16 in 3 channels",
        "images     96, of which a fifth is held out",
        "classes    2: china, flower",
        "left out   4 corrupt, 2 other files; named in card.json",
        f"to train   --data.source {out}",
    ):
        assert line in ended.stdout


def test_what_was_prepared_is_checked_trained_on_and_mended(folder, minidiff):
    assert minidiff("prepare", folder, "small", "--size", 8, "--skip-corrupt", "--workers", 1).code == 0
    assert minidiff("prepare", "--check", "small").out.endswith("all checksums are right\n")
    labelled = ["--data.labels", "--network.classes", 2]
    ended = minidiff("train", "digits", *TINY, *labelled, "--data.source", "small", "--out", "run")
    assert ended.code == 0 and Path("run/samples.png").exists()

    path = Path("small/train-00000.npy")
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    ended = minidiff("prepare", "small", "--check")
    assert ended.code == 1 and f"checksums differ: train-00000.npy. It was made of {folder}. Run the same" in ended.err
    assert minidiff("prepare", folder, "small", "--size", 8, "--skip-corrupt", "--workers", 1).code == 0
    assert path.read_bytes() == good and minidiff("prepare", "small", "--check").code == 0


def test_a_test_set_of_its_own_is_counted_and_grey_is_one_channel(minidiff):
    x = np.random.default_rng(0).integers(256, size=(30, 8, 8, 3), dtype=np.uint8)
    np.savez("both.npz", images=x, test_images=x[:7])
    ended = minidiff("prepare", "both.npz", "both", "--size", 4, "--grey", "--workers", 1)
    assert "both: images of 4×4 in 1 channels\n  images     30 of train, 7 of test\n  to train" in ended.out


def test_what_was_typed_wrongly_is_a_sentence_with_nothing_written(folder, minidiff):
    for arguments, sentence in (
        ((folder,), "OUT --size 64"),
        ((folder, "out", "--size", 0), "size=0"),
        ((folder, "out", "--workers", 0), "workers=0"),
        (("--check", folder), "is no prepared data set"),
        (("--check", folder, "out"), "takes a prepared folder alone"),
        (("no/such/photos", "out"), "no/such/photos"),
    ):
        ended = minidiff("prepare", *arguments)
        assert ended.code == 2 and sentence in ended.err and ended.err.count("\n") == 1, ended.err
    assert list(Path().iterdir()) == []
