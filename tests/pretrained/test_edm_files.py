"""EDM's pickles: the weights come out, the networks answer rightly, and nothing in the file is executed."""

import io
import os
import pickle
import sys
from dataclasses import replace
from pathlib import Path

import edm_pickle
import pytest
import torch
from published import GOLDEN, SMALL, question
from test_importing import gap

from minidiff import EDMConfig, IDDPMPath, load
from minidiff.pretrained import edm, import_checkpoint

NETWORKS = {
    "score-sde-vp": lambda: edm_pickle.song(ve=False),
    "score-sde-ve": lambda: edm_pickle.song(ve=True),
    "guided-legacy": edm_pickle.adm,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_edm_answers_as_the_one_it_was_made_from(name, tmp_path):
    """SongUNets go through the layout of the score SDEs' code, ADM through that of guided-diffusion."""
    (tmp_path / "net.pkl").write_bytes(edm_pickle.dump(NETWORKS[name]()))
    import_checkpoint(tmp_path / "net.pkl", SMALL[name], tmp_path / "run")
    model, _ = load(tmp_path / "run")
    given, cond = question(name)
    assert gap(model.net(*given, **cond), GOLDEN[name]) < 1e-5
    assert not Path("executed").exists() and "torch_utils" not in sys.modules and "dnnlib" not in sys.modules


def write(folder: Path, state: dict) -> Path:
    (folder / "net.pkl").write_bytes(edm_pickle.dump(state))
    return folder / "net.pkl"


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"model.enc.4x4_down.conv0.resample_filter": torch.full((1, 1, 2, 2), 0.3)}, "not the filter"),
        ({"model.enc.4x4_down.skip.resample_filter": torch.full((1, 1, 4, 4), 1 / 16)}, "not the filter"),
        ({"u": IDDPMPath().u.float() * 1.01}, "u, are not those of iDDPM"),
        ({"u": IDDPMPath().u[1:]}, "u, are not those of iDDPM"),
        ({"model.dec.8x8_up.extra.weight": torch.zeros(3)}, "extra.weight is left over"),
        ({"model.map_layer0.weight": torch.zeros(3, 3)}, r"map_layer0.weight has the shape \(3, 3\)"),
        ({"model.dec.4x4_in0.qkv.weight": torch.zeros(190, 64, 1, 1)}, r"qkv.weight has the shape \(190, 64"),
    ],
)
def test_what_differs_is_refused(change, complaint, tmp_path):
    file = write(tmp_path, edm_pickle.adm() | change)
    with pytest.raises(ValueError, match=complaint):
        import_checkpoint(file, SMALL["guided-legacy"], tmp_path / "run")
    assert list(tmp_path.iterdir()) == [file]


def test_noise_levels_of_iddpm_are_recognised(tmp_path):
    """The official table is computed in float32, where its last levels lose digits (facts: 0.0064223)."""
    u = IDDPMPath().u.clone()
    u[997:1000] = torch.tensor([0.0117644, 0.0093477, 0.0064223])
    small = SMALL["guided-legacy"]
    small = replace(small, config=replace(small.config, process=EDMConfig("iddpm", learned_variance=True)))
    import_checkpoint(write(tmp_path, {"u": u.float(), **edm_pickle.adm()}), small, tmp_path / "run")
    assert load(tmp_path / "run")[1] == small


class Evil:
    """Makes a file where it is unpickled as pickles are meant to be."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_the_trap_works_where_it_is_sprung(tmp_path):
    pickle.loads(pickle.dumps(Evil(tmp_path / "made")))
    assert (tmp_path / "made").exists()


def test_code_beside_the_weights_is_not_executed(tmp_path):
    evil = Evil(tmp_path / "made")
    (tmp_path / "net.pkl").write_bytes(edm_pickle.dump(edm_pickle.adm(), loss_fn=evil, augment_pipe=[evil, {1: evil}]))
    import_checkpoint(tmp_path / "net.pkl", SMALL["guided-legacy"], tmp_path / "run")
    assert not (tmp_path / "made").exists()


def rebuilt(storage: bytes, size: tuple[int, ...]):
    """A pickle of one parameter, whose numbers are these bytes."""

    class Stored:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (storage,)

    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Stored(), 0, size, (1,) * len(size), False, {})

    tables = {"_parameters": {"weight": Tensor()}, "_buffers": {}, "_modules": {}}
    with edm_pickle.official_modules():
        module = edm_pickle.Persistent()
        module.__dict__ = tables
        return pickle.dumps({"ema": module})


def storage(n: int) -> bytes:
    buffer = io.BytesIO()
    torch.save(torch.arange(float(n))._typed_storage(), buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def test_numbers_are_read_from_torchs_own_bytes(tmp_path):
    (tmp_path / "a.pkl").write_bytes(rebuilt(storage(4), (3,)))
    assert torch.equal(edm.read(tmp_path / "a.pkl")["weight"], torch.arange(3.0))


@pytest.mark.parametrize("part", ["whole", "storage", "shape", "function", "attribute"])
def test_hostile_files_are_refused_and_do_nothing(part, tmp_path):
    evil = Evil(tmp_path / "made")
    data = {
        "whole": lambda: pickle.dumps(evil),
        "storage": lambda: rebuilt(pickle.dumps(evil, protocol=2), (3,)),
        "shape": lambda: rebuilt(storage(4), (5,)),
        "function": lambda: pickle.dumps({"ema": evil}),
        "attribute": lambda: b'\x80\x04cbuiltins\neval\n(S\'__import__("os").mkdir("made")\'\ntR.',
    }[part]()
    (tmp_path / "net.pkl").write_bytes(data)
    with pytest.raises(ValueError, match="holds no averaged network of EDM's"):
        edm.read(tmp_path / "net.pkl")
    assert [path.name for path in tmp_path.iterdir()] == ["net.pkl"]


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.9999])
def test_a_file_cut_short_is_refused(share, tmp_path):
    data = edm_pickle.dump(edm_pickle.song(ve=False))
    (tmp_path / "net.pkl").write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match="holds no averaged network of EDM's"):
        edm.read(tmp_path / "net.pkl")


def test_a_hostile_file_leaves_nothing_behind_for_the_next(tmp_path):
    """A pickle may set attributes of what it looked up; the next file must not see them."""
    poison = b"\x80\x02ctorch._utils\n_rebuild_parameter\n(N}U\x0c__defaults__(K\x01tstb."
    (tmp_path / "poison.pkl").write_bytes(poison)
    with pytest.raises(ValueError, match="holds no averaged"):
        edm.read(tmp_path / "poison.pkl")
    (tmp_path / "a.pkl").write_bytes(rebuilt(storage(4), (3,)))
    assert torch.equal(edm.read(tmp_path / "a.pkl")["weight"], torch.arange(3.0))
