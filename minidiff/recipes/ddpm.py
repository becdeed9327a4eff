"""DDPM's own settings (DDPM Appendix B), and the same model at the size of a laptop."""

from minidiff.training import Config, DataConfig, TrainingConfig, UNetConfig


def digits() -> Config:
    """scikit-learn's 8×8 digits on two CPU cores in under three minutes.

    DDPM's process as it is, T = 1000, β from 1e-4 to 0.02. A network of two levels, a learning rate five times the
    paper's because it is small, a short ramp and a short average because training is.
    """
    return Config(
        recipe="digits",
        data=DataConfig(source="digits"),
        network=UNetConfig(channels=32, mult=(1, 1), blocks=1, attention=(1,), dropout=0.0),
        training=TrainingConfig(
            images=160_000,
            lr=1e-3,
            ramp=12_800,
            ema=(20_000,),
            tick=6_400,
            checkpoint=32_000,
        ),
    )


def ddpm_cifar10() -> Config:
    """CIFAR-10: 35.7M parameters, batch 128, 800k steps, mirrored images; FID 3.17 in the paper (DDPM App. B).

    The average's decay of 0.9999 a step of 128 images is a half-life of 887 thousand images.
    """
    return Config(recipe="ddpm-cifar10", data=DataConfig(source="cifar10.npz", flip=True))


def ddpm_celebahq256() -> Config:
    """CelebA-HQ 256×256: 113.7M parameters, batch 64, 500k steps, learning rate 2e-5, mirrored images."""
    return Config(
        recipe="ddpm-celebahq256",
        data=DataConfig(source="celebahq256.npz", flip=True),
        network=UNetConfig(mult=(1, 1, 2, 2, 4, 4), attention=(4,), dropout=0.0),
        training=TrainingConfig(
            images=32_000_000, batch=64, lr=2e-5, ramp=320_000, ema=(444_000,), tick=64_000, checkpoint=3_200_000
        ),
    )
