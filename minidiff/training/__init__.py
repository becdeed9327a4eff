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
from .distributed import portions, process_group, rank
from .ema import EMA
from .execution import Execution
from .folder import in_use, read_metrics
from .gradient_noise import GradientNoise, gradient_noise
from .loop import State, begin, resume, train

__all__ = [
    "EMA",
    "BinomialConfig",
    "ClassifierConfig",
    "Config",
    "DataConfig",
    "Description",
    "EDMConfig",
    "Execution",
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
    "in_use",
    "load_model",
    "newest",
    "portions",
    "process_group",
    "rank",
    "read_description",
    "read_metrics",
    "resume",
    "time_sampler",
    "train",
]
