"""The pictures: every pixel where it belongs, labelled axes, the same bytes every time."""

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from minidiff import plots


@pytest.fixture(autouse=True)
def styled():
    """The book's style inside the test, no figure left after it."""
    with plt.rc_context():
        plots.style()
        yield
    plt.close("all")


def test_a_grid_lays_images_out_in_rows_with_white_between():
    images = torch.stack([torch.full((1, 64, 70), value) for value in (-1.0, 0.0, 1.0, -0.5, 0.5)])
    picture = plots.tile(images, columns=2)
    expected = np.ones((3 * 68 + 4, 2 * 74 + 4))
    for k, grey in enumerate([0.0, 0.5, 1.0, 0.25, 0.75]):
        top, left = 4 + (k // 2) * 68, 4 + (k % 2) * 74
        expected[top : top + 64, left : left + 70] = grey
    np.testing.assert_allclose(picture, np.repeat(expected[:, :, None], 3, axis=2), atol=1e-6)


def test_images_of_64_pixels_are_shown_as_they_are(generator):
    image = 2 * torch.rand(1, 3, 64, 80, generator=generator) - 1
    picture = plots.tile(image)[4:-4, 4:-4]
    np.testing.assert_allclose(picture, (image[0].permute(1, 2, 0) + 1) / 2, atol=1e-6)


def test_small_images_are_enlarged_without_a_shift(generator):
    images = 2 * torch.rand(1, 1, 8, 8, generator=generator) - 1
    picture = plots.tile(images)[4:-4, 4:-4]
    assert picture.shape == (64, 64, 3)
    np.testing.assert_allclose(plots.tile(images.flip(-1))[4:-4, 4:-4], picture[:, ::-1], atol=1e-5)
    np.testing.assert_allclose(plots.tile(images.flip(-2))[4:-4, 4:-4], picture[::-1], atol=1e-5)
    blocks = picture[..., 0].reshape(8, 8, 8, 8).mean((1, 3))
    assert np.corrcoef(blocks.flatten(), images.flatten())[0, 1] > 0.9  # 0, were they a pixel off


def test_colours_keep_their_order_and_values_outside_are_clamped():
    image = torch.tensor([5.0, 0.0, -5.0]).reshape(1, 3, 1, 1)
    np.testing.assert_allclose(plots.tile(image)[30, 30], [1.0, 0.5, 0.0], atol=1e-6)


def test_a_grid_is_nearly_square_unless_told():
    assert plots.tile(torch.zeros(10, 1, 64, 64)).shape == (3 * 68 + 4, 4 * 68 + 4, 3)


def test_a_saved_grid_is_the_picture_and_the_same_bytes(tmp_path):
    images = (torch.arange(3 * 64.0) + 32).reshape(3, 1, 8, 8) / 127.5 - 1  # 192 of the 256 levels
    for name in ("a.png", "b.png"):
        plots.save_samples(images, tmp_path / name, levels=256, columns=3)
    np.testing.assert_allclose(imread(tmp_path / "a.png")[..., :3], plots.tile(images, columns=3), atol=1 / 255)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_samples_that_are_images_are_a_grid(tmp_path):
    """On levels: brought to the nearest. Of mean square 1: black and white are two deviations away."""
    x = torch.linspace(-1.1, 1.1, 2 * 64).reshape(2, 1, 8, 8)
    plots.save_samples(x, tmp_path / "a.png", levels=3)
    nearest = x.clamp(-1, 1).round()
    np.testing.assert_allclose(imread(tmp_path / "a.png")[..., :3], plots.tile(nearest), atol=1 / 255)
    plots.save_samples(4 * x, tmp_path / "b.png")
    np.testing.assert_allclose(imread(tmp_path / "b.png")[..., :3], plots.tile(2 * x), atol=1 / 255)


def test_samples_that_are_points_stand_where_they_are(tmp_path, monkeypatch, generator):
    x, drawn = torch.randn(7, 2, generator=generator), []
    monkeypatch.setattr(plots.plt, "close", drawn.append)  # the figure as it was saved
    plots.save_samples(x, tmp_path / "points.png")
    (ax,) = drawn[0].axes
    np.testing.assert_allclose(ax.collections[0].get_offsets(), x)
    assert ax.get_aspect() == 1 and "7 samples" in ax.get_title("left") + ax.get_title()
    assert imread(tmp_path / "points.png").shape[:2] == (480, 480)


@pytest.mark.parametrize("rows", [[[0, 1, 0], [1, 1, 0]], [[0, 0, 0], [0, 0, 0]], [[1, 1, 1], [1, 1, 1]]])
def test_samples_that_are_sequences_are_rows_with_ones_in_black(rows, tmp_path):
    plots.save_samples(torch.tensor(rows).float(), tmp_path / "rows.png", levels=2)
    picture = imread(tmp_path / "rows.png")[..., 0]
    np.testing.assert_allclose(picture, np.kron(1 - np.array(rows), np.ones((8, 8))), atol=1e-6)
    many = torch.zeros(130, 3)
    plots.save_samples(many, tmp_path / "many.png", levels=2)
    assert imread(tmp_path / "many.png").shape[:2] == (800, 24)


def test_a_shown_grid_has_its_title_and_no_axes():
    ax = plots.show_grid(torch.zeros(4, 1, 8, 8), title="four")
    assert ax.get_title("left") == "four" and not ax.axison
    given = plt.figure().add_subplot()
    assert plots.show_grid(torch.zeros(4, 1, 8, 8), ax=given) is given


def test_labels_stand_beside_the_middle_of_their_row_and_column():
    images = torch.stack([torch.full((1, 64, 64), value) for value in (-1.0, 0.0, 1.0, -0.5, 0.5, 0.9)])
    ax = plots.show_grid(images, columns=3, row_labels=["a", "b"], column_labels=["x", "y", "z"])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    picture, rows, columns = plots.tile(images, columns=3), ax.get_yticks(), ax.get_xticks()
    found = [[picture[int(row), int(column), 0] for column in columns] for row in rows]
    np.testing.assert_allclose(found, (images[:, 0, 0, 0].reshape(2, 3) + 1) / 2)


def test_a_loss_curve_says_what_its_axes_are():
    (ax,) = plots.loss_curve([100, 200, 400], [1.0, 0.5, 0.25], "digits").axes
    assert (ax.get_xlabel(), ax.get_title("left")) == ("images seen", "digits") and "loss" in ax.get_ylabel()
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[100, 1.0], [200, 0.5], [400, 0.25]])


def test_colours_differ_in_lightness():
    grey = sorted(np.dot(to_rgb(colour), [0.299, 0.587, 0.114]) for colour in plots.CYCLE)  # as a printer mixes them
    assert min(np.diff(grey)) > 0.1


@pytest.mark.parametrize("form", ["png", "svg"])
def test_figures_are_the_same_bytes_from_run_to_run(form, tmp_path):
    for name in ("a", "b"):
        figure = plots.loss_curve([1, 2, 3], [3, 2, 1], "again")
        figure.savefig(tmp_path / f"{name}.{form}", metadata={"Date": None} if form == "svg" else None)
    assert (tmp_path / f"a.{form}").read_bytes() == (tmp_path / f"b.{form}").read_bytes()
