"""``minidiff import FILE --as RECIPE OUT``: a published checkpoint as a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from minidiff.pretrained import import_checkpoint
from minidiff.pretrained.openai import Order
from minidiff.recipes import describe


@dataclass(frozen=True)
class Options:
    """Turn a published checkpoint into a run that other commands take."""

    file: tyro.conf.Positional[Path]
    """A .pt of improved- or guided-diffusion, a .ckpt of DDPM's PyTorch port, a folder of diffusers, a .pth of
    score_sde or a .pkl of EDM; nothing in it is executed."""
    out: tyro.conf.Positional[Path]
    """Folder for the run; it should not exist."""
    recipe: Annotated[str, tyro.conf.arg(name="as")]
    """The recipe that it was trained by: minidiff recipes lists them."""
    attention: Order | None = None
    """Order of queries, keys and values in a file of OpenAI's code that is not one of the published."""


def run(argv: list[str]) -> None:
    """Write the checkpoint and say where it is."""
    options = tyro.cli(Options, args=argv, prog="minidiff import")
    folder = import_checkpoint(options.file, describe(options.recipe), options.out, options.attention)
    print(f"{options.file} as {options.recipe}\n  checkpoint  {folder}")
