"""What several commands need."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from minidiff.diffusion import NoisyClassifier
from minidiff.pretrained import load
from minidiff.training import Description, Model

Device = Literal["auto", "cpu", "cuda", "mps"]


def choose_device(name: Device) -> torch.device:
    """The named device; by itself a CUDA GPU, or the CPU. Raises ValueError where the named one is missing."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not present[name]:
        raise ValueError(f"--device {name}: this machine, or this build of torch, has none. Take --device cpu.")
    return torch.device(name)


def place(module: nn.Module, device: torch.device) -> nn.Module:
    """Move a module; Apple's MPS has no float64, so the tables become float32 there (best effort)."""
    return (module.float() if device.type == "mps" else module).to(device)


def load_diffusion(path: Path, weights: str | None = None) -> tuple[Model, Description]:
    """What ``load`` finds; a classifier is refused too."""
    model, description = load(path, weights)
    if isinstance(model.process, NoisyClassifier):
        raise ValueError(
            f"{path} is a classifier of noisy images, which draws none and has no likelihood. Let it guide a run that "
            f"does: minidiff sample RUN --classifier {path}."
        )
    return model, description


def classes_of(net: object, seeds: Sequence[int], classes: Sequence[int] = ()) -> dict[str, Tensor]:
    """What a class-conditional network is told: of these classes, or of all, the one whose turn it is at each seed.

    ``net`` may be whatever has ``classes``, the number that it knows; nothing is told where it has none. Raises
    ValueError for a class that it does not know.
    """
    known = getattr(net, "classes", 0)
    if unknown := [k for k in classes if not 0 <= k < known]:
        raise ValueError(f"--classes {unknown[0]}: this network knows {f'0 … {known - 1}' if known else 'no classes'}.")
    turns = torch.tensor(list(classes or range(known)))
    return {"labels": turns[torch.tensor(list(seeds)) % len(turns)]} if known else {}
