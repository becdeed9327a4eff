"""Real processes, killed, stopped, crowded and out of disk: training goes on from its last checkpoint, bit for bit."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from cli_flags import TINY
from tiny import files

from minidiff import read_metrics
from minidiff.cli.main import main
from minidiff.training import load_model, newest

resource = pytest.importorskip("resource", reason="limits are for POSIX systems")
linux = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found under /proc")

FLAGS = [*TINY, "--training.tick", "80", "--training.checkpoint", "320"]
WHOLE = ["--training.images", "1920"]
FAR = ["--training.images", "400000"]  # so that a signal finds a run at work, however late it comes
TWO = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "2", "-m"]


class Run(subprocess.Popen):
    """A `minidiff train digits --resume` of its own, under torchrun where ``launcher`` says so."""

    def __init__(self, out: Path, *flags: str, launcher: tuple[str, ...] = ()):
        command = [sys.executable, "-m", *launcher, "minidiff", "train", "digits", "--out", str(out), "--resume"]
        super().__init__([*command, *FLAGS, *flags], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def until(self, start: str) -> str:
        """Wait for a line that begins so."""
        said = []
        for line in self.stdout:
            if line.lstrip().startswith(start):
                return line
            said.append(line)
        raise AssertionError(f"it ended with {self.wait()} and without a line {start!r}:\n{''.join(said)}")

    def __exit__(self, kind: type | None, *more: object) -> None:
        """A test that failed does not wait for a run that would go on."""
        if kind is not None:
            self.terminate()
        super().__exit__(kind, *more)

    def end(self) -> tuple[int, str]:
        """Its code, and what it said to the end."""
        rest = self.stdout.read()
        return self.wait(), rest


def worker(of: Run, rank: int) -> int:
    """The process id of one of torchrun's."""
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            parent = next(line for line in status.read_text().splitlines() if line.startswith("PPid:"))
            environment = status.with_name("environ").read_bytes().split(b"\0")
        except (OSError, StopIteration):
            continue
        if int(parent.split()[1]) == of.pid and f"RANK={rank}".encode() in environment:
            return int(status.parent.name)
    raise AssertionError(f"no process of rank {rank}")


def without_speed(run: Path) -> list[dict]:
    return tiny.without_speed(read_metrics(run))


def assert_same_end(run: Path, other: Path) -> None:
    """Weights, averages, moments and samples, bit for bit."""
    ours, theirs = files(newest(run)), files(newest(other))
    assert newest(run).name == newest(other).name == "1920"
    for name in ("model.safetensors", "ema-50.safetensors", "train_state.pt"):
        assert ours[name] == theirs[name], name
    assert (run / "samples.png").read_bytes() == (other / "samples.png").read_bytes()


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """An unbroken run of one process."""
    run = tmp_path_factory.mktemp("alone") / "run"
    assert main(["train", "digits", "--out", str(run), *FLAGS, *WHOLE]) == 0
    return run


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """An unbroken run of two processes."""
    run = tmp_path_factory.mktemp("two") / "run"
    code, said = Run(run, *WHOLE, launcher=TWO).end()
    assert code == 0, said
    return run


# ---- two processes --------------------------------------------------------------------------------------------------


@linux
def test_one_of_two_killed_then_told_to_stop_then_resumed_it_is_the_unbroken_run(two, tmp_path):
    """torchrun starts both again by itself, and they go on from the last checkpoint."""
    run = tmp_path / "run"
    with Run(run, *FAR, launcher=TWO) as broken:
        broken.until("400 images")
        os.kill(worker(broken, 1), signal.SIGKILL)
        went_on = int(broken.until("going on after").split()[3].replace(",", ""))
        assert went_on >= 320 and went_on % 320 == 0
        broken.until(f"{went_on + 80:,} images")
        os.kill(worker(broken, 1), signal.SIGTERM)
        code, said = broken.end()
    assert code == 0 and "Traceback" not in said
    stopped = int(newest(run).name)
    assert f"stopped by SIGTERM after {stopped:,} images; the same command with --resume goes on." in said
    assert went_on + 80 <= stopped < 1920 and not (run / "samples.png").exists()

    code, said = Run(run, *WHOLE, launcher=TWO).end()
    assert code == 0 and f"going on after {stopped:,} images" in said
    assert_same_end(run, two)
    tick = next(n for n in range(80, 1921, 80) if n >= stopped)  # the stop cut this one's mean in two
    ours, theirs = ([line for line in without_speed(each) if line["images"] % 80 == 0] for each in (run, two))
    assert [line for line in ours if line["images"] != tick] == [line for line in theirs if line["images"] != tick]


def test_two_processes_have_the_batches_of_one(two, alone):
    """Other draws, and so other losses, but the same clock."""
    lines = [[(line["images"], line["lr"]) for line in read_metrics(run)] for run in (two, alone)]
    assert lines[0] == lines[1]
    assert files(newest(two))["config.json"] == files(newest(alone))["config.json"]
    assert not torch.equal(*(load_model(run)[0].net.conv_in.weight for run in (two, alone)))


def test_one_process_goes_on_with_what_two_began_in_portions(two, tmp_path):
    run = tmp_path / "run"
    for folder in (two / "checkpoints").iterdir():
        if int(folder.name) <= 960:
            target = run / "checkpoints" / folder.name
            target.mkdir(parents=True)
            for path in folder.iterdir():
                (target / path.name).write_bytes(path.read_bytes())
    (run / "metrics.jsonl").write_bytes((two / "metrics.jsonl").read_bytes())
    assert main(["train", "digits", "--out", str(run), *FLAGS, *WHOLE, "--resume", "--micro", "4"]) == 0
    ours, theirs = without_speed(run), without_speed(two)
    assert ours[:12] == theirs[:12] and ours[12:] != theirs[12:]
    assert [(line["images"], line["lr"]) for line in ours] == [(line["images"], line["lr"]) for line in theirs]


# ---- one process ----------------------------------------------------------------------------------------------------


def test_told_to_stop_it_saves_and_ends_well_within_the_step(alone, tmp_path):
    run = tmp_path / "run"
    with Run(run, *FAR) as broken:
        broken.until("240 images")
        broken.send_signal(signal.SIGTERM)
        code, said = broken.end()
    stopped = int(newest(run).name)
    assert code == 0 and f"stopped by SIGTERM after {stopped:,} images" in said and 240 < stopped < 1920
    assert not (run / "samples.png").exists()
    assert main(["train", "digits", "--out", str(run), *FLAGS, *WHOLE, "--resume"]) == 0
    assert_same_end(run, alone)


@linux
def test_a_second_run_is_refused_and_a_full_disk_leaves_the_last_checkpoint(alone, tmp_path, capsys):
    """The limit on a file's size stands in for a full disk: writing fails in the same places."""
    run = tmp_path / "run"
    with Run(run, *FAR) as first:
        first.until("400 images")
        assert main(["train", "digits", "--out", str(run), *FLAGS, *FAR, "--resume"]) == 2
        assert f"{run} is in use: another process trains there" in capsys.readouterr().err
        resource.prlimit(first.pid, resource.RLIMIT_FSIZE, (5000, 5000))
        code, said = first.end()
    assert code == 1 and "Traceback" not in said
    assert f"minidiff train: {run}" in said and "can't be written" in said and "File too large" in said
    latest = newest(run)
    assert int(latest.name) >= 320 and list(latest.parent.glob(".*")) == []
    load_model(run)
    assert main(["train", "digits", "--out", str(run), *FLAGS, *WHOLE, "--resume"]) == 0
    assert_same_end(run, alone)


# ---- what the command line adds -------------------------------------------------------------------------------------


def test_checkpoints_that_are_not_to_stay_go(tmp_path):
    run = tmp_path / "run"
    flags = ["--keep", "1", "--milestone", "640", "--training.images", "1920"]
    assert main(["train", "digits", "--out", str(run), *FLAGS, *flags]) == 0
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"640", "1280", "1920"}
    assert [line["images"] for line in read_metrics(run)] == list(range(80, 1921, 80))


def test_how_a_run_is_run_is_told_and_may_change(minidiff):
    ended = minidiff("train", "digits", "--out", "run", *TINY, "--precision", "bf16", "--micro", 4)
    assert ended.code == 0 and "in bfloat16: as asked for" in ended.out
    ended = minidiff("train", "digits", "--out", "run", *TINY, "--training.images", 128, "--resume", "--deterministic")
    assert ended.code == 0 and "in float32: a CPU gains little by less" in ended.out and "going on" in ended.out


@pytest.mark.parametrize(
    "flags, said",
    [(("--micro", 5), "micro=5: 16 examples a process"), (("--keep", -1), "keep=-1"), (("--micro", -2), "micro=-2")],
)
def test_numbers_that_no_run_can_have_are_refused(flags, said, minidiff, tmp_path):
    ended = minidiff("train", "digits", "--out", "run", *TINY, *flags)
    assert ended.code == 2 and said in ended.err and list(tmp_path.iterdir()) == []


def test_one_command_begins_with_other_weights_and_goes_on_with_its_own(minidiff, run):
    """So that a launcher may repeat it."""
    line = ("train", "digits", "--out", "next", *TINY, "--resume", "--init-from", run)
    assert minidiff(*line).code == 0
    assert minidiff("train", "digits", "--out", "same", *TINY, "--init-from", run).code == 0
    assert files(newest(Path("next")))["model.safetensors"] == files(newest(Path("same")))["model.safetensors"]
    ended = minidiff(*line)
    assert ended.code == 0 and "already trained on 96 images" in ended.out
