"""Whole configurations by name, one module per paper."""

import difflib
from collections.abc import Callable

from minidiff.training import Config

from . import ddpm, sohl_dickstein
from .papers import PAPERS, PaperScores

RECIPES: dict[str, Callable[[], Config]] = {
    "digits": ddpm.digits,
    "swissroll-sd": sohl_dickstein.swissroll_sd,
    "heartbeat-sd": sohl_dickstein.heartbeat_sd,
    "dead-leaves-sd": sohl_dickstein.dead_leaves_sd,
    "ddpm-cifar10": ddpm.ddpm_cifar10,
    "ddpm-celebahq256": ddpm.ddpm_celebahq256,
    "ddpm-lsun-church256": ddpm.ddpm_lsun_church256,
    "ddpm-lsun-bedroom256": ddpm.ddpm_lsun_bedroom256,
    "ddpm-lsun-cat256": ddpm.ddpm_lsun_cat256,
}


def recipe(name: str) -> Config:
    """The configuration of this name. Raises ValueError that lists the known names, the nearest first."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"there is no recipe {name!r}.{hint} Known are: {', '.join(RECIPES)}.")
    return RECIPES[name]()


__all__ = ["PAPERS", "RECIPES", "PaperScores", "recipe"]
