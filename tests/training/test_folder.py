"""One run in a folder, and checkpoints that go when others have come."""

import signal
import subprocess
import sys

import pytest
import tiny

from minidiff.training import Execution, begin, checkpoint, in_use, newest, train
from minidiff.training.folder import append_metrics, locked

posix = pytest.mark.skipif(sys.platform == "win32", reason="no locks there")


@posix
def test_a_second_run_in_a_folder_is_refused_and_writes_nothing(tmp_path):
    config = tiny.config()
    with locked(tmp_path):
        assert in_use(tmp_path)
        before = tiny.files(tmp_path)
        with pytest.raises(ValueError, match="is in use: another process trains there"):
            train(tiny.fresh(config), tiny.images(), config.training, tmp_path, tiny.describe(config))
        assert tiny.files(tmp_path) == before
    assert not in_use(tmp_path)
    train(tiny.fresh(config), tiny.images(), config.training, tmp_path, tiny.describe(config))


@posix
def test_a_folder_is_locked_while_a_run_trains_there_and_free_after_a_failure(tmp_path):
    config, seen = tiny.config(), []

    def fail(state):
        seen.append(in_use(tmp_path))
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        train(tiny.fresh(config), tiny.images(), config.training, tmp_path, tiny.describe(config), on_step=fail)
    assert seen == [True] and not in_use(tmp_path)


@posix
def test_who_is_killed_leaves_nothing_locked(tmp_path):
    script = (
        "import fcntl, sys, time; file = open(sys.argv[1], 'a'); fcntl.flock(file, fcntl.LOCK_EX); print(flush=True)"
    )
    command = [sys.executable, "-c", f"{script}; time.sleep(600)", tmp_path / ".lock"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        assert in_use(tmp_path)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert not in_use(tmp_path)


def test_a_folder_that_nobody_trained_in_is_not_in_use_and_stays_as_it_is(tmp_path):
    assert not in_use(tmp_path) and not in_use(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


@posix
def test_where_a_file_system_has_no_locks_training_goes_on(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("minidiff.files.fcntl.flock", no_locks)
    with locked(tmp_path):
        assert not in_use(tmp_path)


def test_metrics_that_cannot_be_written_are_named(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(OSError, match=r"metrics\.jsonl can't be written: "):
        append_metrics(tmp_path, {"images": 1})


# ---- which checkpoints stay -----------------------------------------------------------------------------------------


def counts(run) -> list[int]:
    return sorted(int(path.name) for path in (run / "checkpoints").iterdir())


@pytest.mark.parametrize(
    "keep, milestone, left",
    [
        (0, 0, [20, 48, 60, 84, 100, 124]),
        (0, 50, [20, 48, 60, 84, 100, 124]),
        (1, 0, [124]),
        (2, 0, [100, 124]),
        (9, 0, [20, 48, 60, 84, 100, 124]),
        (1, 50, [60, 100, 124]),  # the first at or above 50 and 100
        (1, 20, [20, 48, 60, 84, 100, 124]),
        (2, 60, [60, 100, 124]),
        (1, 40, [48, 84, 124]),
        (1, 1000, [124]),
    ],
)
def test_the_last_ones_stay_and_milestones(keep, milestone, left, tmp_path):
    """Whether removed one by one, as they come, or all at the end."""
    for run in (tmp_path / "one by one", tmp_path / "at once"):
        for images in (20, 48, 60, 84, 100, 124):
            (run / "checkpoints" / str(images)).mkdir(parents=True)
            (run / "checkpoints" / str(images) / "config.json").touch()
            if run.name == "one by one":
                checkpoint.prune(run, keep, milestone)
        checkpoint.prune(run, keep, milestone)
        assert counts(run) == left


def test_a_run_keeps_as_many_as_it_is_told(tmp_path):
    config = tiny.config(tick=16, checkpoint=16)
    state = tiny.fresh(config)
    state = begin(state.model, state.times, config.training, Execution(keep=2, milestone=64))
    train(state, tiny.images(), config.training, tmp_path, tiny.describe(config))
    assert counts(tmp_path) == [64, 128, 144, 160]


def test_what_is_being_removed_is_no_checkpoint(tmp_path, monkeypatch):
    """Killed in the middle, it leaves half a folder, which is not taken for a whole one, and goes at the next save."""
    config = tiny.config(images=128)
    train(tiny.fresh(config), tiny.images(), config.training, tmp_path, tiny.describe(config))
    monkeypatch.setattr("shutil.rmtree", lambda folder, **_: (folder / "config.json").unlink())
    checkpoint.prune(tmp_path, 1, 0)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {".removed-64", "128"}
    monkeypatch.undo()
    assert newest(tmp_path).name == "128"
    checkpoint.save(tmp_path, 144, tiny.describe(config), {}, {})
    assert counts(tmp_path) == [128, 144]
