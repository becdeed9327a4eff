"""Images to be judged, or to judge by: in memory, in a folder, in an ``.npz`` file, or drawn as they are needed."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from jaxtyping import UInt8
from torch import Tensor

from minidiff.data import Images, Shards, load_data
from minidiff.data.shards import CARD, read_card
from minidiff.files import read_npz

from . import sample_folder

SUFFIXES = (".png", ".jpg", ".jpeg")
MODES = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB"}  # of Pillow: what 8 bits hold without a loss


@dataclass(frozen=True)
class ImageSet:
    """n images (channel, height, width) with values 0 … levels − 1, read a batch at a time and always in one order.

    ``read(first, last)`` gives the images of these places, uint8 (last − first, channel, height, width); ``hashed()``
    the SHA-256 of the content, or "" where it has none. ``source`` says in words where they come from.
    """

    source: str
    n: int
    shape: tuple[int, int, int]
    levels: int
    read: Callable[[int, int], Tensor]
    hashed: Callable[[], str] = lambda: ""

    def batches(self, size: int) -> Iterator[UInt8[Tensor, "batch channel height width"]]:
        """All images, ``size`` at a time."""
        for first in range(0, self.n, size):
            yield self.read(first, min(first + size, self.n))

    def part(self, places: range) -> "ImageSet":
        """Those at neighbouring places."""
        read, start = self.read, places.start
        shifted = lambda first, last: read(start + first, start + last)
        return replace(self, n=len(places), read=shifted, hashed=lambda: "")

    def first(self, n: int) -> "ImageSet":
        """The first n of them. Raises ValueError where there are not as many."""
        if not 1 <= n <= self.n:
            raise ValueError(f"{self.source} holds {self.n:,} images, not {n:,}: ask for no more, and at least 1.")
        return self if n == self.n else self.part(range(n))


def open_images(source: Images | ImageSet | Path | str) -> ImageSet:
    """Images in memory, a folder of PNG and JPEG files, one that ``minidiff sample --format`` filled, what is trained
    on of one that ``minidiff prepare`` made, or an ``.npz`` file of ``images`` or ``arr_0``.

    A file that counts other than 256 levels says so in an entry ``levels``, as those of ``minidiff sample`` do. Raises
    ValueError, before any pixel is read from a folder, for what is empty, damaged, not 8-bit, or of several sizes.
    """
    if isinstance(source, ImageSet):
        return source
    if isinstance(source, Images):
        return in_memory(source.pixels, source.levels, f"{len(source):,} images in memory")
    path = Path(source)
    if path.is_dir():
        if (path / sample_folder.CARD).is_file():
            return _samples(path)
        return _prepared(path) if (path / CARD).is_file() else _folder(path)
    if path.suffix != ".npz":
        raise ValueError(f"{source}: give a folder of PNG or JPEG files, or an .npz file with images or arr_0.")
    arrays = read_npz(path)
    if "images" not in arrays and "arr_0" not in arrays:
        raise ValueError(f"{path} holds {', '.join(arrays) or 'nothing'}: images are in an array images or arr_0.")
    return in_array(arrays["images" if "images" in arrays else "arr_0"], arrays.get("levels"), str(path))


def in_memory(pixels: UInt8[Tensor, "n channel height width"] | Shards, levels: int, source: str) -> ImageSet:
    """A tensor as a set."""

    return _hashed(
        ImageSet(source, len(pixels), tuple(pixels.shape[1:]), levels, lambda first, last: pixels[first:last])
    )


def in_array(pixels: np.ndarray, levels: np.ndarray | None, source: str) -> ImageSet:
    """An array (n, height, width) or (n, height, width, channel), uint8, as a set. Raises ValueError for others."""
    shaped = pixels.ndim in (3, 4) and pixels.shape[3:] in ((), (1,), (3,)) and len(pixels) > 0
    if pixels.dtype != np.uint8 or not shaped:
        raise ValueError(
            f"{source}: images must be 8-bit: uint8, shaped (n, height, width), or (n, height, width, channel) with 1 "
            f"or 3 channels; found {pixels.dtype} {pixels.shape}."
        )
    brightest, counted = int(pixels.max()), 256 if levels is None else int(levels)
    if brightest >= counted or (levels is None and brightest < 32):
        raise ValueError(
            f"{source}: its values end at {brightest}, which does not fit {counted} levels: state how many there are "
            "in an entry levels of the file."
        )
    pixels = torch.from_numpy(pixels if pixels.ndim == 4 else pixels[..., None])
    return in_memory(rearrange(pixels, "n h w c -> n c h w"), counted, source)


def labels_of(path: Path) -> list[int] | None:
    """The labels beside the images of an ``.npz`` file, or of the shards that ``minidiff sample --format npz`` filled,
    in their order; None where there are none."""
    files = sorted(path.glob("[0-9]*.npz")) if path.is_dir() else [path] if path.suffix == ".npz" else []
    parts = [read_npz(file).get("labels") for file in files]
    return None if not parts or any(part is None for part in parts) else np.concatenate(parts).tolist()


def _prepared(folder: Path) -> ImageSet:
    pixels = load_data(folder).pixels
    sums = [file["sha256"] for file in read_card(folder)["parts"]["train"]["shards"].values()]
    hashed = lambda: hashlib.sha256(f"{len(pixels)} of {sums}".encode()).hexdigest()
    return ImageSet(str(folder), len(pixels), pixels.shape[1:], 256, lambda first, last: pixels[first:last], hashed)


def _samples(folder: Path) -> ImageSet:
    card = sample_folder.read_card(folder)
    if len(card.shape) != 3 or card.levels is None:
        raise ValueError(f"{folder} holds samples {card.shape} in {card.levels or 'no'} levels, which are no images.")
    if left := sum(len(card.missing(folder, k)) for k in range(card.shards)):
        raise ValueError(
            f"{folder} lacks {left:,} of its {card.n:,} samples: the same minidiff sample command draws them."
        )
    return _hashed(ImageSet(str(folder), card.n, card.shape, card.levels, partial(card.read, folder)))


def _hashed(images: ImageSet) -> ImageSet:
    """With a hash of all pixels, which is the same however they are stored."""

    @cache
    def hashed() -> str:
        total = hashlib.sha256(f"{images.levels} levels {(images.n, *images.shape)} ".encode())
        for batch in images.batches(1000):
            total.update(batch.contiguous().numpy().tobytes())
        return total.hexdigest()

    return replace(images, hashed=hashed)


def _folder(folder: Path) -> ImageSet:
    from PIL import Image  # here, because only folders need it

    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ValueError(f"there are no PNG or JPEG files in {folder}.")
    sizes, modes = {}, set()
    for path in paths:
        try:
            with Image.open(path) as image:  # the header only
                sizes.setdefault(image.size, path)
                modes.add(image.mode)
        except OSError as error:
            raise ValueError(f"{path} can't be read as an image: {error}") from error
        if image.mode not in MODES:
            raise ValueError(f"{path} is of Pillow's mode {image.mode}: take 8-bit grey or RGB, without transparency.")
    if len(sizes) > 1:
        (a, first), (b, second), *_ = sizes.items()
        raise ValueError(
            f"{folder} holds images of several sizes ({first.name} {a[0]}×{a[1]}, {second.name} {b[0]}×{b[1]}): bring "
            "them to one size first, and say how."
        )
    ((width, height),), mode = sizes, "RGB" if {MODES[mode] for mode in modes} != {"L"} else "L"

    def read(first: int, last: int) -> Tensor:
        return torch.stack([_decoded(path, mode) for path in paths[first:last]])

    @cache
    def hashed() -> str:  # of the bytes of all files in their order; names do not matter
        total = hashlib.sha256(mode.encode())
        for path in paths:
            total.update(hashlib.sha256(path.read_bytes()).digest())
        return total.hexdigest()

    return ImageSet(str(folder), len(paths), (3 if mode == "RGB" else 1, height, width), 256, read, hashed)


def _decoded(path: Path, mode: str) -> UInt8[Tensor, "channel height width"]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            pixels = np.array(image.convert(mode))
    except OSError as error:
        raise ValueError(f"{path} can't be read as an image: {error}") from error
    return torch.from_numpy(pixels if mode == "RGB" else pixels[..., None]).permute(2, 0, 1)
