"""``minidiff info RUN``: what a run is."""

import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from minidiff.pretrained import load


@dataclass(frozen=True)
class Options:
    """Print the configuration and size of a trained model."""

    run: tyro.conf.Positional[Path]
    """Folder of a run or of one checkpoint, or the name of a model that ships."""


def run(argv: list[str]) -> None:
    """Print parameters and the whole configuration."""
    options = tyro.cli(Options, args=argv, prog="minidiff info")
    model, description = load(options.run)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    print(json.dumps(description.to_dict(), indent=1))
