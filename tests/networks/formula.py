"""Weights, images and figures that any machine makes alike, without a random generator."""

import zlib

import numpy as np
import torch
from torch import nn


def wave(*shape: int, phase: float = 0.0) -> torch.Tensor:
    """Numbers in [−1, 1] that look like noise: a sine whose angle grows with the square of the place."""
    k = np.arange(np.prod(shape), dtype=np.float64)
    return torch.from_numpy(np.sin(phase + 0.37 * k * k)).reshape(shape).to(torch.get_default_dtype())


@torch.no_grad()
def fill(net: nn.Module) -> nn.Module:
    """Every weight from its name: matrices keep the variance, norms are about 1, biases about 0, none is exactly so."""
    for name, parameter in net.named_parameters():
        value = wave(*parameter.shape, phase=zlib.crc32(name.encode()) % 997)
        if parameter.ndim > 1:
            value = value * (2 / parameter[0].numel()) ** 0.5
        else:
            value = 0.3 * value + (1 if "norm" in name and name.endswith("weight") else 0)
        parameter.copy_(value)
    for name, buffer in net.named_buffers():
        if name.endswith("frequencies"):
            buffer.copy_(2 * wave(*buffer.shape, phase=5))
    return net.eval()


def figures(x: torch.Tensor, y: torch.Tensor) -> dict[str, list[float]]:
    """Of an answer y, and of the gradient of a weighted sum of it with respect to x: mean, deviation, eight values."""
    (gradient,) = torch.autograd.grad((y * wave(*y.shape, phase=3)).sum(), x)
    found = {}
    for name, value in (("answer", y.detach()), ("gradient", gradient)):
        places = torch.linspace(0, value.numel() - 1, 8).long()
        found[name] = [value.mean().item(), value.std().item(), *value.flatten()[places].tolist()]
    return found
