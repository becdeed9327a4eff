"""Preparing: ADM's crop against other implementations, every kind of source, and a kill at every moment."""

import gzip
import io
import json
import multiprocessing
import os
import pickle
import signal
import struct
import tarfile
import time
import zipfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from photographs import CORRUPT, OTHER, photographs
from PIL import Image
from torch.nn import functional as F

from minidiff import load_data, prepare_images
from minidiff.data import prepare as module
from minidiff.data.centre_crop import centre_crop


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return photographs(tmp_path_factory.mktemp("photographs"))


@pytest.fixture
def small_shards(monkeypatch):
    """30 images of 8×8 a shard, 7 a task."""
    monkeypatch.setattr(module, "SHARD", 30 * 3 * 8 * 8)
    monkeypatch.setattr(module, "CHUNK", 7)


def everything(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def whole(folder: Path, part: str = "train") -> np.ndarray:
    """All images of a part, straight from the files."""
    card = json.loads((folder / "card.json").read_text())
    return np.concatenate([np.load(folder / name) for name in card["parts"][part]["shards"]])


# ---- one image ------------------------------------------------------------------------------------------------------


def test_an_image_of_four_times_the_size_is_the_mean_of_its_squares(generator):
    """Two halvings by a box filter and nothing else; multiples of 16 have means without rounding."""
    pixels = 16 * torch.randint(16, (3, 64, 96), generator=generator)
    image = Image.fromarray(pixels.permute(1, 2, 0).to(torch.uint8).numpy())
    found = torch.from_numpy(np.array(centre_crop(image, 16))).permute(2, 0, 1)
    assert torch.equal(found.float(), F.avg_pool2d(pixels.float(), 4)[:, :, 4:20])


@pytest.mark.parametrize(
    "height, width, size", [(75, 100, 48), (100, 75, 48), (95, 130, 48), (20, 31, 32), (33, 32, 32)]
)
def test_an_image_of_less_than_twice_the_size_is_resampled_once_and_cropped_in_the_middle(height, width, size):
    """Against torch, whose formula is the same; Pillow rounds after each axis (and clamps: not here)."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(80, 176, size=(height, width, 3), dtype=np.uint8)
    scale = size / min(height, width)
    shape = round(height * scale), round(width * scale)
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    resampled = F.interpolate(x, shape, mode="bicubic", antialias=True, align_corners=False)[0]
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    expected = resampled[:, top : top + size, left : left + size]
    found = torch.from_numpy(np.array(centre_crop(Image.fromarray(pixels), size))).permute(2, 0, 1).float()
    assert (found - expected).abs().max() <= 1.2 and (found - expected).abs().mean() < 0.4


def test_twice_the_size_is_halved_and_one_pixel_less_is_not():
    """Stripes one pixel wide are grey after a box filter of two; bicubic at nearly that ratio leaves a beat."""
    stripes = lambda n: Image.fromarray(np.tile(np.uint8([0, 255]), (n, n))[:, :n])
    halved, not_halved = (np.array(centre_crop(stripes(n), 32)) for n in (64, 63))
    assert np.ptp(halved) == 0 and np.ptp(not_halved) > 10


def test_an_image_of_the_size_keeps_its_bits():
    pixels = np.random.default_rng(0).integers(256, size=(32, 32, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.array(centre_crop(Image.fromarray(pixels), 32)), pixels)


def flat(mode: str, colour) -> Image.Image:
    image = Image.new(mode, (20, 24), colour)
    if mode == "P":
        image.putpalette([0] * 9 + [200, 30, 60])
        image.info["transparency"] = bytes([255, 255, 255, 10])
    return image


ONE = {  # mode: colour as stored, and what it is in RGB
    "RGB": ((200, 30, 60), (200, 30, 60)),
    "RGBA": ((200, 30, 60, 10), (200, 30, 60)),
    "CMYK": ((55, 225, 195, 0), (200, 30, 60)),
    "P": (3, (200, 30, 60)),
    "L": (77, (77, 77, 77)),
    "LA": ((77, 5), (77, 77, 77)),
    "1": (1, (255, 255, 255)),
    "I;16": (0xABCD, (0xAB, 0xAB, 0xAB)),
}


@pytest.mark.parametrize("grey", [False, True])
def test_every_mode_becomes_the_same_8_bits(grey, tmp_path):
    (source := tmp_path / "source").mkdir()
    for mode, (colour, _) in ONE.items():
        flat(mode, colour).save(source / f"{mode.replace(';', '')}.{'tif' if mode == 'CMYK' else 'png'}")
    card = prepare_images(source, tmp_path / "out", 16, grey=grey, workers=1)
    assert card["classes"] is None and card["parts"]["train"]["labels"] == {}
    pixels = whole(tmp_path / "out")
    assert pixels.shape == (len(ONE), 1 if grey else 3, 16, 16)
    for mode, found in zip(sorted(mode.replace(";", "") for mode in ONE), pixels, strict=True):
        red, green, blue = ONE["I;16" if mode == "I16" else mode][1]
        expected = [round(0.299 * red + 0.587 * green + 0.114 * blue)] if grey else [red, green, blue]
        assert found.reshape(len(expected), -1).T.tolist() == [expected] * 256, mode


def test_an_orientation_in_exif_is_not_heeded(tmp_path):
    (source := tmp_path / "source").mkdir()
    image, exif = Image.new("L", (32, 32)), Image.Exif()
    image.paste(255, (0, 0, 32, 16))  # white above
    exif[0x0112] = 6  # turn by a quarter before showing
    for k in range(5):
        image.save(source / f"{k}.jpg", exif=exif)
    prepare_images(source, tmp_path / "turned", 32, workers=1)
    first = whole(tmp_path / "turned")[0]
    assert first[:, :15].min() > 240 and first[:, 17:].max() < 15


def test_floating_point_is_refused_because_nothing_says_what_is_white(tmp_path):
    (source := tmp_path / "source").mkdir()
    for k in range(6):
        image = Image.new("F", (9, 9), 0.5) if k == 3 else Image.new("L", (9, 9))
        image.save(source / f"{k}.tif")
    with pytest.raises(OSError, match=r"1 corrupt images .*\n  3\.tif: .*mode F, which does not say what is white"):
        prepare_images(source, tmp_path / "floating", 8, workers=1)


# ---- a folder as people have them -----------------------------------------------------------------------------------


def test_all_that_is_corrupt_is_listed_before_anything_is_left_out(folder, tmp_path, small_shards):
    out = tmp_path / "out"
    with pytest.raises(OSError, match="4 corrupt images") as caught:
        prepare_images(folder, out, 8, workers=1)
    assert [line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:-1]] == CORRUPT
    with pytest.raises(ValueError, match=r"out is not whole.*Run the same minidiff prepare again"):
        load_data(out)

    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.npy")}
    card = prepare_images(folder, out, 8, skip_corrupt=True, workers=1)
    assert len(before) == 4 and all((out / name).stat().st_mtime_ns == time for name, time in before.items())
    shards = card["parts"]["train"]["shards"].values()
    left_out = [(name, why is None) for shard in shards for _, name, why in shard["left_out"]]
    assert sorted(left_out) == sorted([(name, False) for name in CORRUPT] + [(name, True) for name in OTHER])
    assert card["classes"] == ["china", "flower"] and card["parts"]["train"]["images"] == 96


def test_images_and_labels_are_those_of_the_files_in_the_order_of_their_names(folder, tmp_path, small_shards):
    prepare_images(folder, tmp_path / "out", 8, skip_corrupt=True, workers=2)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("[!.]*") if path.is_file())
    names = [name for name in names if name not in [*CORRUPT, *OTHER]]
    labels = np.load(tmp_path / "out" / "train-labels.npy")
    assert labels.tolist() == [0 if name.startswith("china") else 1 for name in names]
    for name, found in zip(names, whole(tmp_path / "out"), strict=True):
        with Image.open(folder / name) as image:
            if image.mode != "I;16":
                np.testing.assert_array_equal(np.array(centre_crop(image.convert("RGB"), 8)), found.transpose(1, 2, 0))


def test_the_bytes_are_the_same_for_any_number_of_processes_and_from_a_zip(folder, tmp_path, small_shards):
    for workers in (1, 3):
        prepare_images(folder, tmp_path / str(workers), 8, skip_corrupt=True, workers=workers)
    assert everything(tmp_path / "1") == everything(tmp_path / "3")
    with zipfile.ZipFile(tmp_path / "all.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.rglob("*"), reverse=True):
            file.write(path, f"photographs/{path.relative_to(folder)}")
        file.writestr("__MACOSX/photographs/._a.png", b"left by some program")
    prepare_images(tmp_path / "all.zip", tmp_path / "zip", 8, skip_corrupt=True, workers=2)
    first, second = everything(tmp_path / "1"), everything(tmp_path / "zip")
    assert first.pop("card.json") != second.pop("card.json") and first == second


# ---- two at once ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="no locks there")
def test_a_second_one_in_the_same_folder_is_refused_and_writes_nothing(folder, tmp_path, small_shards):
    said = []

    def meanwhile(done: int, total: int) -> None:
        before = everything(tmp_path / "out")
        with pytest.raises(ValueError, match="out is in use: another process prepares images there"):
            prepare_images(folder, tmp_path / "out", 8, skip_corrupt=True, workers=1)
        assert everything(tmp_path / "out") == before
        said.append(done)

    prepare_images(folder, tmp_path / "out", 8, skip_corrupt=True, workers=1, on_images=meanwhile)
    prepare_images(folder, tmp_path / "alone", 8, skip_corrupt=True, workers=1)
    assert len(said) > 2 and everything(tmp_path / "out") == everything(tmp_path / "alone")


# ---- a kill at every moment -----------------------------------------------------------------------------------------


def killed(source: Path, out: Path, moment: int, halfway: bool) -> tuple[bool, set[int]]:
    """Prepare in a process of its own, which kills itself at its n-th write; was it killed, and who were its workers.

    Halfway is with half of the file written under another name; otherwise the file is whole, and not yet renamed.
    """
    told, tell = multiprocessing.Pipe(duplex=False)

    def child() -> None:
        count, replace = 0, os.replace

        def dangerous(temporary, path) -> None:
            nonlocal count
            if count == moment:
                if halfway and Path(temporary).name.startswith("."):  # the last one renames the card, which is whole
                    os.truncate(temporary, os.path.getsize(temporary) // 2)
                tell.send({each.pid for each in multiprocessing.active_children()})
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            replace(temporary, path)

        os.replace = dangerous
        prepare_images(source, out, 8, skip_corrupt=True, workers=2)
        tell.send(set())

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    tell.close()
    workers = told.recv()
    process.join()
    for _ in range(600):  # the workers end when they see that nobody waits for them, and the folder is free
        if not any(Path(f"/proc/{pid}").exists() and not is_zombie(pid) for pid in workers):
            return process.exitcode == -signal.SIGKILL, workers
        time.sleep(0.1)
    raise AssertionError(f"of the workers {workers} some live on")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the process that is killed is a copy of this one")
@pytest.mark.parametrize("halfway", [False, True])
def test_killed_at_any_write_and_called_again_it_makes_the_same_bytes(halfway, folder, tmp_path, small_shards):
    prepare_images(folder, tmp_path / "unbroken", 8, skip_corrupt=True, workers=1)
    expected, moment, out = everything(tmp_path / "unbroken"), 0, tmp_path / "often killed"
    ended, workers = False, set()
    while not ended:  # in a folder of its own each, and once more in one that is killed again and again
        alone = tmp_path / str(moment)
        was_killed, left = killed(folder, alone, moment, halfway)
        ended = not was_killed
        if was_killed:
            assert not (alone / "card.json").exists()
            killed(folder, out, 2, halfway)  # the third write is past the first shard that is not kept
        prepare_images(folder, alone, 8, skip_corrupt=True, workers=1)
        assert {name: data for name, data in everything(alone).items() if name[0] != "."} == expected, moment
        moment, workers = moment + 1, workers | left
    assert moment == 13  # two writes a shard, and the card: begun, complete, renamed; the labels; one run to the end
    prepare_images(folder, out, 8, skip_corrupt=True, workers=1)
    assert {name: data for name, data in everything(out).items() if name[0] != "."} == expected
    assert len(workers) >= 2


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def test_what_is_damaged_later_is_made_anew_and_the_rest_is_kept(folder, tmp_path, small_shards):
    out = tmp_path / "out"
    prepare_images(folder, out, 8, skip_corrupt=True, workers=1)
    expected, when = everything(out), (out / "train-00000.npy").stat().st_mtime_ns
    for name in ("train-00002.npy", "train-labels.npy"):
        data = bytearray(expected[name])
        data[-1] ^= 1
        (out / name).write_bytes(data)
        prepare_images(folder, out, 8, skip_corrupt=True, workers=1)
        assert everything(out) == expected
    assert (out / "train-00000.npy").stat().st_mtime_ns == when


# ---- data sets that come as arrays ----------------------------------------------------------------------------------


def test_arrays_come_back_bit_by_bit_with_their_labels_and_their_own_test(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.integers(256, size=(70, 8, 8, 3), dtype=np.uint8), rng.integers(9, size=70)
    x_test, y_test = x[:20] ^ 255, y[:20]
    np.savez(tmp_path / "ours.npz", images=x, labels=y, test_images=x_test, test_labels=y_test)
    np.savez_compressed(tmp_path / "theirs.npz", x, y)
    prepare_images(tmp_path / "ours.npz", tmp_path / "ours", 8, workers=1)
    prepare_images(tmp_path / "theirs.npz", tmp_path / "theirs", 8, workers=2)
    for name, split, pixels, labels in (
        ("ours", "train", x, y),
        ("ours", "test", x_test, y_test),
        ("theirs", "train", x, y),
    ):
        np.testing.assert_array_equal(whole(tmp_path / name, split), pixels.transpose(0, 3, 1, 2))
        np.testing.assert_array_equal(np.load(tmp_path / name / f"{split}-labels.npy"), labels)
    assert not (tmp_path / "theirs" / "test-labels.npy").exists()


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.astype(np.uint8).tobytes()


def test_mnist_is_read_from_its_folder_and_from_one_file_packed_or_not(tmp_path):
    (source := tmp_path / "source").mkdir()
    rng = np.random.default_rng(0)
    x, y = rng.integers(256, size=(40, 8, 8), dtype=np.uint8), rng.integers(10, size=40)
    for kind, n, pack in (("train", 40, gzip.compress), ("t10k", 10, bytes)):
        suffix = ".gz" if pack is gzip.compress else ""
        (source / f"{kind}-images-idx3-ubyte{suffix}").write_bytes(pack(idx(x[:n])))
        (source / f"{kind}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(y[:n])))
    card = prepare_images(source, tmp_path / "both", 8, workers=1)
    assert {split: part["images"] for split, part in card["parts"].items()} == {"train": 40, "test": 10}
    prepare_images(source / "t10k-images-idx3-ubyte", tmp_path / "one", 8, workers=1)
    for name, split, n in (("both", "train", 40), ("both", "test", 10), ("one", "train", 10)):
        np.testing.assert_array_equal(whole(tmp_path / name, split)[:, 0], x[:n])
        np.testing.assert_array_equal(np.load(tmp_path / name / f"{split}-labels.npy"), y[:n])


class Python2(pickle._Pickler):
    """Writes every text as Python 2 wrote its strings, which is how CIFAR's files are written."""

    dispatch: ClassVar[dict] = dict(pickle._Pickler.dispatch)

    def save_text(self, text: str | bytes) -> None:
        data = text if isinstance(text, bytes) else text.encode("latin1")
        self.write(b"T" + struct.pack("<i", len(data)) + data)

    dispatch[str] = dispatch[bytes] = save_text


def python2(value) -> bytes:
    buffer = io.BytesIO()
    Python2(buffer, protocol=2).dump(value)
    return buffer.getvalue().replace(b"numpy._core.", b"numpy.core.")


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("many", [False, True])
def test_cifar_is_read_from_its_archive(many, tmp_path):
    rng = np.random.default_rng(0)
    rows, labels = rng.integers(256, size=(60, 3072), dtype=np.uint8), rng.integers(3, size=60).tolist()
    told, names = ("fine_labels", "fine_label_names") if many else ("labels", "label_names")
    batch = lambda a, b: python2({"data": rows[a:b], told: labels[a:b], "filenames": ["a.png"] * (b - a)})
    if many:
        files = {"cifar-100-python/meta": python2({names: ["apple", "baby", "clock"]})}
        files |= {"cifar-100-python/test": batch(50, 60), "cifar-100-python/train": batch(0, 50)}
    else:
        files = {"c/batches.meta": python2({names: ["apple", "baby", "clock"]}), "c/test_batch": batch(50, 60)}
        files |= {f"c/data_batch_{k}": batch(10 * k - 10, 10 * k) for k in (4, 1, 5, 2, 3)}
    card = prepare_images(archive(tmp_path / "cifar.tar.gz", files), tmp_path / "out", 32, workers=1)
    assert card["classes"] == ["apple", "baby", "clock"] and card["kind"] == ("CIFAR-100" if many else "CIFAR-10")
    for split, part in (("train", slice(0, 50)), ("test", slice(50, 60))):
        np.testing.assert_array_equal(whole(tmp_path / "out", split), rows[part].reshape(-1, 3, 32, 32))
        assert np.load(tmp_path / "out" / f"{split}-labels.npy").tolist() == labels[part]


class Hostile:
    def __reduce__(self):
        return os.system, (f"touch {Path.cwd() / 'executed'}",)


def test_a_pickle_that_names_a_function_is_refused_and_nothing_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = {name: pickle.dumps(Hostile(), protocol=2) for name in ("train", "test", "meta")}
    with pytest.raises(ValueError, match=r"cifar\.tar\.gz is damaged: it asks for (posix|nt)\.system"):
        prepare_images(archive(tmp_path / "cifar.tar.gz", files), tmp_path / "out", 32)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cifar.tar.gz"]


def test_parquet_is_read_with_the_names_of_its_classes_and_its_own_test(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="pip install 'minidiff[data]'")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rng = np.random.default_rng(0)
    x, y = rng.integers(256, size=(30, 8, 8, 3), dtype=np.uint8), rng.integers(2, size=30)
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    of = lambda part: {"img": [Image.fromarray(each) for each in x[part]], "label": y[part].tolist()}
    (tmp_path / "hub").mkdir()
    for split, part in (("train", slice(0, 20)), ("test", slice(20, 30))):
        table = datasets.Dataset.from_dict(of(part), features=features)
        table.to_parquet(tmp_path / "hub" / f"{split}-00000-of-00001.parquet")
    card = prepare_images(tmp_path / "hub", tmp_path / "out", 8, workers=1)
    assert card["classes"] == ["cat", "dog"]
    prepare_images(tmp_path / "hub" / "test-00000-of-00001.parquet", tmp_path / "one", 8, workers=1)
    for name, split, part in (
        ("out", "train", slice(0, 20)),
        ("out", "test", slice(20, 30)),
        ("one", "train", slice(20, 30)),
    ):
        np.testing.assert_array_equal(whole(tmp_path / name, split), x[part].transpose(0, 3, 1, 2))
        np.testing.assert_array_equal(np.load(tmp_path / name / f"{split}-labels.npy"), y[part])


# ---- refusals -------------------------------------------------------------------------------------------------------


def a_text(path: Path) -> str:
    (path / "data").write_text("some words")
    return "data"


def an_empty_folder(path: Path) -> str:
    (path / "data").mkdir()
    return "data"


def four_images(path: Path) -> str:
    np.savez(path / "data.npz", images=np.zeros((4, 8, 8), np.uint8))
    return "data.npz"


def floating_arrays(path: Path) -> str:
    np.savez(path / "data.npz", images=np.zeros((40, 8, 8), np.float32))
    return "data.npz"


def labels_too_few(path: Path) -> str:
    np.savez(path / "data.npz", images=np.zeros((40, 8, 8), np.uint8), labels=np.zeros(39, np.int64))
    return "data.npz"


def arrays_of_other_names(path: Path) -> str:
    np.savez(path / "data.npz", mu=np.zeros(5), sigma=np.zeros(5))
    return "data.npz"


def seventeen_levels(path: Path) -> str:
    np.savez(path / "data.npz", images=np.zeros((40, 8, 8), np.uint8), levels=17)
    return "data.npz"


def half_an_archive(path: Path) -> str:
    whole = archive(path / "data", {"train": bytes(os.urandom(20_000))}).read_bytes()
    (path / "data").write_bytes(whole[:9_000])
    return "data"


def another_archive(path: Path) -> str:
    return archive(path / "data.tar.gz", {"cat.png": b"", "dog.png": b""}).name


def half_of_mnist(path: Path) -> str:
    (path / "data").write_bytes(idx(np.zeros((40, 8, 8)))[:2_000])
    return "data"


def images_beside_classes(path: Path) -> str:
    for name in ("data/cat/1.png", "data/2.png"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (9, 9)).save(path / name)
    return "data"


@pytest.mark.parametrize(
    "make, sentence",
    [
        (a_text, "data is none of what can be prepared: a folder or zip of images"),
        (an_empty_folder, "data is empty"),
        (four_images, "holds 4 images: at least 5"),
        (floating_arrays, r"must be uint8.*found float32 \(40, 8, 8\)"),
        (labels_too_few, r"one an image; found int64 \(39,\)"),
        (arrays_of_other_names, "holds mu, sigma: images are in an array images, or arr_0"),
        (seventeen_levels, "17 levels"),
        (half_an_archive, "data is damaged"),
        (another_archive, "not CIFAR-10's or CIFAR-100's"),
        (half_of_mnist, r"data is damaged: it should hold \(40, 8, 8\) bytes"),
        (images_beside_classes, r"beside them \(2.png\)"),
        (lambda path: "gone", "gone: .*no such folder or file"),
    ],
)
def test_what_can_not_be_prepared_is_refused_before_anything_is_written(make, sentence, tmp_path):
    source = tmp_path / make(tmp_path)
    with pytest.raises(ValueError, match=sentence):
        prepare_images(source, tmp_path / "out", 8)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_else_is_left_alone(folder, tmp_path):
    np.savez(tmp_path / "some.npz", images=np.zeros((40, 8, 8), np.uint8))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    for out, sentence in (("taken", "holds other files, such as thesis.tex"), ("file", "file is a file")):
        with pytest.raises(ValueError, match=sentence):
            prepare_images(tmp_path / "some.npz", tmp_path / out, 8)
    with pytest.raises(ValueError, match=r"inside lies inside of .*give a folder elsewhere"):
        prepare_images(folder, folder / "inside", 8)
    prepare_images(tmp_path / "some.npz", tmp_path / "out", 8, workers=1)
    before = everything(tmp_path / "out")
    with pytest.raises(ValueError, match="out was begun with size 8, not 4"):
        prepare_images(tmp_path / "some.npz", tmp_path / "out", 4)
    np.savez(tmp_path / "other.npz", images=np.ones((40, 8, 8), np.uint8))
    with pytest.raises(ValueError, match="out was begun with other images"):
        prepare_images(tmp_path / "other.npz", tmp_path / "out", 8)
    with pytest.raises(ValueError, match="size=0"):
        prepare_images(tmp_path / "some.npz", tmp_path / "new", 0)
    with pytest.raises(ValueError, match="workers=0"):
        prepare_images(tmp_path / "some.npz", tmp_path / "new", 8, workers=0)
    assert everything(tmp_path / "out") == before and not (tmp_path / "new").exists()
