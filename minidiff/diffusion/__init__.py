"""The mathematics: what noise does, and what is learned against it."""

from .gaussian import GaussianDenoiser, GaussianDiffusion
from .schedules import SCHEDULES, constant_betas, cosine_betas, harmonic_betas, linear_betas, quadratic_betas
from .stats import discretised_normal_log_prob, flat_mean, normal_kl, standard_error
from .timesteps import UniformTimes

__all__ = [
    "SCHEDULES",
    "GaussianDenoiser",
    "GaussianDiffusion",
    "UniformTimes",
    "constant_betas",
    "cosine_betas",
    "discretised_normal_log_prob",
    "flat_mean",
    "harmonic_betas",
    "linear_betas",
    "normal_kl",
    "quadratic_betas",
    "standard_error",
]
