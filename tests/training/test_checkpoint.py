"""Checkpoints: whole or not there, whoever kills the writer; and a sentence for everything that is not one."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from minidiff import begin, resume, train
from minidiff.training import checkpoint, load_model, newest


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run with checkpoints after 64, 128 and 160 images."""
    config, run = tiny.config(), tmp_path_factory.mktemp("trained")
    train(tiny.fresh(config), tiny.images(), config.training, run, tiny.describe(config))
    return run


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


# ---- reading back ---------------------------------------------------------------------------------------------------


def test_a_folder_holds_weights_averages_configuration_and_state(run):
    assert newest(run) == run / "checkpoints" / "160"
    assert {path.name for path in newest(run).iterdir()} == {
        "model.safetensors",
        "ema-50.safetensors",
        "ema-2000.safetensors",
        "config.json",
        "train_state.pt",
    }


@pytest.mark.parametrize("weights, file", [(None, "ema-2000"), ("model", "model"), ("ema-50", "ema-50")])
def test_weights_are_the_longest_average_unless_named(run, weights, file):
    expected = load_file(newest(run) / f"{file}.safetensors")
    for path in (run, str(run), newest(run)):
        model, description = load_model(path, weights)
        assert model.state_dict().keys() == expected.keys()
        assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert (description.config, description.shape, description.levels) == (tiny.config(), (1, 4, 4), 17)


def test_an_older_checkpoint_can_be_named(run):
    old, _ = load_model(run / "checkpoints" / "64")
    new, _ = load_model(run)
    assert not torch.equal(old.net.conv_in.weight, new.net.conv_in.weight)


def test_newest_means_most_images_and_complete(tmp_path):
    assert newest(tmp_path) is None and newest(tmp_path / "nowhere") is None
    for name in ("900", "1000", ".writing-2000", "notes"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "checkpoints" / "3000").write_text("a file")
    assert newest(tmp_path).name == "1000"


def test_weights_that_are_not_there_are_named_beside_those_that_are(run):
    with pytest.raises(ValueError, match=r"no weights 'ema-7'\. There are: ema-2000, ema-50, model") as refusal:
        load_model(run, "ema-7")
    assert "damaged" not in str(refusal.value)  # a slip of the keyboard: nothing is to be removed


@pytest.mark.parametrize("path", ["nowhere", "empty", "empty/checkpoints"])
def test_a_folder_without_checkpoint_is_refused(path, tmp_path):
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ValueError, match="no checkpoint in"):
        load_model(tmp_path / path)


# ---- a writer that is killed ----------------------------------------------------------------------------------------

WRITER = """
import os, resource, signal, sys
from pathlib import Path
import torch
import tiny
from minidiff import begin, resume
from minidiff.training import checkpoint, loop

run, config = Path(sys.argv[1]), tiny.config()
tiny.fresh(config)  # what torch imports late is imported once, before the forks

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def write(name, sabotage):
    pid = os.fork()
    if pid == 0:
        state = tiny.fresh(config)
        resume(state, run / name)
        state.images = 999
        sabotage()
        try:
            loop.save(state, run / name, tiny.describe(config))
        except OSError as error:
            print(name, "OSError", str(error).replace("\\n", " "), flush=True)
            os._exit(3)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    print(name, -status if os.WIFSIGNALED(status) else os.WEXITSTATUS(status), flush=True)

def at(owner, function):
    return lambda: setattr(owner, function, die)

def halfway(owner, function, calls):
    real, seen = getattr(owner, function), []
    def counting(*args, **kwargs):
        seen.append(args)
        return die() if len(seen) > calls else real(*args, **kwargs)
    return lambda: setattr(owner, function, counting)

def short_of_space():
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))

write("first-file", at(checkpoint, "save_file"))
write("second-file", halfway(checkpoint, "save_file", 1))
write("state", at(torch, "save"))
write("flush", at(os, "fsync"))
write("third-flush", halfway(os, "fsync", 2))
write("rename", at(Path, "rename"))
write("no-space", short_of_space)
write("unharmed", lambda: None)
"""
MOMENTS = ["first-file", "second-file", "state", "flush", "third-flush", "rename"]


@pytest.fixture(scope="module")
def writers(trained, tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """One process a moment, each killed there while it writes a checkpoint after 999 images."""
    folder = tmp_path_factory.mktemp("writers")
    for name in [*MOMENTS, "no-space", "unharmed"]:
        shutil.copytree(trained, folder / name)
    paths = [str(Path(tiny.__file__).parent), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run([sys.executable, "-c", WRITER, folder], capture_output=True, text=True, env=env, check=True)
    return folder, dict(line.split(" ", 1) for line in done.stdout.splitlines()[::-1])


@pytest.mark.parametrize("moment", MOMENTS)
def test_sigkill_while_writing_leaves_the_previous_checkpoint_whole(moment, writers, trained):
    folder, ended = writers
    run = folder / moment
    assert int(ended[moment].split()[-1]) == -signal.SIGKILL
    assert newest(run).name == "160"
    assert tiny.files(newest(run)) == tiny.files(newest(trained))
    load_model(run)


@pytest.mark.parametrize("moment", MOMENTS)
def test_after_a_kill_the_same_checkpoint_can_be_written(moment, writers, tmp_path):
    run = Path(shutil.copytree(writers[0] / moment, tmp_path / "run"))
    config, state = tiny.config(), tiny.fresh(tiny.config())
    assert list((run / "checkpoints").glob(".writing-*")) != []  # what the killed writer left
    resume(state, run)
    checkpoint.save(run, 999, tiny.describe(config), {"model": state.model.state_dict()}, {})
    assert newest(run).name == "999" and list((run / "checkpoints").glob(".*")) == []
    assert {path.name for path in newest(run).iterdir()} == {"model.safetensors", "config.json", "train_state.pt"}


def test_a_writer_that_lives_has_written(writers):
    folder, ended = writers
    assert ended["unharmed"] == "0" and newest(folder / "unharmed").name == "999"
    load_model(folder / "unharmed")


def test_a_disk_without_space_is_an_oserror_and_leaves_no_trace(writers, trained):
    folder, ended = writers
    assert ended["no-space"].startswith("OSError") and "999" in ended["no-space"]
    assert tiny.files(folder / "no-space") == tiny.files(trained)
    assert not (folder / "no-space" / "checkpoints" / ".writing-999").exists()


@pytest.mark.parametrize("function", ["save_file", "_flush"])
def test_an_oserror_on_the_way_is_passed_on(function, run, trained, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, function, fail)
    config = tiny.config()
    with pytest.raises(OSError, match=r"checkpoints/999 can't be written: .*No space left"):
        checkpoint.save(run, 999, tiny.describe(config), {"model": tiny.fresh(config).model.state_dict()}, {})
    assert tiny.files(run) == tiny.files(trained)


# ---- damaged and hostile files --------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("name", ["model.safetensors", "ema-50.safetensors", "train_state.pt"])
@pytest.mark.parametrize("spoil", [truncate, empty, zero])
def test_a_damaged_file_is_refused_with_the_way_back(name, spoil, run):
    spoil(newest(run) / name)
    with pytest.raises(ValueError, match=rf"160/{name}.*remove .*160 to go back"):
        resume(tiny.fresh(tiny.config()), run)
    shutil.rmtree(newest(run))
    state = tiny.fresh(tiny.config())
    assert resume(state, run) and state.images == 128 and state.metrics[-1]["images"] == 128


class Hostile:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "executed")


@pytest.mark.parametrize(
    "write, careless_read",
    [
        (torch.save, lambda path: torch.load(path, weights_only=False)),
        (lambda value, path: path.write_bytes(pickle.dumps(value, 2)), lambda path: pickle.loads(path.read_bytes())),
    ],
    ids=["torch", "pickle"],
)
def test_a_state_that_holds_code_is_refused_and_not_run(write, careless_read, run, tmp_path):
    path = newest(run) / "train_state.pt"
    write({"optimizer": Hostile(tmp_path / "proof"), "times": {}}, path)
    with pytest.raises(ValueError, match=r"train_state\.pt can't be read"):
        resume(tiny.fresh(tiny.config()), run)
    assert not (tmp_path / "proof").exists()
    careless_read(path)  # the trap is armed
    assert (tmp_path / "proof").read_text() == "executed"


@pytest.mark.parametrize("content", [{}, {"optimizer": {}, "times": {}}, [1, 2]])
def test_a_state_of_something_else_is_refused(content, run):
    torch.save(content, newest(run) / "train_state.pt")
    with pytest.raises(ValueError, match=r"train_state\.pt does not fit this run"):
        resume(tiny.fresh(tiny.config()), run)


def test_weights_of_another_network_are_refused(run):
    state = load_file(newest(run) / "ema-2000.safetensors")
    state["net.conv_in.weight"] = torch.zeros(8, 1, 3, 3)
    save_file(state, newest(run) / "ema-2000.safetensors")
    with pytest.raises(ValueError, match=r"ema-2000\.safetensors does not fit its own config\.json.*conv_in"):
        load_model(run)


def test_a_missing_average_is_refused(run):
    config = tiny.config(ema=(50, 2000, 31))
    with pytest.raises(ValueError, match="no weights 'ema-31'"):
        resume(begin(tiny.fresh(config).model, tiny.fresh(config).times, config.training), run)


def edit(run: Path, change) -> None:
    path = newest(run) / "config.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    "change, named",
    [
        (lambda v: v["config"]["network"].update(depth=3), "unknown key network.depth"),
        (lambda v: v["config"]["process"].pop("T"), "key process.T is missing"),
        (lambda v: v["config"]["training"].update(batch="big"), "training.batch='big'"),
        (lambda v: v["config"].update(network=None), "network"),
        (lambda v: v.pop("config"), "config"),
        (lambda v: v.pop("examples"), "examples"),
        (lambda v: v["examples"].update(shape=[1, 4.5, 4]), "examples"),
        (lambda v: v["examples"].update(shape=[1, -4, 4]), "examples"),
        (lambda v: v["examples"].update(shape=4), "shape|iterable"),
        (lambda v: v["examples"].pop("levels"), "levels"),
        (lambda v: v.update(format=99), "format 99, this version of minidiff reads 3"),
        (lambda v: v.pop("format"), "format None"),
        (lambda v: v["config"]["training"].update(ema=[]), "training.ema"),
    ],
)
def test_a_slip_in_the_configuration_is_refused_by_its_key(change, named, run):
    edit(run, change)
    with pytest.raises(ValueError, match=rf"config\.json is not a usable configuration: .*({named})"):
        load_model(run)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00", '{"format": 1}'])
def test_a_configuration_that_is_no_configuration_is_refused(text, run):
    (newest(run) / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json is not a usable configuration"):
        load_model(run)


def test_a_configuration_that_is_missing_is_refused(run):
    (newest(run) / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json is not a usable configuration"):
        load_model(run)


@pytest.mark.parametrize(
    "change, named",
    [
        (lambda v: v["config"]["process"].update(schedule="sine"), "process.schedule='sine'"),
        (lambda v: v["config"]["network"].update(channels=-4), "channels=-4"),
        (lambda v: v["examples"].update(shape=[4]), r"\(4,\)"),
    ],
)
def test_a_configuration_of_nothing_that_can_be_is_refused(change, named, run):
    edit(run, change)
    with pytest.raises(ValueError, match=named):
        load_model(run)


def test_a_fresh_state_does_not_train_over_a_run_that_is_further(run):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    config = tiny.config()
    with pytest.raises(ValueError, match="holds a run of 160 images: resume it, or give another folder"):
        train(tiny.fresh(config), tiny.images(), config.training, run, tiny.describe(config))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_checkpoint_that_was_being_replaced_is_found_again(run, trained):
    newest(run).rename(run / "checkpoints" / ".replaced-160")
    assert newest(run).name == "160" and tiny.files(newest(run)) == tiny.files(newest(trained))
    state = tiny.fresh(tiny.config())
    assert resume(state, run) and state.images == 160
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"64", "128", "160"}


def test_what_was_replaced_does_not_come_back(run):
    """The writer was killed after its second rename."""
    shutil.copytree(run / "checkpoints" / "128", run / "checkpoints" / ".replaced-160")
    before = tiny.files(run / "checkpoints" / "160")
    assert newest(run).name == "160" and tiny.files(newest(run)) == before


def test_whatever_a_killed_writer_left_goes_at_the_next_save(run):
    """Also where the next one is after other images."""
    for left in (".writing-150", ".removed-32", ".replaced-160"):
        (run / "checkpoints" / left).mkdir()
    checkpoint.save(run, 176, tiny.describe(tiny.config()), {}, {})
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"64", "128", "160", "176"}


def test_a_replacement_that_fails_at_the_last_moment_leaves_what_was_there(run, monkeypatch):
    folder, config, state = newest(run), tiny.config(), tiny.fresh(tiny.config())
    before = (folder / "model.safetensors").read_bytes()
    rename = Path.rename

    def fails_on_the_new_one(self, target):
        if self.name.startswith(".writing"):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails_on_the_new_one)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(run, 160, tiny.describe(config), {"model": state.model.state_dict()}, {})
    assert newest(run) == folder and (folder / "model.safetensors").read_bytes() == before
