"""What several commands need."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from minidiff.data import Images, Points, decode, encode, load_data
from minidiff.data.centre_crop import eight_bits
from minidiff.diffusion import NoisyClassifier
from minidiff.pretrained import load
from minidiff.processes import own_device
from minidiff.training import Description, Model

Device = Literal["auto", "cpu", "cuda", "mps"]


def choose_device(name: Device) -> torch.device:
    """The named device; by itself a CUDA GPU, or the CPU; under torchrun the process's own.

    Raises ValueError where the named one is missing, and for fewer GPUs than processes.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not present[name]:
        raise ValueError(f"--device {name}: this machine, or this build of torch, has none. Take --device cpu.")
    return own_device(torch.device(name))


def check_folder(out: Path | None) -> None:
    """Raises ValueError for a file where a folder is to be."""
    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: give --out a folder.")


def check_drawn(n: int, seed: int, batch: int) -> None:
    """Raises ValueError for numbers that no samples can have."""
    if n < 1 or seed < 0 or batch < 1:
        raise ValueError(f"-n {n} --seed {seed} --batch {batch}: n and batch ≥ 1, seed ≥ 0.")


def check_runs(runs: Sequence[Path], example: str) -> None:
    """Raises ValueError for no run, and for one that is named twice."""
    if not runs:
        raise ValueError(f"name at least one run: {example}.")
    if len(set(runs)) < len(runs):
        raise ValueError("a run is named twice: name each once.")


def place(module: nn.Module, device: torch.device) -> nn.Module:
    """Move a module; Apple's MPS has no float64, so the tables become float32 there (best effort)."""
    return (module.float() if device.type == "mps" else module).to(device)


def load_diffusion(path: Path, weights: str | None = None) -> tuple[Model, Description]:
    """What ``load`` finds; a classifier is refused too."""
    model, description = load(path, weights)
    if isinstance(model.process, NoisyClassifier):
        raise ValueError(
            f"{path} is a classifier of noisy images, which draws none and has no likelihood. Let it guide a run that "
            f"does: minidiff sample RUN --classifier {path}."
        )
    return model, description


def held_out_data(path: Path, description: Description, source: str | None) -> Images | Points:
    """What a run held out of its data, or what another source does. Raises ValueError for data of another kind."""
    own = description.config.data
    data = load_data(source or own.source, split="test", labels=own.labels, low_res=own.low_res)
    if (data.shape, data.levels) != (description.shape, description.levels):
        raise ValueError(
            f"{path} was trained on {description.shape} in {description.levels or 'no'} levels, not {data.shape} in "
            f"{data.levels or 'no'} levels: its losses and bits for such data mean nothing."
        )
    return data


def numbers(classes: str | None) -> list[int]:
    """What --classes names, such as 3,7. Raises ValueError for anything but whole numbers."""
    named = classes.split(",") if classes else []
    if not all(each.isdecimal() for each in named):
        raise ValueError(f"--classes {classes}: give whole numbers and commas, as 3,7.")
    return [int(each) for each in named]


def classes_of(net: object, seeds: Sequence[int], classes: Sequence[int] = ()) -> dict[str, Tensor]:
    """What a class-conditional network is told: of these classes, or of all, the one whose turn it is at each seed.

    ``net`` may be whatever has ``classes``, the number that it knows; nothing is told where it has none. Raises
    ValueError for a class that it does not know.
    """
    known = getattr(net, "classes", 0)
    if unknown := [k for k in classes if not 0 <= k < known]:
        raise ValueError(f"--classes {unknown[0]}: this network knows {f'0 … {known - 1}' if known else 'no classes'}.")
    turns = torch.tensor(list(classes or range(known)))
    return {"labels": turns[torch.tensor(list(seeds)) % len(turns)]} if known else {}


def write_samples(
    x: Tensor,
    stem: Path,
    description: Description,
    arrays: dict[str, np.ndarray],
    columns: int | None = None,
    before: Tensor | None = None,
) -> str:
    """Write STEM.png, a picture of the first hundred, and STEM.npz, all of them as arr_0 beside other arrays.

    The picture begins with what is ``before`` them. Returns two lines that say so.
    """
    from minidiff import plots  # here, because matplotlib is slow to import

    levels = description.levels
    shown = x if x.ndim == 2 else x[:100]
    plots.save_samples(shown if before is None else torch.cat([before, shown]), f"{stem}.png", levels, columns)
    if x.ndim == 4:
        x = rearrange(x if levels is None else decode(x, levels), "n c h w -> n h w c")
    more = {"levels": np.array(levels)} if levels else {}
    np.savez_compressed(f"{stem}.npz", arr_0=x.numpy(), **arrays, **more)
    counted = f"{levels} levels" if levels else "continuous"
    return f"picture  {stem}.png\narray    {stem}.npz  (arr_0: {x.dtype} {tuple(x.shape)}, {counted})"


def read_image(path: Path, description: Description, flag: str) -> Tensor:
    """An image file (channel, height, width) in [−1, 1], on the levels of a run.

    Raises ValueError for a run that draws no images in levels, and for a file that is not one of its size.
    """
    if len(description.shape) != 3 or description.levels is None or description.shape[0] not in (1, 3):
        raise ValueError(f"{flag} {path}: this run draws {description.config.data.source}, no grey or RGB images.")
    channels, height, width = description.shape
    pixels = np.asarray(open_picture(path, "L" if channels == 1 else "RGB", (width, height), flag))
    image = torch.from_numpy(pixels.reshape(height, width, channels).copy()).permute(2, 0, 1)
    return encode(decode(encode(image, 256), description.levels), description.levels)


def open_picture(path: Path, mode: Literal["L", "RGB"], size: tuple[int, int], flag: str) -> Image.Image:
    """An image file in Pillow's mode. Raises ValueError where it can't be read, or is not of this size."""
    try:
        picture = eight_bits(path, mode)
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"{flag} {path} can't be read as an image: {error}") from error
    if picture.size != size:
        (w, h), (width, height) = picture.size, size
        raise ValueError(f"{flag} {path}: it is {w}×{h}, and the run draws {width}×{height}. Bring it to that size.")
    return picture
