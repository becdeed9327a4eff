"""From noise to data."""

from .ancestral import ancestral
from .churn import churn
from .classifier_free import ClassifierFree
from .ddim import cosine_sine, ddim, ddim_encode, slerp
from .dpmpp import dpmpp
from .generate import generate
from .guidance import ClassLogProb, Guided, GuidedDenoiser
from .langevin import annealed_langevin, langevin
from .noise import batch_noise, per_image_noise, tempered
from .ode import heun, ode, rk2
from .posteriors import Posterior, known
from .sde import sde
from .truncation import truncation_error

__all__ = [
    "ClassLogProb",
    "ClassifierFree",
    "Guided",
    "GuidedDenoiser",
    "Posterior",
    "ancestral",
    "annealed_langevin",
    "batch_noise",
    "churn",
    "cosine_sine",
    "ddim",
    "ddim_encode",
    "dpmpp",
    "generate",
    "heun",
    "known",
    "langevin",
    "ode",
    "per_image_noise",
    "rk2",
    "sde",
    "slerp",
    "tempered",
    "truncation_error",
]
