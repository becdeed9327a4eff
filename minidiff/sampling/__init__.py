"""From noise to data."""

from .ancestral import ancestral
from .ddim import ddim, ddim_encode, slerp
from .generate import generate
from .langevin import annealed_langevin, langevin
from .noise import batch_noise, per_image_noise
from .ode import heun, ode
from .posteriors import Posterior, known
from .sde import sde

__all__ = [
    "Posterior",
    "ancestral",
    "annealed_langevin",
    "batch_noise",
    "ddim",
    "ddim_encode",
    "generate",
    "heun",
    "known",
    "langevin",
    "ode",
    "per_image_noise",
    "sde",
    "slerp",
]
