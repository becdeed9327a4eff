"""Every published network, built from its options, has its published number of parameters, to the unit."""

import pytest
import torch

from minidiff import UNet
from minidiff.networks import Classifier, SongUNet


def ddpm(*args, **options) -> UNet:
    return UNet(3, 3, 128, *args, **options)


def iddpm(channels: int, mult: tuple, blocks: int, attention: tuple, out: int = 6, **options) -> UNet:
    options = {"heads": 4, "inject": "scale", "convention": "openai", **options}
    return UNet(3, out, channels, mult, blocks, attention, **options)


def adm(*args, **options) -> UNet:
    by_width = {} if "heads" in options else {"head_channels": 64}
    return iddpm(*args, resample="block", **by_width, **options)


def song(variant: str, mult: tuple, attention: int, augment: int = 9, classes: int = 0) -> SongUNet:
    ncsn = {"embedding": "fourier", "taps": (1, 3, 3, 1), "encoder": "residual"} if variant == "ve" else {}
    return SongUNet(3, 3, 128, mult, 4, (attention,), augment=augment, classes=classes, **ncsn)


def classifier(side: int, *args) -> Classifier:
    return Classifier(3, (side, side), 1000, 128, *args)


AT_64, AT_128, AT_256 = (1, 2, 3, 4), (1, 1, 2, 3, 4), (1, 1, 2, 2, 4, 4)
AT_512 = (0.5, *AT_256)

PUBLISHED = {
    "ddpm_cifar10_32": (lambda: ddpm((1, 2, 2, 2), 2, (1,)), 35_746_307),
    "ddpm_celeba_64": (lambda: ddpm((1, 2, 2, 2, 4), 2, (2,)), 78_700_803),
    "ddpm_lsun_celebahq_256": (lambda: ddpm(AT_256, 2, (4,)), 113_673_219),
    "diffusers_ddpm_cifar10_32": (lambda: ddpm((1, 2, 2, 2), 2, (1,)), 35_746_307),
    "improved_cifar10_uncond": (lambda: iddpm(128, (1, 2, 2, 2), 3, (1, 2)), 52_546_438),
    "improved_cifar10_uncond_fixedsigma": (lambda: iddpm(128, (1, 2, 2, 2), 3, (1, 2), 3), 52_542_979),
    "improved_imagenet64_uncond": (lambda: iddpm(128, AT_64, 3, (2, 3)), 121_063_942),
    "improved_imagenet64_cond": (lambda: iddpm(192, AT_64, 3, (2, 3), classes=1000), 273_049_350),
    "improved_lsun_bedroom256": (lambda: iddpm(128, AT_256, 2, (4,), heads=1, inject="add"), 113_676_678),
    "improved_upsample_64_256_cond": (
        lambda: iddpm(192, AT_256, 2, (4, 5), classes=1000, low_res=True),
        279_792_390,
    ),
    "guided_imagenet64_cond": (lambda: adm(192, AT_64, 3, (1, 2, 3), classes=1000), 295_904_454),
    "guided_imagenet128_cond": (lambda: adm(256, AT_128, 2, (2, 3, 4), heads=4, classes=1000), 421_529_606),
    "guided_imagenet128_uncond": (lambda: adm(256, AT_128, 2, (2, 3, 4), heads=4), 420_505_606),
    "guided_imagenet256_cond": (lambda: adm(256, AT_256, 2, (3, 4, 5), classes=1000), 553_838_086),
    "guided_imagenet256_uncond": (lambda: adm(256, AT_256, 2, (3, 4, 5)), 552_814_086),
    "guided_imagenet512_cond": (lambda: adm(256, AT_512, 2, (4, 5, 6), classes=1000), 558_997_638),
    "guided_lsun256": (lambda: adm(256, AT_256, 2, (3, 4, 5)), 552_814_086),
    "guided_upsampler_64_256": (
        lambda: adm(192, AT_256, 2, (3, 4, 5), heads=4, classes=1000, low_res=True),
        311_795_910,
    ),
    "guided_upsampler_128_512": (lambda: adm(192, AT_256, 2, (4, 5), classes=1000, low_res=True), 308_835_270),
    "guided_classifier_64": (lambda: classifier(64, AT_64, 4, (1, 2, 3)), 65_438_568),
    "guided_classifier_128": (lambda: classifier(128, AT_128, 2, (2, 3, 4)), 42_568_040),
    "guided_classifier_256": (lambda: classifier(256, AT_256, 2, (3, 4, 5)), 54_096_360),
    "guided_classifier_512": (lambda: classifier(512, AT_512, 2, (4, 5, 6)), 54_448_360),
    "edm_cifar10_32_uncond_vp": (lambda: song("vp", (2, 2, 2), 1), 55_733_891),
    "edm_cifar10_32_uncond_ve": (lambda: song("ve", (2, 2, 2), 1), 56_397_827),
    "edm_cifar10_32_cond_vp": (lambda: song("vp", (2, 2, 2), 1, classes=10), 55_735_299),
    "edm_cifar10_32_cond_ve": (lambda: song("ve", (2, 2, 2), 1, classes=10), 56_400_643),
    "edm_ffhq_64_uncond_vp": (lambda: song("vp", (1, 2, 2, 2), 2), 61_805_571),
    "edm_ffhq_64_uncond_ve": (lambda: song("ve", (1, 2, 2, 2), 2), 62_761_091),
    "edm_baseline_cifar10_32_uncond_vp": (lambda: song("vp", (1, 2, 2, 2), 1, augment=0), 61_804_419),
    "edm_baseline_cifar10_32_uncond_ve": (lambda: song("ve", (1, 2, 2, 2), 1, augment=0), 62_758_787),
    "edm_imagenet64_cond_adm": (lambda: adm(192, AT_64, 3, (1, 2, 3), 3, classes=1000), 295_899_267),
    "edm_baseline_imagenet64_cond_adm_inner": (lambda: adm(192, AT_64, 3, (1, 2, 3), classes=1000), 295_904_454),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_number_of_parameters_is_the_published_one(name):
    make, count = PUBLISHED[name]
    with torch.device("meta"):
        assert sum(p.numel() for p in make().parameters()) == count
