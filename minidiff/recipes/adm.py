"""ADM's published models, the classifiers that guide them, and the networks of its ablations."""

from dataclasses import replace

from minidiff.training import ClassifierConfig, Config, DataConfig, GaussianConfig, UNetConfig

from .shared import levels, openai_training

_PROCESS = GaussianConfig(variance="range", loss="hybrid")
_MULT = {64: (1, 2, 3, 4), 128: (1, 1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4), 512: (0.5, 1, 1, 2, 2, 4, 4)}


def adm_imagenet64() -> Config:
    """ImageNet 64×64 by class, cosine β, batch 2048, 540k steps: ADM, Table 11."""
    network = {"channels": 192, "blocks": 3, "dropout": 0.1}
    config = _adm("adm-imagenet64", "imagenet", 64, steps=540_000, batch=2048, lr=3e-4, **network)
    return replace(config, process=replace(_PROCESS, schedule="cosine"))


def adm_imagenet128() -> Config:
    """ImageNet 128×128 by class, four heads, 4.36M steps: ADM, Table 11."""
    return _adm("adm-imagenet128", "imagenet", 128, steps=4_360_000, heads=4, head_channels=0)


def adm_imagenet256() -> Config:
    """ImageNet 256×256 by class, 1.98M steps: ADM, Table 11."""
    return _adm("adm-imagenet256", "imagenet", 256, steps=1_980_000)


def adm_imagenet256_uncond() -> Config:
    """ImageNet 256×256 without classes, 2M steps: ADM, Table 4."""
    return _adm("adm-imagenet256-uncond", "imagenet", 256, steps=2_000_000, classes=0)


def adm_imagenet512() -> Config:
    """ImageNet 512×512 by class, 1.94M steps: ADM, Table 11."""
    return _adm("adm-imagenet512", "imagenet", 512, steps=1_940_000)


def adm_lsun_bedroom256() -> Config:
    """LSUN Bedroom 256×256, dropout 0.1, 500k steps: ADM, Table 11."""
    return _adm("adm-lsun-bedroom256", "bedroom", 256, steps=500_000, classes=0, dropout=0.1)


def adm_lsun_cat256() -> Config:
    """LSUN Cat 256×256, dropout 0.1, 200k steps: ADM, Table 11."""
    return _adm("adm-lsun-cat256", "cat", 256, steps=200_000, classes=0, dropout=0.1)


def adm_lsun_horse256() -> Config:
    """LSUN Horse 256×256, dropout 0.1, 250k steps: ADM, Table 11."""
    return _adm("adm-lsun-horse256", "horse", 256, steps=250_000, classes=0, dropout=0.1)


def adm_lsun_horse256_nodropout() -> Config:
    """LSUN Horse 256×256 without dropout, 250k steps: ADM, Table 5."""
    return _adm("adm-lsun-horse256-nodropout", "horse", 256, steps=250_000, classes=0)


def adm_upsample_64_256() -> Config:
    """ImageNet from 64×64 to 256×256 by class, 500k steps: ADM, Table 13."""
    return _upsampler("adm-upsample-64-256", 256, 500_000, levels(256, 32, 16, 8), heads=4, head_channels=0)


def adm_upsample_128_512() -> Config:
    """ImageNet from 128×128 to 512×512 by class, 1.05M steps: ADM, Table 13.

    Attention at 32×32 and 16×16, as the published network has it; the table says at 8×8 too, which it never reaches.
    """
    return _upsampler("adm-upsample-128-512", 512, 1_050_000, levels(512, 32, 16))


def adm_classifier_64() -> Config:
    """Classifier of noisy ImageNet 64×64, cosine β, batch 1024, 300k steps: ADM, Table 12."""
    config = _classifier(64, 300_000, batch=1024, lr=6e-4, weight_decay=0.2, blocks=4)
    return replace(config, process=GaussianConfig(schedule="cosine"))


def adm_classifier_128() -> Config:
    """Classifier of noisy ImageNet 128×128, batch 256, 300k steps: ADM, Table 12."""
    return _classifier(128, 300_000)


def adm_classifier_256() -> Config:
    """Classifier of noisy ImageNet 256×256, batch 256, 500k steps: ADM, Table 12."""
    return _classifier(256, 500_000)


def adm_classifier_512() -> Config:
    """Classifier of noisy ImageNet 512×512, batch 256, 500k steps: ADM, Table 12."""
    return _classifier(512, 500_000)


def adm_ablation_base() -> Config:
    """ImageNet 128×128, where the ablation begins: one head at 16×16, strided convolutions: ADM, Table 1.

    160 channels, batch 256, 700k steps. The tables tell no learning rate: it is that of the models they led to.
    """
    plain = {"channels": 160, "attention": levels(128, 16), "heads": 1, "head_channels": 0, "resample": "conv"}
    return _adm("adm-ablation-base", "imagenet", 128, steps=700_000, **plain)


def adm_ablation_depth() -> Config:
    """The base with 128 channels and four blocks a level: ADM, Table 1."""
    return _ablation("depth", channels=128, blocks=4)


def adm_ablation_heads() -> Config:
    """The base with four heads: ADM, Table 1."""
    return _ablation("heads", heads=4)


def adm_ablation_attention() -> Config:
    """The base with attention at 32×32, 16×16 and 8×8: ADM, Table 1."""
    return _ablation("attention", attention=levels(128, 32, 16, 8))


def adm_ablation_biggan() -> Config:
    """The base with BigGAN's blocks to halve and double: ADM, Table 1."""
    return _ablation("biggan", resample="block")


def adm_ablation_rescale() -> Config:
    """The base with residual sums divided by √2, which does not help: ADM, Table 1."""
    return _ablation("rescale", rescale=True)


def adm_ablation_all() -> Config:
    """The base with four heads, more attention and BigGAN's blocks together: ADM, Table 1."""
    return _ablation("all", heads=4, attention=levels(128, 32, 16, 8), resample="block")


def adm_ablation_adagn() -> Config:
    """128 channels, 64 a head, time that scales and shifts: ADM, Table 3.

    The heads of Table 2 are options of it: ``--network.head-channels 32``, or 0 and ``--network.heads 4``.
    """
    return _ablation("adagn", channels=128, head_channels=64, attention=levels(128, 32, 16, 8), resample="block")


def adm_ablation_add() -> Config:
    """The same with time that is only added: ADM, Table 3."""
    config = adm_ablation_adagn()
    return replace(config, recipe="adm-ablation-add", network=replace(config.network, inject="add"))


def _adm(
    recipe: str, source: str, size: int, steps: int, batch: int = 256, lr: float = 1e-4, classes: int = 1000, **network
) -> Config:
    """What the models share: 256 channels, heads of 64 at 32×32, 16×16 and 8×8, BigGAN's blocks, mirrored images."""
    common = {"channels": 256, "mult": _MULT[size], "attention": levels(size, 32, 16, 8), "dropout": 0.0}
    common |= {"head_channels": 64, "inject": "scale", "resample": "block", "convention": "openai"}
    return Config(
        recipe=recipe,
        data=DataConfig(source=f"{source}{size}.npz", flip=True, labels=classes > 0),
        process=_PROCESS,
        network=UNetConfig(**{**common, "classes": classes, **network}),
        training=openai_training(batch, steps, lr),
    )


def _upsampler(recipe: str, size: int, steps: int, attention: tuple[int, ...], **network) -> Config:
    """A model of 192 channels and six levels that sees its image at a fourth of the size."""
    network = {"channels": 192, "mult": _MULT[256], "attention": attention, "low_res": True, **network}
    config = _adm(recipe, "imagenet", size, steps, **network)
    return replace(config, data=replace(config.data, low_res=4))


def _classifier(
    size: int, steps: int, batch: int = 256, lr: float = 3e-4, weight_decay: float = 0.05, blocks: int = 2
) -> Config:
    """What the classifiers share: random crops, decayed weights, a rate that falls to 0, no average."""
    return Config(
        recipe=f"adm-classifier-{size}",
        data=DataConfig(source=f"imagenet{size}.npz", flip=True, crop=0.8, labels=True),
        network=ClassifierConfig(mult=_MULT[size], blocks=blocks, attention=levels(size, 32, 16, 8)),
        training=openai_training(batch, steps, lr, weight_decay=weight_decay, anneal=True, ema=(0,)),
    )


def _ablation(change: str, **network) -> Config:
    """The ablation's base with something changed."""
    base = adm_ablation_base()
    return replace(base, recipe=f"adm-ablation-{change}", network=replace(base.network, **network))
