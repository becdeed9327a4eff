"""Whole configurations by name, one module per paper; a recipe is called as its function, with dashes."""

import difflib
import inspect
from collections.abc import Callable
from types import ModuleType

from minidiff.training import Config, Description

from . import adm, ddpm, digits, edm, improved_ddpm, sohl_dickstein
from .papers import PAPERS, PaperScores
from .sets import SETS


def _of(module: ModuleType) -> dict[str, Callable[[], Config]]:
    """The public functions that a module defines."""
    own = [make for make in vars(module).values() if inspect.isfunction(make) and make.__module__ == module.__name__]
    return {make.__name__.replace("_", "-"): make for make in own if not make.__name__.startswith("_")}


RECIPES: dict[str, Callable[[], Config]] = {
    name: make
    for module in (digits, ddpm, sohl_dickstein, improved_ddpm, adm, edm)
    for name, make in _of(module).items()
}


def recipe(name: str) -> Config:
    """The configuration of this name. Raises ValueError that lists the known names, the nearest first."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"there is no recipe {name!r}.{hint} Known are: {', '.join(RECIPES)}.")
    return RECIPES[name]()


def describe(name: str) -> Description:
    """A recipe and its data's shape and levels, from which its model can be built though no data are there."""
    config = recipe(name)
    return Description(config, *SETS[config.data.source])
