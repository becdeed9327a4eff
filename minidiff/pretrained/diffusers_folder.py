"""diffusers' folders of a ``UNet2DModel``, to read and to write, with the settings of a DDPM scheduler."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minidiff.networks.layers import Attention, GroupNorm
from minidiff.training import Description, GaussianConfig, Model, UNetConfig

from .mapping import Naming, Place, places

OUTSIDE = {
    "time.0": "time_embedding.linear_1",
    "time.2": "time_embedding.linear_2",
    "label": "class_embedding",
    "conv_in": "conv_in",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
}
INSIDE = {
    "norm1": ["norm1"],
    "conv1": ["conv1"],
    "time": ["time_emb_proj"],
    "norm2": ["norm2"],
    "conv2": ["conv2"],
    "skip": ["conv_shortcut"],
    "norm": ["group_norm"],
    "qkv": ["to_q", "to_k", "to_v"],
    "out": ["to_out.0"],
    "conv": ["conv"],
}
FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # attention's names until 2022
# What a configuration means that leaves a key out; all of them decide what the network computes.
DEFAULTS = {
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
}


def naming(net: nn.Module) -> Naming:
    """Blocks are numbered along the way, so that on the way up 0 is the coarsest."""
    deepest = max(place.level for place in places(net))

    def inside(place: Place, leaf: str) -> list[str]:
        kind = "attentions" if isinstance(place.layer, Attention) else "resnets"
        if place.way == "middle":
            block = f"mid_block.{kind}.{place.child // 2}"
        else:
            level = place.level if place.way == "down" else deepest - place.level
            within = f"{place.way}samplers.0" if place.resamples else f"{kind}.{place.step}"
            block = f"{place.way}_blocks.{level}.{within}"
        return [f"{block}.{name}" for name in INSIDE[leaf]]

    return Naming(OUTSIDE, inside)


def architecture(net: nn.Module, config: UNetConfig) -> dict[str, Any]:
    """UNet2DModel's configuration of a network. Raises ValueError where it has none that computes the same."""
    groups = {layer.num_groups for layer in net.modules() if isinstance(layer, GroupNorm)}
    attentions = [layer for layer in net.modules() if isinstance(layer, Attention)]
    widths = {layer.qkv.in_channels // layer.heads for layer in attentions}
    one_head = all(layer.heads == 1 for layer in attentions)
    for wrong, why in (
        (config.low_res, "network.low_res: it takes no smaller image beside x"),
        (config.rescale, "network.rescale: it does not rescale its residual sums"),
        (config.mult[0] != 1, f"network.mult={config.mult}: its first level has the width of the time's waves"),
        (len(groups) > 1, f"group norms of {sorted(groups)} groups: it has one number of groups for all of them"),
        (not one_head and len(widths) > 1, f"network.heads={config.heads}: its heads have the same width everywhere"),
    ):
        if wrong:
            raise ValueError(f"diffusers' UNet2DModel can't be this network; {why}.")
    ours, block = config.convention == "ddpm", config.resample == "block"
    kinds = [
        ("Attn{}Block2D" if k in config.attention else "Resnet{}sampleBlock2D" if block else "{}Block2D")
        for k in range(len(config.mult))
    ]
    return DEFAULTS | {
        "in_channels": net.conv_in.in_channels,
        "out_channels": net.conv_out.out_channels,
        "freq_shift": int(ours),
        "flip_sin_to_cos": not ours,
        "down_block_types": [kind.format("Down") for kind in kinds],
        "up_block_types": [kind.format("Up") for kind in reversed(kinds)],
        "block_out_channels": [int(config.channels * factor) for factor in config.mult],
        "layers_per_block": config.blocks,
        "downsample_padding": 0 if ours else 1,
        "downsample_type": "resnet" if block else "conv",
        "upsample_type": "resnet" if block else "conv",
        "attention_head_dim": None if one_head else widths.pop(),
        "norm_num_groups": groups.pop(),
        "attn_norm_num_groups": net.norm_out.num_groups if config.inject == "scale" else None,
        "norm_eps": net.norm_out.eps,
        "resnet_time_scale_shift": "scale_shift" if config.inject == "scale" else "default",
        "num_class_embeds": config.classes or None,
    }


def read(folder: Path, net: nn.Module, config: UNetConfig) -> dict[str, Tensor]:
    """The weights of a folder whose configuration is that of ``net``. Raises ValueError where it is another's."""
    folder = folder / "unet" if (folder / "unet").is_dir() else folder  # as a part of a pipeline
    try:
        theirs = json.loads((folder / "config.json").read_text())
        kind = theirs["_class_name"]
        path = next(path for path in map(folder.joinpath, FILES) if path.exists())
        safe = path.suffix == ".safetensors"
        state = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"it is not a whole folder of diffusers' weights, {type(error).__name__}") from error
    if kind != "UNet2DModel":
        raise ValueError(f"it is of diffusers' {kind}, not of UNet2DModel")
    for key, value in architecture(net, config).items():
        if (found := theirs.get(key, DEFAULTS[key])) != value:
            raise ValueError(f"its {key} is {found}, and that of this network {value}")
    return {re.sub(rf"\b({'|'.join(OLD)})\b", lambda m: OLD[m[1]], key): value for key, value in state.items()}


def scheduler(config: GaussianConfig, betas: Tensor) -> dict[str, Any]:
    """DDPMScheduler's configuration of a process. Raises ValueError where it has none that computes the same."""
    predictions = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
    variances = {"large": "fixed_large", "small": "fixed_small", "range": "learned_range"}
    for name, value, known in (("predict", config.predict, predictions), ("variance", config.variance, variances)):
        if value not in known:
            raise ValueError(f"diffusers' DDPMScheduler has no process.{name}={value}; it has {', '.join(known)}.")
    if config.rescale_times and config.T != 1000:
        raise ValueError(f"process.rescale_times: diffusers feeds the bare step, and here of T={config.T} steps.")
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": config.T,
        "trained_betas": betas.tolist(),
        "prediction_type": predictions[config.predict],
        "variance_type": variances[config.variance],
        "clip_sample": config.clip,
    }


def write(model: Model, description: Description, folder: Path) -> None:
    """The folder of a ``DDPMPipeline``, whole or not at all.

    Raises ValueError for a network or a process that diffusers does not have, and for a folder that exists.
    """
    config, net = description.config, model.net
    if not (isinstance(config.network, UNetConfig) and isinstance(config.process, GaussianConfig)):
        kinds = " under ".join(type(part).__name__.removesuffix("Config") for part in (config.network, config.process))
        raise ValueError(f"diffusers has no {kinds}: only a UNet of a Gaussian process can be exported.")
    if folder.exists():
        raise ValueError(f"{folder} is there already: give another.")
    files = {
        "config.json": {"_class_name": "UNet2DModel", "sample_size": list(description.shape[1:])}
        | {"dropout": config.network.dropout, **architecture(net, config.network)},
        "scheduler_config.json": scheduler(config.process, model.process.betas),
        "model_index.json": {"_class_name": "DDPMPipeline"}
        | {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]},
    }
    temporary = folder.with_name(f".writing-{folder.name}")
    temporary.mkdir(parents=True)
    try:
        for name, values in files.items():
            (temporary / name).write_text(json.dumps(values, indent=1) + "\n")
        save_file(theirs(net), temporary / FILES[0])
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def theirs(net: nn.Module) -> dict[str, Tensor]:
    """The weights as diffusers names and cuts them."""
    state, names = {}, naming(net)
    at = {place.path: place for place in places(net)}
    for key, tensor in net.state_dict().items():
        place = at.get(".".join(key.split(".")[:-2]))
        if place is not None and isinstance(place.layer, Attention):
            tensor = tensor.flatten(1) if tensor.ndim == 4 else tensor  # matrices, not 1×1 convolutions
        keys = names.keys(key, place)
        state |= {name: part.contiguous() for name, part in zip(keys, tensor.chunk(len(keys)), strict=True)}
    return state
