"""Bad input: exit code 2, one sentence that names it, and not one byte written."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from cli_flags import TINY
from tiny import files

from minidiff.training import checkpoint, newest

EXTRA = [*TINY, "--training.images", "128"]


@pytest.fixture
def refused(minidiff, tmp_path):
    """Run a command that must be refused; what it said."""

    def call(*arguments) -> str:
        before = files(tmp_path)
        folders = {path for path in tmp_path.rglob("*") if path.is_dir()}
        ended = minidiff(*arguments)
        assert ended.code == 2
        assert ended.out == ""
        assert ended.err.startswith("minidiff: ") and ended.err.count("\n") == 1
        assert files(tmp_path) == before and {path for path in tmp_path.rglob("*") if path.is_dir()} == folders
        return ended.err

    return call


def test_an_unknown_command_lists_the_known(refused):
    assert "'trian'" in (said := refused("trian", "digits")) and "train, sample" in said


@pytest.mark.parametrize("near, meant", [("digit", "digits"), ("ddpm-cifar", "ddpm-cifar10"), ("celebahq", "hq256")])
def test_an_unknown_recipe_names_the_nearest(refused, near, meant):
    said = refused("train", near)
    assert repr(near) in said and f"{meant}?" in said and "ddpm-cifar10, ddpm-celebahq256" in said


def test_a_recipe_that_resembles_none_lists_all(refused):
    said = refused("train", "qqq")
    assert "Did you mean" not in said and "Known are: digits" in said


def test_a_recipe_must_be_named(refused):
    assert "name a recipe first" in refused("train", "--out", "x")


@pytest.mark.parametrize("command", ["sample", "likelihood", "info"])
def test_a_run_that_is_not_there(refused, command):
    assert "there is no run nowhere" in refused(command, "nowhere")


@pytest.mark.parametrize("command", ["sample", "likelihood", "info"])
def test_a_folder_that_is_no_run(refused, tmp_path, command):
    (tmp_path / "empty").mkdir()
    assert "no checkpoint in empty" in refused(command, "empty")


@pytest.mark.parametrize("command", ["sample", "likelihood", "info"])
def test_a_checkpoint_cut_short(refused, run, command):
    path = newest(run) / "ema-50.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    said = refused(command, run)
    assert "ema-50.safetensors can't be read" in said and "remove" in said


@pytest.mark.parametrize("name", ["model.safetensors", "train_state.pt", "config.json"])
def test_resuming_a_damaged_run(refused, run, name):
    (newest(run) / name).write_bytes(b"\x00")
    assert name in refused("train", "digits", "--out", run, *EXTRA, "--resume")


def test_weights_that_the_run_does_not_have(refused, run):
    assert "There are: ema-50, model" in refused("sample", run, "--weights", "ema-51")


def test_images_that_cannot_be_halved(refused, tmp_path):
    np.savez(tmp_path / "nine.npz", images=np.zeros((10, 9, 9), np.uint8))
    said = refused("train", "digits", "--data.source", "nine.npz", "--out", "x", *TINY)
    assert "images of 9×9: both sides must divide by 2" in said


def test_data_that_are_not_there(refused):
    assert "no data file gone.npz" in refused("train", "digits", "--data.source", "gone.npz", "--out", "x")
    assert "cifar10.npz" in refused("train", "ddpm-cifar10")


@pytest.mark.parametrize(
    "flag, value",
    [
        ("training.images", -1),
        ("training.images", 0),
        ("training.batch", -8),
        ("training.lr", -0.001),
        ("training.tick", 0),
        ("training.checkpoint", -5),
        ("training.clip-grad", -1),
        ("training.ramp", -1),
        ("training.seed", -1),
        ("training.ema", -3),
        ("samples", 0),
        ("network.channels", -4),
        ("network.channels", 6),
        ("network.blocks", 0),
        ("network.attention", 9),
        ("network.dropout", 1.5),
        ("process.T", 0),
        ("process.T", 12),
    ],
)
def test_a_number_that_cannot_be(refused, flag, value):
    said = refused("train", "digits", "--out", "x", *TINY, f"--{flag}", value)
    assert flag.split(".")[-1].replace("-", "_") in said and str(abs(value)) in said


@pytest.mark.parametrize("arguments", [("-n", -3), ("-n", 0), ("--seed", -1), ("--batch", 0)])
def test_samples_that_cannot_be_counted(refused, run, arguments):
    assert f"{arguments[0]} {arguments[1]}" in refused("sample", run, *arguments)


@pytest.mark.parametrize("arguments", [("-n", -3), ("-n", 1), ("--seed", -1), ("--count", 0), ("--count", 1)])
def test_a_bound_of_nothing(refused, run, arguments):
    assert f"{arguments[0]} {arguments[1]}" in refused("likelihood", run, *arguments)


def test_a_bound_of_other_data(refused, run, tmp_path):
    np.savez(tmp_path / "other.npz", images=np.zeros((50, 8, 8), np.uint8))
    said = refused("likelihood", run, "--data", "other.npz")
    assert "256 levels" in said and "in 17" in said


def test_a_run_that_exists_needs_resume(refused, run):
    said = refused("train", "digits", "--out", run, *EXTRA)
    assert "holds a run already" in said and "--resume" in said


@pytest.mark.parametrize(
    "changed",
    [("--training.batch", 32), ("--process.T", 40), ("--network.channels", 8), ("--training.seed", 5)],
)
def test_a_run_is_resumed_with_its_own_settings(refused, run, changed):
    said = refused("train", "digits", "--out", run, *EXTRA, "--resume", *changed)
    assert f"{changed[0][2:]}: " in said and str(changed[1]) in said


def test_weights_of_another_network(refused, run):
    said = refused("train", "digits", "--out", "x", *TINY, "--network.channels", 8, "--init-from", run)
    assert "--init-from" in said and "size mismatch" in said


def test_init_from_nowhere(refused):
    assert "nowhere" in refused("train", "digits", "--out", "x", *TINY, "--init-from", "nowhere")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device that must be missing")
@pytest.mark.parametrize("command", ["train", "sample", "likelihood"])
def test_a_device_that_is_not_there(refused, run, command):
    arguments = ("digits", "--out", "x", *TINY) if command == "train" else (run,)
    assert "--device cuda: this machine" in refused(command, *arguments, "--device", "cuda")


@pytest.mark.parametrize("command", ["train", "sample"])
def test_a_file_in_the_place_of_the_folder(refused, run, tmp_path, command):
    (tmp_path / "taken").write_text("mine")
    arguments = ("digits", *TINY) if command == "train" else (run,)
    assert "taken is a file" in refused(command, *arguments, "--out", "taken")


@pytest.mark.parametrize(
    "arguments, named",
    [
        (("train", "digits", "--training.bacth", "3"), "--training.bacth"),
        (("train", "digits", "--training.batch", "many"), "many"),
        (("sample", "digits", "--colour", "red"), "--colour"),
        (("sample",), "Folder of a run"),
        (("likelihood", "digits", "--device", "abacus"), "abacus"),
        (("recipes", "all"), "all"),
    ],
)
def test_flags_that_do_not_exist(minidiff, tmp_path, arguments, named):
    ended = minidiff(*arguments)
    assert ended.code == 2 and named in ended.err
    assert files(tmp_path) == {}


def test_a_full_disk_is_a_sentence_and_leaves_the_older_checkpoint(minidiff, run, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    ended = minidiff("train", "digits", "--out", run, *EXTRA, "--resume")
    told = f"minidiff train: {run}/checkpoints/128 can't be written: [Errno 28] No space left on device\n"
    assert (ended.code, ended.err) == (1, told)
    assert newest(run).name == "96"


def test_a_run_that_diverges_is_a_sentence_with_the_image_count(minidiff):
    ended = minidiff("train", "digits", "--out", "wild", *TINY, "--training.lr", 1e25, "--training.ramp", 0)
    assert ended.code == 1 and ended.err.count("\n") == 1
    assert "images: no update was made" in ended.err and "training.lr" in ended.err


def test_a_real_process_ends_with_the_code_and_the_sentence(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-m", "minidiff", "train", "digit"], cwd=tmp_path, capture_output=True, text=True
    )
    assert ended.returncode == 2 and ended.stdout == "" and files(tmp_path) == {}
    assert ended.stderr.startswith("minidiff: there is no recipe 'digit'. Did you mean digits?")
