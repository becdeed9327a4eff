"""Handwritten digits at the size of a laptop: each trains in minutes on two CPU cores."""

from dataclasses import replace

from minidiff.training import (
    ClassifierConfig,
    Config,
    DataConfig,
    EDMConfig,
    GaussianConfig,
    TrainingConfig,
    UNetConfig,
)

_CLASSES = 10
_TRAINING = TrainingConfig(images=160_000, lr=1e-3, ramp=12_800, ema=(20_000,), tick=6_400, checkpoint=32_000)
_LEARNED = GaussianConfig(variance="range", loss="hybrid")


def digits() -> Config:
    """scikit-learn's 8×8 digits on two CPU cores in under three minutes.

    DDPM's process as it is, T = 1000, β from 1e-4 to 0.02. A network of two levels, a learning rate five times the
    paper's because it is small, a short ramp and a short average because training is.
    """
    return Config(
        recipe="digits",
        data=DataConfig(source="digits"),
        network=UNetConfig(channels=32, mult=(1, 1), blocks=1, attention=(1,), dropout=0.0),
        training=_TRAINING,
    )


def digits_edm() -> Config:
    """scikit-learn's 8×8 digits, the recipe ``digits`` with EDM's process in DDPM's place.

    The root mean square of these data is 0.847, where CIFAR-10's is 0.5; P_mean moves as its logarithm does, so that
    training is at the paper's noise levels in units of σ_data.
    """
    process = EDMConfig(column_options={"sigma_data": 0.847, "P_mean": -0.67})
    return replace(digits(), recipe="digits-edm", process=process)


def digits_classes() -> Config:
    """scikit-learn's digits by class, with the variance learned as in ADM.

    One label in ten is left out, so that the network can also guide itself without a classifier.
    """
    config = _by_class("digits-classes", "digits")
    return replace(config, data=replace(config.data, drop_labels=0.1))


def digits_classifier() -> Config:
    """The classifier of noisy digits that guides digits-classes: crops, decayed weights, an annealed rate as in ADM.

    Its process is that of every Gaussian recipe here. No average is kept, as ADM keeps none.
    """
    return Config(
        recipe="digits-classifier",
        data=DataConfig(source="digits", crop=0.9, labels=True),
        network=ClassifierConfig(
            classes=_CLASSES, channels=32, mult=(1, 1), blocks=1, attention=(1,), head_channels=32
        ),
        training=replace(_TRAINING, ramp=0, weight_decay=0.05, anneal=True, ema=(0,), clip_grad=0.0),
    )


def mnist16() -> Config:
    """MNIST's digits at 16×16 from noise alone, for five minutes of one thread.

    EDM's process, whose noise levels in training are those at which a digit's shape is decided; sampling begins at
    σ = 20, which is noise enough for 16×16 pixels. Few channels where there are many pixels, small batches, a rate that
    falls to 0 at the end, and an average so short that it follows.
    """
    column = {"sigma_data": 0.944, "P_mean": -0.6, "sigma_max": 20.0}
    return Config(
        recipe="mnist16",
        data=DataConfig(source="mnist-16"),
        process=EDMConfig(column_options=column),
        network=UNetConfig(channels=16, mult=(1, 2, 3), blocks=1, attention=(), dropout=0.0),
        training=replace(_TRAINING, images=134_400, batch=32, lr=2e-3, ramp=3_200, anneal=True, ema=(1_000,)),
    )


def mnist8() -> Config:
    """MNIST's digits at 8×8 by class, the first of two stages as in ADM."""
    return _by_class("mnist8", "mnist-8")


def mnist16_upsample() -> Config:
    """MNIST's digits from 8×8 to 16×16 by class, the second of two stages as in ADM.

    Its attention is at 8×8 alone, in the middle; it needs fewer images than a model that begins from noise alone.
    """
    config = _by_class("mnist16-upsample", "mnist-16")
    return replace(
        config,
        data=replace(config.data, low_res=2),
        network=replace(config.network, low_res=True, attention=()),
        training=replace(_TRAINING, images=64_000, ema=(10_000,)),
    )


def _by_class(recipe: str, source: str) -> Config:
    """The network of digits, told the class and asked for the variance too."""
    plain = digits()
    return replace(
        plain,
        recipe=recipe,
        data=DataConfig(source=source, labels=True),
        process=_LEARNED,
        network=replace(plain.network, classes=_CLASSES),
    )
