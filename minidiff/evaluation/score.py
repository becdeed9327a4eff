"""From images to numbers that say what they are numbers of."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minidiff.data import Images

from .features import Extractor
from .image_sets import ImageSet, open_images
from .manifold import precision_recall
from .metrics import frechet_distance, inception_score, kernel_distance
from .reference import Reference, extract, open_reference, see
from .shards import joined, share

METRICS = ("fid", "sfid", "kid", "is", "pr")
OF_MOMENTS = {"fid": "pool", "sfid": "spatial"}  # Fréchet distances, and of which features
ENOUGH = 10_000
SPLITS, SUBSETS, SUBSET_SIZE, NEIGHBOURS = 10, 100, 1000, 3


@dataclass(frozen=True)
class Scores:
    """Numbers of one set of images, and all that they depend on.

    ``values`` has fid, sfid, kid and kid_std (over subsets), is and is_std (over splits), precision and recall: those
    that were asked for. ``settings`` has the splits of IS, the subsets of KID and their size, and the k of precision
    and recall. ``seed`` is that of KID's subsets. ``reference_n`` is None where only statistics are known.
    """

    values: dict[str, float]
    images: str
    n: int
    levels: int
    seed: int
    settings: dict[str, int]
    extractor: str
    extractor_sha256: str
    resampling: str
    reference: str
    reference_sha256: str
    reference_n: int | None
    reference_statistics: str
    torch: str
    warning: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "Scores":
        """The inverse. Raises ValueError where something is missing."""
        try:
            return Scores(**values)
        except TypeError as error:
            raise ValueError(f"these are no scores of this version of minidiff: {error}") from error


def evaluate(
    images: Images | ImageSet | Path | str,
    reference: Images | ImageSet | Reference | Path | str,
    extractor: Extractor,
    metrics: Sequence[str] = METRICS,
    seed: int = 0,
    batch: int = 64,
    on_batch: Callable[[int], None] | None = None,
    on_reference: Callable[[int], None] | None = None,
) -> Scores:
    """How near images come to a reference, as an extractor sees both: fid, sfid, kid, is, pr.

    ``images`` and ``reference`` are what ``open_images`` and ``open_reference`` read. The reference is extracted once
    and kept in the folder of the cache; of the images, ``batch`` at a time are in memory, and their features only as
    far as kid, is and pr need them. ``on_batch(n)`` is called after each batch of n images, ``on_reference(n)`` after
    each of a reference that is not cached. ``seed`` is that of KID's subsets. Within a process group each process sees
    its share of the images, and all return the same. Raises ValueError for metrics that do not exist or that a
    reference of statistics alone can't give, and where the two sets do not compare.
    """
    images, reference = open_images(images), open_reference(reference)
    check(images, reference, extractor, metrics)
    compared = None
    if _needs_images(reference, metrics):
        compared = see(reference, extractor, _vectors(metrics), batch, on_reference)
    moments = [name for metric, name in OF_MOMENTS.items() if metric in metrics]
    kept = ["pool"] * _vectors(metrics) + ["logits"] * ("is" in metrics)
    found = joined(extract(images.part(share(images.n)), extractor, moments, kept, batch, on_batch))

    values, settings = {}, {}
    for metric, name in OF_MOMENTS.items():
        if metric in metrics:
            theirs = reference.moments[name] if name in reference.moments else compared.moments[name]
            values[metric] = frechet_distance(found.moments[name], theirs)
    if "kid" in metrics:
        real, fake = compared.vectors["pool"], found.vectors["pool"]
        size, generator = min(SUBSET_SIZE, len(real), len(fake)), torch.Generator().manual_seed(seed)
        settings |= {"kid_subsets": SUBSETS, "kid_subset_size": size}
        values["kid"], values["kid_std"] = kernel_distance(real, fake, generator, SUBSETS, size)
    if "is" in metrics:
        settings["is_splits"] = SPLITS
        values["is"], values["is_std"] = inception_score(found.vectors["logits"], SPLITS)
    if "pr" in metrics:
        settings["pr_k"] = NEIGHBOURS
        real, fake = compared.vectors["pool"], found.vectors["pool"]
        values["precision"], values["recall"] = precision_recall(real, fake, NEIGHBOURS)
    given = ", ".join(metric for metric, name in OF_MOMENTS.items() if metric in metrics and name in reference.moments)
    few = images.n < ENOUGH and f"{images.n:,} images are fewer than {ENOUGH:,}: FID is biased, compare equal n only"
    foreign = given and f"{given}: against statistics from {reference.source}, which does not name its extractor"
    return Scores(
        values=values,
        images=images.source,
        n=images.n,
        levels=images.levels,
        seed=seed,
        settings=settings,
        extractor=extractor.name,
        extractor_sha256=extractor.sha256,
        resampling=extractor.resampling,
        reference=reference.source,
        reference_sha256=reference.sha256,
        reference_n=reference.images.n if reference.images else None,
        reference_statistics=f"{given} from the file" if given else "computed from its images",
        torch=torch.__version__,
        warning="; ".join(part for part in (few, extractor.warning, foreign) if part),
    )


def _vectors(metrics: Sequence[str]) -> bool:
    return "kid" in metrics or "pr" in metrics


def _needs_images(reference: Reference, metrics: Sequence[str]) -> bool:
    return _vectors(metrics) or any(m in metrics and name not in reference.moments for m, name in OF_MOMENTS.items())


def check_metrics(names: Sequence[str]) -> tuple[str, ...]:
    """The names in their usual order, each once. Raises ValueError where one is unknown or there is none."""
    unknown = [name for name in names if name not in METRICS]
    if unknown or not names:
        raise ValueError(f"there is no metric {unknown[0] if unknown else ''!r}: choose from {', '.join(METRICS)}.")
    return tuple(name for name in METRICS if name in names)


def check(images: ImageSet, reference: Reference, extractor: Extractor, metrics: Sequence[str]) -> None:
    """Raises ValueError for what ``evaluate`` would refuse, before any image is drawn or read."""
    check_metrics(metrics)
    smallest = max(2, SPLITS * ("is" in metrics), (NEIGHBOURS + 1) * ("pr" in metrics))
    for images_of in filter(None, (images, reference.images)):
        if images_of.n < smallest:
            raise ValueError(f"{images_of.source}: {images_of.n} images are too few; these metrics need {smallest}.")
    if reference.images is None and _needs_images(reference, metrics):
        able = [metric for metric, name in OF_MOMENTS.items() if name in reference.moments]
        raise ValueError(
            f"{reference.source} holds statistics and no images, which give {' and '.join(able)} alone: leave out "
            f"{', '.join(metric for metric in metrics if _needs_images(reference, [metric]))}, or give images."
        )
    if reference.images and reference.images.shape[1:] != images.shape[1:]:
        ours, theirs = ("×".join(map(str, each.shape[1:])) for each in (images, reference.images))
        raise ValueError(
            f"{images.source} has images of {ours}, {reference.source} of {theirs}: bring them to one size first, "
            "because FID sees how they were resized."
        )
    probe = extractor(torch.zeros(1, *images.shape, dtype=torch.uint8), images.levels)
    for name, given in reference.moments.items():
        dims = getattr(probe, name).shape[1]
        if len(given.mean) != dims:
            raise ValueError(
                f"{reference.source} has statistics of {len(given.mean):,} {name} features, the extractor "
                f"{extractor.name} has {dims:,}: they are of another network."
            )


def compare(*scores: Scores) -> dict[str, list[float]]:
    """The numbers that all have, side by side. Raises ValueError where extractors or references differ."""
    for key in ("extractor", "extractor_sha256", "resampling", "reference_sha256"):
        values = list(dict.fromkeys(getattr(each, key) for each in scores))
        if len(values) > 1:
            short = " and ".join(value[:12] for value in values)
            raise ValueError(f"{key.replace('_', ' ')} differs ({short}): such numbers do not compare.")
    names = [name for name in scores[0].values if all(name in each.values for each in scores)] if scores else []
    return {name: [each.values[name] for each in scores] for name in names}
