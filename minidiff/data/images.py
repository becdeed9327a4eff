"""Images as they are stored, and as a diffusion sees them."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from .augment import augmented, draw_augmentation
from .mnist import mnist_images
from .shards import Shards, open_shards, read_card

Split = Literal["train", "test"]
Pixels = Float[Tensor, "n channel height width"]


def encode(k: UInt8[Tensor, "..."], levels: int) -> Float[Tensor, "..."]:
    """Stored values 0 … levels − 1 to the interval [−1, 1], in float32: x = 2k / (levels − 1) − 1."""
    x = k.to(torch.float32, copy=True)
    return x.mul_(2).div_(levels - 1).sub_(1)  # in place: a large batch waits for memory


def decode(x: Float[Tensor, "..."], levels: int) -> UInt8[Tensor, "..."]:
    """[−1, 1] back to the nearest stored value; what lies outside is clamped."""
    return ((x + 1) / 2 * (levels - 1)).round().clamp(0, levels - 1).to(torch.uint8)


@dataclass(eq=False, repr=False)
class Images:
    """Images in memory, or in files: pixels (n, channel, height, width) of ``levels`` values, labels (n,) if known.

    A batch of them is mirrored with probability ½ where the set flips, and cropped where ``crop`` is below 1: a random
    square of between that share and all of each side, brought back to full size. It comes with conditions: the labels
    where ``give_labels`` is set, each replaced by −1, no class, with probability ``drop_labels``; the image averaged
    over squares of ``low_res`` pixels where that is above 1; and how it was augmented where that has a probability
    ``augment``.
    """

    pixels: UInt8[Tensor, "n channel height width"] | Shards
    levels: int = 256
    labels: Int[Tensor, " n"] | None = None
    flip: bool = False
    crop: float = 1.0
    give_labels: bool = False
    low_res: int = 1
    augment: float = 0.0
    drop_labels: float = 0.0

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image: (channel, height, width)."""
        return tuple(self.pixels.shape[1:])

    @property
    def x(self) -> Pixels:
        """All images in [−1, 1]."""
        return encode(self.pixels[:], self.levels)

    def batch(self, index: Int[Tensor, " b"], generator: torch.Generator) -> tuple[Pixels, dict[str, Tensor]]:
        """The images at these places in [−1, 1], and what a network is told of them."""
        x = encode(self.pixels[index], self.levels)
        if self.flip:
            mirrored = torch.rand(len(x), 1, 1, 1, generator=generator, device=generator.device).cpu() < 0.5
            x = torch.where(mirrored, x.flip(-1), x)
        if self.crop < 1:
            x = cropped(x, torch.rand(len(x), 3, generator=generator, device=generator.device).cpu(), self.crop)
        cond = {"labels": self.labels[index]} if self.give_labels else {}
        if self.augment:
            cond["augment"] = draw_augmentation(len(x), self.augment, generator)
            x = augmented(x, cond["augment"])
        if self.drop_labels:
            dropped = torch.rand(len(x), generator=generator, device=generator.device).cpu() < self.drop_labels
            cond["labels"] = torch.where(dropped, -1, cond["labels"])
        return x, cond | ({"low_res": F.avg_pool2d(x, self.low_res)} if self.low_res > 1 else {})


def cropped(x: Pixels, u: Float[Tensor, "n 3"], least: float) -> Pixels:
    """A square of each image, of between ``least`` and all of each side, at full size; u in [0, 1] says which."""
    share = least + (1 - least) * u[:, :1]
    place = (2 * u[:, 1:] - 1) * (1 - share)  # of the centre; the image reaches from −1 to 1
    grid = torch.cat([share, torch.zeros_like(share), place[:, :1], torch.zeros_like(share), share, place[:, 1:]], 1)
    grid = F.affine_grid(grid.reshape(-1, 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def held_out(n: int, split: Split) -> Int[Tensor, " m"]:
    """Places of the training four fifths, or of the held-out fifth, of n examples: the same wherever they are used."""
    if split not in get_args(Split):
        raise ValueError(f"split={split!r}: take train or test.")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(2015))
    return order[n // 5 :] if split == "train" else order[: n // 5]


def digits(split: Split = "train") -> Images:
    """scikit-learn's 1,797 handwritten digits, 8×8 in 17 grey levels: 1,438 to train on, 359 held out."""
    pixels, labels = _digits()
    index = held_out(len(pixels), split)
    return Images(pixels[index], levels=17, labels=labels[index])


def mnist(split: Split = "train", size: int = 28) -> Images:
    """5,000 of MNIST's digits in 256 levels, 4,000 to train on, in one of the sizes of ``mnist_images``."""
    pixels, labels = mnist_images(size)
    index = held_out(len(pixels), split)
    return Images(pixels[index], labels=labels[index])


@cache
def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits  # here, because importing scikit-learn takes a second

    raw = load_digits()
    return torch.from_numpy(raw.images[:, None].astype(np.uint8)), torch.from_numpy(raw.target)


def load_images(
    source: str | Path,
    split: Split = "train",
    flip: bool = False,
    crop: float = 1.0,
    labels: bool = False,
    low_res: int = 1,
    augment: float = 0.0,
    drop_labels: float = 0.0,
) -> Images:
    """Images by name (``digits``, ``mnist``, ``mnist-8``), from an ``.npz`` file, or from a folder that ``minidiff
    prepare`` made, given out as ``Images`` says.

    The file holds ``images``, uint8 (n, height, width, channel) or (n, height, width), in 256 levels, and may hold
    ``labels``, whole numbers (n,). Held out is ``test_images`` (and ``test_labels``) where the file has it, and
    otherwise a fifth of the images. A folder's images stay on the disk, and a batch is read from there. Raises
    ValueError for a source that is none of these, for a file that holds something else, for labels that it does not
    hold, and for sides that ``low_res`` does not divide.
    """
    if str(source) == "digits":
        images = digits(split)
    elif named := re.fullmatch(r"mnist(?:-(\d+))?", str(source)):
        images = mnist(split, int(named[1] or 28))
    else:
        path = Path(source)
        is_folder = path.is_dir() and path.suffix != ".npz"
        if path.suffix != ".npz" and not is_folder:
            raise ValueError(
                f"data source {source!r} is not known: give digits, mnist, the path of an .npz file, or a folder that "
                "minidiff prepare made."
            )
        if not path.is_file() and not is_folder:
            raise ValueError(f"there is no data file {source}: make one with numpy.savez(path, images=uint8 array).")
        images = _read_folder(path, split) if is_folder else _read_npz(path, split)
    if not 0 < crop <= 1 or low_res < 1 or any(side % low_res for side in images.shape[1:]):
        raise ValueError(
            f"data.crop={crop}, data.low_res={low_res}, images of {images.shape[1:]}: crop is above 0 and at most 1, "
            "and low_res a whole number that divides both sides."
        )
    if not 0 <= augment <= 1:
        raise ValueError(f"data.augment={augment}: give a probability, such as 0.12, or 0 to leave images as they are.")
    if not 0 <= drop_labels < 1 or (drop_labels and not labels):
        raise ValueError(
            f"data.drop_labels={drop_labels}, data.labels={labels}: give a probability below 1, such as 0.1, and set "
            "data.labels; or 0, to leave no label out."
        )
    if labels and images.labels is None:
        raise ValueError(f"data.labels: {source} holds none. Add an array labels, whole numbers (n,), to the file.")
    images.flip, images.crop, images.give_labels, images.low_res = flip, crop, labels, low_res
    images.augment, images.drop_labels = augment, drop_labels
    return images


def _read_folder(path: Path, split: Split) -> Images:
    own_test = "test" in read_card(path)["parts"]
    pixels, labels = open_shards(path, split if own_test else "train")
    if not own_test:
        kept = held_out(len(pixels), split)
        pixels, labels = pixels.part(kept), None if labels is None else labels[kept]
    return Images(pixels, labels=labels)


def _read_npz(path: Path, split: Split) -> Images:
    try:
        with np.load(path, allow_pickle=False) as file:
            own_test = "test_images" in file
            prefix = "test_" if own_test and split == "test" else ""
            pixels, labels = file[f"{prefix}images"], file[f"{prefix}labels"] if f"{prefix}labels" in file else None
    except Exception as error:  # a zip can be broken in many ways, and each has an exception of its own
        raise ValueError(f"{path} is not a data file with an array named images: {error}") from error
    shaped = pixels.ndim in (3, 4) and pixels.shape[3:] in ((), (1,), (3,))
    if pixels.dtype != np.uint8 or not shaped or len(pixels) < 5:
        raise ValueError(
            f"{path}: images must be at least 5, uint8, shaped (n, height, width), or (n, height, width, channel) with "
            f"1 or 3 channels; found {pixels.dtype} {pixels.shape}."
        )
    pixels = torch.from_numpy(pixels if pixels.ndim == 4 else pixels[..., None])
    if labels is not None and (labels.shape != pixels.shape[:1] or labels.dtype.kind not in "iu" or labels.min() < 0):
        raise ValueError(
            f"{path}: labels must be whole numbers from 0, one an image; found {labels.dtype} {labels.shape}."
        )
    pixels = rearrange(pixels, "n h w c -> n c h w")
    kept = torch.arange(len(pixels)) if own_test else held_out(len(pixels), split)
    labels = None if labels is None else torch.from_numpy(labels.astype(np.int64))[kept]
    return Images(pixels[kept].contiguous(), labels=labels)
