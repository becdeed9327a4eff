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
