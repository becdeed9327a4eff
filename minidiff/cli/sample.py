"""``minidiff sample RUN``: images, points or sequences from a trained model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from einops import rearrange
from tqdm import tqdm

from minidiff.cli.common import Device, choose_device, place
from minidiff.data import decode
from minidiff.pretrained import load
from minidiff.sampling import generate


@dataclass(frozen=True)
class Options:
    """Draw samples from a run, or from a model that ships, such as digits."""

    run: tyro.conf.Positional[Path]
    """Folder of a run or of one checkpoint, or the name of a model that ships."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 64
    """How many."""
    seed: int = 0
    """Image i has the seed SEED + i and is the same in any batch."""
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
    model = place(model, device)
    options.out.mkdir(parents=True, exist_ok=True)  # before the work, so that a folder that can't be made costs none
    name = "-".join([*options.run.parts[-2:], *([options.weights] if options.weights else [])]).replace("/", "")
    stem = options.out / f"{name}-seed{options.seed}-n{options.n}"
    seeds = range(options.seed, options.seed + options.n)
    with tqdm(total=options.n, unit=" samples", disable=None) as bar:
        x = generate(model.process, model.net, description.shape, seeds, options.batch, device, bar.update)

    from minidiff import plots  # here, because matplotlib is slow to import

    plots.save_samples(x if x.ndim == 2 else x[:100], f"{stem}.png", description.levels)
    if x.ndim == 4:
        x = rearrange(x if description.levels is None else decode(x, description.levels), "n c h w -> n h w c")
    counted = {"levels": np.array(description.levels)} if description.levels else {}
    np.savez_compressed(f"{stem}.npz", arr_0=x.numpy(), seeds=np.array(seeds), **counted)
    levels = f"{description.levels} levels" if description.levels else "continuous"
    print(f"picture  {stem}.png\narray    {stem}.npz  (arr_0: {x.dtype} {tuple(x.shape)}, {levels})")
