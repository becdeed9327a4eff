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
from .distributed import portions
from .ema import EMA
from .execution import Execution
from .folder import in_use, read_metrics
from .gradient_noise import GradientNoise, gradient_noise
from .loop import State, begin, resume, train
