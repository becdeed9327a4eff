"""A published checkpoint as one of ours: read, recognised, renamed, written."""

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minidiff.networks import UNet
from minidiff.training import Description
from minidiff.training.checkpoint import save

from . import ddpm_port, diffusers_folder, edm, openai, score_sde
from .mapping import translate
from .openai import Order

MARKS = {  # a key that no other format has
    "input_blocks.0.0.weight": "improved- or guided-diffusion",
    "temb.dense.0.weight": "DDPM's PyTorch port",
    "ema": "score_sde",
    "model.map_layer0.weight": "EDM",
}
HOLDS = {  # which networks a format is for: a kind, or a UNet of one convention
    "improved- or guided-diffusion": ("UNet openai", "Classifier"),
    "DDPM's PyTorch port": ("UNet ddpm",),
    "diffusers": ("UNet ddpm", "UNet openai"),
    "score_sde": ("SongUNet",),
    "EDM": ("SongUNet", "UNet openai"),
}


def import_checkpoint(file: Path, description: Description, out: Path, attention: Order | None = None) -> Path:
    """Write the weights of a published checkpoint as a run that has ended; return the folder of its checkpoint.

    ``file`` is a .pt of improved- or guided-diffusion, a .ckpt of DDPM's PyTorch port, a folder of diffusers, a .pth of
    score_sde or a .pkl of EDM; ``description`` says which network it should be. ``attention`` is for OpenAI's files
    of other names than the published ones: the order of queries, keys and values, which no shape tells.

    Raises ValueError for a file that can't be read or is of another network, and for an ``out`` that exists, before
    anything is written. Nothing in the file is executed.
    """
    if not file.exists():
        raise ValueError(f"there is no file {file}.")
    if out.exists():
        raise ValueError(f"{out} is there already: give another.")
    with torch.device("meta"):  # its names and shapes are all that is asked
        net, config = description.build().net, description.config
    try:
        state = weights(file, net, description, attention)
    except ValueError as error:
        raise ValueError(f"{file} is not a checkpoint of {config.recipe}: {error}.") from error
    name = f"ema-{max(config.training.ema)}"
    return save(out, config.training.images, description, {name: {f"net.{key}": v for key, v in state.items()}}, {})


def weights(file: Path, net: nn.Module, description: Description, attention: Order | None) -> dict[str, Tensor]:
    """A state dict for ``net``. Raises ValueError with what is wrong."""
    contents = read(file)
    found = recognise(contents)
    if attention and not found.startswith("improved"):
        raise ValueError(f"--attention {attention} is for OpenAI's files, and this is of {found}")
    kind = f"UNet {net.convention}" if isinstance(net, UNet) else type(net).__name__
    if kind not in HOLDS[found]:
        raise ValueError(f"the file is of {found}, which has no {kind}")
    try:
        match found:
            case "improved- or guided-diffusion":
                naming, theirs = openai.naming(openai.attention_order(file.name, attention, net)), contents
            case "DDPM's PyTorch port":
                naming, theirs = ddpm_port.NAMING, ddpm_port.unwrap(contents)
            case "score_sde":
                naming, theirs = score_sde.naming(net), score_sde.unwrap(contents)
            case "diffusers":
                naming = diffusers_folder.naming(net)
                theirs = diffusers_folder.read(file, net, description.config.network)
            case "EDM":
                naming = edm.naming(net, description.shape[1])
                theirs = edm.without_constants(contents, getattr(description.config.network, "taps", (1, 1)))
    except (AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"it is not laid out as files of {found} are") from error
    if wrong := [key for key, value in theirs.items() if not plain(value)]:
        raise ValueError(f"{wrong[0]} is no table of numbers")
    return translate(net, naming, theirs)


def read(file: Path) -> Any:
    """What a file holds, tensors and plain containers; of a folder, its path. Raises ValueError where it is damaged."""
    if file.is_dir():
        return file
    if file.suffix == ".pkl":
        return edm.read(file)
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except OSError:
        raise
    except Exception as error:  # a zip or pickle can be broken in many ways, and each has an exception of its own
        raise ValueError(f"it can't be read as weights alone, {type(error).__name__}") from error


def plain(value: Any) -> bool:
    """Whether something is a table of numbers that are really there."""
    if not isinstance(value, Tensor) or value.ndim == 0 or not value.is_floating_point():
        return False
    return value.layout == torch.strided and value.device.type == "cpu"


def recognise(contents: Any) -> str:
    """Which format something read is of. Raises ValueError for none that is known."""
    if isinstance(contents, Path):
        return "diffusers"
    keys = contents[-1] if isinstance(contents, list) and contents else contents  # a training state ends in averages
    if isinstance(keys, dict):
        for key, found in MARKS.items():
            if key in keys or f"module.{key}" in keys:
                return found
    raise ValueError(
        "it is of no known format: a .pt of improved- or guided-diffusion, a .ckpt of DDPM's PyTorch port, "
        "a folder of diffusers, a .pth of score_sde or a .pkl of EDM"
    )
