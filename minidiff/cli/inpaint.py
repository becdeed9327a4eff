"""``minidiff inpaint RUN IMAGE --mask MASK.png``: what could be where the mask is white."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from minidiff.cli.common import (
    Device,
    check_drawn,
    check_folder,
    choose_device,
    classes_of,
    load_diffusion,
    numbers,
    open_picture,
    place,
    read_image,
    write_samples,
)
from minidiff.cli.samplers import choose_sampler
from minidiff.diffusion import EDM
from minidiff.sampling import Posterior, generate, known


@dataclass(frozen=True)
class Options:
    """Fill a hole in an image: samples of a trained chain that agree with all that is known."""

    run: tyro.conf.Positional[Path]
    """Folder of a run or of one checkpoint, or the name of a model that ships."""
    image: tyro.conf.Positional[Path]
    """An image of the run's size."""
    mask: Path
    """Another of the same size: white is to be filled, black is known."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 8
    """How many ways to fill it."""
    seed: int = 0
    """Image i has the seed SEED + i."""
    steps: str | None = None
    """Keep a part of the chain's steps, as --steps of sample does: 250, or 90,60,60,20,20, or ddim25."""
    classes: str | None = None
    """Of a class-conditional network, such as 3,7: taken in turn; all of them unless given."""
    out: Path = Path("samples")
    """Folder for the picture and the array."""
    weights: str | None = None
    """model for the raw weights, ema-… for an average; the longest average by default."""
    batch: int = 256
    """How many at a time."""
    device: Device = "auto"
    """cpu, cuda or mps; auto takes a CUDA GPU where there is one."""


def run(argv: list[str]) -> None:
    """Write a picture, of the image with its hole and then of the samples, and the samples as an .npz array."""
    options = tyro.cli(Options, args=argv, prog="minidiff inpaint")
    check_drawn(options.n, options.seed, options.batch)
    check_folder(options.out)
    classes = numbers(options.classes)
    device = choose_device(options.device)
    model, description = load_diffusion(options.run, options.weights)
    if isinstance(model.process, EDM):
        raise ValueError(f"{options.run}: EDM has no chain whose steps could be told what is known.")
    if getattr(model.net, "low_res", False):
        raise ValueError(f"{options.run} enlarges images, and draws none by itself.")
    process, sampler = choose_sampler(place(model, device), "ancestral", options.steps)
    image = read_image(options.image, description, "IMAGE")
    hole = read_mask(options.mask, image)
    seeds = range(options.seed, options.seed + options.n)
    cond = classes_of(model.net, seeds, classes)
    options.out.mkdir(parents=True, exist_ok=True)

    process = place(process, device)
    posterior = Posterior(process, known(image.double().to(device), ~hole.to(device), process))
    with tqdm(total=options.n, unit=" samples", disable=None) as bar:
        told = (options.batch, device, bar.update, sampler, cond)
        x = generate(posterior, model.net, description.shape, seeds, *told)
    parts = ["inpainted", *options.run.parts[-2:], *([options.weights] if options.weights else [])]
    parts += [options.image.stem, options.mask.stem]
    parts += [f"steps{options.steps}"] if options.steps else []
    parts += [f"classes{options.classes}"] if options.classes else []
    stem = options.out / "-".join([*(each.replace("/", "") for each in parts), f"seed{options.seed}-n{options.n}"])
    asked = torch.where(hole, 0.0, image)[None]
    print(write_samples(x, stem, description, {"seeds": np.array(seeds), "hole": hole.numpy()}, before=asked))


def read_mask(path: Path, image: Tensor) -> Tensor:
    """True where the mask is white, (1, height, width).

    Raises ValueError for a mask of another size, and for one that asks nothing, or leaves nothing known.
    """
    _, height, width = image.shape
    hole = torch.from_numpy(np.asarray(open_picture(path, "L", (width, height), "--mask")).copy())[None] > 127
    if not hole.any() or hole.all():
        raise ValueError(f"--mask {path}: {'nothing' if not hole.any() else 'everything'} is white, to be filled.")
    return hole
