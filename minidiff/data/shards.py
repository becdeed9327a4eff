"""A prepared data set: a folder of memory-mapped files, which give a batch without reading the rest."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from minidiff.files import sha256

FORMAT = 1  # of the card; raised when an old one would be misread
CARD, BEGUN = "card.json", "unfinished.json"  # written last, when all is there; and until then
REMEDY = "Run the same minidiff prepare again: it keeps what is whole and makes the rest."


class Shards:
    """Images in files, indexed as a tensor (n, channel, height, width) is, of which only what is asked for is read.

    ``maps`` are uint8 arrays (·, channel, height, width), one after the other; ``places`` are those of the images that
    count, in their order.
    """

    def __init__(self, maps: list[np.ndarray], places: Int[Tensor, " n"] | None = None):
        self.maps = maps
        self.starts = np.cumsum([0, *map(len, maps)])
        self.places = torch.arange(int(self.starts[-1])) if places is None else places

    def __len__(self) -> int:
        return len(self.places)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """As of a tensor: (n, channel, height, width)."""
        return (len(self), *self.maps[0].shape[1:])

    def __getitem__(self, index: Int[Tensor, "..."] | slice | int) -> UInt8[Tensor, "..."]:
        """The images at these places, in memory: one gather from each file that holds some of them."""
        places = self.places[index]
        flat = places.flatten().numpy()
        shard = np.searchsorted(self.starts, flat, side="right") - 1
        pixels = np.empty((len(flat), *self.shape[1:]), np.uint8)
        for k in np.unique(shard):
            here = np.flatnonzero(shard == k)
            pixels[here] = self.maps[k].take(flat[here] - self.starts[k], axis=0)
        return torch.from_numpy(pixels).reshape(*places.shape, *self.shape[1:])

    def part(self, places: Int[Tensor, " m"]) -> "Shards":
        """Those at these places, in this order."""
        return Shards(self.maps, self.places[places])


def open_shards(folder: Path, part: str) -> tuple[Shards, Int[Tensor, " n"] | None]:
    """The images of a prepared set's part, ``train`` or ``test``, mapped and not read, and their classes if known.

    Raises ValueError for a folder that is not whole, and for files of other sizes than its card states.
    """
    card = read_card(folder)
    entry, shape = card["parts"][part], (card["channels"], card["size"], card["size"])
    read = lambda name, file, dtype, *shape: _array(
        folder / name, file["bytes"], np.dtype(dtype), (file["images"], *shape)
    )
    maps = [read(name, file, "uint8", *shape) for name, file in entry["shards"].items()]
    labels = [np.array(read(name, file, "int64")) for name, file in entry["labels"].items()]
    return Shards(maps), torch.from_numpy(labels[0]) if labels else None


def _array(path: Path, size: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        found = path.stat().st_size, array.dtype, array.shape
        if found != (size, dtype, shape):
            raise ValueError(f"its size, type and shape are {found}, not {(size, dtype, shape)}")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}. {REMEDY}") from error
    return array


def read_card(folder: Path) -> dict[str, Any]:
    """What is known of a prepared set. Raises ValueError, with the remedy, where the set is not whole."""
    if not (folder / CARD).is_file():
        if (folder / BEGUN).is_file():
            raise ValueError(f"{folder} is not whole: `minidiff prepare` did not come to its end. {REMEDY}")
        raise ValueError(
            f"{folder} is no prepared data set: it has no {CARD}. Make one of images first: minidiff prepare {folder} "
            "OUT --size 64."
        )
    return read_json(folder / CARD)


def read_json(path: Path) -> dict[str, Any]:
    """A card. Raises ValueError where it is damaged or of another version."""
    try:
        card = json.loads(path.read_text())
        if card["format"] != FORMAT:
            raise ValueError(f"format {card['format']!r}, and this version of minidiff reads {FORMAT}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no usable card: {error}. Remove its folder and prepare the data again.") from error
    return card


def damaged(folder: Path, card: dict[str, Any]) -> list[str]:
    """Names of the files whose content has another checksum than the card states, or that are missing; reads all."""
    files = [entry[kind] for entry in card["parts"].values() for kind in ("shards", "labels")]
    return [name for group in files for name, file in group.items() if not intact(folder / name, file)]


def intact(path: Path, file: dict[str, Any]) -> bool:
    """Whether a file is what its entry in the card says."""
    return path.is_file() and path.stat().st_size == file["bytes"] and sha256(path) == file["sha256"]
