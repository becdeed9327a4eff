"""``minidiff recipes``: what can be trained."""

import tyro

from minidiff.recipes import RECIPES


def run(argv: list[str]) -> None:
    """Print each recipe's name and the first line of its docstring."""
    tyro.cli(lambda: None, args=argv, prog="minidiff recipes", description="List what can be trained.")
    for name, make in RECIPES.items():
        print(f"{name:<22}{(make.__doc__ or '').splitlines()[0]}")
