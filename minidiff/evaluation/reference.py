"""What images are compared with: a data set, or statistics that others published; seen once, then cached."""

import hashlib
import json
import os
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor

from minidiff.data import Images, load_data
from minidiff.files import read_npz, write_whole

from .features import Extractor
from .image_sets import ImageSet, in_array, in_memory, open_images
from .metrics import Moments

FORMAT = 1  # of cached files; raised when an old one would be misread
STATISTICS = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}  # ADM's names; EDM's for the first
MOMENTS = [f"{name}_{part}" for name in STATISTICS for part in ("mean", "covariance", "n")]  # in a cached file


@dataclass
class Extracted:
    """What was seen in a set: moments of ``pool`` and ``spatial`` features, and those vectors that were asked for."""

    moments: dict[str, Moments] = field(default_factory=dict)
    vectors: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Reference:
    """Images, or moments from a file, or both as in ADM's files, where FID takes the moments and the rest the images.

    ``seen`` keeps what was extracted for each key of the cache, for calls to come.
    """

    source: str
    images: ImageSet | None
    moments: dict[str, Moments] = field(default_factory=dict)  # from the file, by "pool" and "spatial"
    sha256: str = ""
    seen: dict[str, Extracted] = field(default_factory=dict, repr=False)


def open_reference(source: Images | ImageSet | Reference | Path | str) -> Reference:
    """What ``open_images`` reads, a data source by name (``digits``), or an ``.npz`` file with statistics.

    Of data with a held-out part the training part is taken. A file may hold ``mu`` and ``sigma`` of pooled features
    (EDM), with ``mu_s`` and ``sigma_s`` of spatial ones and images ``arr_0`` (ADM). Raises ValueError for data that are
    not images in levels, and as ``open_images``.
    """
    if isinstance(source, Reference):
        return source
    if isinstance(source, Images | ImageSet) or Path(source).is_dir():
        return _of(open_images(source))
    path = Path(source)
    arrays = read_npz(path) if path.suffix == ".npz" and path.is_file() else {}
    if not arrays or "images" in arrays:
        data = load_data(source)
        if not isinstance(data, Images):
            raise ValueError(f"reference {source!r} is no set of 8-bit images, nor of another number of levels.")
        return _of(in_memory(data.pixels, data.levels, str(source)))
    moments = {name: _given(arrays, path, *keys) for name, keys in STATISTICS.items() if keys[0] in arrays}
    if "arr_0" not in arrays and "pool" not in moments:
        raise ValueError(f"{path} holds {', '.join(arrays)}: a reference has images, arr_0, or mu and sigma.")
    images = in_array(arrays["arr_0"], arrays.get("levels"), str(path)) if "arr_0" in arrays else None
    total = hashlib.sha256(images.hashed().encode() if images else b"")
    for keys in (STATISTICS[name] for name in moments):
        for key in keys:
            total.update(np.ascontiguousarray(arrays[key]).tobytes())
    return Reference(str(path), images, moments, total.hexdigest()) if moments else _of(images)


def _of(images: ImageSet) -> Reference:
    return Reference(images.source, images, sha256=images.hashed())


def _given(arrays: dict[str, np.ndarray], path: Path, mean: str, covariance: str) -> Moments:
    """Moments from a file, which does not say of how many images."""
    mu, sigma = arrays[mean], arrays.get(covariance, np.zeros(0))
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)) or mu.dtype.kind != "f" or sigma.dtype.kind != "f":
        raise ValueError(f"{path}: {mean} and {covariance} must be a mean (dim,) and a covariance (dim, dim), floats.")
    try:
        return Moments.from_arrays(mu, sigma)
    except ValueError as error:
        raise ValueError(f"{path}, {mean} and {covariance}: {error}") from error


def extract(
    images: ImageSet,
    extractor: Extractor,
    moments: Collection[str],
    vectors: Collection[str],
    batch: int,
    on_batch: Callable[[int], None] | None = None,
) -> Extracted:
    """Look at every image once; keep the moments and the vectors of these of ``pool``, ``spatial`` and ``logits``."""
    found, kept = Extracted(), {name: [] for name in vectors}
    for pixels in images.batches(batch):
        features = extractor(pixels, images.levels)
        for name in moments:
            part: Tensor = getattr(features, name)
            found.moments.setdefault(name, Moments(part.shape[1])).update(part)
        for name in vectors:
            kept[name].append(getattr(features, name))
        if on_batch is not None:
            on_batch(len(pixels))
    found.vectors = {name: torch.cat(parts) for name, parts in kept.items()}
    return found


def cache_folder() -> Path:
    """Where reference statistics are kept: ``$XDG_CACHE_HOME/minidiff``, or ``~/.cache/minidiff``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minidiff"


def see(
    reference: Reference,
    extractor: Extractor,
    vectors: bool,
    batch: int,
    on_batch: Callable[[int], None] | None = None,
) -> Extracted:
    """Moments of the reference's images, and with ``vectors`` their pooled features: from the cache where they are.

    A cached file is named by a hash of the images' bytes, of the extractor's weights and of its resampling. One that is
    damaged is made again.
    """
    made_of = [FORMAT, reference.images.hashed(), extractor.name, extractor.sha256, extractor.resampling]
    key = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
    folder, parts = cache_folder(), {"moments": MOMENTS} | ({"pool": ["pool"]} if vectors else {})
    found = reference.seen.setdefault(key, Extracted())
    if not found.moments or (vectors and not found.vectors):
        arrays = [_read(folder / f"{key}-{part}.npz", names) for part, names in parts.items()]
        if None in arrays:
            fresh = extract(reference.images, extractor, STATISTICS, ["pool"] if vectors else [], batch, on_batch)
            arrays = [_arrays(fresh.moments), {name: x.numpy() for name, x in fresh.vectors.items()}][: len(parts)]
            for part, content in zip(parts, arrays, strict=True):
                _write(folder / f"{key}-{part}.npz", content)
        values = {name: torch.from_numpy(array) for content in arrays for name, array in content.items()}
        for name in STATISTICS:  # also what is fresh goes this way, so that a later run rounds as this one
            mean, covariance, n = (values[f"{name}_{part}"] for part in ("mean", "covariance", "n"))
            found.moments[name] = Moments.from_arrays(mean, covariance, int(n))
        found.vectors |= {"pool": values["pool"]} if vectors else {}
    return found


def _arrays(moments: dict[str, Moments]) -> dict[str, np.ndarray]:
    """Of each moment the mean (dim,), the covariance (dim, dim) and n, by the names of MOMENTS."""
    return {key: np.asarray(getattr(moments[key.split("_")[0]], key.split("_")[1])) for key in MOMENTS}


def _read(path: Path, names: Collection[str]) -> dict[str, np.ndarray] | None:
    """The arrays of a cached file, whose checksums a zip keeps; None where it is missing or damaged."""
    try:
        arrays = read_npz(path)
    except ValueError:
        return None
    return arrays if arrays.keys() == set(names) else None


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """A disk that can't be written to costs the cache and not the result."""
    with suppress(OSError):
        write_whole(path, lambda file: np.savez(file, **arrays), uuid4().hex)  # others may write it as well
