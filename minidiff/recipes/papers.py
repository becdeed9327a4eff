"""The papers' own numbers for the recipes that repeat a model of theirs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PaperScores:
    """Numbers by the names of ``minidiff evaluate``, of the official Inception weights, and where they stand."""

    values: dict[str, float]
    source: str


def _scores(source: str, **values: float) -> PaperScores:
    return PaperScores(values, f"{source}: 50,000 samples against the training images")


def _adm(source: str, fid: float, sfid: float, precision: float, recall: float, **more: float) -> PaperScores:
    return _scores(source, fid=fid, sfid=sfid, precision=precision, recall=recall, **more)


PAPERS: dict[str, PaperScores] = {  # Improved DDPM's FID of unconditional ImageNet is of 10,000 samples, and left out
    "ddpm-cifar10": _scores("DDPM, Table 1", **{"fid": 3.17, "is": 9.46}),
    "ddpm-lsun-church256": _scores("DDPM, Table 3", fid=7.89),
    "ddpm-lsun-bedroom256": _scores("DDPM, Table 3", fid=6.36),
    "ddpm-lsun-cat256": _scores("DDPM, Table 3", fid=19.75),
    "ddim-celeba64": _scores("DDIM, Table 1, 1000 steps of the larger variance", fid=3.26),
    "iddpm-cifar10": _scores("IDDPM, Table 2", fid=3.19),
    "iddpm-cifar10-vlb": _scores("IDDPM, Table 2", fid=11.47),
    "iddpm-imagenet64-cond": _scores("IDDPM, Table 4, 250 steps", fid=2.92, precision=0.82, recall=0.71),
    "adm-imagenet64": _adm("ADM, Table 5", 2.07, 4.29, 0.74, 0.63),
    "adm-imagenet128": _adm("ADM, Table 5", 5.91, 5.09, 0.70, 0.65),
    "adm-imagenet256": _adm("ADM, Table 5", 10.94, 6.02, 0.69, 0.63, **{"is": 100.98}),
    "adm-imagenet256-uncond": _adm("ADM, Table 4", 26.21, 6.35, 0.61, 0.63, **{"is": 39.70}),
    "adm-imagenet512": _adm("ADM, Table 5", 23.24, 10.19, 0.73, 0.60),
    "adm-lsun-bedroom256": _adm("ADM, Table 5", 1.90, 5.59, 0.66, 0.51),
    "adm-lsun-cat256": _adm("ADM, Table 5", 5.57, 6.69, 0.63, 0.52),
    "adm-lsun-horse256": _adm("ADM, Table 5", 2.57, 6.81, 0.71, 0.55),
    "adm-lsun-horse256-nodropout": _adm("ADM, Table 5", 2.95, 5.94, 0.69, 0.55),
    "edm-cifar10-uncond-vp": _scores("EDM, Table 2", fid=1.97),
    "edm-cifar10-uncond-ve": _scores("EDM, Table 2", fid=1.98),
    "edm-cifar10-cond-vp": _scores("EDM, Table 2", fid=1.79),
    "edm-cifar10-cond-ve": _scores("EDM, Table 2", fid=1.79),
    "edm-ffhq64-vp": _scores("EDM, Table 2", fid=2.39),
    "edm-ffhq64-ve": _scores("EDM, Table 2", fid=2.53),
    "edm-afhqv2-vp": _scores("EDM, Table 2", fid=1.96),
    "edm-afhqv2-ve": _scores("EDM, Table 2", fid=2.16),
    "edm-imagenet64": _scores("EDM, Table 4", fid=1.36),
    "edm-baseline-cifar10-vp": _scores("EDM, Table 2, A", fid=3.01),
    "edm-baseline-cifar10-ve": _scores("EDM, Table 2, A", fid=3.77),
    "edm-baseline-imagenet64": _scores("EDM, Table 3, Heun's rule", fid=2.64),
}
