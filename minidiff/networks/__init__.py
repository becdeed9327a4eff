"""The networks: ``net(x, t, **cond)``, knowing nothing of diffusion."""

from .mlp import MLP
from .multiscale import MultiScale
from .readout import RBF, BumpReadout, SigmoidMLP, StepReadout, temporal_bumps
from .unet import UNet

__all__ = ["MLP", "RBF", "BumpReadout", "MultiScale", "SigmoidMLP", "StepReadout", "UNet", "temporal_bumps"]
