"""``minidiff recipes``: what can be trained."""

from dataclasses import dataclass

import tyro

from minidiff.recipes import RECIPES, describe
from minidiff.training.cost import Assumed, Cost


@dataclass(frozen=True, kw_only=True)
class Options(Assumed):
    """List what can be trained: each recipe with its examples, parameters, GPU-hours, and whose it is."""


def run(argv: list[str]) -> None:
    """Print a line a recipe, as each is counted."""
    options = tyro.cli(Options, args=argv, prog="minidiff recipes")
    print(f"GPU-hours to a recipe's last image are of {options}; `minidiff info RECIPE` tells more.\n")
    print(f"{'recipe':<29}{'example':<11}{'parameters':>13}{'GPU-hours':>11}")
    for name, make in RECIPES.items():
        description = describe(name)
        cost, size = Cost(description), "×".join(map(str, description.shape))
        said = (make.__doc__ or "").splitlines()[0]
        print(f"{name:<29}{size:<11}{cost.parameters:>13,}{cost.hours(options):>11,.1f}  {said}", flush=True)
