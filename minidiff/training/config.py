"""A whole run as data: frozen dataclasses that a recipe fills in and a checkpoint stores."""

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from typing import Any

from minidiff.diffusion.binomial import BinomialPrediction
from minidiff.diffusion.gaussian import Loss, Prediction, Variance
from minidiff.diffusion.learned_gaussian import Step
from minidiff.networks.layers import Convention, Inject, Sampling
from minidiff.networks.song_unet import Embedding, Encoder

FORMAT = 3  # of config.json; raised when an old file would be misread


@dataclass(frozen=True)
class DataConfig:
    """What is trained on."""

    source: str = "digits"  # a name that load_data knows, or the path of an .npz file with an array named images
    flip: bool = False  # mirror each image with probability ½
    crop: float = 1.0  # below 1: take a random square of at least this share of the side, resized to the full one
    labels: bool = False  # give the class of each image as a condition
    low_res: int = 1  # above 1: give the image reduced by this factor as a condition
    augment: float = 0.0  # above 0: warp images with this probability, and say how as a condition
    drop_labels: float = 0.0  # above 0: tell the network −1, no class, with this probability


@dataclass(frozen=True)
class GaussianConfig:
    """GaussianDiffusion's arguments."""

    schedule: str = "linear"  # a name in minidiff.SCHEDULES
    T: int = 1000  # steps
    schedule_options: dict[str, float] = field(default_factory=dict)  # such as first and last of the linear schedule
    predict: Prediction = "eps"
    variance: Variance = "large"
    loss: Loss = "simple"
    clip: bool = True
    lambda_vlb: float = 0.001  # of the bound in the hybrid loss
    rescale_times: bool = False  # the network counts to 1000, whatever T


@dataclass(frozen=True)
class LearnedGaussianConfig:
    """LearnedGaussian's arguments; the schedule is where learning begins."""

    schedule: str = "geometric"
    T: int = 1000
    schedule_options: dict[str, float] = field(default_factory=dict)
    learn_betas: bool = True
    predict: Step = "shift"


@dataclass(frozen=True)
class BinomialConfig:
    """BinomialDiffusion's arguments."""

    schedule: str = "harmonic"
    T: int = 2000
    schedule_options: dict[str, float] = field(default_factory=dict)
    m: float = 0.5  # the stationary rate
    predict: BinomialPrediction = "x0"


@dataclass(frozen=True)
class EDMConfig:
    """EDM's arguments; no schedule, and t is σ."""

    column: str = "edm"  # a name in minidiff.COLUMNS
    column_options: dict[str, float] = field(default_factory=dict)  # such as sigma_data, the data's root mean square
    learned_variance: bool = False  # the network has the outputs of one that learned Σ too; they are not used
    steps: int = 18  # of Heun's rule, in sampling
    training_column: str = ""  # take λ and p_train of this other column, as it stands in Table 1


@dataclass(frozen=True)
class UNetConfig:
    """UNet's arguments."""

    channels: int = 128
    mult: tuple[float, ...] = (1, 2, 2, 2)
    blocks: int = 2
    attention: tuple[int, ...] = (1,)  # levels, 0 the finest
    dropout: float = 0.1
    heads: int = 1
    head_channels: int = 0  # above 0: as many heads as there are such widths
    inject: Inject = "add"
    resample: Sampling = "conv"
    rescale: bool = False
    classes: int = 0
    low_res: bool = False
    convention: Convention = "ddpm"
    checkpoint: bool = False  # recompute activations in the backward pass: less memory, more time


@dataclass(frozen=True)
class SongUNetConfig:
    """SongUNet's arguments."""

    channels: int = 128
    mult: tuple[float, ...] = (2, 2, 2)
    blocks: int = 4
    attention: tuple[int, ...] = (1,)
    dropout: float = 0.1
    classes: int = 0
    augment: int = 0
    embedding: Embedding = "positional"
    taps: tuple[int, ...] = (1, 1)
    encoder: Encoder = "standard"
    checkpoint: bool = False


@dataclass(frozen=True)
class ClassifierConfig:
    """Classifier's arguments; the size of the images is that of the data."""

    classes: int = 1000
    channels: int = 128
    mult: tuple[float, ...] = (1, 2, 3, 4)
    blocks: int = 4
    attention: tuple[int, ...] = (1, 2, 3)
    head_channels: int = 64
    dropout: float = 0.0
    checkpoint: bool = False


@dataclass(frozen=True)
class RBFConfig:
    """RBF's arguments."""

    units: int = 16


@dataclass(frozen=True)
class SigmoidMLPConfig:
    """SigmoidMLP's arguments."""

    width: int = 50
    depth: int = 3
    bumps: int = 16  # 0: a read-out for every step


@dataclass(frozen=True)
class MultiScaleConfig:
    """MultiScale's arguments."""

    features: int = 32
    layers: int = 4
    dense: int = 2
    scales: int = 3
    bumps: int = 10


ProcessConfig = GaussianConfig | LearnedGaussianConfig | BinomialConfig | EDMConfig
StepwiseConfig = RBFConfig | SigmoidMLPConfig | MultiScaleConfig
NetworkConfig = UNetConfig | SongUNetConfig | ClassifierConfig | StepwiseConfig


Times = typing.Literal["uniform", "importance"]


@dataclass(frozen=True)
class TrainingConfig:
    """How long, how fast, how often. Every duration is in images seen."""

    images: int = 102_400_000  # in all
    batch: int = 128
    lr: float = 2e-4
    ramp: int = 640_000  # the learning rate rises linearly over this many images
    weight_decay: float = 0.0  # decoupled from the gradient (AdamW)
    anneal: bool = False  # after the ramp the learning rate falls linearly, to 0 at the end
    clip_grad: float = 1.0  # largest norm of the gradient; 0 leaves it as it is
    ema: tuple[int, ...] = (887_000,)  # half-lives of the averaged weights
    times: Times = "uniform"  # or importance: t is drawn where the losses are large
    tick: int = 128_000  # between lines in metrics.jsonl
    checkpoint: int = 12_800_000  # between checkpoints, which fall on ticks
    seed: int = 0


@dataclass(frozen=True)
class Config:
    """Everything that decides what a run computes."""

    recipe: str
    data: DataConfig = DataConfig()
    process: ProcessConfig = GaussianConfig()
    network: NetworkConfig = UNetConfig()
    training: TrainingConfig = TrainingConfig()


def check(config: Config) -> None:
    """Raises ValueError, naming the key, for a number that no run can have, and for parts that do not fit together."""
    check_training(config.training)
    data, network = config.data, config.network
    if data.labels != bool(getattr(network, "classes", 0)):
        raise ValueError(
            f"data.labels={data.labels} and network.classes={getattr(network, 'classes', 0)}: a network takes the "
            "labels of as many classes as there are in the data, or neither is set."
        )
    if data.drop_labels and (not data.labels or isinstance(network, ClassifierConfig)):
        raise ValueError(
            f"data.drop_labels={data.drop_labels}: {type(network).__name__.removesuffix('Config')} is not told a label "
            "that could be left out. It is for networks conditioned on classes; set it to 0."
        )
    if (data.low_res > 1) != getattr(network, "low_res", False):
        raise ValueError(
            f"data.low_res={data.low_res} and network.low_res={getattr(network, 'low_res', False)}: a network that "
            "takes a smaller image needs data.low_res above 1, and no other does."
        )
    if getattr(config.process, "rescale_times", False) and isinstance(network, StepwiseConfig):
        raise ValueError(
            f"process.rescale_times: {type(network).__name__} has read-outs for steps 0 … T − 1. Leave it out."
        )
    if data.augment and getattr(network, "augment", 0) != 9:
        raise ValueError(
            f"data.augment={data.augment} and network.augment={getattr(network, 'augment', 0)}: a SongUNet that is not "
            "told how images were warped would draw warped ones. Set network.augment to 9."
        )
    if isinstance(config.process, EDMConfig) and isinstance(network, StepwiseConfig):
        raise ValueError(f"process: EDM has no steps, and {type(network).__name__} counts them: take a UNetConfig.")
    if isinstance(config.process, EDMConfig) and config.training.times != "uniform":
        raise ValueError(f"training.times={config.training.times}: EDM draws σ as its column says. Leave it out.")
    if isinstance(network, ClassifierConfig) and not isinstance(config.process, GaussianConfig):
        raise ValueError("process: a classifier of noisy images takes a GaussianConfig.")


def check_training(training: TrainingConfig) -> None:
    """Raises ValueError, naming the key, for a number that no training can have."""
    for name in ("images", "batch", "lr", "tick", "checkpoint"):
        if not 0 < getattr(training, name) < float("inf"):
            raise ValueError(f"training.{name}={getattr(training, name)}: give a number above 0.")
    for name in ("ramp", "seed", "clip_grad", "weight_decay"):
        if not 0 <= getattr(training, name) < 2**63:
            raise ValueError(f"training.{name}={getattr(training, name)}: give a number of at least 0, below 2**63.")
    if not training.ema or min(training.ema) < 0:
        raise ValueError(f"training.ema={training.ema}: give one half-life or more, in images, at least 0 each.")


def to_dict(config: Config) -> dict[str, Any]:
    """As plain containers, ready for JSON; what could be of several kinds says which it is."""
    values = dataclasses.asdict(config)
    for part in ("process", "network"):
        values[part] = {"kind": type(getattr(config, part)).__name__, **values[part]}
    return values


def from_dict(values: Any, kind: type = Config, where: str = "") -> Any:
    """The dataclass again. Raises ValueError naming a key that is missing or unknown, or a value of another type."""
    hints = typing.get_type_hints(kind)
    if not isinstance(values, dict):
        raise ValueError(f"configuration: {where or 'the whole'} should be a table of keys, found {values!r}.")
    if unknown := sorted(set(values) - set(hints)):
        raise ValueError(f"configuration: unknown key {where}{unknown[0]}; known are {', '.join(hints)}.")
    if missing := sorted(set(hints) - set(values)):
        raise ValueError(f"configuration: key {where}{missing[0]} is missing.")
    return kind(**{name: _convert(values[name], hint, f"{where}{name}") for name, hint in hints.items()})


def _convert(value: Any, hint: Any, where: str) -> Any:
    """One JSON value as the type that the dataclass declares."""
    if dataclasses.is_dataclass(hint):
        return from_dict(value, hint, where + ".")
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType and all(map(dataclasses.is_dataclass, args)):
        kinds = {kind.__name__: kind for kind in args}
        if not isinstance(value, dict) or value.get("kind") not in kinds:
            raise ValueError(f"configuration: {where}.kind should be one of {', '.join(kinds)}, in {value!r}.")
        return from_dict({k: v for k, v in value.items() if k != "kind"}, kinds[value["kind"]], where + ".")
    fits = {
        tuple: lambda: isinstance(value, list | tuple) and all(_is(v, args[0]) for v in value),
        dict: lambda: isinstance(value, dict) and all(_is(v, args[1]) for v in value.values()),
        typing.Literal: lambda: value in args,
        types.UnionType: lambda: isinstance(value, hint),
    }.get(origin, lambda: _is(value, hint))
    if not fits():
        raise ValueError(f"configuration: {where}={value!r} is not of the kind {hint}.")
    return tuple(value) if origin is tuple else value


def _is(value: Any, hint: type) -> bool:
    """Whether a JSON value is of this type: 1.0 may be written as 1, and true is no number."""
    return isinstance(value, (int, float) if hint is float else hint) and isinstance(value, bool) == (hint is bool)


def differences(a: Config, b: Config) -> list[str]:
    """The keys on which two configurations differ, as ``key: value in a, value in b``."""
    flat_a, flat_b = _flatten(to_dict(a)), _flatten(to_dict(b))
    keys = [key for key in flat_a | flat_b if flat_a.get(key) != flat_b.get(key)]
    return [f"{key}: {flat_a.get(key)}, {flat_b.get(key)}" for key in keys]


def _flatten(values: dict[str, Any], where: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and not key.endswith("_options"):
            flat |= _flatten(value, f"{where}{key}.")
        else:
            flat[where + key] = value
    return flat
