"""``minidiff import`` and ``minidiff export``: a run that needs no flags, or one sentence and nothing else."""

import os
import pickle
from pathlib import Path

import edm_pickle
import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from published import ORDER, SMALL, contents, question, weights
from tiny import files

from minidiff import recipes
from minidiff.training import newest


@pytest.fixture
def small(monkeypatch):
    """Makes a small description the recipe ``small``."""

    def register(name: str) -> str:
        monkeypatch.setitem(recipes.RECIPES, "small", lambda: SMALL[name].config)
        monkeypatch.setitem(recipes.SETS, "small.npz", (SMALL[name].shape, SMALL[name].levels))
        return name

    return register


@pytest.fixture
def published(small, tmp_path):
    """A small published file, and its recipe under the name ``small``."""

    def write(name: str) -> str:
        small(name)
        torch.save(contents(name), tmp_path / f"{name}.pt")
        return f"{name}.pt"

    return write


@pytest.fixture
def refused(minidiff, tmp_path):
    """Run a command that must be refused; what it said."""

    def call(*arguments) -> str:
        before, there = files(tmp_path), sorted(tmp_path.rglob("*"))
        ended = minidiff(*arguments)
        assert ended.code == 2 and ended.out == ""
        assert ended.err.startswith("minidiff: ") and ended.err.count("\n") == 1
        assert files(tmp_path) == before and sorted(tmp_path.rglob("*")) == there
        return ended.err

    return call


def test_an_imported_model_samples_without_flags(minidiff, published, tmp_path):
    file = published("improved")
    ended = minidiff("import", file, "--as", "small", "run", "--attention", "legacy")
    assert ended.code == 0, ended.err
    folder = newest(tmp_path / "run")
    assert f"{folder.relative_to(tmp_path)}" in ended.out
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "ema-1000.safetensors",
        "train_state.pt",
    ]
    assert minidiff("sample", "run", "-n", 2).code == 0
    (samples,) = (tmp_path / "samples").glob("*.npz")
    assert np.load(samples)["arr_0"].shape == (2, 8, 8, 3)
    assert "improved" not in minidiff("info", "run").err


def test_its_training_cannot_go_on_but_another_can_begin_from_it(minidiff, published, tmp_path):
    assert minidiff("import", published("port"), "--as", "small", "run").code == 0
    np.savez(tmp_path / "small.npz", images=np.zeros((20, 8, 8, 3), np.uint8))
    short = "--training.images 16 --training.batch 8 --training.tick 8 --training.checkpoint 16 -n 1".split()
    ended = minidiff("train", "small", "--out", "run", "--resume")
    assert ended.code == 2 and "model" in ended.err and ended.err.count("\n") == 1
    ended = minidiff("train", "small", "--out", "next", "--init-from", "run", *short)
    assert ended.code == 0, ended.err


def test_an_exported_run_is_loaded_by_diffusers(minidiff, published):
    assert minidiff("import", published("port"), "--as", "small", "run").code == 0
    ended = minidiff("export", "run", "out")
    assert ended.code == 0 and "from_pretrained('out')" in ended.out
    theirs = UNet2DModel.from_pretrained("out").eval()
    x, t = question("port")[0]
    assert minidiff("import", "out", "--as", "small", "again").code == 0
    state = weights("port")
    assert torch.equal(theirs.state_dict()["mid_block.attentions.0.to_k.bias"], state["mid.attn_1.k.bias"])
    assert theirs(x, t).sample.isfinite().all()


def test_a_network_that_diffusers_does_not_have(refused, run):
    assert "group norms of [1, 2, 4] groups" in refused("export", "run", "out")
    assert "there is no run nowhere" in refused("export", "nowhere", "out")


def test_a_folder_that_exists_is_left_alone(refused, published, tmp_path):
    file = published("port")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    assert "mine is there already" in refused("import", file, "--as", "small", "mine")


def test_a_file_that_is_not_there(refused, small):
    small("port")
    assert "there is no file gone.pt" in refused("import", "gone.pt", "--as", "small", "run")


def test_an_unknown_recipe_names_the_nearest(refused, published):
    assert "Did you mean adm-imagenet64?" in refused("import", published("port"), "--as", "adm-imagenet46", "run")


def test_a_recipe_must_be_named(minidiff, published, tmp_path):
    ended = minidiff("import", published("port"), "run")
    assert ended.code == 2 and "--as" in ended.err and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "name, other, complaint",
    [
        ("improved", "guided-legacy", "is missing"),
        ("guided-upsampler", "guided-legacy", "has the shape (32, 6, 3, 3)"),
        ("guided-classifier", "guided-legacy", "is missing"),
        ("improved", "improved-add", "has the shape"),
        ("port", "improved", "has no UNet openai"),
        ("guided-legacy", "port", "has no UNet ddpm"),
        ("score-sde-ve", "score-sde-vp", "all_modules.0.weight is missing"),
        ("score-sde-vp", "score-sde-ve", "is missing"),
        ("score-sde-vp", "port", "has no UNet ddpm"),
        ("guided-legacy", "score-sde-vp", "has no SongUNet"),
    ],
)
def test_the_wrong_recipe(refused, published, small, name, other, complaint):
    file = published(name)
    small(other)
    order = ["--attention", ORDER[name]] if name in ORDER else []
    said = refused("import", file, "--as", "small", "run", *order)
    assert f"{file} is not a checkpoint of small" in said and complaint in said


def test_the_order_of_attention_is_asked_for(refused, published):
    said = refused("import", published("improved"), "--as", "small", "run")
    assert "--attention new" in said and "--attention legacy" in said


def test_the_order_of_attention_is_openais_alone(refused, published):
    said = refused("import", published("port"), "--as", "small", "run", "--attention", "new")
    assert "is for OpenAI's files" in said


CHANGES = {
    "is missing": lambda state: state.pop("mid.block_2.conv1.bias"),
    "nonsense is left over": lambda state: state.update(nonsense=torch.zeros(2)),
    "conv_in.weight has the shape (3, 128, 3, 3)": lambda state: state.update(
        {"conv_in.weight": state["conv_in.weight"].transpose(0, 1).contiguous()}
    ),
    "norm_out.bias has the shape (64,)": lambda state: state.update({"norm_out.bias": torch.zeros(64)}),
    "norm_out.bias is no table of numbers": lambda state: state.update({"norm_out.bias": "zero"}),
    "norm_out.weight is no table of numbers": lambda state: state.update({"norm_out.weight": torch.tensor(1.0)}),
    "conv_out.bias is no table of numbers": lambda state: state.update({"conv_out.bias": torch.zeros(3).to_sparse()}),
    "conv_in.bias is no table of numbers": lambda state: state.update(
        {"conv_in.bias": torch.zeros(128, device="meta")}
    ),
    "mid.attn_1.q.bias is no table of numbers": lambda state: state.update(
        {"mid.attn_1.q.bias": torch.zeros(128, dtype=torch.long)}
    ),
}


@pytest.mark.parametrize("complaint", CHANGES)
def test_a_tensor_amiss(refused, small, tmp_path, complaint):
    state = weights(small("port"))
    CHANGES[complaint](state)
    torch.save(state, tmp_path / "spoilt.ckpt")
    assert complaint in refused("import", "spoilt.ckpt", "--as", "small", "run")


def test_attention_whose_rows_cannot_be_split(refused, small, tmp_path):
    state = weights(small("guided-legacy"))
    state["middle_block.1.qkv.bias"] = torch.zeros(191)
    torch.save(state, tmp_path / "spoilt.pt")
    said = refused("import", "spoilt.pt", "--as", "small", "run", "--attention", "legacy")
    assert "middle_block.1.qkv.bias has the shape (191,)" in said


@pytest.mark.parametrize("what", [{}, [], {"a": torch.zeros(1)}, [1, 2], torch.zeros(3), "text", 5, {"ema": 3}])
def test_a_file_of_something_else(refused, small, tmp_path, what):
    small("port")
    torch.save(what, tmp_path / "else.pth")
    said = refused("import", "else.pth", "--as", "small", "run")
    assert "no known format" in said or "has no UNet ddpm" in said


@pytest.mark.parametrize("saved", [{"model": {}, "ema": 3}, {"ema": {"shadow_params": [1]}, "model": {"a": 2}}])
def test_a_training_state_of_something_else(refused, small, tmp_path, saved):
    small("score-sde-vp")
    torch.save(saved, tmp_path / "else.pth")
    assert "not laid out as files of score_sde" in refused("import", "else.pth", "--as", "small", "run")


@pytest.mark.parametrize("name", ["file.pt", "file.pth", "file.ckpt", "file.pkl"])
@pytest.mark.parametrize("data", [b"", b"\x80", b"not weights\n", b"\x00" * 100, b"PK\x03\x04" + b"\x00" * 60])
def test_a_file_of_other_bytes(refused, small, tmp_path, name, data):
    small("port")
    (tmp_path / name).write_bytes(data)
    assert "is not a checkpoint of small" in refused("import", name, "--as", "small", "run")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_file_cut_short(refused, published, tmp_path, share):
    data = (tmp_path / published("port")).read_bytes()
    (tmp_path / "port.pt").write_bytes(data[: int(share * len(data))])
    assert "can't be read as weights alone" in refused("import", "port.pt", "--as", "small", "run")


class Evil:
    """Makes a folder where it is unpickled as pickles are meant to be."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", ["evil.pt", "evil.pth", "evil.ckpt", "evil.pkl"])
@pytest.mark.parametrize("container", ["pickle", "torch", "old torch"])
def test_a_hostile_pickle_is_not_executed(refused, small, tmp_path, name, container):
    small("port")
    evil = {"state": weights("port")["conv_out.bias"], "trap": Evil(tmp_path / "made")}
    if container == "pickle":
        (tmp_path / name).write_bytes(pickle.dumps(evil))
    else:
        torch.save(evil, tmp_path / name, _use_new_zipfile_serialization=container == "torch")
    assert "is not a checkpoint of small" in refused("import", name, "--as", "small", "run")
    assert not (tmp_path / "made").exists()


def test_a_hostile_file_of_diffusers_is_not_executed(refused, minidiff, published, tmp_path):
    assert minidiff("import", published("port"), "--as", "small", "first").code == 0
    assert minidiff("export", "first", "hub").code == 0
    (tmp_path / "hub" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({"trap": Evil(tmp_path / "made")}, tmp_path / "hub" / "diffusion_pytorch_model.bin")
    assert "not a whole folder" in refused("import", "hub", "--as", "small", "run")
    assert not (tmp_path / "made").exists()


def test_a_pickle_of_edm_becomes_a_run(minidiff, small, tmp_path):
    small("guided-legacy")
    (tmp_path / "net.pkl").write_bytes(edm_pickle.dump(edm_pickle.adm(), trap=Evil(tmp_path / "made")))
    ended = minidiff("import", "net.pkl", "--as", "small", "run")
    assert ended.code == 0, ended.err
    assert not (tmp_path / "made").exists() and minidiff("info", "run").code == 0
