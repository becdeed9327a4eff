"""The networks: ``net(x, t, **cond)``, knowing nothing of diffusion."""

from .mlp import MLP
from .unet import UNet

__all__ = ["MLP", "UNet"]
