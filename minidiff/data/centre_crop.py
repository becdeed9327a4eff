"""Any image file as a square in 8 bits."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

RULE = "halved by a box filter while the shorter side is at least twice the size, then bicubic, then the centre"


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """The middle square of an image at this size, resampled as ADM's data are.

    The image is halved by a box filter for as long as its shorter side is at least twice the size; one bicubic step
    brings that side to the size, up or down; of the longer side the middle is kept.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(scale * image.width), round(scale * image.height)
    left, top = (width - size) // 2, (height - size) // 2
    return image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))


def eight_bits(item: Path | bytes | np.ndarray, mode: str) -> Image.Image:
    """An image file, its content, or pixels, as an image in Pillow's mode ``RGB`` or ``L``.

    Transparency is dropped; of 16 bits the upper 8 are kept. Raises whatever Pillow does, and ValueError for numbers
    that do not say what is white.
    """
    if isinstance(item, np.ndarray):
        return Image.fromarray(item).convert(mode)
    with Image.open(io.BytesIO(item) if isinstance(item, bytes) else item) as image:
        image.load()
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # I: of older Pillows
            return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert(mode)
        if image.mode in ("I", "F"):
            raise ValueError(f"its pixels are of Pillow's mode {image.mode}, which does not say what is white")
        return (image.convert("RGBA") if image.mode == "P" else image).convert(mode)
