"""``minidiff interpolate RUN``: from one sample to another, or from one image to another, through the noise."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from torch import Tensor

from minidiff.cli.common import (
    Device,
    check_folder,
    choose_device,
    classes_of,
    load_diffusion,
    place,
    read_image,
    write_samples,
)
from minidiff.cli.samplers import choose_sampler, kept_steps
from minidiff.diffusion import EDM, GaussianDiffusion, draw
from minidiff.sampling import ddim, ddim_encode, per_image_noise, slerp
from minidiff.sampling.noise import solver_dtype

FEW = 50


@dataclass(frozen=True)
class Options:
    """Draw a row of images: two ends, and what a deterministic sampler makes of the noises between theirs."""

    run: tyro.conf.Positional[Path]
    """Folder of a run or of one checkpoint, or the name of a model that ships."""
    seeds: tuple[int, int] | None = None
    """Two seeds: the ends are the samples of their noises."""
    images: tuple[Path, Path] | None = None
    """Or two images of the run's size, which DDIM encodes into noises; what it then makes of these resembles them, the
    more so the more steps there are."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 9
    """How many images there are, with both ends."""
    sampler: Literal["ddim", "heun"] | None = None
    """ddim unless given, or heun for EDM, which has no chain."""
    steps: int | None = None
    """How many: 50, or all of a shorter chain, or EDM's own."""
    classes: str | None = None
    """The class of all images, one number, of a class-conditional network; 0 unless given."""
    out: Path = Path("samples")
    """Folder for the picture and the array."""
    weights: str | None = None
    """model for the raw weights, ema-… for an average; the longest average by default."""
    device: Device = "auto"
    """cpu, cuda or mps; auto takes a CUDA GPU where there is one."""


def run(argv: list[str]) -> None:
    """Write one row of images as a picture, and as an .npz array."""
    options = tyro.cli(Options, args=argv, prog="minidiff interpolate")
    check(options)
    device = choose_device(options.device)
    model, description = load_diffusion(options.run, options.weights)
    process, net = model.process, model.net
    if not isinstance(process, EDM | GaussianDiffusion):
        raise ValueError(f"{options.run}: a {type(process).__name__} has no sampler without noise.")
    if getattr(net, "low_res", False):
        raise ValueError(f"{options.run} enlarges images, and draws none by itself.")
    name = options.sampler or ("heun" if isinstance(process, EDM) else "ddim")
    if options.images and name != "ddim":
        raise ValueError(f"--images: they are encoded by DDIM, and this would be decoded by {name}.")
    steps = str(options.steps or (process.steps if isinstance(process, EDM) else min(FEW, process.T)))
    _, sampler = choose_sampler(place(model, device), name, steps)
    cond = classes_of(net, [0] * options.n, [int(options.classes)] if options.classes else [])
    cond = {key: rows.to(device) for key, rows in cond.items()}
    ends = [read_image(path, description, "--images") for path in options.images or ()]
    options.out.mkdir(parents=True, exist_ok=True)

    if options.images:
        kept = kept_steps(process.T, steps, None)
        told = {key: rows[:2] for key, rows in cond.items()}
        starts = ddim_encode(process, net, torch.stack(ends).to(device, solver_dtype(device)), kept, told)
        sampler, which = partial(ddim, steps=kept, clip=False), [path.stem for path in options.images]
    else:
        noise = per_image_noise(options.seeds, description.shape)
        starts, which = draw(process.prior, noise(0).to(device, solver_dtype(device))), options.seeds
    x = sampler(process, net, between(starts, options.n), no_noise, cond=cond).float().cpu()
    parts = ["interpolation", *options.run.parts[-2:], *([options.weights] if options.weights else [])]
    parts += [name, f"steps{steps}", *([f"classes{options.classes}"] if options.classes else [])]
    parts += [*map(str, which), f"n{options.n}"]
    stem = options.out / "-".join(each.replace("/", "") for each in parts)
    print(write_samples(x, stem, description, {"weights": np.linspace(0, 1, options.n)}, columns=options.n))


def check(options: Options) -> None:
    """Raises ValueError for numbers that can't be."""
    if (options.seeds is None) == (options.images is None):
        raise ValueError("give two ends: --seeds 3 7, or --images A.png B.png.")
    if options.n < 2 or min(options.seeds or (0,)) < 0 or (options.steps is not None and options.steps < 1):
        raise ValueError(f"-n {options.n} --seeds {options.seeds} --steps {options.steps}: n ≥ 2, seed ≥ 0, steps ≥ 1.")
    if options.classes is not None and not options.classes.isdecimal():
        raise ValueError(f"--classes {options.classes}: give one class, a whole number.")
    check_folder(options.out)


def between(starts: Tensor, n: int) -> Tensor:
    """n points on the great circle from one noise to the other, both included (DDIM App. D.5)."""
    a, b = starts[:1], starts[1:]
    return torch.cat([slerp(a, b, k / (n - 1)) for k in range(n)])


def no_noise(step: int) -> Tensor:
    """What a deterministic sampler never asks for."""
    raise AssertionError(f"noise at step {step}")
