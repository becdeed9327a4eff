"""The published models of Improved DDPM: a learned variance, four heads, a time that scales features.

What the paper's tables leave out is what the flags in the official README say. Images are not mirrored. Of the two
flags that rescale, the one about learned variances sets λ: with it the bound has λ = 0.001 whatever T is, without it
one term of the bound is added as it is, which is λ = 1/T.
"""

from dataclasses import replace

from minidiff.training import Config, DataConfig, GaussianConfig, UNetConfig

from .shared import levels, openai_training

_HYBRID = GaussianConfig(schedule="cosine", T=4000, variance="range", loss="hybrid", rescale_times=True)
_UNSCALED = replace(_HYBRID, lambda_vlb=1 / 4000, rescale_times=False)
_NETWORK = UNetConfig(blocks=3, heads=4, dropout=0.0, inject="scale", convention="openai")


def iddpm_cifar10() -> Config:
    """CIFAR-10 by L_hybrid, dropout 0.3, batch 128, 500k steps: IDDPM, Table 2."""
    return Config(
        recipe="iddpm-cifar10",
        data=DataConfig(source="cifar10.npz"),
        process=_HYBRID,
        network=replace(_NETWORK, attention=levels(32, 16, 8), dropout=0.3),
        training=openai_training(batch=128, steps=500_000, lr=1e-4),
    )


def iddpm_cifar10_vlb() -> Config:
    """CIFAR-10 by L_vlb, times drawn by importance: IDDPM, Table 2."""
    return _by_the_bound(iddpm_cifar10())


def iddpm_imagenet64() -> Config:
    """ImageNet 64×64 by L_hybrid, batch 128, 1.5M steps: IDDPM, Table 1."""
    return Config(
        recipe="iddpm-imagenet64",
        data=DataConfig(source="imagenet64.npz"),
        process=_HYBRID,
        network=replace(_NETWORK, mult=(1, 2, 3, 4), attention=levels(64, 16, 8)),
        training=openai_training(batch=128, steps=1_500_000, lr=1e-4),
    )


def iddpm_imagenet64_vlb() -> Config:
    """ImageNet 64×64 by L_vlb, times drawn by importance: IDDPM, Table 1."""
    return _by_the_bound(iddpm_imagenet64())


def iddpm_imagenet64_cond() -> Config:
    """ImageNet 64×64 by class, 192 channels, batch 2048, 250k steps: IDDPM, Table 4."""
    return Config(
        recipe="iddpm-imagenet64-cond",
        data=DataConfig(source="imagenet64.npz", labels=True),
        process=_UNSCALED,
        network=replace(_NETWORK, channels=192, mult=(1, 2, 3, 4), attention=levels(64, 16, 8), classes=1000),
        training=openai_training(batch=2048, steps=250_000, lr=3e-4),
    )


def iddpm_upsample_64_256() -> Config:
    """ImageNet from 64×64 to 256×256 by class, linear β, batch 256, 500k steps: IDDPM, official README.

    The second of two stages: the low resolution is a condition.
    """
    return Config(
        recipe="iddpm-upsample-64-256",
        data=DataConfig(source="imagenet256.npz", labels=True, low_res=4),
        process=replace(_UNSCALED, schedule="linear"),
        network=replace(
            _NETWORK,
            channels=192,
            mult=(1, 1, 2, 2, 4, 4),
            blocks=2,
            attention=levels(256, 16, 8),
            classes=1000,
            low_res=True,
        ),
        training=openai_training(batch=256, steps=500_000, lr=3e-4),
    )


def iddpm_lsun_bedroom256() -> Config:
    """LSUN Bedroom 256×256, DDPM's network with a learned variance, batch 128, 1.2M steps: IDDPM, official README."""
    return Config(
        recipe="iddpm-lsun-bedroom256",
        data=DataConfig(source="bedroom256.npz"),
        process=GaussianConfig(variance="range", loss="hybrid"),
        network=UNetConfig(
            mult=(1, 1, 2, 2, 4, 4), attention=levels(256, 16), dropout=0.0, heads=1, convention="openai"
        ),
        training=openai_training(batch=128, steps=1_200_000, lr=1e-4),
    )


def iddpm_lsun_bedroom256_lr2e_5() -> Config:
    """LSUN Bedroom 256×256 at DDPM's rate, batch 64, 2.4M steps: IDDPM, official README.

    The batch is that of the published file's name, and makes as many images as the recipe above; its flags say 128.
    """
    return replace(
        iddpm_lsun_bedroom256(),
        recipe="iddpm-lsun-bedroom256-lr2e-5",
        training=openai_training(batch=64, steps=2_400_000, lr=2e-5),
    )


def _by_the_bound(config: Config) -> Config:
    """The same, with all terms of the bound as the objective, and the times where they are large drawn more often."""
    return replace(
        config,
        recipe=f"{config.recipe}-vlb",
        process=replace(config.process, loss="bound"),
        training=replace(config.training, times="importance"),
    )
