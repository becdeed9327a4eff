"""How a run is run: in which precision, in which portions, by which kernels, with how many checkpoints kept.

A run may be resumed with any other answer, on any other machine; what it computes stands in its configuration.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Precision = Literal["auto", "bf16", "fp16", "fp32"]


@dataclass(frozen=True)
class Execution:
    """How a run is run. Raises ValueError for a number below 0."""

    precision: Precision = "auto"
    """Of the network's products: auto is bf16 on a GPU that has it, else fp32."""
    micro: int = 0
    """Examples that each process puts through the network at a time, where memory is short; 0: its share of a batch."""
    compile: bool = False
    """Compile the network first: a minute or more at the start, less time for every step."""
    deterministic: bool = False
    """Only kernels that give the same bits each time."""
    keep: int = 0
    """How many of the last checkpoints stay; 0: all."""
    milestone: int = 0
    """Where not all stay: the first checkpoint after each multiple of so many images does."""

    def __post_init__(self):
        for name in ("micro", "keep", "milestone"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: give a number of at least 0.")

    def dtype(self, device: torch.device) -> tuple[torch.dtype, str]:
        """What the network's products are taken in, and why."""
        asked = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
        if self.precision in asked:
            return asked[self.precision], "as asked for"
        if device.type != "cuda":
            return torch.float32, f"a {device.type.upper()} gains little by less"
        name = torch.cuda.get_device_name(device)
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, f"{name} has it"
        return torch.float32, f"{name} has no bfloat16"

    def autocast(self, device: torch.device) -> torch.autocast:
        """Around the forward pass."""
        dtype, _ = self.dtype(device)
        return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)

    @contextmanager
    def kernels(self) -> Iterator[None]:
        """Inside, torch picks deterministic kernels where asked to, and the fastest convolutions where not."""
        mode, benchmark = torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark
        if self.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it once, when it starts
            torch.set_deterministic_debug_mode("error")
        torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
        try:
            yield
        finally:
            torch.set_deterministic_debug_mode(mode)
            torch.backends.cudnn.benchmark = benchmark


def moved(x: Tensor, device: torch.device) -> Tensor:
    """On the device; towards a GPU through pinned memory, which nobody waits for, and images with channels last."""
    if device.type != "cuda":
        return x.to(device)
    x = (x.pin_memory() if x.is_cpu else x).to(device, non_blocking=True)
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
