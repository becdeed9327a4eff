"""``minidiff export RUN OUT``: a trained U-Net for diffusers."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from minidiff.pretrained import export, load


@dataclass(frozen=True)
class Options:
    """Write a model as a folder that diffusers loads: UNet2DModel, DDPMScheduler, DDPMPipeline."""

    run: tyro.conf.Positional[Path]
    """Folder of a run or of one checkpoint, or the name of a model that ships."""
    out: tyro.conf.Positional[Path]
    """Folder to make."""
    weights: str | None = None
    """model for the raw weights, ema-… for an average; the longest average by default."""


def run(argv: list[str]) -> None:
    """Write the folder and say how to load it."""
    options = tyro.cli(Options, args=argv, prog="minidiff export")
    model, description = load(options.run, options.weights)
    export(model, description, options.out)
    print(f"{options.out}: diffusers.DDPMPipeline.from_pretrained({str(options.out)!r}) loads it")
