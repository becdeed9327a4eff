"""Augmentation: the label says exactly what was done, each transform alone against another way to do it."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from torch.nn import functional as F

from minidiff import Images, augmented, draw_augmentation, encode, load_data, load_images

H, W = 24, 40
NAMES = ("x_flip", "y_flip", "scale", "cos", "sin", "ax", "ay", "tx", "ty")


def label(n: int = 1, **parts: float) -> torch.Tensor:
    """Of n images, all 0 but for the named parts."""
    values = torch.zeros(n, 9)
    for name, value in parts.items():
        values[:, NAMES.index(name)] = value
    return values


def rotation(theta: float) -> dict[str, float]:
    return {"cos": math.cos(theta) - 1, "sin": math.sin(theta)}


def stretch(a: float, phi: float) -> dict[str, float]:
    return {"ax": a * math.cos(phi), "ay": a * math.sin(phi)}


def places() -> tuple[np.ndarray, np.ndarray]:
    """x and y of every pixel's centre, in pixels off the middle of the image."""
    y, x = np.mgrid[:H, :W]
    return x - (W - 1) / 2, y - (H - 1) / 2


def scene(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A smooth picture without symmetries, known at every place: waves of 14 pixels and more."""
    return np.sin(0.31 * x + 0.23 * y + 0.4) + 0.7 * np.cos(0.12 * x - 0.38 * y) * np.sin(0.2 * x + 1)


def picture() -> torch.Tensor:
    return torch.from_numpy(scene(*places()))[None, None]


def moved_scene(matrix: np.ndarray, shift: tuple[float, float] = (0.0, 0.0)) -> tuple[np.ndarray, np.ndarray]:
    """The scene after (x, y) → matrix (x, y) + shift, in closed form, and where it comes from well inside the image."""
    back = np.linalg.inv(matrix)
    x, y = places()
    x, y = x - shift[0], y - shift[1]
    x, y = back[0, 0] * x + back[0, 1] * y, back[1, 0] * x + back[1, 1] * y
    return scene(x, y), (abs(x) < W / 2 - 2) & (abs(y) < H / 2 - 2)


def turned(theta: float) -> np.ndarray:
    return np.array([[math.cos(theta), -math.sin(theta)], [math.sin(theta), math.cos(theta)]])


def stretched(a: float, phi: float) -> np.ndarray:
    """By 2^{0.2 a} along φ, and by its inverse across."""
    along = np.array([math.cos(phi), math.sin(phi)])
    across = np.array([-along[1], along[0]])
    return 2 ** (0.2 * a) * np.outer(along, along) + 2 ** (-0.2 * a) * np.outer(across, across)


@pytest.mark.parametrize(
    "parts, matrix, shift",
    [
        ({"scale": 1.5}, np.eye(2) * 2**0.3, (0, 0)),
        ({"scale": -1.0}, np.eye(2) * 2**-0.2, (0, 0)),
        (rotation(0.6), turned(0.6), (0, 0)),
        (rotation(-2.5), turned(-2.5), (0, 0)),
        (stretch(1.3, 0.0), np.diag([2**0.26, 2**-0.26]), (0, 0)),
        (stretch(1.3, 0.9), stretched(1.3, 0.9), (0, 0)),
        (stretch(1.3, 0.9 + math.pi), stretched(1.3, 0.9), (0, 0)),
        ({"tx": 0.7}, np.eye(2), (0.7 * W / 8, 0)),
        ({"ty": -0.7}, np.eye(2), (0, -0.7 * H / 8)),
        (
            {"scale": 0.5, **rotation(1.0), **stretch(0.8, 0.3), "tx": 0.2, "ty": 0.4},
            stretched(0.8, 0.3) @ turned(1.0) * 2**0.1,
            (0.2 * W / 8, 0.4 * H / 8),
        ),
    ],
)
def test_a_known_scene_moves_as_the_label_says(parts, matrix, shift):
    expected, inside = moved_scene(matrix, shift)
    found = augmented(picture(), label(**parts))[0, 0].numpy()
    assert inside.mean() > 0.25
    assert np.abs(found - expected)[inside].max() < 0.02  # of an amplitude of 1.7; a pixel's move changes it by 0.6


@pytest.mark.parametrize("parts, matrix", [(rotation(0.4), turned(0.4)), (stretch(2.0, 0.5), stretched(2.0, 0.5))])
def test_scipy_agrees_up_to_the_edges(parts, matrix):
    """Splines of order 3 on the image reflected at its edges; rows first there."""
    back = np.linalg.inv(matrix)[::-1, ::-1]
    middle = np.array([(H - 1) / 2, (W - 1) / 2])
    x = picture()
    expected = ndimage.affine_transform(x[0, 0].numpy(), back, middle - back @ middle, order=3, mode="reflect")
    assert np.abs(augmented(x, label(**parts))[0, 0].numpy() - expected).max() < 0.05


def test_half_a_turn_is_both_mirrors():
    x = picture()
    half = augmented(x, label(**rotation(math.pi)))
    torch.testing.assert_close(half, augmented(x, label(x_flip=1, y_flip=1)), atol=0.02, rtol=0)


def test_mirrors_come_first():
    x = picture()
    both = augmented(x, label(x_flip=1, **rotation(0.5), tx=0.3))
    torch.testing.assert_close(both, augmented(x.flip(-1), label(**rotation(0.5), tx=0.3)), atol=0, rtol=0)


def test_mirrors_move_pixels_and_no_more(generator):
    x = torch.randn(4, 3, 5, 7, generator=generator)
    parts = label(4)
    parts[1, 0] = parts[2, 1] = parts[3, 0] = parts[3, 1] = 1
    expected = torch.stack([x[0], x[1].flip(-1), x[2].flip(-2), x[3].flip(-1).flip(-2)])
    assert torch.equal(augmented(x, parts), expected)


def test_each_image_has_its_own_label(generator):
    x = torch.randn(40, 1, 8, 8, generator=generator)
    parts = draw_augmentation(40, 0.3, generator)
    each = torch.cat([augmented(x[k : k + 1], parts[k : k + 1]) for k in range(40)])
    torch.testing.assert_close(augmented(x, parts), each, atol=1e-6, rtol=0)
    alone = (parts == 0).all(1)
    assert 3 < alone.sum() < 25
    changed = (augmented(x, parts) != x).flatten(1).any(1)
    assert torch.equal(changed, ~alone)  # the label is 0 if, and only if, the image is untouched


def test_what_was_warped_can_be_warped_back():
    """Away from edges that left the image, up to the blur of two resamplings."""
    x = picture()
    for parts, inverse in [
        ({"scale": 1.0}, {"scale": -1.0}),
        (rotation(0.5), rotation(-0.5)),
        (stretch(1.0, 0.3), stretch(1.0, 0.3 + math.pi / 2)),
        ({"tx": 0.5, "ty": -0.3}, {"tx": -0.5, "ty": 0.3}),
    ]:
        back = augmented(augmented(x, label(**parts)), label(**inverse))
        middle = np.s_[..., 7:-7, 10:-10]
        assert (back - x)[middle].abs().max() < 0.03


def test_shrinking_does_not_alias():
    """Stripes finer than the smaller image can hold fade: what is left lies far below their contrast of 1."""
    x = torch.from_numpy(np.cos(0.9 * np.pi * places()[0]))[None, None]
    small = augmented(x, label(scale=-4.0))  # 0.57 of the size, so 0.78 cycles a pixel
    assert small[..., 8:-8, 8:-8].abs().max() < 0.35
    coarse = torch.tensor([[[2**0.8, 0, 0], [0, 2**0.8, 0]]], dtype=torch.float64)
    coarse = F.grid_sample(x, F.affine_grid(coarse, [1, 1, H, W], align_corners=False), align_corners=False)
    assert coarse.abs().max() > 0.8  # as one point a pixel has it


def test_gradients_flow_to_the_image():
    x = picture()[..., :6, :8].clone().requires_grad_()
    parts = label(x_flip=1, scale=0.5, **rotation(0.3))
    assert torch.autograd.gradcheck(lambda x: augmented(x, parts), (x,))


# ---- the law of the labels -------------------------------------------------------------------------------------------

N = 20_000


@pytest.fixture(scope="module")
def drawn() -> np.ndarray:
    return draw_augmentation(N, 0.15, torch.Generator().manual_seed(2022)).double().numpy()


def share(mask: np.ndarray, p: float) -> bool:
    """Within 4 standard errors of p."""
    return abs(mask.mean() - p) < 4 * (p * (1 - p) / len(mask)) ** 0.5


def test_how_often_each_is_done(drawn):
    on = drawn != 0
    assert share(on[:, 0], 0.5) and share(on[:, 1], 0.075)  # a coin for all; a coin for the share p
    for k in (2, 4, 5, 7):
        assert share(on[:, k], 0.15)
    for pair in ((3, 4), (5, 6), (7, 8)):  # two numbers of one transform
        assert np.array_equal(on[:, pair[0]], on[:, pair[1]])
    for a, b in combinations((2, 4, 5, 7), 2):  # and those of different ones do not know each other
        assert share(on[:, a] & on[:, b], 0.15**2)
    assert all(share(on[:, 1] & on[:, k], 0.075 * 0.15) for k in (2, 4, 5, 7))
    assert set(np.unique(drawn[:, :2])) == {0, 1}


def test_how_much_is_done(drawn):
    """Kolmogorov–Smirnov at level 1e-3; the generator is seeded."""
    rotated, stretched = drawn[drawn[:, 4] != 0], drawn[drawn[:, 5] != 0]
    np.testing.assert_allclose((rotated[:, 3] + 1) ** 2 + rotated[:, 4] ** 2, 1, atol=1e-6)
    angle = lambda x, y: np.arctan2(y, x) / (2 * math.pi) + 0.5
    for values, law in [
        (drawn[drawn[:, 2] != 0, 2], stats.norm),
        (angle(rotated[:, 3] + 1, rotated[:, 4]), stats.uniform),
        (angle(stretched[:, 5], stretched[:, 6]), stats.uniform),
        (np.hypot(stretched[:, 5], stretched[:, 6]), stats.halfnorm),
        (drawn[drawn[:, 7] != 0, 7], stats.norm),
        (drawn[drawn[:, 8] != 0, 8], stats.norm),
    ]:
        assert stats.kstest(values, law.cdf).pvalue > 1e-3
    moved = drawn[drawn[:, 7] != 0]
    assert abs(np.corrcoef(moved[:, 7], moved[:, 8])[0, 1]) < 0.08


def test_no_amount_tells_of_another():
    """All nine numbers drawn; also by their sizes, of which two could agree without a correlation."""
    x_flip, y_flip, w, cos, sin, ax, ay, tx, ty = draw_augmentation(N, 1.0, torch.Generator().manual_seed(7)).numpy().T
    angles = [np.arctan2(sin, cos + 1), np.arctan2(ay, ax)]
    amounts = [x_flip, y_flip, w, abs(w), *angles, *map(abs, angles), np.hypot(ax, ay), tx, abs(tx), ty, abs(ty)]
    correlation = np.corrcoef(amounts) - np.eye(len(amounts))
    assert abs(correlation).max() < 4.5 / N**0.5


def test_p_0_leaves_every_image_alone(generator):
    assert not draw_augmentation(100, 0.0, generator).any()
    images, index = load_images("digits"), torch.arange(100)
    x, cond = images.batch(index, generator)
    assert cond == {} and torch.equal(x, images.x[:100])
    x = torch.randn(5, 1, 8, 8, generator=generator)
    assert torch.equal(augmented(x, torch.zeros(5, 9)), x)


def test_the_same_generator_draws_the_same():
    first, second = (draw_augmentation(9, 0.5, torch.Generator().manual_seed(8)) for _ in range(2))
    assert torch.equal(first, second) and first.dtype == torch.float32


# ---- in the data -----------------------------------------------------------------------------------------------------


def test_a_batch_comes_with_what_was_done_to_it():
    pixels = torch.randint(256, (30, 3, 8, 8), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    images = Images(pixels, augment=0.5)
    x, cond = images.batch(torch.arange(30), torch.Generator().manual_seed(5))
    assert set(cond) == {"augment"} and cond["augment"].shape == (30, 9) and cond["augment"].any()
    assert torch.equal(x, augmented(encode(pixels, 256), cond["augment"])) and x.dtype == torch.float32


def test_labels_and_low_resolution_come_along():
    images = load_data("digits", augment=0.5, labels=True, low_res=2)
    x, cond = images.batch(torch.arange(30), torch.Generator().manual_seed(5))
    assert set(cond) == {"labels", "low_res", "augment"}
    torch.testing.assert_close(cond["low_res"], F.avg_pool2d(x, 2))


@pytest.mark.parametrize("p", [-0.1, 1.5])
def test_no_probability_is_refused(p):
    with pytest.raises(ValueError, match=rf"data\.augment={p}"):
        load_images("digits", augment=p)


def test_points_are_not_augmented():
    with pytest.raises(ValueError, match=r"data\.augment is for images"):
        load_data("swiss-roll", augment=0.1)
