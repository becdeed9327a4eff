"""From data to a checkpoint."""

from .checkpoint import Description, load_model, newest, read_description
from .config import (
    Config,
    DataConfig,
    GaussianConfig,
    Model,
    TrainingConfig,
    UNetConfig,
    build,
    check,
    differences,
    time_sampler,
)
from .ema import EMA
from .loop import State, begin, read_metrics, resume, train

__all__ = [
    "EMA",
    "Config",
    "DataConfig",
    "Description",
    "GaussianConfig",
    "Model",
    "State",
    "TrainingConfig",
    "UNetConfig",
    "begin",
    "build",
    "check",
    "differences",
    "load_model",
    "newest",
    "read_description",
    "read_metrics",
    "resume",
    "time_sampler",
    "train",
]
