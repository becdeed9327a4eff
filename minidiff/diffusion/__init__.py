"""The mathematics: what noise does, and what is learned against it."""

from .binomial import BinomialDiffusion
from .continuous import ContinuousDenoiser
from .gaussian import GaussianDenoiser, GaussianDiffusion
from .ideal import IdealDenoiser
from .importance import ImportanceTimes
from .kernels import draw, kernel_log_prob
from .learned_gaussian import LearnedGaussian
from .noisy_classifier import NoisyClassifier
from .paths import EDMPath, GeometricVEPath, IDDPMPath, Path, SubVPPath, VEPath, VPPath
from .preconditioning import COLUMNS, EDM, Column, edm_column, iddpm_column, ve_column, vp_column
from .respacing import respace
from .schedules import (
    SCHEDULES,
    constant_betas,
    cosine_betas,
    geometric_betas,
    harmonic_betas,
    linear_betas,
    quadratic_betas,
)
from .score_matching import ScoreMatching
from .stats import (
    bernoulli_entropy,
    bernoulli_kl,
    bernoulli_log_prob,
    discretised_normal_log_prob,
    flat_mean,
    normal_kl,
    standard_error,
)
from .timesteps import SigmaTimes, UniformTimes, sections, subsequence
