"""Dead leaves: images of discs that lie on one another, the simplest images with the scaling of natural ones."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

AT_ONCE = 32  # discs laid on every image before looking again which pixels are still bare


def dead_leaves(
    n: int, size: int, generator: torch.Generator, r_min: float = 2.0, r_max: float | None = None
) -> Float[Tensor, "n 1 size size"]:
    """n square images of occluding discs, of mean 0 and variance 1 in every pixel (SD §3.2.2).

    The paper takes its images from others and prints no parameters. Here the radii follow p(r) ∝ r⁻³ from ``r_min`` to
    ``r_max`` (half the size unless given), in pixels, and centres are uniform on a plane larger than the image; a leaf
    has one of 256 grey levels, and every pixel adds uniform noise one level wide, without which flat leaves would have
    an infinite density. Raises ValueError for radii that are not in order.
    """
    r_max = size / 2 if r_max is None else r_max
    if not 0 < r_min < r_max:
        raise ValueError(f"r_min={r_min}, r_max={r_max}: 0 < r_min < r_max, and r_max is half of size unless given.")
    grey = torch.empty(n * size * size)
    for first in range(0, n, 256):
        count = min(256, n - first)
        pixels = slice(first * size * size, (first + count) * size * size)
        grey[pixels] = _leaves(count, size, generator, r_min, r_max)
    dequantised = (grey + torch.rand(len(grey), generator=generator)) / 256  # uniform on [0, 1) in every pixel
    return ((dequantised - 0.5) * 12**0.5).reshape(n, 1, size, size)


def _leaves(n: int, size: int, generator: torch.Generator, r_min: float, r_max: float) -> Float[Tensor, " pixels"]:
    """Grey levels 0 … 255 of n images, laid from the topmost leaf down: the first disc that covers a pixel is seen."""
    grey = torch.empty(n * size * size)
    bare = torch.arange(n * size * size)
    while len(bare):
        image, y, x = bare // size**2, bare // size % size + 0.5, bare % size + 0.5
        r = _radii((n, AT_ONCE), size, generator, r_min, r_max)
        place = torch.rand(2, n, AT_ONCE, generator=generator)
        centre_y, centre_x = place * (size + 2 * r) - r  # a disc that can be seen lies in this square
        level = torch.randint(256, (n, AT_ONCE), generator=generator).float()
        distance = (y[:, None] - centre_y[image]) ** 2 + (x[:, None] - centre_x[image]) ** 2
        covers = distance <= r[image] ** 2
        found, topmost = covers.any(1), covers.byte().argmax(1)
        grey[bare[found]] = level[image[found], topmost[found]]
        bare = bare[~found]
    return grey


def _radii(shape: tuple[int, ...], size: int, generator: torch.Generator, a: float, b: float) -> Tensor:
    """Radii of discs that can be seen: p(r) ∝ r⁻³ (size + 2r)², where the square is the area that centres may have.

    Multiplied out these are three power laws, each drawn by inverting its distribution function.
    """
    shares = torch.tensor([size**2 * (a**-2 - b**-2) / 2, 4 * size * (1 / a - 1 / b), 4 * math.log(b / a)])
    law = torch.multinomial(shares, math.prod(shape), replacement=True, generator=generator).reshape(shape)
    u = torch.rand(shape, generator=generator)
    cubic = (a**-2 - u * (a**-2 - b**-2)) ** -0.5
    square = 1 / (1 / a - u * (1 / a - 1 / b))
    return torch.where(law == 0, cubic, torch.where(law == 1, square, a * (b / a) ** u))
