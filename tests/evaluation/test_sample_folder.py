"""Folders of samples: what is written comes back, whole files stay, and others are refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import files

from minidiff import Images, decode
from minidiff.evaluation import SampleFolder, open_images

MADE = {"run": "digits", "steps": "5"}


def fill(card: SampleFolder, folder, x: torch.Tensor, shards=None) -> None:
    card.begin(folder)
    for k in range(card.shards) if shards is None else shards:
        places = card.missing(folder, k)
        card.write(folder, places, x[places])


@pytest.mark.parametrize("kind", ["png", "npz"])
@pytest.mark.parametrize("shape, levels", [((1, 4, 6), 17), ((3, 4, 6), 256), ((1, 4, 6), 2), ((3, 4, 6), 255)])
def test_every_level_comes_back_from_either_kind(kind, shape, levels, tmp_path, generator):
    pixels = torch.randint(levels, (11, *shape), generator=generator)
    pixels.view(-1)[: min(levels, 200)] = torch.arange(levels)[-200:]
    x = 2 * pixels / (levels - 1) - 1 + (torch.rand(pixels.shape, generator=generator) - 0.5) * 0.9 / (levels - 1)
    card = SampleFolder(kind, 11, 3, 4, shape, levels, MADE)
    fill(card, tmp_path / "new" / "folder", x)
    found = open_images(tmp_path / "new" / "folder")
    assert (found.n, found.shape, found.levels) == (11, shape, levels)
    for first, last in ((0, 11), (2, 9), (4, 8), (10, 11)):
        assert torch.equal(found.read(first, last), pixels[first:last].to(torch.uint8))
    in_memory = open_images(Images(decode(x, levels), levels))
    assert found.hashed() == in_memory.hashed() and found.part(range(3)).hashed() == ""


def test_a_shard_of_arrays_says_its_seeds_labels_and_levels_and_is_a_set_itself(tmp_path, generator):
    x, labels = torch.rand(5, 1, 4, 4, generator=generator), torch.tensor([4, 1, 4, 1, 4])
    card = SampleFolder("npz", 5, 30, 3, (1, 4, 4), 17, MADE)
    card.begin(tmp_path)
    card.write(tmp_path, [3, 4], x[3:], labels[3:])
    file = np.load(tmp_path / "00001.npz")
    assert file["seeds"].tolist() == [33, 34] and file["labels"].tolist() == [1, 4] and file["levels"] == 17
    assert torch.equal(open_images(tmp_path / "00001.npz").read(0, 2), decode(x[3:], 17))
    assert card.missing(tmp_path, 0) == [0, 1, 2] and card.missing(tmp_path, 1) == []


def test_points_are_stored_as_they_are_and_are_no_images(tmp_path, generator):
    x = torch.randn(5, 2, generator=generator)
    card = SampleFolder("npz", 5, 0, 5, (2,), None, MADE)
    fill(card, tmp_path, x)
    np.testing.assert_array_equal(np.load(tmp_path / "00000.npz")["arr_0"], x.numpy())
    with pytest.raises(ValueError, match="which are no images"):
        open_images(tmp_path)


@pytest.mark.parametrize("kind, lost", [("png", [5]), ("npz", [4, 5, 6, 7])])
def test_what_is_lost_is_missing_and_the_rest_is_left_alone(kind, lost, tmp_path, generator):
    x = torch.rand(11, 1, 4, 4, generator=generator)
    card = SampleFolder(kind, 11, 0, 4, (1, 4, 4), 17, MADE)
    fill(card, tmp_path, x)
    before = files(tmp_path)
    gone = tmp_path / ("00001/000005.png" if kind == "png" else "00001.npz")
    gone.rename(gone.with_name(f".{gone.name}.writing"))  # as a process that was killed leaves it
    assert [card.missing(tmp_path, k) for k in range(3)] == [[], lost, []]
    with pytest.raises(ValueError, match=f"lacks {len(lost)} of its 11 samples: the same minidiff sample command"):
        open_images(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("0*.*")}
    fill(card, tmp_path, x, [1])
    assert files(tmp_path) == before and all(path.stat().st_mtime_ns == time for path, time in times.items())


@pytest.mark.parametrize(
    "change, said",
    [
        ({"made": {"run": "digits", "steps": "6"}}, "samples of steps 5, not 6"),
        ({"made": {"run": "digits"}}, "samples of steps 5, not None"),
        ({"made": {**MADE, "eta": "1"}}, "samples of eta None, not 1"),
        ({"n": 12}, "samples of n 11, not 12"),
        ({"seed": 1}, "samples of seed 0, not 1"),
        ({"shard": 5}, "samples of shard 4, not 5"),
        ({"kind": "png"}, "samples of kind npz, not png"),
    ],
)
def test_a_folder_of_other_samples_is_refused(change, said, tmp_path):
    card = SampleFolder("npz", 11, 0, 4, (1, 4, 4), 17, MADE)
    card.begin(tmp_path)
    before = files(tmp_path)
    card.begin(tmp_path)
    with pytest.raises(ValueError, match=said):
        replace(card, **change).begin(tmp_path)
    assert files(tmp_path) == before


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "letter.txt").write_text("x")
    with pytest.raises(ValueError, match="is not empty, and holds no samples"):
        SampleFolder("npz", 11, 0, 4, (1, 4, 4), 17, MADE).begin(tmp_path)
    assert list(files(tmp_path)) == ["letter.txt"]


@pytest.mark.parametrize("arguments", [((2,), None), ((4, 4, 4), 256), ((1, 4, 4), None)])
def test_what_no_png_holds_is_refused(arguments):
    with pytest.raises(ValueError, match="are no PNG images: take npz"):
        SampleFolder("png", 11, 0, 4, *arguments, MADE)
    SampleFolder("npz", 11, 0, 4, *arguments, MADE)


def test_damage_is_told(tmp_path, generator):
    x = torch.rand(4, 1, 4, 4, generator=generator)
    for kind, name in (("png", "00000/000002.png"), ("npz", "00000.npz")):
        folder = tmp_path / kind
        fill(SampleFolder(kind, 4, 0, 4, (1, 4, 4), 17, MADE), folder, x)
        (folder / name).write_bytes((folder / name).read_bytes()[:40])
        with pytest.raises(ValueError, match=f"{name} can't be read: .*Remove it, and the command"):
            open_images(folder).read(0, 4)
        for card in ("{", json.dumps({"format": 2}), json.dumps({"format": 1, "n": 3}), "[]"):
            (folder / "samples.json").write_text(card)
            with pytest.raises(ValueError, match=r"samples\.json is no card of samples"):
                open_images(folder)


def test_a_disk_that_is_full_is_told_and_leaves_no_half_file(tmp_path, monkeypatch):
    card = SampleFolder("png", 4, 0, 4, (1, 4, 4), 17, MADE)
    card.begin(tmp_path)

    def full(self, file, kind):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match=r"000000\.png can't be written: .*No space left"):
        card.write(tmp_path, [0, 1], torch.zeros(2, 1, 4, 4))
    assert list(files(tmp_path)) == ["samples.json"] and card.missing(tmp_path, 0) == [0, 1, 2, 3]
