"""EDM's ``.pkl`` files, read without executing anything that they hold.

A file is a pickle of whole Python objects, and the classes' source text is inside. Here tensors and plain containers
are taken as what they are, and everything else becomes a record that can do nothing.
"""

import io
import pickle
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from minidiff.diffusion import IDDPMPath
from minidiff.networks import SongUNet

from .mapping import Naming, Place

INSIDE = {
    "norm1": "norm0",
    "conv1": "conv0",
    "time": "affine",
    "norm2": "norm1",
    "conv2": "conv1",
    "skip": "skip",
    "norm": "norm2",
    "qkv": "qkv",
    "out": "proj",
}


def naming(net: nn.Module, side: int) -> Naming:
    """Blocks are named after the resolution, ``side`` at the top; rows of qkv are (head)(c)(q k v)."""
    song = isinstance(net, SongUNet)
    end = f"dec.{side}x{side}_aux_{{}}" if song else "out_{}"
    outside = {
        "time.0": "map_layer0",
        "time.2": "map_layer1",
        "label": "map_label",
        "augmentation": "map_augment",
        "frequencies": "map_noise.freqs",
        "conv_in": f"enc.{side}x{side}_conv",
        "norm_out": end.format("norm"),
        "conv_out": end.format("conv"),
    }

    def inside(place: Place, leaf: str) -> list[str]:
        shift = {"down": 1, "beside": 1, "up": -1}.get(place.way, 0) if place.resamples else 0
        at = side >> (place.level + shift)  # a resampling block is named after the resolution that it leads to
        if place.way == "beside":
            return [f"enc.{at}x{at}_aux_residual"]
        block = f"in{place.child // 2}" if place.way == "middle" else f"block{place.step}"
        way = "enc" if place.way == "down" else "dec"
        return [f"{way}.{at}x{at}_{place.way if place.resamples else block}.{INSIDE[leaf]}"]

    def change(key: str, place: Place | None, theirs: Tensor) -> Tensor:
        if place is not None and ".qkv." in key:
            return rearrange(theirs, "(n c qkv) ... -> (qkv n c) ...", qkv=3, n=place.layer.heads)
        return theirs.T if key == "label.weight" and not song else theirs  # a table there is a matrix of one-hot rows

    return Naming(outside, inside, change)


def without_constants(theirs: dict[str, Tensor], taps: Sequence[int]) -> dict[str, Tensor]:
    """The weights alone, without the preconditioning's prefix, filters and noise levels, which this checks.

    Raises ValueError where they are not the filter of these taps and the levels of iDDPM's column.
    """
    row = torch.tensor(taps) / sum(taps)
    kernel = torch.outer(row, row)
    for key, value in theirs.items():
        if key.endswith("resample_filter") and not same(value.squeeze(), kernel, 1e-6):
            raise ValueError(f"{key} is not the filter of this network")
        if key == "u" and not same(value, IDDPMPath().u, 1e-3):  # in float32 there, to 4 digits where 1 − ᾱ cancels
            raise ValueError("its noise levels, u, are not those of iDDPM")
    kept = {key: value for key, value in theirs.items() if key != "u" and not key.endswith("resample_filter")}
    return {key.removeprefix("model."): value for key, value in kept.items()}


def same(value: Tensor, expected: Tensor, rtol: float) -> bool:
    """Whether two tables agree."""
    return value.shape == expected.shape and torch.allclose(value.double(), expected.double(), rtol=rtol, atol=0)


class Record(dict):
    """What an unknown class or function of a pickle becomes: its arguments, items and state, and no behaviour."""

    def __new__(cls, *args: Any, **_: Any) -> "Record":
        record = super().__new__(cls)
        record.args, record.state = args, None
        return record

    def __init__(self, *_: Any, **__: Any):
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Reader(pickle.Unpickler):
    """Looks up no name: three functions of torch are re-written here, all other names make inert records."""

    def find_class(self, module: str, name: str) -> Any:
        known = {
            "collections.OrderedDict": OrderedDict,
            "torch.storage._load_from_bytes": lambda data: numbers(data),
            "torch._utils._rebuild_tensor_v2": lambda flat, offset, size, stride, *_: torch.as_strided(
                flat, size, stride, offset
            ),
            "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
        }
        return known.get(f"{module}.{name}") or type("Unknown", (Record,), {})


def numbers(data: bytes) -> Tensor:
    """A stored row of numbers: a torch file of its own, read as weights only."""
    storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return torch.empty(0, dtype=storage.dtype).set_(storage)


def read(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers of the averaged network, by name. Raises ValueError for a file that holds none."""
    try:
        with path.open("rb") as file:
            return dict(tensors(Reader(file).load()["ema"]))
    except OSError:
        raise
    except Exception as error:  # a pickle can be broken in many ways, and each has an exception of its own
        raise ValueError(f"it holds no averaged network of EDM's, {type(error).__name__}") from error


def tensors(module: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a module that was read as a record, and of those inside it."""
    inner = attributes(module)
    for kind in ("_parameters", "_buffers"):
        yield from ((prefix + name, value.detach()) for name, value in inner[kind].items() if value is not None)
    for name, child in inner["_modules"].items():
        yield from tensors(child, f"{prefix}{name}.")


def attributes(module: Record) -> dict[str, Any]:
    """Where a module's tables are: in its state, or in the state that its maker was called with."""
    given = [value for value in (module.state, *module.args) if isinstance(value, dict)]
    for found in [*given, *(value["state"] for value in given if "state" in value)]:
        if "_parameters" in found:
            return found
    raise ValueError("no module")
