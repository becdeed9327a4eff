"""Reading a prepared set: the same as the images in memory, one gather a batch, and no more memory than that."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from minidiff import Shards, held_out, load_data, prepare_images
from minidiff.data import prepare as module
from minidiff.data.shards import damaged, read_card

N = 70


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x, y = rng.integers(256, size=(N, 8, 8, 3), dtype=np.uint8), rng.integers(4, size=N)
    return {"images": x, "labels": y, "test_images": x[:30] ^ 255, "test_labels": y[:30]}


@pytest.fixture
def folder(arrays, tmp_path, monkeypatch) -> Path:
    """70 images in shards of 16, without a test set of their own; some.npz beside it holds the same."""
    monkeypatch.setattr(module, "SHARD", 16 * 3 * 8 * 8)
    np.savez(tmp_path / "some.npz", images=arrays["images"], labels=arrays["labels"])
    prepare_images(tmp_path / "some.npz", tmp_path / "some", 8, workers=1)
    return tmp_path / "some"


def test_a_gather_from_several_files_is_the_gather_from_all_of_them(generator):
    x = torch.randint(256, (40, 3, 4, 5), generator=generator).to(torch.uint8)
    shards = Shards([part.numpy() for part in x.split([7, 0, 20, 1, 12, 0])])  # some hold none
    assert len(shards) == 40 and shards.shape == x.shape
    places = torch.randint(-40, 40, (200,), generator=generator)
    for index in (
        places,
        places.reshape(10, 20),
        torch.tensor([], dtype=torch.long),
        slice(None),
        slice(30, 3, 1),
        8,
        -1,
    ):
        assert torch.equal(shards[index], x[index])
    order = torch.randperm(40, generator=generator)[:25]
    part = shards.part(order)
    assert part.shape == (25, 3, 4, 5)
    assert torch.equal(part[:], x[order]) and torch.equal(part.part(torch.arange(5))[2:4], x[order[2:4]])
    with pytest.raises(IndexError):
        part[torch.tensor([25])]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"flip": True},
        {"labels": True, "drop_labels": 0.5},
        {"flip": True, "crop": 0.7, "low_res": 2},
        {"augment": 0.8, "labels": True},
    ],
)
def test_batches_are_those_of_the_same_images_in_memory(options, folder):
    for split in ("train", "test"):
        on_disk, in_memory = (load_data(source, split, **options) for source in (folder, folder.parent / "some.npz"))
        assert len(on_disk.pixels.maps) == 5 and (on_disk.shape, on_disk.levels) == (in_memory.shape, in_memory.levels)
        assert len(on_disk) == len(in_memory) == len(held_out(N, split))
        index = torch.randint(len(on_disk), (50,), generator=torch.Generator().manual_seed(1))
        (x, cond), (y, told) = (each.batch(index, torch.Generator().manual_seed(2)) for each in (on_disk, in_memory))
        assert torch.equal(x, y) and cond.keys() == told.keys()
        assert all(torch.equal(cond[key], told[key]) for key in told)
        assert torch.equal(on_disk.x, in_memory.x) and torch.equal(on_disk.labels, in_memory.labels)


def test_a_test_set_of_its_own_is_what_is_held_out(arrays, tmp_path):
    np.savez(tmp_path / "both.npz", **arrays)
    prepare_images(tmp_path / "both.npz", tmp_path / "both", 8, workers=1)
    for split, prefix in (("train", ""), ("test", "test_")):
        images = load_data(tmp_path / "both", split)
        np.testing.assert_array_equal(images.pixels[:].numpy(), arrays[f"{prefix}images"].transpose(0, 3, 1, 2))
        np.testing.assert_array_equal(images.labels.numpy(), arrays[f"{prefix}labels"])


def test_a_batch_can_be_changed_and_the_files_can_not(folder):
    images = load_data(folder)
    before = images.pixels[:].clone()
    images.pixels[:].fill_(0)
    assert torch.equal(images.pixels[:], before)
    with pytest.raises(ValueError, match="read-only"):
        images.pixels.maps[0][0] = 0


def test_options_that_fit_no_image_are_refused_as_for_other_sets(folder, tmp_path):
    with pytest.raises(ValueError, match=r"data\.low_res=3"):
        load_data(folder, low_res=3)
    np.savez(tmp_path / "plain.npz", images=np.zeros((20, 8, 8), np.uint8))
    prepare_images(tmp_path / "plain.npz", tmp_path / "plain", 8, workers=1)
    with pytest.raises(ValueError, match=r"data\.labels: .*plain holds none"):
        load_data(tmp_path / "plain", labels=True)


def test_every_bit_counts_and_every_file(folder):
    card = read_card(folder)
    files = sorted(path.name for path in folder.glob("*.npy"))
    assert len(files) == 6 and damaged(folder, card) == []
    for name in files:
        good = (folder / name).read_bytes()
        for bad in (good[:-1] + bytes([good[-1] ^ 1]), good[:-1], None):
            (folder / name).unlink() if bad is None else (folder / name).write_bytes(bad)
            assert damaged(folder, card) == [name]
            (folder / name).write_bytes(good)


def spoil_no_card(folder: Path) -> None:
    (folder / "card.json").rename(folder / "unfinished.json")


def spoil_nothing_at_all(folder: Path) -> None:
    (folder / "card.json").unlink()


def spoil_card_cut(folder: Path) -> None:
    (folder / "card.json").write_text((folder / "card.json").read_text()[:200])


def spoil_card_of_another_version(folder: Path) -> None:
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | {"format": 99}))


def spoil_shard_cut(folder: Path) -> None:
    os.truncate(folder / "train-00003.npy", 1000)


def spoil_shard_longer(folder: Path) -> None:
    with (folder / "train-00003.npy").open("ab") as file:
        file.write(b"more")


def spoil_shard_gone(folder: Path) -> None:
    (folder / "train-00003.npy").unlink()


def spoil_shard_of_another_shape(folder: Path) -> None:
    path = folder / "train-00003.npy"
    np.save(path, np.load(path).transpose(0, 2, 3, 1))


def spoil_shard_of_another_type(folder: Path) -> None:
    path = folder / "train-00003.npy"
    np.save(path, np.load(path).view(np.int8))


def spoil_labels_gone(folder: Path) -> None:
    (folder / "train-labels.npy").unlink()


AGAIN = "Run the same minidiff prepare again"


@pytest.mark.parametrize(
    "spoil, sentence",
    [
        (spoil_no_card, rf"some is not whole: .*did not come to its end\. {AGAIN}"),
        (spoil_nothing_at_all, "some is no prepared data set.*minidiff prepare .*some OUT --size 64"),
        (spoil_card_cut, "card.json is no usable card"),
        (spoil_card_of_another_version, "format 99"),
        (spoil_shard_cut, rf"train-00003\.npy is damaged: .*{AGAIN}"),
        (spoil_shard_longer, rf"train-00003\.npy is damaged: .*{AGAIN}"),
        (spoil_shard_gone, rf"train-00003\.npy is damaged: .*{AGAIN}"),
        (spoil_shard_of_another_shape, r"train-00003\.npy is damaged: .*\(16, 8, 8, 3\)\), not .*\(16, 3, 8, 8\)"),
        (spoil_shard_of_another_type, r"train-00003\.npy is damaged: .*int8"),
        (spoil_labels_gone, rf"train-labels\.npy is damaged: .*{AGAIN}"),
    ],
)
def test_a_set_that_is_not_whole_is_refused_with_the_remedy(spoil, sentence, folder):
    spoil(folder)
    with pytest.raises(ValueError, match=sentence):
        load_data(folder)


STREAM = """
import resource, sys
import torch
from minidiff import load_data

def kilobytes(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name + ":"))

images = load_data(sys.argv[1])
generator, order = torch.Generator().manual_seed(0), torch.randperm(len(images))
images.batch(order[:64], generator)  # what is loaded once
room = 32 * 2**10
resource.setrlimit(resource.RLIMIT_DATA, ((kilobytes("VmData") + room) * 2**10,) * 2)
before, seen = kilobytes("RssAnon"), 0
for index in order.split(64):
    seen += images.batch(index, generator)[0].sum()
assert torch.isfinite(seen) and kilobytes("RssAnon") - before < room
try:
    images.pixels[:]
except MemoryError:
    print("streamed", len(images))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and limits the memory as Linux does")
def test_a_set_of_many_times_the_memory_that_is_left_streams_through(tmp_path):
    """200 MB of files in 32 MB: the process may not have more memory of its own, which is what swapping would need;
    pages of the files are the kernel's, which drops them when it likes. All images at once do not fit."""
    n = 20_000
    (tmp_path / "set").mkdir()
    entry = {"images": n, "bytes": 128 + n * 12 * 2**10, "sha256": "", "left_out": []}
    part = {"shards": {"train-00000.npy": entry}, "labels": {}, "images": n}
    card = {"format": 1, "size": 64, "channels": 3, "parts": {"train": part}}
    file = np.lib.format.open_memmap(tmp_path / "set" / "train-00000.npy", "w+", np.uint8, (n, 3, 64, 64))
    for first in range(0, n, 1000):
        file[first : first + 1000] = first // 1000
    file.flush()
    (tmp_path / "set" / "card.json").write_text(json.dumps(card))
    ended = subprocess.run(
        [sys.executable, "-c", STREAM, tmp_path / "set"], capture_output=True, text=True, env=os.environ, check=False
    )
    assert (ended.returncode, ended.stdout) == (0, "streamed 16000\n"), ended.stderr
