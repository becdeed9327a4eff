"""Images as they are stored, and as a diffusion sees them."""

from functools import cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor

Split = Literal["train", "test"]
Pixels = Float[Tensor, "n channel height width"]


def encode(k: UInt8[Tensor, "..."], levels: int) -> Float[Tensor, "..."]:
    """Stored values 0 … levels − 1 to the interval [−1, 1], in float32: x = 2k / (levels − 1) − 1."""
    return 2 * k.float() / (levels - 1) - 1


def decode(x: Float[Tensor, "..."], levels: int) -> UInt8[Tensor, "..."]:
    """[−1, 1] back to the nearest stored value; what lies outside is clamped."""
    return ((x + 1) / 2 * (levels - 1)).round().clamp(0, levels - 1).to(torch.uint8)


class Images:
    """Images in memory: pixels (n, channel, height, width) of ``levels`` values, labels (n,), mirrored if asked."""

    def __init__(
        self,
        pixels: UInt8[Tensor, "n channel height width"],
        levels: int = 256,
        labels: Int[Tensor, " n"] | None = None,
        flip: bool = False,
    ):
        self.pixels, self.levels, self.labels, self.flip = pixels, levels, labels, flip

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image: (channel, height, width)."""
        return tuple(self.pixels.shape[1:])

    @property
    def x(self) -> Pixels:
        """All images in [−1, 1]."""
        return encode(self.pixels, self.levels)

    def batch(self, index: Int[Tensor, " b"], generator: torch.Generator) -> tuple[Pixels, dict[str, Tensor]]:
        """The images at these places in [−1, 1], each mirrored with probability ½ if the set flips; no conditioning."""
        x = encode(self.pixels[index], self.levels)
        if self.flip:
            mirrored = torch.rand(len(x), 1, 1, 1, generator=generator, device=generator.device).cpu() < 0.5
            x = torch.where(mirrored, x.flip(-1), x)
        return x, {}


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


@cache
def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits  # here, because importing scikit-learn takes a second

    raw = load_digits()
    return torch.from_numpy(raw.images[:, None].astype(np.uint8)), torch.from_numpy(raw.target)


def load_images(source: str | Path, split: Split = "train", flip: bool = False) -> Images:
    """Images by name (``digits``), or from an ``.npz`` file.

    The file holds ``images``, uint8 (n, height, width, channel) or (n, height, width), in 256 levels. Held out is the
    array ``test_images`` where the file has one, and otherwise a fifth of the images. Raises ValueError for a source
    that is neither, and for a file that holds something else.
    """
    if str(source) == "digits":
        images = digits(split)
    else:
        path = Path(source)
        if path.suffix != ".npz":
            raise ValueError(f"data source {source!r} is not known: give digits, or the path of an .npz file.")
        if not path.is_file():
            raise ValueError(f"there is no data file {source}: make one with numpy.savez(path, images=uint8 array).")
        images = _read_npz(path, split)
    images.flip = flip
    return images


def _read_npz(path: Path, split: Split) -> Images:
    try:
        with np.load(path, allow_pickle=False) as file:
            own_test = "test_images" in file
            pixels = file["test_images" if own_test and split == "test" else "images"]
    except Exception as error:  # a zip can be broken in many ways, and each has an exception of its own
        raise ValueError(f"{path} is not a data file with an array named images: {error}") from error
    shaped = pixels.ndim in (3, 4) and pixels.shape[3:] in ((), (1,), (3,))
    if pixels.dtype != np.uint8 or not shaped or len(pixels) < 5:
        raise ValueError(
            f"{path}: images must be at least 5, uint8, shaped (n, height, width), or (n, height, width, channel) with "
            f"1 or 3 channels; found {pixels.dtype} {pixels.shape}."
        )
    pixels = torch.from_numpy(pixels if pixels.ndim == 4 else pixels[..., None])
    pixels, kept = rearrange(pixels, "n h w c -> n c h w"), held_out(len(pixels), split)
    return Images((pixels if own_test else pixels[kept]).contiguous())
