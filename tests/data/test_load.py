"""Data by name: the same every time, held out by another seed, and refused by its name."""

import numpy as np
import pytest
import torch

from minidiff import heartbeats, is_heartbeat, load_data, load_images, swiss_roll_log_prob


@pytest.mark.parametrize(
    "name, n, shape, levels",
    [("swiss-roll", 50_000, (2,), None), ("heartbeat", 10_000, (20,), 2), ("dead-leaves-8", 20_000, (1, 8, 8), None)],
)
def test_what_is_generated_is_the_same_every_time_and_a_tenth_is_held_out(name, n, shape, levels):
    train, test = load_data(name), load_data(name, "test")
    assert (len(train), len(test), train.shape, train.levels) == (n, n // 10, shape, levels)
    assert (test.shape, test.levels, train.x.dtype) == (shape, levels, torch.float32)
    assert torch.equal(load_data(name).x, train.x) and torch.equal(load_data(name, "test").x, test.x)
    if levels is None:
        assert len(torch.cat([train.x, test.x]).flatten(1).unique(dim=0)) == n + n // 10
        # two draws, and not one that goes on
        first = [split.x.flatten(1)[: n // 10, 0].numpy() for split in (train, test)]
        assert abs(np.corrcoef(*first)[0, 1]) < 5 / (n / 10) ** 0.5
        square = (train.x.double() ** 2).flatten(1).mean(1)
        assert abs(square.mean() - 1) < 4 * square.std() / n**0.5


def test_the_swiss_roll_by_name_has_the_density_by_name():
    log_p = swiss_roll_log_prob(load_data("swiss-roll", "test").x)
    halves = log_p[:2500], log_p[2500:]
    assert log_p.min() > -12 and abs(halves[0].mean() - halves[1].mean()) < 4 * log_p.std() * 2 / 5000**0.5


def test_all_heartbeats_are_equally_likely():
    for split, each in (("train", 2_000), ("test", 200)):
        x = load_data("heartbeat", split).x
        assert is_heartbeat(x).all()
        assert [int((x == beat).all(1).sum()) for beat in heartbeats()] == [each] * 5


def test_images_come_as_load_images_gives_them(tmp_path):
    digits = load_data("digits", "test")
    assert torch.equal(digits.pixels, load_images("digits", "test").pixels) and digits.shape == (1, 8, 8)
    pixels = np.arange(40 * 16, dtype=np.int64).reshape(40, 4, 4).astype(np.uint8)
    np.savez(tmp_path / "own.npz", images=pixels)
    for split in ("train", "test"):
        found = load_data(tmp_path / "own.npz", split, flip=True)
        assert torch.equal(found.pixels, load_images(tmp_path / "own.npz", split).pixels) and found.flip


@pytest.mark.parametrize(
    "source, named",
    [
        ("dead-leaves-7", "sides of 8 to 256"),
        ("dead-leaves-1000", "sides of 8 to 256"),
        ("dead-leaves", "dead-leaves"),
        ("dead-leaves-9x9", "dead-leaves-9x9"),
        ("swissroll", "swissroll"),
    ],
)
def test_a_source_that_does_not_exist_is_refused_by_its_name(source, named):
    with pytest.raises(ValueError, match=named):
        load_data(source)


def test_options_of_images_reach_them_by_name():
    images = load_data("digits", crop=0.8, labels=True, low_res=2)
    assert (images.crop, images.give_labels, images.low_res) == (0.8, True, 2)


@pytest.mark.parametrize("source", ["swiss-roll", "heartbeat", "dead-leaves-8"])
@pytest.mark.parametrize("option", [{"flip": True}, {"crop": 0.9}, {"labels": True}, {"low_res": 2}])
def test_what_is_generated_has_no_options_of_images(source, option):
    with pytest.raises(ValueError, match=f"data.{next(iter(option))} is for images .*'{source}'"):
        load_data(source, **option)


def test_options_that_ask_for_nothing_are_no_options():
    points = load_data("heartbeat", flip=False, crop=1.0, labels=False, low_res=1)
    assert torch.equal(points.x, load_data("heartbeat").x)
