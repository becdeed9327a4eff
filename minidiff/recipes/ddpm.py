"""DDPM's own settings (DDPM Appendix B), and DDIM's one network more."""

from minidiff.training import Config, DataConfig, TrainingConfig, UNetConfig


def ddpm_cifar10() -> Config:
    """CIFAR-10: 35.7M parameters, batch 128, 800k steps, mirrored images; FID 3.17 in the paper (DDPM App. B).

    The file should hold ``images`` (50,000) and ``test_images``; without the latter a fifth of the images is held out.
    The average's decay of 0.9999 a step of 128 images is a half-life of 887 thousand images.
    """
    return Config(recipe="ddpm-cifar10", data=DataConfig(source="cifar10.npz", flip=True))


def ddpm_celebahq256() -> Config:
    """CelebA-HQ 256×256: 113.7M parameters, batch 64, 500k steps, mirrored images (DDPM App. B)."""
    return _at_256("ddpm-celebahq256", "celebahq256.npz", steps=500_000)


def ddpm_lsun_church256() -> Config:
    """LSUN Church 256×256: the same network, 1.2M steps; FID 7.89 in the paper (DDPM App. B)."""
    return _at_256("ddpm-lsun-church256", "church256.npz", steps=1_200_000)


def ddpm_lsun_bedroom256() -> Config:
    """LSUN Bedroom 256×256: the same network, 2.4M steps, no mirroring; FID 6.36 in the paper (DDPM App. B)."""
    return _at_256("ddpm-lsun-bedroom256", "bedroom256.npz", steps=2_400_000, flip=False)


def ddpm_lsun_cat256() -> Config:
    """LSUN Cat 256×256: the same network, 1.8M steps; FID 19.75 in the paper (DDPM App. B).

    The paper mirrors all sets but Bedroom; a comment in its code says all but Cat.
    """
    return _at_256("ddpm-lsun-cat256", "cat256.npz", steps=1_800_000)


def ddim_celeba64() -> Config:
    """CelebA 64×64, the CIFAR-10 network with a fifth level, batch 128, mirrored images: DDIM, Table 1.

    No ramp, as in DDIM's code. No one tells how long it was trained: it is CIFAR-10's 800k steps here.
    """
    return Config(
        recipe="ddim-celeba64",
        data=DataConfig(source="celeba64.npz", flip=True),
        network=UNetConfig(mult=(1, 2, 2, 2, 4), attention=(2,)),
        training=TrainingConfig(ramp=0),
    )


def _at_256(recipe: str, source: str, steps: int, flip: bool = True) -> Config:
    """What the 256×256 sets share: six levels, attention at 16×16, no dropout, batch 64, learning rate 2e-5.

    Warm-up over 5,000 steps and decay 0.9999 are the paper's, in images of batch 64. The whole set is read into memory:
    196 kB an image.
    """
    return Config(
        recipe=recipe,
        data=DataConfig(source=source, flip=flip),
        network=UNetConfig(mult=(1, 1, 2, 2, 4, 4), attention=(4,), dropout=0.0),
        training=TrainingConfig(
            images=64 * steps, batch=64, lr=2e-5, ramp=320_000, ema=(444_000,), tick=64_000, checkpoint=3_200_000
        ),
    )
