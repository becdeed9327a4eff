"""improved- and guided-diffusion's ``.pt`` files: the networks of Improved DDPM and ADM, and ADM's classifiers."""

from typing import Literal

from einops import rearrange
from torch import Tensor, nn

from minidiff.networks.layers import Attention

from .mapping import Naming, Place

Order = Literal["legacy", "new"]

# The rows of a legacy qkv are (head)(q k v)(c), of a new one (q k v)(head)(c). Both have the same shape, so nothing in
# a file tells which it is.
PUBLISHED: dict[str, Order] = {
    f"{name}.pt": "new" if name == "64x64_diffusion" else "legacy"
    for name in """
        64x64_diffusion 128x128_diffusion 256x256_diffusion 256x256_diffusion_uncond 512x512_diffusion
        64x64_classifier 128x128_classifier 256x256_classifier 512x512_classifier 64_256_upsampler 128_512_upsampler
        lsun_bedroom lsun_cat lsun_horse lsun_horse_nodropout lsun_uncond_100M_1200K_bs128 lsun_uncond_100M_2400K_bs64
        imagenet64_uncond_100M_1500K imagenet64_uncond_vlb_100M_1500K imagenet64_cond_270M_250K upsample_cond_500K
        cifar10_uncond_50M_500K cifar10_uncond_vlb_50M_500K
    """.split()
}
OUTSIDE = {
    "time.0": "time_embed.0",
    "time.2": "time_embed.2",
    "label": "label_emb",
    "conv_in": "input_blocks.0.0",
    "norm_out": "out.0",
    "conv_out": "out.2",
    "pool.qkv": "out.2.qkv_proj",
    "pool.out": "out.2.c_proj",
    "pool.positions": "out.2.positional_embedding",
}
INSIDE = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "skip": "skip_connection",
    "norm": "norm",
    "qkv": "qkv",
    "out": "proj_out",
    "conv": "conv",
}


def naming(order: Order) -> Naming:
    """The names of both repositories, for attention in this order."""

    def change(key: str, place: Place | None, theirs: Tensor) -> Tensor:
        if order == "legacy" and place is not None and ".qkv." in key:
            return rearrange(theirs, "(n qkv c) ... -> (qkv n c) ...", qkv=3, n=place.layer.heads)
        return theirs

    return Naming(OUTSIDE, inside, change)


def inside(place: Place, leaf: str) -> list[str]:
    """Rows are numbered through, the first convolution being row 0; the way down calls a convolution ``op``."""
    row = {"down": f"input_blocks.{place.row + 1}", "middle": "middle_block", "up": f"output_blocks.{place.row}"}
    name = "op" if (place.way, leaf) == ("down", "conv") else INSIDE[leaf]
    return [f"{row[place.way]}.{place.child}.{name}"]


def attention_order(file: str, wanted: Order | None, net: nn.Module) -> Order:
    """The wanted order, or that of a published file; with one head both are the same.

    Raises ValueError where neither tells.
    """
    one = all(layer.heads == 1 for layer in net.modules() if isinstance(layer, Attention))
    order = wanted or PUBLISHED.get(file) or ("new" if one else None)
    if order is None:
        raise ValueError(
            f"{file} is not the name of a published file, and its attention may be in either of two orders: add "
            "--attention new (use_new_attention_order was set in training) or --attention legacy"
        )
    return order
