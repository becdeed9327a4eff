"""The PyTorch port of DDPM's weights (pesser/pytorch_diffusion, ermongroup/ddim), ``.ckpt`` and ``.pth``."""

from typing import Any

from torch import Tensor

from .mapping import Naming, Place

OUTSIDE = {"time.0": "temb.dense.0", "time.2": "temb.dense.1"} | {
    name: name for name in ("conv_in", "norm_out", "conv_out")
}
INSIDE = {
    "norm1": ["norm1"],
    "conv1": ["conv1"],
    "time": ["temb_proj"],
    "norm2": ["norm2"],
    "conv2": ["conv2"],
    "skip": ["nin_shortcut"],
    "norm": ["norm"],
    "qkv": ["q", "k", "v"],
    "out": ["proj_out"],
    "conv": ["conv"],
}


def inside(place: Place, leaf: str) -> list[str]:
    """Levels count from the finest, on the way up too."""
    if place.way == "middle":
        block = ("mid.block_1", "mid.attn_1", "mid.block_2")[place.child]
    elif place.resamples:
        block = f"{place.way}.{place.level}.{place.way}sample"
    else:
        block = f"{place.way}.{place.level}.{('block', 'attn')[place.child]}.{place.step}"
    return [f"{block}.{name}" for name in INSIDE[leaf]]


NAMING = Naming(OUTSIDE, inside)


def unwrap(contents: Any) -> dict[str, Tensor]:
    """The weights of a plain file; of a training state, a list that ends in the averaged weights, the averaged."""
    state = contents[-1] if isinstance(contents, list) else contents
    return {key.removeprefix("module."): value for key, value in state.items()}
