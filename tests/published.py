"""Checkpoints in the layouts of the published codes, small or without numbers, their weights made by a formula.

``pretrained/keys.txt.xz`` lists names and shapes of the published files and of the small networks below;
``pretrained/golden.json`` holds what the official code answers with those weights.
"""

import json
import lzma
import math
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minidiff import (
    ClassifierConfig,
    Config,
    DataConfig,
    Description,
    EDMConfig,
    GaussianConfig,
    SongUNetConfig,
    TrainingConfig,
    UNetConfig,
)

FOLDER = Path(__file__).parent / "pretrained"
GOLDEN = json.loads((FOLDER / "golden.json").read_text())
Shapes = dict[str, tuple[int, ...]]


@cache
def lists() -> dict[str, Shapes]:
    """Names and shapes of every list."""
    found: dict[str, Shapes] = {}
    for line in lzma.open(FOLDER / "keys.txt.xz", "rt"):
        name, value = line.split()
        if name == "#":
            found[value] = current = {}
        else:
            current[name] = tuple(map(int, value.split("x")))
    return found


def wave(name: str, *shape: int) -> Tensor:
    """sin(phase + 0.37 i²) at the i-th place, the phase given by the name; float64, the same on any machine."""
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(zlib.crc32(name.encode()) % 1000 + 0.37 * i**2).reshape(shape)


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """Matrices and kernels of a size that keeps variances, norms about 1, biases about 0; float32."""
    if len(shape) > 1:
        values = wave(name, *shape) * (2 / math.prod(shape[1:])) ** 0.5
    else:
        values = 0.2 * wave(name, *shape) + name.endswith("weight")
    return values.float()


def weights(name: str) -> dict[str, Tensor]:
    """The state dict of a small network, as its own code names and lays it out."""
    return {key: weight(key, shape) for key, shape in lists()[name].items()}


def contents(name: str) -> Any:
    """What the official code would save; the raw weights beside an average are all zero."""
    state = weights(name)
    if not name.startswith("score-sde"):
        return state
    raw = {f"module.{key}": torch.zeros_like(value) for key, value in state.items()}
    frequencies = "module.all_modules.0.W"
    if frequencies in raw:
        raw[frequencies] = state.pop("all_modules.0.W")
    raw = {"module.sigmas": torch.ones(1000), **raw}
    average = {"decay": 0.9999, "num_updates": 5, "shadow_params": list(state.values())}
    return {"optimizer": {}, "model": raw, "ema": average, "step": 5}


def describe(network, process=None, **data) -> Description:
    """A small network under a small process, for 8×8 images of three channels."""
    learned = GaussianConfig(T=30, variance="range", loss="hybrid")
    data = DataConfig(source="small.npz", **data)
    return Description(Config("small", data, process or learned, network, TrainingConfig(ema=(1000,))), (3, 8, 8), 256)


OPENAI = {"mult": (1, 2), "blocks": 1, "attention": (1,), "dropout": 0.0, "convention": "openai", "channels": 32}
ADAGN = OPENAI | {"inject": "scale"}
ADM = ADAGN | {"resample": "block", "classes": 5}
SONG = {"channels": 64, "mult": (1, 2), "blocks": 1, "dropout": 0.0}
PORT = UNetConfig(channels=128, mult=(1, 1), blocks=1, attention=(1,), dropout=0.0)
SMALL = {
    "guided-legacy": describe(UNetConfig(**ADM, head_channels=16), labels=True),
    "guided-new": describe(UNetConfig(**ADM, head_channels=16), labels=True),
    "guided-upsampler": describe(UNetConfig(**ADM, heads=2, low_res=True), labels=True, low_res=2),
    "guided-classifier": describe(
        ClassifierConfig(5, 32, (1, 2), 1, (1,), head_channels=16), GaussianConfig(T=30), labels=True
    ),
    "improved": describe(UNetConfig(**ADAGN, heads=4)),
    "improved-add": describe(UNetConfig(**OPENAI)),
    "port": describe(PORT, GaussianConfig(T=30)),
    "score-sde-vp": describe(SongUNetConfig(**SONG), EDMConfig("vp")),
    "score-sde-ve": describe(
        SongUNetConfig(**SONG, embedding="fourier", taps=(1, 3, 3, 1), encoder="residual"), EDMConfig("ve")
    ),
}
ORDER = {"guided-new": "new", "guided-legacy": "legacy", "guided-upsampler": "legacy"} | {
    "guided-classifier": "legacy",
    "improved": "legacy",
}


def question(name: str) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
    """What the small network was asked: x and t, and the conditions it takes."""
    data = SMALL[name].config.data
    classifies = isinstance(SMALL[name].config.network, ClassifierConfig)
    cond = {"labels": torch.tensor([1, 4])} if data.labels and not classifies else {}
    cond |= {"low_res": wave("low", 2, 3, 4, 4).float()} if data.low_res > 1 else {}
    t = torch.tensor([0.05, 7.0]).log() if name == "score-sde-ve" else torch.tensor([3.0, 250.0])
    return (wave("x", 2, 3, 8, 8).float(), t), cond
