"""A training process that is really killed, and resumed, ends where an unbroken one ends: bit for bit."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from cli_flags import TINY
from tiny import files

from minidiff import read_metrics
from minidiff.cli.main import main
from minidiff.training import newest

LONG = [*TINY, "--training.images", "1920", "--training.tick", "80", "--training.checkpoint", "320"]


def without_speed(run: Path) -> list[dict]:
    return tiny.without_speed(read_metrics(run))


def start_and_kill(run: Path, images: int, number: signal.Signals, *flags: str) -> tuple[int, str]:
    """A `minidiff train digits` of its own, sent a signal as soon as it reports this many images."""
    command = [sys.executable, "-m", "minidiff", "train", "digits", "--out", str(run), *LONG, *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout:
            if line.split()[:2] == [f"{images:,}", "images"]:
                process.send_signal(number)
                break
        rest = process.stdout.read()
    return process.returncode, rest


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("unbroken") / "run"
    assert main(["train", "digits", "--out", str(run), *LONG]) == 0
    return run


def test_killed_between_checkpoints_and_resumed_it_is_the_unbroken_run(unbroken, tmp_path):
    run = tmp_path / "run"
    code, _ = start_and_kill(run, 720, signal.SIGKILL)
    assert code == -signal.SIGKILL
    reached = int(newest(run).name)
    assert 640 <= reached < 1920 and not (run / "samples.png").exists()

    assert main(["train", "digits", "--out", str(run), *LONG, "--resume"]) == 0
    ours, theirs = files(newest(run)), files(newest(unbroken))
    assert ours.keys() == theirs.keys() and newest(run).name == "1920"
    for name in ("model.safetensors", "ema-50.safetensors", "config.json", "train_state.pt"):
        assert ours[name] == theirs[name], name
    assert without_speed(run) == without_speed(unbroken)
    assert (run / "samples.png").read_bytes() == (unbroken / "samples.png").read_bytes()


def test_killed_before_its_first_checkpoint_it_begins_again_with_a_clean_record(unbroken, tmp_path):
    run, flags = tmp_path / "run", ("--training.checkpoint", "100000")
    code, _ = start_and_kill(run, 160, signal.SIGKILL, *flags)
    assert code == -signal.SIGKILL and newest(run) is None
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"images": 2')  # a line that the kill cut in two
    assert main(["train", "digits", "--out", str(run), *LONG, *flags, "--resume"]) == 0
    assert [json.loads(line)["images"] for line in (run / "metrics.jsonl").open()] == list(range(80, 1921, 80))
    assert without_speed(run) == without_speed(unbroken)
    assert files(newest(run))["model.safetensors"] == files(newest(unbroken))["model.safetensors"]


def test_control_c_is_a_sentence_that_tells_how_to_go_on(tmp_path):
    far = ("--training.images", "200000")  # so that the signal finds it at work, however late it comes
    code, rest = start_and_kill(tmp_path / "run", 400, signal.SIGINT, *far)
    assert code == 130
    assert "--resume goes on" in rest and "Traceback" not in rest
    assert int(newest(tmp_path / "run").name) >= 320
