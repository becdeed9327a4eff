"""``minidiff info RECIPE`` or ``minidiff info RUN``: what it is, and what it costs to train it."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import tyro

from minidiff.pretrained import load
from minidiff.recipes import RECIPES, describe
from minidiff.training.cost import GIB, GPUS, USABLE, Assumed, Cost


@dataclass(frozen=True, kw_only=True)
class Options(Assumed):
    """Print the size of a model and what its training costs; of a run also the configuration."""

    what: tyro.conf.Positional[Path]
    """A recipe; or the folder of a run or of one checkpoint, or the name of a model that ships."""


def run(argv: list[str]) -> None:
    """Print a table, and below it a run's whole configuration."""
    options = tyro.cli(Options, args=argv, prog="minidiff info")
    is_recipe = str(options.what) in RECIPES and not options.what.exists()
    description = describe(str(options.what)) if is_recipe else load(options.what)[1]
    print(table(Cost(description), options))
    if not is_recipe:
        print(json.dumps(description.to_dict(), indent=1))


def table(cost: Cost, assumed: Assumed) -> str:
    """Size, work, memory by part and time; an example is an image, a point or a sequence."""
    training, gpu = cost.config.training, GPUS[assumed.gpu]
    rows = [
        ("parameters", f"{cost.parameters:,}"),
        ("forward pass of an example", scaled(cost.forward, "FLOP")),
        ("training on an example", scaled(cost.training, "FLOP")),
        *((name, scaled(size, "B", 1024)) for name, size in cost.memory(assumed.precision).items()),
        ("activations of an example", scaled(cost.activations(assumed.precision), "B", 1024)),
        (f"examples at a time in {USABLE:.0%} of {gpu.memory / GIB:.0f} GiB", f"{cost.micro_batch(assumed):,}"),
        (f"examples in all, in batches of {training.batch:,}", f"{training.images:,}"),
        ("examples a second", f"{cost.per_second(assumed):,.1f}"),
        ("GPU-hours", f"{cost.hours(assumed):,.1f}"),
    ]
    return "\n".join([f"{cost.config.recipe}, on {assumed}", *(f"  {name:<44}{value:>18}" for name, value in rows)])


def scaled(value: float, unit: str, step: int = 1000) -> str:
    """With the prefix that leaves a number below ``step``: 219.4 GFLOP, 1.10 GiB."""
    prefixes = ["", "k", "M", "G", "T"] if step == 1000 else ["", "Ki", "Mi", "Gi", "Ti"]
    power = min(int(math.log(max(value, 1), step)), len(prefixes) - 1)
    return f"{value / step**power:,.4g} {prefixes[power]}{unit}"
