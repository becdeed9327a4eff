"""EDM's models, and the three of others that it starts from; every number is of its Table 7 unless told otherwise.

The paper trains in float32 but for ImageNet, and replaces gradients that are not finite by zeros, where ours refuse
them. It has no word on mirrored images but that augmentation mirrors, so data are not mirrored otherwise.
"""

from dataclasses import replace

from minidiff.training import Config, DataConfig, EDMConfig, SongUNetConfig, TrainingConfig

from .adm import adm_imagenet64
from .shared import half_life

_NETWORKS = {  # of the variance preserving and of the variance exploding SDE
    "vp": SongUNetConfig(),  # DDPM++
    "ve": SongUNetConfig(embedding="fourier", taps=(1, 3, 3, 1), encoder="residual"),  # NCSN++
}


def edm_cifar10_uncond_vp() -> Config:
    """CIFAR-10 with the DDPM++ network: EDM, Table 2, F."""
    return _cifar10("edm-cifar10-uncond-vp")


def edm_cifar10_uncond_ve() -> Config:
    """CIFAR-10 with the NCSN++ network: EDM, Table 2, F."""
    return _cifar10("edm-cifar10-uncond-ve")


def edm_cifar10_cond_vp() -> Config:
    """CIFAR-10 by class with the DDPM++ network: EDM, Table 2, F."""
    return _cifar10("edm-cifar10-cond-vp", classes=10)


def edm_cifar10_cond_ve() -> Config:
    """CIFAR-10 by class with the NCSN++ network: EDM, Table 2, F."""
    return _cifar10("edm-cifar10-cond-ve", classes=10)


def edm_ffhq64_vp() -> Config:
    """FFHQ 64×64 with the DDPM++ network: EDM, Table 2, F."""
    return _at_64("edm-ffhq64-vp", "ffhq64.npz", dropout=0.05)


def edm_ffhq64_ve() -> Config:
    """FFHQ 64×64 with the NCSN++ network: EDM, Table 2, F."""
    return _at_64("edm-ffhq64-ve", "ffhq64.npz", dropout=0.05)


def edm_afhqv2_vp() -> Config:
    """AFHQv2 64×64 with the DDPM++ network: EDM, Table 2, F."""
    return _at_64("edm-afhqv2-vp", "afhqv2-64.npz", dropout=0.25)


def edm_afhqv2_ve() -> Config:
    """AFHQv2 64×64 with the NCSN++ network: EDM, Table 2, F."""
    return _at_64("edm-afhqv2-ve", "afhqv2-64.npz", dropout=0.25)


def edm_imagenet64() -> Config:
    """ImageNet 64×64 by class with ADM's network, batch 4096, 2.5 billion images: EDM, Table 4.

    The paper draws with 256 steps and noise added on the way.
    """
    network = replace(adm_imagenet64().network, dropout=0.1)
    training = _training(batch=4096, lr=1e-4, images=2_500_000_000, ema=50_000_000)
    data = DataConfig(source="imagenet64.npz", labels=True)
    return Config("edm-imagenet64", data, EDMConfig(steps=256), network, training)


def edm_baseline_cifar10_vp() -> Config:
    """CIFAR-10, the variance preserving SDE and DDPM++ as they were: EDM, Table 2, A."""
    return _baseline("vp", decay=0.9999, steps=128)


def edm_baseline_cifar10_ve() -> Config:
    """CIFAR-10, the variance exploding SDE and NCSN++ as they were: EDM, Table 2, A."""
    return _baseline("ve", decay=0.999, steps=96)


def edm_baseline_imagenet64() -> Config:
    """ImageNet 64×64, ADM's model seen as a denoiser; its learned variance is not used: EDM, Table 3."""
    process = EDMConfig(column="iddpm", learned_variance=True, steps=40)
    return replace(adm_imagenet64(), recipe="edm-baseline-imagenet64", process=process)


def _cifar10(recipe: str, classes: int = 0) -> Config:
    """Three levels of equal width, dropout 0.13, augmentation with probability 0.12."""
    return Config(
        recipe=recipe,
        data=DataConfig(source="cifar10.npz", labels=classes > 0, augment=0.12),
        process=EDMConfig(steps=18),
        network=replace(_NETWORKS[recipe[-2:]], dropout=0.13, classes=classes, augment=9),
        training=_training(batch=512, lr=1e-3),
    )


def _at_64(recipe: str, source: str, dropout: float) -> Config:
    """Four levels, attention at 16×16, augmentation with probability 0.15."""
    return Config(
        recipe=recipe,
        data=DataConfig(source=source, augment=0.15),
        process=EDMConfig(steps=40),
        network=replace(_NETWORKS[recipe[-2:]], mult=(1, 2, 2, 2), attention=(2,), dropout=dropout, augment=9),
        training=_training(batch=256, lr=2e-4),
    )


def _training(batch: int, lr: float, images: int = 200_000_000, ema: int = 500_000) -> TrainingConfig:
    """A ramp of 10 million images, gradients as they come."""
    every = {"tick": 256_000, "checkpoint": 12_800_000}
    return TrainingConfig(images=images, batch=batch, lr=lr, ramp=10_000_000, clip_grad=0.0, ema=(ema,), **every)


def _baseline(column: str, decay: float, steps: int) -> Config:
    """Four levels as in the score SDEs, mirrored images, DDPM's optimisation."""
    return Config(
        recipe=f"edm-baseline-cifar10-{column}",
        data=DataConfig(source="cifar10.npz", flip=True),
        process=EDMConfig(column=column, steps=steps),
        network=replace(_NETWORKS[column], mult=(1, 2, 2, 2)),
        training=TrainingConfig(images=200_000_000, ema=(half_life(decay, 128),)),
    )
