"""``minidiff plot RUN…``: how training went, and at which noise levels there is still something to learn."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from minidiff.cli.common import Device, check_runs, choose_device, held_out_data, place
from minidiff.data import Images, Points
from minidiff.diffusion import EDM
from minidiff.evaluation import level_losses
from minidiff.pretrained import load
from minidiff.training import Description, Model, read_metrics, time_sampler

SUFFIXES = (".png", ".svg", ".pdf")
KEYS = {"loss": "training loss", "lr": "learning rate", "gradient_norm": "norm of the gradient"}


@dataclass(frozen=True)
class Options:
    """Draw loss, learning rate and gradient over the images seen, and the held-out loss by noise level."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs, or names of models that ship, which have no record of their training."""
    out: Path = Path("plots.png")
    """The picture: a .png, .svg or .pdf file."""
    data: str | None = None
    """Another data source than each run's own."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 256
    """How many held-out examples at each level."""
    levels: int = 20
    """How many levels, at even shares of those that training draws from."""
    seed: int = 0
    """Of the noise."""
    batch: int = 256
    """Examples that the network sees at a time."""
    weights: str | None = None
    """model for the raw weights, ema-… for an average; the longest average by default."""
    device: Device = "auto"
    """cpu, cuda or mps; auto takes a CUDA GPU where there is one."""


@dataclass(frozen=True)
class Run:
    """What is drawn of one run."""

    path: Path
    model: Model
    description: Description
    metrics: list[dict[str, float]]
    held_out: Images | Points

    @property
    def axis(self) -> str:
        """What its noise levels are."""
        return "σ" if isinstance(self.model.process, EDM) else "t"


def run(argv: list[str]) -> None:
    """Read everything first, then look at the newest checkpoints, then draw."""
    options = tyro.cli(Options, args=argv, prog="minidiff plot")
    check(options)
    device = choose_device(options.device)
    runs = [read(path, options) for path in options.runs]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(runs), unit=" runs", disable=None) as bar:
        curves = []
        for each in runs:
            curves.append(by_level(each, options, device))
            bar.update()
    draw(runs, curves, options.out)
    print(f"picture  {options.out}")


def check(options: Options) -> None:
    """Raises ValueError for what can't be drawn."""
    check_runs(options.runs, "minidiff plot runs/digits --out plots.png")
    if options.out.suffix not in SUFFIXES or options.out.is_dir():
        raise ValueError(f"--out {options.out}: give a file that ends in {', '.join(SUFFIXES)}.")
    if options.n < 2 or options.levels < 2 or options.batch < 1 or not 0 <= options.seed < 2**63:
        raise ValueError(
            f"-n {options.n} --levels {options.levels} --batch {options.batch} --seed {options.seed}: "
            "n and levels ≥ 2, batch ≥ 1, 0 ≤ seed < 2**63."
        )


def read(path: Path, options: Options) -> Run:
    """A run, its record and its held-out data."""
    model, description = load(path, options.weights)
    return Run(path, model, description, read_metrics(path), held_out_data(path, description, options.data))


def by_level(of: Run, options: Options, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Levels, the loss at each, and its standard error."""
    model, generator = place(of.model, device), torch.Generator(device).manual_seed(options.seed)
    places = torch.arange(min(options.n, len(of.held_out)))
    x0, cond = of.held_out.batch(places, torch.Generator().manual_seed(options.seed))
    shares = (torch.arange(options.levels, dtype=torch.float64) + 0.5) / options.levels
    if of.axis == "σ":
        levels = time_sampler(of.description.config).quantile(shares)
    else:
        levels = (shares * model.process.T).long().unique()
    cond = {name: rows.to(device) for name, rows in cond.items()}
    told = (levels.to(device), generator, options.batch, cond)
    return levels, *level_losses(model.process, model.net, x0.to(device), *told)


def draw(runs: list[Run], curves: list[tuple[Tensor, Tensor, Tensor]], out: Path) -> None:
    """One panel for each of KEYS, and one for each kind of noise level."""
    from minidiff import plots  # here, because matplotlib is slow to import
    from minidiff.plots import plt

    plots.style()
    axes_of_levels = list(dict.fromkeys(each.axis for each in runs))
    figure, axes = plt.subplots(
        2, 3 if len(axes_of_levels) > 1 else 2, figsize=(3.2 * (2 + len(axes_of_levels) // 2), 5)
    )
    panels = dict(zip([*KEYS, *axes_of_levels], axes.flat, strict=False))
    for ax in list(axes.flat)[len(panels) :]:
        ax.set_axis_off()
    for k, (each, (levels, loss, error)) in enumerate(zip(runs, curves, strict=True)):
        colour = plots.CYCLE[k % len(plots.CYCLE)]
        for key in KEYS:
            lines = [line for line in each.metrics if key in line]  # a record may be older than a key
            panels[key].plot(*(np.array([line[name] for line in lines]) for name in ("images", key)), color=colour)
        panels[each.axis].plot(levels, loss, color=colour, label="/".join(each.path.parts[-2:]))
        panels[each.axis].fill_between(levels, loss - error, loss + error, color=colour, alpha=0.3, linewidth=0)
    for key, label in KEYS.items():
        panels[key].set(xlabel="images seen", ylabel=label)
    for name in axes_of_levels:
        panels[name].set(xlabel=name, ylabel="held-out loss, ± its error", xscale="log" if name == "σ" else "linear")
        panels[name].legend().set_in_layout(False)  # long names make no panel smaller
    for key in panels.keys() - {"lr"}:  # a bound on continuous data may be negative
        if all((line.get_ydata() > 0).all() for line in panels[key].lines):
            panels[key].set_yscale("log")
    figure.savefig(out, dpi=120)
    plt.close(figure)
