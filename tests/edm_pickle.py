"""Files as EDM's code pickles them, without that code: modules inside of records that carry source text."""

import pickle
import sys
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch
from published import weights
from torch import Tensor, nn

SOURCE = "open('executed', 'w').close()"


class EasyDict(dict):
    """dnnlib's: a dictionary of a class that the reader doesn't know."""


def _reconstruct_persistent_obj(meta: dict) -> None:
    """In EDM's code this executes meta['module_src']."""
    raise AssertionError("called")


class Persistent(nn.Module):
    """A module that is pickled as a call of the function above, with its state."""

    def __reduce__(self):
        meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": "Net", "state": self.__dict__}
        return _reconstruct_persistent_obj, (EasyDict(meta),)


@contextmanager
def official_modules():
    """EDM's packages, which are there while a file is written and gone when it is read."""
    for name, thing in (("torch_utils.persistence", _reconstruct_persistent_obj), ("dnnlib.util", EasyDict)):
        package, module = ModuleType(name.split(".")[0]), ModuleType(name)
        setattr(module, thing.__name__, thing)
        sys.modules |= {package.__name__: package, name: module}
        thing.__module__ = name
    yield
    for name in ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util"):
        del sys.modules[name]


def module(state: dict[str, Tensor]) -> nn.Module:
    """Nested modules with these parameters, and with buffers where the name says so."""
    top = Persistent()
    for key, value in state.items():
        *path, leaf = key.split(".")
        at = top
        for name in path:
            if name not in at._modules:
                at.add_module(name, nn.ModuleDict() if name in ("enc", "dec") else Persistent())
            at = at._modules[name]
        if leaf in ("resample_filter", "freqs", "u"):
            at.register_buffer(leaf, value)
        else:
            at.register_parameter(leaf, nn.Parameter(value))
    top.sigma_min, top.unused = np.float64(0.002), None
    top.register_parameter("absent", None)
    return top


def dump(state: dict[str, Tensor], **more: Any) -> bytes:
    """A file with this state as its average."""
    with official_modules():
        return pickle.dumps({"ema": module(state), "loss_fn": Persistent(), "dataset_kwargs": EasyDict(a=1), **more})


SONG = """map_noise.freqs map_layer0 map_layer1 enc.8x8_conv enc.8x8_block0 enc.4x4_down enc.4x4_aux_residual
enc.4x4_block0 enc.4x4_block0 dec.4x4_in0 dec.4x4_in0 dec.4x4_in1 dec.4x4_block0 dec.4x4_block1 dec.4x4_block1
dec.8x8_up dec.8x8_block0 dec.8x8_block1 dec.8x8_aux_norm dec.8x8_aux_conv""".split()
SONG_LEAVES = {"GroupNorm_0": "norm0", "Conv_0": "conv0", "Dense_0": "affine", "GroupNorm_1": "norm1"} | {
    "Conv_1": "conv1",
    "Conv_2": "skip",
}


def song(ve: bool) -> dict[str, Tensor]:
    """The small NCSN++ or DDPM++ of the golden figures as EDM lays it out."""
    theirs, ours = weights("score-sde-ve" if ve else "score-sde-vp"), {}
    blocks = SONG if ve else [name for name in SONG if "freqs" not in name and "aux_residual" not in name]
    for k, block in enumerate(blocks):
        mine = {key.removeprefix(f"all_modules.{k}."): v for key, v in theirs.items() if key.split(".")[1] == str(k)}
        if "NIN_0.W" in mine:  # attention: matrices (in, out); rows of qkv are (c)(q k v)
            ours |= {f"{block}.norm2.{end}": mine[f"GroupNorm_0.{end}"] for end in ("weight", "bias")}
            qkv = torch.stack([mine[f"NIN_{j}.W"].T for j in range(3)], 1).flatten(0, 1)
            ours[f"{block}.qkv.weight"] = qkv[:, :, None, None]
            ours[f"{block}.qkv.bias"] = torch.stack([mine[f"NIN_{j}.b"] for j in range(3)], 1).flatten()
            ours[f"{block}.proj.weight"] = mine["NIN_3.W"].T[:, :, None, None]
            ours[f"{block}.proj.bias"] = mine["NIN_3.b"]
        elif "W" in mine:
            ours[block] = mine["W"]
        else:
            for key, value in mine.items():
                leaf, _, end = key.rpartition(".")
                name = f"{block}.{SONG_LEAVES[leaf]}" if leaf in SONG_LEAVES else block
                ours[f"{name}.{end}"] = value
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0] if ve else [1.0, 1.0])
    kernel = (torch.outer(taps, taps) / taps.sum() ** 2)[None, None]
    resampled = [name for name in blocks if name.endswith(("_down", "_up"))]
    ours |= {f"{name}.{leaf}.resample_filter": kernel for name in resampled for leaf in ("conv0", "skip")}
    ours |= {"enc.4x4_aux_residual.resample_filter": kernel} if ve else {}
    return {f"model.{key}": value for key, value in ours.items()}


ADM = {
    "time_embed.0": "map_layer0",
    "time_embed.2": "map_layer1",
    "input_blocks.0.0": "enc.8x8_conv",
    "input_blocks.1": "enc.8x8_block0",
    "input_blocks.2": "enc.4x4_down",
    "input_blocks.3": "enc.4x4_block0",
    "middle_block.0": "dec.4x4_in0",
    "middle_block.1": "dec.4x4_in0",
    "middle_block.2": "dec.4x4_in1",
    "output_blocks.0": "dec.4x4_block0",
    "output_blocks.1.2": "dec.8x8_up",
    "output_blocks.1": "dec.4x4_block1",
    "output_blocks.2": "dec.8x8_block0",
    "output_blocks.3": "dec.8x8_block1",
    "out.0": "out_norm",
    "out.2": "out_conv",
}
ADM_LEAVES = {"in_layers.0": "norm0", "in_layers.2": "conv0", "emb_layers.1": "affine", "out_layers.0": "norm1"} | {
    "out_layers.3": "conv1",
    "skip_connection": "skip",
    "norm": "norm2",
    "qkv": "qkv",
    "proj_out": "proj",
}


def adm() -> dict[str, Tensor]:
    """The small guided-diffusion network of the golden figures, with legacy attention, as EDM lays it out."""
    ours = {}
    for key, value in weights("guided-legacy").items():
        if key == "label_emb.weight":
            ours["model.map_label.weight"] = value.T
            continue
        stem, _, end = key.rpartition(".")
        start = next(start for start in ADM if stem == start or stem.startswith(start + "."))
        leaf = next((name for old, name in ADM_LEAVES.items() if stem.endswith("." + old)), None)
        if leaf == "qkv":  # from (head)(q k v)(c) to (head)(c)(q k v), with 4 heads of 16
            rows = [head * 48 + j * 16 + c for head in range(4) for c in range(16) for j in range(3)]
            value = value[rows]
        if leaf in ("qkv", "proj") and end == "weight":
            value = value[..., None]
        ours[f"model.{ADM[start]}{f'.{leaf}' if leaf else ''}.{end}"] = value
    for name in ("enc.4x4_down", "dec.8x8_up"):
        for leaf in ("conv0", "skip"):
            ours[f"model.{name}.{leaf}.resample_filter"] = torch.full((1, 1, 2, 2), 0.25)
    return ours
