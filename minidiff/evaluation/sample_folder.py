"""A folder of samples that any number of processes fill: each file is whole or not there, so drawing can go on."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from minidiff.data import decode
from minidiff.files import write_whole

CARD, FORMAT = "samples.json", 1
Kind = Literal["png", "npz"]


@dataclass(frozen=True)
class SampleFolder:
    """Samples of the seeds seed … seed + n − 1, ``shard`` of them in ``00000.npz`` or in the folder ``00000`` of PNGs.

    An .npz file has arr_0 (n, height, width, channel), levels, seeds, and labels where there are any. A PNG spreads the
    levels over 0 … 255. ``made`` says what else decides what the samples are. Raises ValueError for numbers that can't
    be, and for samples that no PNG holds.
    """

    kind: Kind
    n: int
    seed: int
    shard: int
    shape: tuple[int, ...]
    levels: int | None
    made: dict[str, str]

    def __post_init__(self):
        if self.n < 1 or self.shard < 1:
            raise ValueError(f"n={self.n}, shard={self.shard}: both at least 1.")
        if self.kind == "png" and (len(self.shape) != 3 or self.shape[0] not in (1, 3) or self.levels is None):
            raise ValueError(f"samples {self.shape} in {self.levels or 'no'} levels are no PNG images: take npz.")

    @property
    def shards(self) -> int:
        """How many there are."""
        return math.ceil(self.n / self.shard)

    def begin(self, folder: Path) -> None:
        """Write the card, or find it there. Raises ValueError for a folder of other samples, or of something else."""
        if (folder / CARD).is_file():
            there, ours = (asdict(each) for each in (read_card(folder), self))
            for was, now in ((there, ours), (there["made"], ours["made"])):
                for key in (key for key in was | now if key != "made" and was.get(key) != now.get(key)):
                    raise ValueError(
                        f"{folder} holds samples of {key} {was.get(key)}, not {now.get(key)}: give another."
                    )
            return
        if folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
            if not (folder / CARD).is_file():  # another process may have written it a moment ago
                raise ValueError(f"{folder} is not empty, and holds no samples to go on with: give another.")
        folder.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"format": FORMAT, **asdict(self)}, indent=1)
        write_whole(folder / CARD, lambda file: file.write(content.encode()), uuid4().hex)  # others write it as well

    def missing(self, folder: Path, k: int) -> list[int]:
        """Places of the shard's samples that are not there yet."""
        places = range(k * self.shard, min((k + 1) * self.shard, self.n))
        if self.kind == "npz":
            return [] if self._npz(folder, k).is_file() else list(places)
        there = {path.name for path in self._png(folder, places[0]).parent.glob("*.png")}
        return [place for place in places if self._png(folder, place).name not in there]

    def write(
        self, folder: Path, places: Sequence[int], x: Float[Tensor, "n *dims"], labels: Tensor | None = None
    ) -> None:
        """Samples in [−1, 1] at these places, all of one shard; an .npz file takes a whole one.

        Raises OSError, such as for a full disk, with the path; what was written before stays.
        """
        if x.ndim == 4:
            x = rearrange(x if self.levels is None else decode(x, self.levels), "n c h w -> n h w c")
        if self.kind == "npz":
            more = {"levels": np.array(self.levels)} if self.levels else {}
            more |= {} if labels is None else {"labels": labels.numpy()}
            content = {"arr_0": x.numpy(), "seeds": self.seed + np.array(places), **more}
            return write_whole(
                self._npz(folder, places[0] // self.shard), lambda to: np.savez_compressed(to, **content)
            )
        from PIL import Image  # here, because only PNGs need it

        for place, pixels in zip(places, x.numpy(), strict=True):
            spread = np.rint(pixels * (255 / (self.levels - 1))).astype(np.uint8)
            picture = Image.fromarray(spread if spread.shape[2] == 3 else spread[..., 0])
            write_whole(self._png(folder, place), lambda to, picture=picture: picture.save(to, "PNG"))

    def read(self, folder: Path, first: int, last: int) -> UInt8[Tensor, "n channel height width"]:
        """The images at these places, 0 … levels − 1. Raises ValueError for a damaged file."""
        if self.kind == "npz":
            of = range(first // self.shard, (last - 1) // self.shard + 1)
            pixels = np.concatenate([_arr_0(self._npz(folder, k)) for k in of])
            pixels = pixels[first - of[0] * self.shard : last - of[0] * self.shard]
        else:
            spread = np.stack([_pixels(self._png(folder, place)) for place in range(first, last)])
            pixels = np.rint(spread * ((self.levels - 1) / 255)).astype(np.uint8)
        return rearrange(torch.from_numpy(pixels), "n h w c -> n c h w")

    def _npz(self, folder: Path, k: int) -> Path:
        return folder / f"{k:05d}.npz"

    def _png(self, folder: Path, place: int) -> Path:
        return folder / f"{place // self.shard:05d}" / f"{place:06d}.png"


def read_card(folder: Path) -> SampleFolder:
    """What samples a folder holds, or is to hold. Raises ValueError where its card is damaged."""
    try:
        values: dict[str, Any] = json.loads((folder / CARD).read_text(encoding="utf-8"))
        if values.pop("format") != FORMAT:
            raise ValueError("it is of another version of minidiff")
        return SampleFolder(**{**values, "shape": tuple(values["shape"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / CARD} is no card of samples: {error}. Remove the folder, and draw anew."
        ) from error


def _arr_0(path: Path) -> np.ndarray:
    try:
        return _loaded(path.resolve(), path.stat().st_mtime_ns)
    except Exception as error:  # a zip can be broken in many ways, and each has an exception of its own
        raise ValueError(f"{path} can't be read: {error}. Remove it, and the command that drew it mends it.") from error


@lru_cache(maxsize=2)  # batches in order read a shard once
def _loaded(path: Path, changed: int) -> np.ndarray:
    with np.load(path, allow_pickle=False) as file:
        return file["arr_0"]


def _pixels(path: Path) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.array(image).reshape(image.height, image.width, -1)
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error}. Remove it, and the command that drew it mends it.") from error
