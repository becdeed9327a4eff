"""The pictures that chapters and commands share: one style, image grids, the loss curve.

The colours differ in lightness as well as in hue, so that every figure survives a greyscale printer.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional

from minidiff.data import decode, encode

INK, BLUE, ORANGE, GREEN, ROSE = "#1b1b1b", "#1f4e9c", "#e08214", "#36865a", "#dea4c4"
CYCLE = [BLUE, ORANGE, INK, GREEN, ROSE]
PAD = 4  # pixels between the images of a grid


def style() -> None:
    """Set the book's figure style, and make figures byte-equal from run to run."""
    matplotlib.rcParams.update(
        {
            "figure.figsize": (6.4, 3.2),
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": matplotlib.cycler(color=CYCLE),
            "axes.titlesize": 10.5,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.labelsize": 9.5,
            "xtick.labelsize": 8.5,
            "ytick.labelsize": 8.5,
            "legend.fontsize": 8.5,
            "legend.frameon": False,
            "lines.linewidth": 1.6,
            "image.cmap": "gray",
            "svg.hashsalt": "minidiff",
        }
    )


def tile(images: Tensor, columns: int | None = None) -> np.ndarray:
    """Lay images (n, channel, height, width) in [-1, 1] out as one picture (H, W, 3) in [0, 1], white between them.

    Images lower than 64 pixels are enlarged smoothly (bicubic), because the eye reads strokes and not blocks.
    """
    factor = max(1, 64 // images.shape[-2])
    images = images.detach().float().cpu().clamp(-1, 1)
    images = functional.interpolate(images, scale_factor=factor, mode="bicubic").clamp(-1, 1)
    n, _, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    picture = torch.ones(3, rows * (height + PAD) + PAD, columns * (width + PAD) + PAD)
    for k, image in enumerate(images):
        top, left = PAD + (k // columns) * (height + PAD), PAD + (k % columns) * (width + PAD)
        picture[:, top : top + height, left : left + width] = (image.expand(3, -1, -1) + 1) / 2
    return picture.permute(1, 2, 0).numpy()


def show_grid(
    images: Tensor,
    columns: int | None = None,
    title: str = "",
    ax: Axes | None = None,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
) -> Axes:
    """Draw images (n, channel, height, width) in [-1, 1] as a grid, with a label for each row or column where given."""
    picture = tile(images, columns)
    if ax is None:
        _, ax = plt.subplots(figsize=(6.4, 6.4 * picture.shape[0] / picture.shape[1] + 0.35))
    ax.imshow(picture)
    ax.set_title(title)
    if not row_labels and not column_labels:
        ax.set_axis_off()
    for labels, length, place in (
        (row_labels, picture.shape[0], ax.set_yticks),
        (column_labels, picture.shape[1], ax.set_xticks),
    ):
        place([(k + 0.5) * length / len(labels) for k in range(len(labels))], labels)
    ax.tick_params(length=0, labeltop=True, labelbottom=False)
    ax.spines[:].set_visible(False)
    return ax


def save_samples(x: Tensor, path: Path | str, levels: int | None = None, columns: int | None = None) -> None:
    """Write samples as one PNG: images as a grid (of so many columns), points of the plane as such, sequences as the
    rows of an image.

    Images of ``levels`` values are first brought to the nearest of them; without levels x has mean square 1, and grey
    runs over two of its standard deviations.
    """
    if x.ndim == 4:
        images = x / 2 if levels is None else encode(decode(x, levels), levels)
        plt.imsave(path, np.ascontiguousarray(tile(images, columns)))
    elif x.shape[1] == 2:
        figure, ax = plt.subplots(figsize=(4, 4))
        ax.scatter(x[:, 0], x[:, 1], s=4, linewidths=0, color=BLUE)
        ax.set(xlabel="$x_1$", ylabel="$x_2$", title=f"{len(x)} samples", aspect="equal")
        figure.savefig(path, dpi=120)
        plt.close(figure)
    else:
        plt.imsave(path, np.kron(1 - x[:100].numpy(), np.ones((8, 8))), cmap="gray", vmin=0, vmax=1)


def loss_curve(images_seen: Sequence[float], loss: Sequence[float], title: str = "") -> Figure:
    """Draw the loss of each tick against images seen, on two logarithmic axes."""
    figure, ax = plt.subplots()
    ax.loglog(images_seen, loss, marker="o", markersize=2.5)
    ax.set_xlabel("images seen")
    ax.set_ylabel("training loss (mean over the tick)")
    ax.set_title(title)
    return figure
