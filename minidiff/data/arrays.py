"""Data sets that come as arrays: .npz files, MNIST's, CIFAR's."""

import gzip
import io
import pickle
import re
import struct
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from minidiff.files import read_npz

Parts = dict[str, tuple[np.ndarray, Any]]  # of train, and of test if there is one: images, and labels or None
GZIP, BYTES = b"\x1f\x8b", b"\0\0\x08"  # how files begin: what gzip packed, and bytes in MNIST's idx format
CIFAR = {  # in each archive: of the training images, of the test images, of the class names; labels, class names
    "CIFAR-10": (r"data_batch_\d", "test_batch", "batches.meta", "labels", "label_names"),
    "CIFAR-100": ("train", "test", "meta", "fine_labels", "fine_label_names"),
}


def read_image_arrays(path: Path) -> Parts:
    """Of ``images`` with ``labels``, ``test_images`` and ``test_labels`` if there are any; or OpenAI's arr_0, arr_1."""
    arrays = read_npz(path)
    if int(arrays.get("levels", 256)) != 256:
        raise ValueError(f"{path} holds images of {arrays['levels']} levels: shards have 256.")
    if "images" in arrays:
        pairs = {"train": ("images", "labels"), "test": ("test_images", "test_labels")}
    elif "arr_0" in arrays:
        pairs = {"train": ("arr_0", "arr_1")}
    else:
        raise ValueError(f"{path} holds {', '.join(arrays)}: images are in an array images, or arr_0 as OpenAI's are.")
    return {split: (arrays[x], arrays.get(y)) for split, (x, y) in pairs.items() if x in arrays}


def read_mnist(files: dict[str, Path]) -> Parts:
    """Of idx files of images, by their part; labels lie beside them, under the name that goes with theirs."""
    parts = {}
    for split, file in files.items():
        name = re.sub(r"images([-.])idx3", r"labels\1idx1", file.name).removesuffix(".gz")
        beside = [file.with_name(each) for each in (name, name + ".gz") if each != file.name]
        labels = [_idx(each).astype(np.int64) for each in beside if each.is_file()]
        parts[split] = _idx(file), labels[0] if labels else None
    return parts


def _idx(path: Path) -> np.ndarray:
    """The array of an idx file: two zeros, 8 for bytes, the number of sides, the sides, and what they hold."""
    data = path.read_bytes()
    data = gzip.decompress(data) if data[:2] == GZIP else data
    if data[:3] != BYTES:
        raise ValueError(f"{path} is no idx file of bytes.")
    shape = struct.unpack(f">{data[3]}I", data[4 : 4 + 4 * data[3]])
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3])
    if values.size != np.prod(shape, dtype=np.int64):
        raise ValueError(f"{path} is damaged: it should hold {shape} bytes and holds {values.size:,}. Fetch it again.")
    return values.reshape(shape)


class Plain(pickle.Unpickler):
    """Reads arrays and plain containers, and refuses a pickle that names anything else."""

    def find_class(self, module: str, name: str) -> Any:
        known = {"numpy.ndarray": np.ndarray, "numpy.dtype": np.dtype}
        known |= {f"numpy.{core}.multiarray._reconstruct": np.empty(0).__reduce__()[0] for core in ("core", "_core")}
        if f"{module}.{name}" not in known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and arrays and lists are all that is read")
        return known[f"{module}.{name}"]


def read_cifar(path: Path) -> tuple[str, Parts, list[str]]:
    """Which of the two sets an archive holds, its images with labels, and the names of its classes."""
    with tarfile.open(path) as archive:
        members = {PurePosixPath(member.name).name: member for member in archive if member.isfile()}
        read = lambda name: Plain(io.BytesIO(archive.extractfile(members[name]).read()), encoding="latin1").load()
        for kind, (training, test, about, labels, classes) in CIFAR.items():
            batches = sorted(name for name in members if re.fullmatch(training, name))
            if not batches or test not in members or about not in members:
                continue
            parts = {}
            for split, names in (("train", batches), ("test", [test])):
                found = [read(name) for name in names]
                pixels = np.concatenate([np.asarray(each["data"]).reshape(-1, 3, 32, 32) for each in found])
                parts[split] = pixels.transpose(0, 2, 3, 1), [label for each in found for label in each[labels]]
            return kind, parts, list(read(about)[classes])
    raise ValueError(f"{path} is an archive, but not CIFAR-10's or CIFAR-100's for Python: unpack it, give its folder.")
