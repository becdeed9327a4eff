"""minidiff: the library that the book derives.

As data flows: ``data`` → ``diffusion`` (noise, target) → ``networks`` → ``training`` → ``sampling`` → ``evaluation``.
"""

from .data import Images, Mixture, Points, decode, digits, encode, held_out, load_images, swiss_roll
from .diffusion import (
    SCHEDULES,
    GaussianDenoiser,
    GaussianDiffusion,
    UniformTimes,
    constant_betas,
    cosine_betas,
    discretised_normal_log_prob,
    flat_mean,
    harmonic_betas,
    linear_betas,
    normal_kl,
    quadratic_betas,
    standard_error,
)
from .evaluation import Bound, frechet_distance, likelihood_bound, strata
from .networks import MLP, UNet
from .pretrained import load
from .recipes import RECIPES, recipe
from .sampling import ancestral, batch_noise, generate, per_image_noise
from .training import (
    EMA,
    Config,
    DataConfig,
    Description,
    GaussianConfig,
    Model,
    State,
    TrainingConfig,
    UNetConfig,
    begin,
    build,
    read_metrics,
    resume,
    train,
)

__version__ = "0.1.0"

__all__ = [
    "EMA",
    "MLP",
    "RECIPES",
    "SCHEDULES",
    "Bound",
    "Config",
    "DataConfig",
    "Description",
    "GaussianConfig",
    "GaussianDenoiser",
    "GaussianDiffusion",
    "Images",
    "Mixture",
    "Model",
    "Points",
    "State",
    "TrainingConfig",
    "UNet",
    "UNetConfig",
    "UniformTimes",
    "ancestral",
    "batch_noise",
    "begin",
    "build",
    "constant_betas",
    "cosine_betas",
    "decode",
    "digits",
    "discretised_normal_log_prob",
    "encode",
    "flat_mean",
    "frechet_distance",
    "generate",
    "harmonic_betas",
    "held_out",
    "likelihood_bound",
    "linear_betas",
    "load",
    "load_images",
    "normal_kl",
    "per_image_noise",
    "quadratic_betas",
    "read_metrics",
    "recipe",
    "resume",
    "standard_error",
    "strata",
    "swiss_roll",
    "train",
]
