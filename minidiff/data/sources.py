"""Where images come from: a folder, an archive, one of the usual files, or a Hugging Face data set."""

import gzip
import hashlib
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from .arrays import BYTES, GZIP, Parts, read_cifar, read_image_arrays, read_mnist

Item = Path | bytes | np.ndarray  # an image file, its content, or pixels (height, width) or (height, width, 3), uint8
READABLE = (
    "a folder or zip of images (a folder each class, or none), CIFAR's python archive (.tar.gz), an .npz file with "
    "images or arr_0, MNIST's idx files or their folder, parquet files, or the name of a Hugging Face data set"
)


@dataclass(frozen=True)
class Part:
    """Images in a fixed order: their names, what to make them of (``items`` of a range of places), and their classes.

    A label of −1 stands for none; ``identity`` is a digest that changes when the images do.
    """

    names: Sequence[object]
    items: Callable[[range], list[Item]]
    labels: np.ndarray | None
    identity: str


@dataclass(frozen=True)
class Source:
    """The parts of a source, ``train`` and, where it has one of its own, ``test``.

    ``mixed`` says that what is no image may lie among the images, as text files do in a folder.
    """

    kind: str
    parts: dict[str, Part]
    classes: list[str] | None = None
    channels: int = 3
    mixed: bool = False


def open_source(source: str | Path) -> Source:
    """What is at a path, told by its content, or the data set of that name on the Hugging Face hub.

    Raises ValueError for what holds no images and for a damaged file, and OSError where it can't be read.
    """
    path = Path(source)
    if not path.exists():
        return _hugging_face(str(source))
    try:
        if path.is_dir():
            return _folder(path)
        with path.open("rb") as file:
            head = file.read(4)
        if head == b"PAR1":
            return _hugging_face("parquet", data_files=str(path))
        if zipfile.is_zipfile(path):
            is_npz = {Path(name).suffix for name in zipfile.ZipFile(path).namelist()} == {".npy"}
            return _pixels(f"npz {path}", read_image_arrays(path)) if is_npz else _zip(path)
        if tarfile.is_tarfile(path):
            kind, parts, classes = read_cifar(path)
            return _pixels(f"{kind} {path}", parts, classes)
        if (gzip.open(path).read(3) if head[:2] == GZIP else head[:3]) == BYTES:
            return _pixels(f"mnist {path}", read_mnist({"train": path}))
    except (OSError, ValueError):
        raise
    except Exception as error:  # archives can be broken in many ways, and each has an exception of its own
        raise ValueError(f"{path} is damaged: {error}") from error
    raise ValueError(f"{path} is none of what can be prepared: {READABLE}.")


# ---- files of images ------------------------------------------------------------------------------------------------


def _folder(folder: Path) -> Source:
    files = sorted(path.relative_to(folder).as_posix() for path in _files(folder))
    if any(name.endswith(".parquet") for name in files):
        return _hugging_face(str(folder))
    if idx := [folder / name for name in files if re.search(r"images[-.]idx3", name)]:
        held_out = [path for path in idx if re.search("t10k|test", path.name)]
        training = [path for path in idx if path not in held_out]
        if len(training) != 1 or len(held_out) > 1:
            raise ValueError(f"{folder} holds several MNIST sets: give the file of images of one of them.")
        files = {"train": training[0]} | ({"test": held_out[0]} if held_out else {})
        return _pixels(f"mnist {folder}", read_mnist(files))
    sizes = [f"{name} {(folder / name).stat().st_size}" for name in files]
    return _images(f"folder {folder}", files, lambda places: [folder / files[k] for k in places], sizes)


def _files(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place, name) for name in names if not name.startswith("."))


def _zip(path: Path) -> Source:
    file = zipfile.ZipFile(path)  # stays open; reading from it is left to one process
    hidden = lambda name: any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)
    entries = [entry for entry in file.infolist() if not entry.is_dir() and not hidden(entry.filename)]
    entries.sort(key=lambda entry: entry.filename)
    sizes = [f"{entry.filename} {entry.file_size} {entry.CRC}" for entry in entries]
    names = [entry.filename for entry in entries]
    top = {PurePosixPath(name).parts[0] for name in names}
    if len(top) == 1 and any(len(PurePosixPath(name).parts) > 2 for name in names):
        names = [name.partition("/")[2] for name in names]  # a folder that was zipped as a whole

    def items(places: range) -> list[Item]:
        return [_content(file, entries[k]) for k in places]

    return _images(f"zip {path}", names, items, sizes)


def _content(file: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    try:
        return file.read(entry)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError):  # the last where it is encrypted
        return b""  # which is no image, and listed as such


def _images(kind: str, names: list[str], items: Callable[[range], list[Item]], sizes: list[str]) -> Source:
    """Files by their names, whose first level of folders are the classes."""
    if not names:
        raise ValueError(f"{kind} is empty: there are no images in it.")
    classes = sorted({name.split("/")[0] for name in names if "/" in name})
    places = {name: k for k, name in enumerate(classes)}
    labels = np.array([places[name.split("/")[0]] if "/" in name else -1 for name in names])
    outside = [name for name in names if "/" not in name and is_named_as_image(name)]
    if classes and outside:
        raise ValueError(
            f"{kind} holds images both in folders, which are classes, and beside them ({outside[0]}): move either away."
        )
    identity = hashlib.sha256("\n".join(sizes).encode(errors="surrogateescape")).hexdigest()
    return Source(kind.split()[0], {"train": Part(names, items, labels, identity)}, classes or None, mixed=True)


def is_named_as_image(name: str) -> bool:
    """Whether it ends as the files of a format do that Pillow knows."""
    return PurePosixPath(name).suffix.lower() in Image.registered_extensions()


# ---- arrays of images -----------------------------------------------------------------------------------------------


def _pixels(kind: str, parts: Parts, classes: list[str] | None = None) -> Source:
    """Arrays (n, height, width) or (n, height, width, channel), uint8, and their labels or None."""
    found = {}
    for split, (pixels, labels) in parts.items():
        if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or pixels.shape[3:] not in ((), (1,), (3,)):
            raise ValueError(
                f"{kind}: images must be uint8, shaped (n, height, width), or (n, height, width, channel) with 1 or 3 "
                f"channels; found {pixels.dtype} {pixels.shape}."
            )
        labels = None if labels is None else np.asarray(labels)
        numbered = labels is None or (labels.dtype.kind in "iu" and labels.min(initial=0) >= 0)
        if not numbered or (labels is not None and labels.shape != pixels.shape[:1]):
            raise ValueError(
                f"{kind}: labels must be whole numbers from 0, one an image; found {labels.dtype} {labels.shape}."
            )
        pixels = pixels[..., 0] if pixels.shape[3:] == (1,) else pixels
        digest = hashlib.sha256(f"{pixels.shape}".encode() + (b"" if labels is None else labels.tobytes()))
        digest.update(np.ascontiguousarray(pixels))
        items = lambda places, pixels=pixels: list(pixels[places.start : places.stop])
        found[split] = Part(range(len(pixels)), items, labels, digest.hexdigest())
    if len({part[0].shape[3:] == (3,) for part in parts.values()}) > 1:
        raise ValueError(f"{kind}: its images to train on are grey and those to test on coloured, or the reverse.")
    return Source(kind.split()[0], found, classes, channels=3 if parts["train"][0].shape[3:] == (3,) else 1)


# ---- Hugging Face ---------------------------------------------------------------------------------------------------


def _hugging_face(name: str, **options: str) -> Source:
    """A data set of the hub or, as the library reads them, parquet files: first column of images, first of classes."""
    try:
        import datasets  # here, because it comes with an extra
    except ImportError as error:
        raise ValueError(
            f"{name}: there is no such folder or file, and Hugging Face data sets and parquet files are read by the "
            "package datasets, which is missing: pip install 'minidiff[data]'."
        ) from error
    try:
        splits = datasets.load_dataset(name, **options)
    except Exception as error:  # of the network, of the hub, of the files; each has an exception of its own
        raise ValueError(
            f"{name}: no such folder or file, nor a data set that loads: {str(error).splitlines()[0]}"
        ) from error
    if "train" not in splits:
        raise ValueError(f"{name} has no split train, but {', '.join(splits)}.")
    features = splits["train"].features
    columns = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
    columns += [key for key, kind in features.items() if getattr(kind, "dtype", "") in ("binary", "large_binary")]
    if not columns:
        raise ValueError(f"{name} has no column of images, but {', '.join(features)}.")
    told = [key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    told += [key for key in ("label", "labels") if getattr(features.get(key), "dtype", "").startswith(("int", "uint"))]
    classes = getattr(features[told[0]], "names", None) if told else None

    def part(split: str) -> Part:
        rows = splits[split].cast_column(columns[0], datasets.Image(decode=False))
        labels = np.asarray(splits[split].with_format("numpy")[told[0]][:], np.int64) if told else None

        def items(places: range) -> list[Item]:
            found = rows[places.start : places.stop][columns[0]]
            return [(each["bytes"] or Path(each["path"] or "")) if each else b"" for each in found]

        digest = hashlib.sha256(f"{name} {options} {split} {len(rows)}".encode() + (labels.tobytes() if told else b""))
        return Part(range(len(rows)), items, labels, digest.hexdigest())

    parts = {"train": part("train")}
    for split in ("test", "validation"):
        if split in splits and "test" not in parts:
            found = part(split)
            if found.labels is None or found.labels.min(initial=0) >= 0:  # −1: the labels of a contest, kept secret
                parts["test"] = found
    return Source("Hugging Face", parts, classes)
