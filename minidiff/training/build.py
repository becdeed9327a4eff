"""From a configuration to modules."""

import dataclasses
from inspect import signature

import torch
from torch import Tensor, nn

from minidiff.diffusion import (
    COLUMNS,
    EDM,
    SCHEDULES,
    BinomialDiffusion,
    Column,
    GaussianDiffusion,
    ImportanceTimes,
    LearnedGaussian,
    NoisyClassifier,
    SigmaTimes,
    UniformTimes,
)
from minidiff.networks import RBF, Classifier, MultiScale, SigmoidMLP, SongUNet, UNet

from .config import (
    BinomialConfig,
    ClassifierConfig,
    Config,
    EDMConfig,
    GaussianConfig,
    LearnedGaussianConfig,
    MultiScaleConfig,
    NetworkConfig,
    ProcessConfig,
    RBFConfig,
    SongUNetConfig,
    UNetConfig,
)

Process = GaussianDiffusion | LearnedGaussian | BinomialDiffusion | EDM | NoisyClassifier


class Model(nn.Module):
    """A network and its process as one module: what is optimised, averaged and saved."""

    def __init__(self, net: nn.Module, process: Process):
        super().__init__()
        self.net, self.process = net, process

    def forward(self, x0: Tensor, t: Tensor, noise: Tensor, **cond: Tensor) -> dict[str, Tensor]:
        """The process's per-example losses."""
        return self.process.loss(self.net, x0, t, noise, **cond)


def build(config: Config, shape: tuple[int, ...], levels: int | None) -> Model:
    """The modules that a configuration describes, for data of this shape and these levels (None: continuous).

    Weights are drawn from torch's default generator. Raises ValueError, naming the remedy, for a schedule that does not
    exist, and for data that the process or the network cannot take.
    """
    with torch.device("cpu"):  # tables are numbers even where the weights are mere shapes, on meta
        process = build_process(config.process, levels)
    if isinstance(config.network, ClassifierConfig):
        process = NoisyClassifier(process)
    learned = isinstance(process, LearnedGaussian) or getattr(process, "variance", "") in ("learned", "range")
    learned = learned or getattr(config.process, "learned_variance", False)
    return Model(build_network(config.network, shape, 2 if learned else 1, getattr(process, "T", 0)), process)


def build_process(config: ProcessConfig, levels: int | None) -> Process:
    """The process, with the tables of its schedule or the functions of its column."""
    if isinstance(config, EDMConfig):
        return EDM(build_column(config), config.steps)
    if config.schedule not in SCHEDULES:
        raise ValueError(f"process.schedule={config.schedule!r} is not one of {', '.join(SCHEDULES)}.")
    try:
        betas = SCHEDULES[config.schedule](config.T, **config.schedule_options)
    except TypeError as error:
        raise ValueError(f"process.schedule_options={config.schedule_options}: {error}.") from error
    match config:
        case BinomialConfig():
            if levels != 2:
                raise ValueError(f"binomial diffusion takes data of 0 and 1; these have {levels or 'no'} levels.")
            return BinomialDiffusion(betas, config.m, config.predict)
        case LearnedGaussianConfig():
            return LearnedGaussian(betas, config.learn_betas, config.predict)
        case GaussianConfig():
            if levels is None:
                raise ValueError("these data are continuous, and this process counts levels: take LearnedGaussian.")
            return GaussianDiffusion(
                betas,
                config.predict,
                config.variance,
                config.loss,
                levels=levels,
                clip=config.clip,
                lambda_vlb=config.lambda_vlb,
                rescale_times=config.rescale_times,
            )


def build_column(config: EDMConfig) -> Column:
    """The column of EDM's Table 1, with the numbers that the configuration changes and the training it asks for."""
    for key in ("column", "training_column"):
        if (name := getattr(config, key)) not in COLUMNS and (name or key == "column"):
            raise ValueError(f"process.{key}={name!r} is not one of {', '.join(COLUMNS)}.")
    make = COLUMNS[config.column]
    if unknown := config.column_options.keys() - signature(make).parameters:
        raise ValueError(
            f"process.column_options: column {config.column!r} takes {', '.join(signature(make).parameters)}; "
            f"leave out {', '.join(sorted(unknown))}."
        )
    column = make(**config.column_options)
    return column.trained_as(COLUMNS[config.training_column]()) if config.training_column else column


def build_network(config: NetworkConfig, shape: tuple[int, ...], answers: int, T: int) -> nn.Module:
    """The network for data of this shape, with ``answers`` outputs for every input channel."""
    for_images = isinstance(config, UNetConfig | SongUNetConfig | ClassifierConfig | MultiScaleConfig)
    if len(shape) != (3 if for_images else 1):
        kind = type(config).__name__.removesuffix("Config")
        raise ValueError(f"data shaped {shape}: {kind} takes {'(channel, height, width)' if for_images else '(dim,)'}.")
    options = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    match config:
        case UNetConfig() | SongUNetConfig():
            net = (UNet if isinstance(config, UNetConfig) else SongUNet)(shape[0], answers * shape[0], **options)
        case ClassifierConfig():
            net = Classifier(shape[0], shape[1:], **options)
        case _:
            kind = {RBFConfig: RBF, MultiScaleConfig: MultiScale}.get(type(config), SigmoidMLP)
            net = kind(shape[0], answers * shape[0], T, **options)
    if for_images and (shape[1] % net.divisor or shape[2] % net.divisor):
        option = f"scales={config.scales}" if isinstance(config, MultiScaleConfig) else f"mult={config.mult}"
        raise ValueError(
            f"images of {shape[1]}×{shape[2]}: both sides must divide by {net.divisor} with {option}. "
            "Take fewer levels, or images of another size."
        )
    return net


def time_sampler(config: Config) -> UniformTimes | ImportanceTimes | SigmaTimes:
    """The law of t in training, or of σ."""
    if isinstance(config.process, EDMConfig):
        return SigmaTimes(build_column(config.process).quantile)
    return {"uniform": UniformTimes, "importance": ImportanceTimes}[config.training.times](config.process.T)
