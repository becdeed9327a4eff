"""Images: levels there and back, one split for everybody, mirrors, and files that are not what they should be."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from minidiff import Images, decode, digits, encode, held_out, load_images
from minidiff.data.images import cropped


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_levels_survive_the_round_trip(levels):
    k = torch.arange(levels, dtype=torch.uint8)
    x = encode(k, levels)
    assert x.dtype == torch.float32 and x[0] == -1 and x[-1] == 1
    torch.testing.assert_close(x.diff(), torch.full((levels - 1,), 2 / (levels - 1)), rtol=1e-3, atol=0)
    assert torch.equal(decode(x, levels), k)


@pytest.mark.parametrize("levels", [17, 256])
def test_decoding_takes_the_nearest_level_and_clamps(levels):
    k = torch.arange(levels, dtype=torch.uint8)
    for offset in (-0.49, 0.49):
        assert torch.equal(decode(encode(k, levels) + offset * 2 / (levels - 1), levels), k)
    assert decode(torch.tensor([-7.0, 7.0, float("inf")]), levels).tolist() == [0, levels - 1, levels - 1]


@pytest.mark.parametrize("n", [5, 17, 1797])
def test_training_and_held_out_share_the_examples(n):
    train, test = held_out(n, "train"), held_out(n, "test")
    assert len(test) == n // 5
    assert sorted(train.tolist() + test.tolist()) == list(range(n))


def test_the_split_depends_on_nothing_but_the_number():
    before = held_out(100, "test")
    torch.manual_seed(3)
    assert torch.equal(held_out(100, "test"), before)
    assert before.tolist() != sorted(before.tolist())  # shuffled: scikit-learn's digits come in the order of writers


def test_digits_are_those_of_scikit_learn():
    raw = load_digits()
    for split, n in (("train", 1438), ("test", 359)):
        images = digits(split)
        index = held_out(1797, split)
        assert (len(images), images.levels, images.flip) == (n, 17, False)
        np.testing.assert_array_equal(images.pixels[:, 0].numpy(), raw.images[index.numpy()])
        np.testing.assert_array_equal(images.labels.numpy(), raw.target[index.numpy()])
        assert images.x.min() == -1 and images.x.max() == 1


def numbered(n: int, flip: bool) -> Images:
    """n images of 2×3 pixels that no mirror leaves alone."""
    return Images(torch.arange(n * 6, dtype=torch.uint8).reshape(n, 1, 2, 3), flip=flip)


def test_a_batch_is_the_images_at_its_places(generator):
    images = numbered(20, flip=False)
    x, cond = images.batch(torch.tensor([7, 0, 7]), generator)
    assert torch.equal(x, images.x[[7, 0, 7]]) and cond == {}


def test_mirrors_fall_on_half_of_the_images_and_left_and_right_only(generator):
    images = numbered(40, flip=True)
    index = torch.arange(4000) % 40
    x, _ = images.batch(index, generator)
    plain = images.x[index]
    mirrored = (x == plain.flip(-1)).flatten(1).all(1)
    assert ((x == plain).flatten(1).all(1) ^ mirrored).all()
    assert abs(mirrored.sum().item() - 2000) < 4 * 1000**0.5
    again, _ = images.batch(index, torch.Generator().manual_seed(2020))
    assert torch.equal(x, again)


def test_a_file_of_colour_images_keeps_its_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(20, 4, 6, 3), dtype=np.uint8)
    np.savez(tmp_path / "some.npz", images=pixels)
    for split in ("train", "test"):
        images = load_images(str(tmp_path / "some.npz"), split, flip=True)
        expected = pixels[held_out(20, split).numpy()].transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(images.pixels.numpy(), expected)
        assert images.levels == 256 and images.flip


def test_a_file_with_a_test_set_of_its_own_keeps_every_training_image(tmp_path):
    rng = np.random.default_rng(0)
    train, test = (rng.integers(256, size=(n, 4, 4, 1), dtype=np.uint8) for n in (9, 6))
    np.savez(tmp_path / "both.npz", images=train, test_images=test)
    for split, expected in (("train", train), ("test", test)):
        found = load_images(str(tmp_path / "both.npz"), split).pixels.numpy()
        np.testing.assert_array_equal(found, expected.transpose(0, 3, 1, 2))


def test_a_file_of_grey_images_gets_one_channel(tmp_path):
    np.savez_compressed(tmp_path / "grey.npz", images=np.zeros((5, 4, 6), np.uint8))
    assert load_images(str(tmp_path / "grey.npz")).pixels.shape == (4, 1, 4, 6)


def test_a_set_read_twice_does_not_flip_because_another_did():
    load_images("digits", flip=True)
    assert not load_images("digits").flip


def test_a_source_that_is_neither_name_nor_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'cifar' is not known: give digits"):
        load_images("cifar")
    with pytest.raises(ValueError, match=r"no data file .*gone\.npz.*numpy\.savez"):
        load_images(str(tmp_path / "gone.npz"))
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(ValueError, match="no data file"):
        load_images(str(tmp_path / "folder.npz"))


@pytest.mark.parametrize(
    "array, found",
    [
        (np.zeros((10, 4, 4), np.float32), "float32"),
        (np.zeros((10, 4), np.uint8), r"\(10, 4\)"),
        (np.uint8(3), r"uint8 \(\)"),
        (np.zeros((10, 4, 4, 4), np.uint8), r"1 or 3 channels; found uint8 \(10, 4, 4, 4\)"),
        (np.zeros((4, 8, 8), np.uint8), "at least 5"),
    ],
)
def test_arrays_that_are_no_images_are_refused(array, found, tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, images=array)
    with pytest.raises(ValueError, match=found):
        load_images(str(path))


def damage_empty(path):
    path.write_bytes(b"")


def damage_truncated(path):
    path.write_bytes(path.read_bytes()[:300])


def damage_one_byte(path):
    data = bytearray(path.read_bytes())
    data[400] ^= 255
    path.write_bytes(bytes(data))


def damage_text(path):
    path.write_text("these are no images")


def damage_bare_array(path):
    with path.open("wb") as file:
        np.save(file, np.zeros((10, 8, 8), np.uint8))


def damage_other_name(path):
    np.savez(path, pictures=np.zeros((10, 8, 8), np.uint8))


def damage_pickled(path):
    np.savez(path, images=np.array([print], dtype=object))


@pytest.mark.parametrize("damage", [value for name, value in globals().items() if name.startswith("damage_")])
def test_a_damaged_file_is_refused_by_its_name(damage, tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, images=np.zeros((10, 8, 8), np.uint8))
    damage(path)
    with pytest.raises(ValueError, match=r"data\.npz"):
        load_images(str(path))


# ---- crops and conditions -------------------------------------------------------------------------------------------


def slopes(n: int, height: int, width: int) -> torch.Tensor:
    """n images of two channels, in which a pixel's value is its own place: down the image, and to the right."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([y, x]).expand(n, 2, height, width).clone()


def test_a_crop_of_everything_is_the_image():
    x = slopes(3, 6, 8)
    torch.testing.assert_close(cropped(x, torch.rand(3, 3), 1.0), x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("least", [0.5, 0.8])
def test_a_crop_is_a_square_whose_place_and_share_are_drawn(least):
    """On a slope the answer is exact: of the pixel at place y of H, the value is top + share · y.

    The top is the drawn part of what is left over, (1 − share) · H; past the outermost pixels the border stays.
    """
    height, width = 8, 12
    u = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.5, 0.25, 0.75], [0.3, 1.0, 0.0], [1.0, 0.4, 0.9]])
    found = cropped(slopes(5, height, width), u, least)
    for one, (share, right, down) in zip(found, u.tolist(), strict=True):
        share = least + (1 - least) * share
        for channel, side, drawn, axis in ((0, height, down, 0), (1, width, right, 1)):
            place = drawn * (1 - share) * side + share * (np.arange(side) + 0.5)
            expected = np.clip(place, 0.5, side - 0.5)
            rows = one[channel].numpy() if axis == 0 else one[channel].numpy().T
            np.testing.assert_allclose(rows, np.repeat(expected[:, None], rows.shape[1], 1), atol=1e-4)


def test_crops_are_drawn_for_each_image_between_the_least_and_all(generator):
    images = Images((slopes(1, 8, 8)[:, 1:] * 20).to(torch.uint8), crop=0.5)
    x, cond = images.batch(torch.zeros(2000, dtype=torch.long), generator)
    scale = (images.x[0, 0, 0, 7] - images.x[0, 0, 0, 0]) / 7  # of one pixel to the right
    share = ((x[:, 0, :, 5] - x[:, 0, :, 3]) / 2 / scale).mean(1)  # the slope inside, which a crop flattens
    assert cond == {} and 0.49 < share.min() < 0.52 and 0.98 < share.max() < 1.01
    assert abs(share.mean() - 0.75) < 4 * (0.5 / 12**0.5) / 2000**0.5
    again, _ = images.batch(torch.zeros(2000, dtype=torch.long), torch.Generator().manual_seed(2020))
    assert torch.equal(x, again)


def test_conditions_are_the_labels_and_the_image_reduced(generator):
    pixels = torch.arange(6 * 4 * 8, dtype=torch.uint8).reshape(6, 1, 4, 8)
    images = Images(pixels, labels=torch.tensor([3, 1, 4, 1, 5, 9]), flip=True, give_labels=True, low_res=2)
    x, cond = images.batch(torch.tensor([5, 0, 2]), generator)
    assert set(cond) == {"labels", "low_res"} and cond["labels"].tolist() == [9, 3, 4]
    means = x.reshape(3, 1, 2, 2, 4, 2).mean((3, 5))  # of the image as it is given out, mirrored or not
    torch.testing.assert_close(cond["low_res"], means)
    plain = Images(pixels, labels=torch.arange(6))
    assert plain.batch(torch.arange(6), generator)[1] == {}


def test_a_file_gives_its_labels_and_they_follow_their_images(tmp_path):
    rng = np.random.default_rng(0)
    labels, test_labels = rng.integers(10, size=20, dtype=np.int16), rng.integers(10, size=6)
    pixels = np.broadcast_to(labels.astype(np.uint8)[:, None, None], (20, 4, 4))
    test_pixels = np.broadcast_to(test_labels.astype(np.uint8)[:, None, None], (6, 4, 4))
    np.savez(tmp_path / "one.npz", images=pixels, labels=labels)
    np.savez(tmp_path / "both.npz", images=pixels, labels=labels, test_images=test_pixels, test_labels=test_labels)
    for name, split, n in (("one", "train", 16), ("one", "test", 4), ("both", "train", 20), ("both", "test", 6)):
        images = load_images(tmp_path / f"{name}.npz", split, labels=True)
        assert len(images) == n and images.labels.dtype == torch.int64
        assert torch.equal(images.pixels[:, 0, 0, 0].long(), images.labels)


def test_every_option_reaches_the_images():
    images = load_images("digits", "test", flip=True, crop=0.75, labels=True, low_res=4)
    assert (images.flip, images.crop, images.give_labels, images.low_res) == (True, 0.75, True, 4)
    _, cond = images.batch(torch.arange(5), torch.Generator().manual_seed(0))
    assert torch.equal(cond["labels"], images.labels[:5]) and cond["low_res"].shape == (5, 1, 2, 2)
    plain = load_images("digits", "test")
    assert (plain.flip, plain.crop, plain.give_labels, plain.low_res) == (False, 1.0, False, 1)


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"crop": 0.0}, "data.crop=0.0"),
        ({"crop": 1.5}, "data.crop=1.5"),
        ({"crop": float("nan")}, "data.crop=nan"),
        ({"low_res": 0}, "data.low_res=0"),
        ({"low_res": 3}, r"data.low_res=3, images of \(8, 8\).*divides both sides"),
    ],
)
def test_options_that_fit_no_image_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_images("digits", **options)


@pytest.mark.parametrize(
    "labels, sentence",
    [
        (None, "data.labels: .*own.npz holds none"),
        (np.zeros(19, np.int64), r"labels must be whole numbers from 0, one an image; found int64 \(19,\)"),
        (np.zeros((20, 1), np.int64), r"found int64 \(20, 1\)"),
        (np.zeros(20), "found float64"),
        (np.full(20, -1), "labels must be whole numbers from 0"),
        (np.array(["cat"] * 20), "labels must be whole numbers"),
    ],
)
def test_labels_that_are_none_are_refused(labels, sentence, tmp_path):
    path = tmp_path / "own.npz"
    np.savez(path, images=np.zeros((20, 4, 4), np.uint8), **({} if labels is None else {"labels": labels}))
    with pytest.raises(ValueError, match=sentence):
        load_images(path, labels=True)
