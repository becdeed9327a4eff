"""score_sde_pytorch's ``.pth``: DDPM++ and NCSN++, all modules in one list, the average as a list without names.

Its networks at 256×256 and above build the image at every level of the way up, which SongUNet does not.
"""

import re
from typing import Any

from torch import Tensor

from minidiff.networks import SongUNet

from .mapping import Naming, Place, places

INSIDE = {
    "norm1": ["GroupNorm_0"],
    "conv1": ["Conv_0"],
    "time": ["Dense_0"],
    "norm2": ["GroupNorm_1"],
    "conv2": ["Conv_1"],
    "skip": ["Conv_2"],
    "norm": ["GroupNorm_0"],
    "qkv": ["NIN_0", "NIN_1", "NIN_2"],
    "out": ["NIN_3"],
    "conv": ["Conv2d_0"],
}


def naming(net: SongUNet) -> Naming:
    """Modules are numbered as they are made; matrices of attention are stored (in, out) and called W and b."""
    order = ["frequencies"] if hasattr(net, "frequencies") else []
    order += ["time.0", "time.2", "conv_in", *(place.path for place in places(net)), "norm_out", "conv_out"]
    number = {path: f"all_modules.{k}" for k, path in enumerate(order)}
    number |= {"frequencies": "all_modules.0.W"} if "frequencies" in number else {}

    def inside(place: Place, leaf: str) -> list[str]:
        return [f"{number[place.path]}.{name}" for name in INSIDE[leaf]]

    def change(key: str, place: Place | None, theirs: Tensor) -> Tensor:
        return theirs.T if key.endswith((".qkv.weight", ".out.weight")) else theirs

    return Naming(number, inside, change)


def unwrap(contents: dict[str, Any]) -> dict[str, Tensor]:
    """The averaged weights, by the names that the raw ones have.

    The average holds what is trained, in the order of the model: not the table of noise levels, and not the random
    frequencies, the only ``W`` that is a vector.
    """
    state = {key.removeprefix("module."): value for key, value in contents["model"].items()}
    state.pop("sigmas", None)
    trained = [key for key, value in state.items() if not (key.endswith(".W") and value.ndim == 1)]
    averaged = contents["ema"]["shadow_params"]
    if [state[key].shape for key in trained] != [value.shape for value in averaged]:
        raise ValueError("its average, ema.shadow_params, does not go with the parameters of its model")
    state |= zip(trained, averaged, strict=True)
    return {
        re.sub(r"(NIN_\d)\.(W|b)$", lambda m: f"{m[1]}.{'weight' if m[2] == 'W' else 'bias'}", key): value
        for key, value in state.items()
    }
