"""The mathematics: what noise does, and what is learned against it."""

from .binomial import BinomialDiffusion
from .gaussian import GaussianDenoiser, GaussianDiffusion
from .kernels import draw, kernel_log_prob
from .learned_gaussian import LearnedGaussian
from .noisy_classifier import NoisyClassifier
from .schedules import (
    SCHEDULES,
    constant_betas,
    cosine_betas,
    geometric_betas,
    harmonic_betas,
    linear_betas,
    quadratic_betas,
)
from .stats import (
    bernoulli_entropy,
    bernoulli_kl,
    bernoulli_log_prob,
    discretised_normal_log_prob,
    flat_mean,
    normal_kl,
    standard_error,
)
from .timesteps import UniformTimes

__all__ = [
    "SCHEDULES",
    "BinomialDiffusion",
    "GaussianDenoiser",
    "GaussianDiffusion",
    "LearnedGaussian",
    "NoisyClassifier",
    "UniformTimes",
    "bernoulli_entropy",
    "bernoulli_kl",
    "bernoulli_log_prob",
    "constant_betas",
    "cosine_betas",
    "discretised_normal_log_prob",
    "draw",
    "flat_mean",
    "geometric_betas",
    "harmonic_betas",
    "kernel_log_prob",
    "linear_betas",
    "normal_kl",
    "quadratic_betas",
    "standard_error",
]
