"""The networks: ``net(x, t, **cond)``, knowing nothing of diffusion."""

from .classifier import Classifier
from .mlp import MLP
from .multiscale import MultiScale
from .readout import RBF, BumpReadout, SigmoidMLP, StepReadout, temporal_bumps
from .song_unet import SongUNet
from .unet import UNet
