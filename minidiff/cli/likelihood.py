"""``minidiff likelihood RUN``: the bound on held-out data, term by term."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from tqdm import tqdm

from minidiff.cli.common import Device, choose_device, place
from minidiff.data import load_images
from minidiff.evaluation import Bound, likelihood_bound, strata
from minidiff.pretrained import load


@dataclass(frozen=True)
class Options:
    """Bits per dimension that a trained chain needs for held-out data."""

    run: tyro.conf.Positional[Path]
    """Folder of a run or of one checkpoint, or the name of a model that ships."""
    data: str | None = None
    """Another data source than the run's own."""
    n: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None
    """Only the first n held-out examples."""
    count: int = 100
    """Strata of steps; one step is drawn in each, for each example."""
    seed: int = 0
    """Of the steps and the noise."""
    batch: int = 500
    """Examples that the network sees at a time."""
    weights: str | None = None
    """model for the raw weights, ema-… for an average; the longest average by default."""
    device: Device = "auto"
    """cpu, cuda or mps; auto takes a CUDA GPU where there is one."""


def run(argv: list[str]) -> None:
    """Print the bound, its standard error and where its bits are."""
    options = tyro.cli(Options, args=argv, prog="minidiff likelihood")
    if not 0 <= options.seed < 2**63 or options.batch < 1:
        raise ValueError(f"--seed {options.seed} --batch {options.batch}: 0 ≤ seed < 2**63, batch ≥ 1.")
    if options.count < 2 or (options.n is not None and options.n < 2):
        raise ValueError(f"--count {options.count} -n {options.n}: count ≥ 2, n ≥ 2.")
    device = choose_device(options.device)
    model, description = load(options.run, options.weights)
    images = load_images(options.data or description.config.data.source, split="test")
    if (images.pixels.shape[1:], images.levels) != (description.shape, description.levels):
        raise ValueError(
            f"the data are {tuple(images.pixels.shape[1:])} in {images.levels} levels, the model was trained on "
            f"{description.shape} in {description.levels}: bits per dimension of other data mean nothing."
        )
    model = place(model, device)
    x0 = images.x[: options.n].to(device, model.process.betas.dtype)
    generator = torch.Generator(device).manual_seed(options.seed)
    parts = len(strata(model.process.T, options.count)) - 1
    with tqdm(total=parts, unit=" strata", disable=None) as bar:
        bound = likelihood_bound(model.process, model.net, x0, generator, options.count, on_stratum=bar.update)
    print(table(bound, len(x0), model.process.T))


def table(bound: Bound, n: int, T: int) -> str:
    """The bound and its parts, in the papers' count of steps from 1 to T."""
    rows = [("L_T, what is left in x_T", bound.prior.mean().item()), ("t = 1, the decoder", bound.between(0, 0))]
    edges = bound.edges.tolist()
    for first, last in [(1, 9), (10, 99), (100, T - 1)]:
        inside = [k for k in range(len(edges) - 1) if first <= edges[k] <= last]
        if inside:
            span = f"t = {edges[inside[0]] + 1} … {edges[inside[-1] + 1]}"
            rows.append((span, bound.between(first, last)))
    lines = [f"{label:<28}{bits:>9.4f}" for label, bits in rows]
    lines.append(f"{'bits/dim, at most':<28}{bound.total:>9.4f} ± {bound.error:.4f}   ({n} held-out examples)")
    return "\n".join(lines)
