"""Augmentation that a network is told of, so that it does not leak into what the network draws (EDM App. F.2)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Pixels = Float[Tensor, "n channel height width"]
Label = Float[Tensor, "n 9"]


def draw_augmentation(n: int, p: float, generator: torch.Generator) -> Label:
    """What to do with n images, as the network is told it: nine numbers, all 0 for an image that is left alone.

    They are x-flip, y-flip, w, cos θ − 1, sin θ, a cos φ, a sin φ, t_x, t_y (EDM Table 6): mirrors, a scale of
    2^{0.2 w}, a rotation by θ, a stretch by 2^{0.2 a} along φ and a squeeze by as much across it, a shift by an eighth
    of t times the side. Each is drawn with probability p. A mirror, where drawn, is a coin's throw, and that of left
    and right is thrown for every image, unless p is 0. w and t are normal, the angles uniform. a is the size of a
    normal number: the paper keeps its sign, so that two inverse stretches have one label; the images are alike in law.
    """
    u = torch.rand(n, 9, generator=generator, device=generator.device).cpu()
    w, a, tx, ty = torch.randn(n, 4, generator=generator, device=generator.device).cpu().unbind(1)
    y_flip, scale, rotation, stretch, shift = (u[:, :5] < p).float().unbind(1)
    coin_x, coin_y = (u[:, 5:7] < 0.5).float().unbind(1)
    theta, phi = (math.pi * (2 * u[:, 7:] - 1)).unbind(1)
    label = [
        coin_x * (p > 0),
        coin_y * y_flip,
        w * scale,
        (theta.cos() - 1) * rotation,
        theta.sin() * rotation,
        a.abs() * phi.cos() * stretch,
        a.abs() * phi.sin() * stretch,
        tx * shift,
        ty * shift,
    ]
    return torch.stack(label, 1)


def augmented(x: Pixels, label: Label) -> Pixels:
    """Each image mirrored, scaled, turned, stretched and shifted, in this order, as its label says.

    x points to the right, y down, and angles count from x to y. Mirrors only move pixels about. The rest is one warp
    about the centre, in which every pixel is the mean of two by two points of the cubic interpolation, against
    aliasing; beyond its edges an image goes on as in a mirror. Where the label is 0 an image keeps its bits.
    """
    x_flip, y_flip = (label[:, :2] > 0)[:, :, None, None, None].unbind(1)
    x = torch.where(x_flip, x.flip(-1), x)
    x = torch.where(y_flip, x.flip(-2), x)
    moved = label[:, 2:].any(1)
    return x.index_put((moved,), warp(x[moved], motion(label[moved], *x.shape[2:]))) if moved.any() else x


def motion(label: Label, height: int, width: int) -> Float[Tensor, "n 3 3"]:
    """Where a point goes that is (x, y, 1) pixels off the centre, mirrors aside."""
    w, cos, sin, ax, ay, tx, ty = label[:, 2:].double().unbind(1)
    zero, one = torch.zeros_like(w), torch.ones_like(w)
    matrix = lambda *rows: torch.stack([torch.stack(row, -1) for row in rows], -2)
    turn = lambda cos, sin: matrix((cos, -sin, zero), (sin, cos, zero), (zero, zero, one))
    scale = lambda x, y: matrix((2 ** (0.2 * x), zero, zero), (zero, 2 ** (0.2 * y), zero), (zero, zero, one))
    a, phi = torch.hypot(ax, ay), torch.atan2(ay, ax)
    axis = turn(phi.cos(), phi.sin())
    shift = matrix((one, zero, tx * width / 8), (zero, one, ty * height / 8), (zero, zero, one))
    return shift @ axis @ scale(a, -a) @ axis.mT @ turn(1 + cos, sin) @ scale(w, w)


def warp(x: Pixels, matrix: Float[Tensor, "n 3 3"]) -> Pixels:
    """Each image with its points moved by the matrix, which takes pixels off the centre."""
    n, c, h, w = x.shape
    half = torch.tensor([w / 2, h / 2, 1.0], dtype=matrix.dtype)  # torch counts from −1 to 1
    back = (torch.linalg.inv(matrix) * half / half[:, None])[:, :2].to(x.dtype)
    grid = F.affine_grid(back, [n, c, 2 * h, 2 * w], align_corners=False)
    return F.avg_pool2d(F.grid_sample(x, grid, "bicubic", "reflection", align_corners=False), 2)
