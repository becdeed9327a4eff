"""From data to a checkpoint."""

from .build import Model, build, time_sampler
from .checkpoint import Description, load_model, newest, read_description
from .config import (
    BinomialConfig,
    ClassifierConfig,
    Config,
    DataConfig,
    EDMConfig,
    GaussianConfig,
    LearnedGaussianConfig,
    MultiScaleConfig,
    NetworkConfig,
    ProcessConfig,
    RBFConfig,
    SigmoidMLPConfig,
    SongUNetConfig,
    TrainingConfig,
    UNetConfig,
    check,
    differences,
)
from .ema import EMA
from .gradient_noise import GradientNoise, gradient_noise
from .loop import State, begin, read_metrics, resume, train

__all__ = [
    "EMA",
    "BinomialConfig",
    "ClassifierConfig",
    "Config",
    "DataConfig",
    "Description",
    "EDMConfig",
    "GaussianConfig",
    "GradientNoise",
    "LearnedGaussianConfig",
    "Model",
    "MultiScaleConfig",
    "NetworkConfig",
    "ProcessConfig",
    "RBFConfig",
    "SigmoidMLPConfig",
    "SongUNetConfig",
    "State",
    "TrainingConfig",
    "UNetConfig",
    "begin",
    "build",
    "check",
    "differences",
    "gradient_noise",
    "load_model",
    "newest",
    "read_description",
    "read_metrics",
    "resume",
    "time_sampler",
    "train",
]
