"""``minidiff sample RUN``: images, points or sequences from a trained model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from einops import rearrange
from torch import Tensor, nn
from tqdm import tqdm

from minidiff.cli.common import Device, choose_device, classes_of, place
from minidiff.cli.samplers import Sampler, choose_sampler
from minidiff.data import decode, encode
from minidiff.diffusion import EDM
from minidiff.diffusion.timesteps import Spacing
from minidiff.evaluation import open_images
from minidiff.pretrained import load
from minidiff.sampling import generate
from minidiff.training import Description


@dataclass(frozen=True)
class Options:
    """Draw samples from a run, or from a model that ships, such as digits."""

    run: tyro.conf.Positional[Path]
    """Folder of a run or of one checkpoint, or the name of a model that ships."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 64
    """How many."""
    seed: int = 0
    """Image i has the seed SEED + i and is the same in any batch."""
    sampler: Sampler | None = None
    """Down the chain with its own noise (ancestral) or with less (ddim), or the probability-flow ODE (euler, heun).
    Unless given it is ancestral, or heun for EDM, which has no chain."""
    steps: str | None = None
    """How many: 250, or for the two samplers of the chain also how many in each of its equal parts, 90,60,60,20,20, or
    every k-th, ddim25. All of the chain's unless given, or EDM's own; else euler and heun must be told."""
    eta: float | None = None
    """Of ddim: 0 for no noise, the default, to 1 for as much as the chain's own."""
    spacing: Spacing | None = None
    """Which steps ddim keeps where their number is given: uniform by default."""
    classes: str | None = None
    """Of a class-conditional network, such as 3,7: taken in turn by seed; all of them unless given."""
    low_res: Path | None = None
    """For the second of two stages: the first one's samples, a file or a folder; make them with another --seed, or both
    stages start from the same noise."""
    out: Path = Path("samples")
    """Folder for the two files."""
    weights: str | None = None
    """model for the raw weights, ema-… for an average; the longest average by default."""
    batch: int = 256
    """How many at a time."""
    device: Device = "auto"
    """cpu, cuda or mps; auto takes a CUDA GPU where there is one."""


def run(argv: list[str]) -> None:
    """Write a picture of the first hundred, and all of them as an .npz array."""
    options = tyro.cli(Options, args=argv, prog="minidiff sample")
    if options.n < 1 or options.seed < 0 or options.batch < 1:
        raise ValueError(f"-n {options.n} --seed {options.seed} --batch {options.batch}: n and batch ≥ 1, seed ≥ 0.")
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"{options.out} is a file: give --out a folder.")
    device = choose_device(options.device)
    model, description = load(options.run, options.weights)
    usual = "heun" if isinstance(model.process, EDM) else "ancestral"
    kind = options.sampler or usual
    process, sampler = choose_sampler(model, kind, options.steps, options.eta, options.spacing)
    cond = conditions(model.net, description, options)
    process, net = place(process, device), place(model.net, device)
    options.out.mkdir(parents=True, exist_ok=True)  # before the work, so that a folder that can't be made costs none
    name = "-".join([*options.run.parts[-2:], *([options.weights] if options.weights else [])]).replace("/", "")
    given = {"": kind, "steps": options.steps, "eta": options.eta, "spacing-": options.spacing}
    if kind != usual or options.steps:  # samplers do not write over each other's files
        name += "".join(f"-{key}{value}" for key, value in given.items() if value is not None)
    name += f"-classes{options.classes}" if options.classes else ""
    stem = options.out / f"{name}-seed{options.seed}-n{options.n}"
    seeds = range(options.seed, options.seed + options.n)
    with tqdm(total=options.n, unit=" samples", disable=None) as bar:
        x = generate(process, net, description.shape, seeds, options.batch, device, bar.update, sampler, cond)

    from minidiff import plots  # here, because matplotlib is slow to import

    plots.save_samples(x if x.ndim == 2 else x[:100], f"{stem}.png", description.levels)
    if x.ndim == 4:
        x = rearrange(x if description.levels is None else decode(x, description.levels), "n c h w -> n h w c")
    more = {"levels": np.array(description.levels)} if description.levels else {}
    more |= {"labels": cond["labels"].numpy()} if "labels" in cond else {}
    np.savez_compressed(f"{stem}.npz", arr_0=x.numpy(), seeds=np.array(seeds), **more)
    levels = f"{description.levels} levels" if description.levels else "continuous"
    print(f"picture  {stem}.png\narray    {stem}.npz  (arr_0: {x.dtype} {tuple(x.shape)}, {levels})")


def conditions(net: nn.Module, description: Description, options: Options) -> dict[str, Tensor]:
    """What the network is told of each image. Raises ValueError for flags that it has no use for, or that it lacks."""
    named = options.classes.split(",") if options.classes else []
    if not all(name.isdecimal() for name in named):
        raise ValueError(f"--classes {options.classes}: give whole numbers and commas, as 3,7.")
    cond = classes_of(net, range(options.seed, options.seed + options.n), [int(name) for name in named])
    if bool(options.low_res) != getattr(net, "low_res", False):
        wanted = "no smaller image" if options.low_res else "a smaller image of each: give their file or folder"
        raise ValueError(f"--low-res {options.low_res}: this network takes {wanted}.")
    if options.low_res:
        small, factor = open_images(options.low_res).first(options.n), description.config.data.low_res
        channels, height, width = description.shape
        if small.shape != (channels, height // factor, width // factor):
            raise ValueError(f"--low-res {options.low_res}: images {small.shape}, {factor} times smaller are wanted.")
        cond["low_res"] = encode(small.read(0, options.n), small.levels)
    return cond
