"""What several commands need."""

from typing import Literal

import torch
from torch import nn

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
