"""Scores: the numbers are those of the metrics on the same features, and they say all that they depend on."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image
from scipy.linalg import sqrtm

from minidiff import (
    DigitsExtractor,
    Images,
    ImageSet,
    Scores,
    compare,
    digits,
    evaluate,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
)
from minidiff.evaluation import METRICS, Features, open_images, open_reference
from minidiff.evaluation.reference import cache_folder

ALL = {"fid", "sfid", "kid", "kid_std", "is", "is_std", "precision", "recall"}


class Linear:
    """A stand-in for a network, which counts what it is shown: three fixed random maps of the pixels."""

    name, resampling, warning = "linear", "none", ""

    def __init__(self, seed: int = 0):
        self.sha256, self.seed, self.seen, self.spoilt = f"{seed:064x}", seed, 0, False

    def __call__(self, images: torch.Tensor, levels: int) -> Features:
        self.seen += len(images)
        generator = torch.Generator().manual_seed(self.seed)
        x = images.flatten(1).float() / (levels - 1)
        pool, spatial, logits = (x @ torch.randn(x.shape[1], dim, generator=generator) for dim in (4, 6, 5))
        return Features(pool / float("nan") if self.spoilt and images.any() else pool, spatial, logits)


def pixels(n: int, *shape: int, seed: int = 1, brightest: int = 255) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(brightest + 1, (n, *(shape or (1, 4, 4))), generator=generator).to(torch.uint8)


REAL, FAKE = Images(pixels(50, seed=1)), Images(pixels(30, seed=2, brightest=200))


def write_folder(folder, images: torch.Tensor, suffix: str = "png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for k, image in enumerate(images):
        array = image[0].numpy() if len(image) == 1 else image.movedim(0, -1).numpy()
        Image.fromarray(array).save(folder / f"{k:05d}.{suffix}")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "minidiff"


# ---- the numbers ----


@pytest.mark.parametrize("batch", [7, 64])
def test_they_are_the_metrics_of_the_features(batch):
    extractor = Linear()
    scores = evaluate(FAKE, REAL, extractor, seed=3, batch=batch)
    real, fake = extractor(REAL.pixels, 256), extractor(FAKE.pixels, 256)
    kid, kid_std = kernel_distance(real.pool, fake.pool, torch.Generator().manual_seed(3), 100, 30)
    inception, inception_std = inception_score(fake.logits, 10)
    precision, recall = precision_recall(real.pool, fake.pool, 3)
    assert scores.values == pytest.approx(
        {
            "fid": frechet_distance(real.pool, fake.pool),
            "sfid": frechet_distance(real.spatial, fake.spatial),
            **{"kid": kid, "kid_std": kid_std, "is": inception, "is_std": inception_std},
            **{"precision": precision, "recall": recall},
        },
        rel=1e-6,  # float32 products of 7 rows and of 30 round differently
    )


def test_only_what_is_asked_for_is_computed():
    assert evaluate(FAKE, REAL, Linear(), ["fid"]).values.keys() == {"fid"}
    assert evaluate(FAKE, REAL, Linear(), ["pr", "is"]).values.keys() == {"is", "is_std", "precision", "recall"}


def test_digits_that_were_held_out_are_nearer_than_spoilt_ones():
    test, extractor = digits("test"), DigitsExtractor()
    spoilt = Images(test.pixels.flip(-1), 17)
    near, far = (evaluate(images, "digits", extractor).values for images in (test, spoilt))
    assert near["fid"] < 1 < far["fid"] and near["sfid"] < far["sfid"] and near["kid"] < far["kid"]
    assert near["precision"] > 0.85 > far["precision"]
    assert 5 < near["is"] < 10


# ---- what they say about themselves ----


def test_they_say_what_they_depend_on():
    scores = evaluate(FAKE, REAL, Linear(), seed=5)
    told = scores.to_dict()
    assert told.pop("values").keys() == ALL
    assert re.fullmatch("[0-9a-f]{64}", told.pop("reference_sha256"))
    assert told == {
        "images": "30 images in memory",
        "n": 30,
        "levels": 256,
        "seed": 5,
        "settings": {"kid_subsets": 100, "kid_subset_size": 30, "is_splits": 10, "pr_k": 3},
        "extractor": "linear",
        "extractor_sha256": "0" * 64,
        "resampling": "none",
        "reference": "50 images in memory",
        "reference_n": 50,
        "reference_statistics": "computed from its images",
        "torch": torch.__version__,
        "warning": "30 images are fewer than 10,000: FID is biased, compare equal n only",
    }
    assert Scores.from_dict(json.loads(json.dumps(scores.to_dict()))) == scores
    with pytest.raises(ValueError, match="no scores of this version"):
        Scores.from_dict({"fid": 3.0})


@pytest.mark.parametrize("n, warned", [(9_999, True), (10_000, False)])
def test_fewer_than_ten_thousand_is_a_warning(n, warned):
    flat = pixels(1, 1, 2, 2)
    many = ImageSet("made", n, (1, 2, 2), 256, lambda first, last: pixels(last - first, 1, 2, 2, seed=first))
    scores = evaluate(many, Images(flat.repeat(20, 1, 1, 1)), Linear(), ["fid"], batch=1000)
    assert ("fewer than 10,000" in scores.warning) == warned
    assert scores.n == n


def test_an_extractors_own_warning_is_passed_on():
    extractor = Linear()
    extractor.warning = "not the one of the papers"
    assert evaluate(FAKE, REAL, extractor, ["is"]).warning.endswith("only; not the one of the papers")


def test_other_extractors_and_references_do_not_compare():
    ours, same = evaluate(FAKE, REAL, Linear()), evaluate(REAL, REAL, Linear(), ["fid", "is"])
    assert compare(ours, same) == {name: [ours.values[name], same.values[name]] for name in ("fid", "is", "is_std")}
    with pytest.raises(ValueError, match=r"extractor sha256 differs .*do not compare"):
        compare(ours, evaluate(FAKE, REAL, Linear(1)))
    with pytest.raises(ValueError, match="reference sha256 differs"):
        compare(ours, evaluate(FAKE, Images(pixels(40)), Linear()))
    for change in ({"extractor": "other"}, {"resampling": "bicubic"}):
        with pytest.raises(ValueError, match=f"{next(iter(change))} differs"):
            compare(ours, dataclasses.replace(ours, **change))


# ---- the cache ----


def test_a_reference_is_looked_at_once(cache):
    assert cache_folder() == cache
    extractor = Linear()
    first = evaluate(FAKE, REAL, extractor)
    assert extractor.seen == 50 + 30 + 1
    assert len(list(cache.iterdir())) == 2 and not list(cache.glob(".*"))
    again = Linear()
    assert evaluate(FAKE, Images(REAL.pixels.clone()), again) == first
    assert again.seen == 30 + 1  # and one to see how long its features are


def test_moments_alone_are_kept_until_vectors_are_needed(cache):
    fid = evaluate(FAKE, REAL, Linear(), ["fid"]).values["fid"]
    assert [path.name.split("-")[1] for path in cache.iterdir()] == ["moments.npz"]
    assert evaluate(FAKE, REAL, Linear(), ["fid", "pr"]).values["fid"] == fid
    extractor = Linear()
    assert evaluate(FAKE, REAL, extractor, ["kid"]).n == 30 and extractor.seen == 31


@pytest.mark.parametrize("part", ["moments", "pool"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "other"])
def test_a_damaged_file_is_made_again(cache, part, damage):
    first = evaluate(FAKE, REAL, Linear())
    (path,) = cache.glob(f"*-{part}.npz")
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
    path.write_bytes({"cut": whole[:-30], "flipped": flipped, "emptied": b"", "other": whole}[damage])
    if damage == "other":
        np.savez(path, something=np.zeros(3))
    extractor = Linear()
    assert evaluate(FAKE, REAL, extractor) == first
    assert extractor.seen == 50 + 30 + 1
    extractor = Linear()
    assert evaluate(FAKE, REAL, extractor) == first and extractor.seen == 31


def test_what_is_cached_belongs_to_the_images_and_to_the_extractor(cache):
    other = REAL.pixels.clone()
    other[0, 0, 0, 0] ^= 1
    for images, extractor in (
        (REAL, Linear()),
        (Images(other), Linear()),
        (REAL, Linear(1)),
        (Images(other), Linear(1)),
    ):
        evaluate(FAKE, images, extractor, ["fid"])
        assert extractor.seen == 81
    resampled = Linear()
    resampled.resampling = "bicubic"
    evaluate(FAKE, REAL, resampled, ["fid"])
    evaluate(FAKE, Images(REAL.pixels // 2, 128), Linear(), ["fid"])
    assert len(list(cache.iterdir())) == 6


def test_a_cache_that_cannot_be_written_costs_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert evaluate(FAKE, REAL, Linear()).values.keys() == ALL


# ---- what is read ----


def test_images_are_the_same_in_memory_in_a_folder_and_in_files(tmp_path):
    expected = evaluate(FAKE, REAL, Linear()).values
    write_folder(tmp_path / "real" / "a", REAL.pixels[:20])
    write_folder(tmp_path / "real" / "b", REAL.pixels[20:])
    write_folder(tmp_path / "fake", FAKE.pixels)
    (tmp_path / "fake" / "readme.txt").write_text("not an image")
    np.savez(tmp_path / "real.npz", arr_0=REAL.pixels[:, 0].numpy())
    np.savez(tmp_path / "fake.npz", images=rearrange(FAKE.pixels, "n c h w -> n h w c").numpy())
    for fake in ("fake", "fake.npz"):
        for real in ("real", "real.npz"):
            scores = evaluate(tmp_path / fake, tmp_path / real, Linear())
            assert scores.values == expected
            assert (scores.images, scores.reference) == (str(tmp_path / fake), str(tmp_path / real))


def test_colours_keep_their_order_and_grey_among_colours_is_repeated(tmp_path):
    colours = pixels(3, 3, 5, 6)
    write_folder(tmp_path / "c", colours)
    np.savez(tmp_path / "c.npz", arr_0=rearrange(colours, "n c h w -> n h w c").numpy())
    for path in (tmp_path / "c", tmp_path / "c.npz"):
        images = open_images(path)
        assert (images.n, images.shape, images.levels) == (3, (3, 5, 6), 256)
        assert torch.equal(torch.cat(list(images.batches(2))), colours)
    write_folder(tmp_path / "c", pixels(1, 1, 5, 6))
    assert torch.equal(open_images(tmp_path / "c").read(0, 1), pixels(1, 1, 5, 6).expand(1, 3, 5, 6))


def test_jpeg_is_read_as_pillow_reads_it(tmp_path):
    write_folder(tmp_path / "j", pixels(2, 3, 16, 16), "jpeg")
    expected = np.stack([np.asarray(Image.open(path)) for path in sorted((tmp_path / "j").iterdir())])
    assert torch.equal(open_images(tmp_path / "j").read(0, 2), torch.from_numpy(expected).movedim(-1, 1))


def test_a_data_source_gives_its_training_part(tmp_path):
    assert open_reference("digits").sha256 == open_reference(digits("train")).sha256
    np.savez(tmp_path / "data.npz", images=pixels(20, 4, 4).numpy())
    assert open_reference(tmp_path / "data.npz").images.n == 16
    np.savez(tmp_path / "split.npz", images=pixels(20, 4, 4).numpy(), test_images=pixels(5, 4, 4).numpy())
    assert open_reference(tmp_path / "split.npz").images.n == 20


def statistics(seed: int = 0) -> dict[str, np.ndarray]:
    features, arrays = Linear(seed)(pixels(200, seed=9), 256), {}
    for part, (mean, covariance) in {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}.items():
        x = getattr(features, part).double().numpy()
        arrays |= {mean: x.mean(0), covariance: np.cov(x.T)}
    return arrays


def by_hand(x: np.ndarray, mu: np.ndarray, sigma: np.ndarray) -> float:
    own = np.cov(x.T)
    return ((x.mean(0) - mu) ** 2).sum() + np.trace(own + sigma - 2 * sqrtm(own @ sigma).real)


def test_statistics_of_edm_give_fid_alone(tmp_path):
    arrays = statistics()
    np.savez(tmp_path / "edm.npz", mu=arrays["mu"], sigma=arrays["sigma"])
    scores = evaluate(FAKE, tmp_path / "edm.npz", Linear(), ["fid"])
    fake = Linear()(FAKE.pixels, 256)
    assert scores.values == {"fid": pytest.approx(by_hand(fake.pool.double().numpy(), arrays["mu"], arrays["sigma"]))}
    assert (scores.reference_n, scores.reference_statistics) == (None, "fid from the file")
    assert "does not name its extractor" in scores.warning
    with pytest.raises(ValueError, match="statistics and no images, which give fid alone: leave out sfid, kid, pr, or"):
        evaluate(FAKE, tmp_path / "edm.npz", Linear(), METRICS)
    assert evaluate(FAKE, tmp_path / "edm.npz", Linear(), ["fid", "is"]).values.keys() == {"fid", "is", "is_std"}


def test_a_file_of_adm_gives_its_statistics_to_fid_and_its_images_to_the_rest(tmp_path, cache):
    arrays = statistics()
    np.savez(tmp_path / "adm.npz", arr_0=REAL.pixels[:, 0].numpy(), **arrays)
    scores, plain = evaluate(FAKE, tmp_path / "adm.npz", Linear()), evaluate(FAKE, REAL, Linear())
    fake = Linear()(FAKE.pixels, 256)
    expected = {
        "fid": by_hand(fake.pool.double().numpy(), arrays["mu"], arrays["sigma"]),
        "sfid": by_hand(fake.spatial.double().numpy(), arrays["mu_s"], arrays["sigma_s"]),
    }
    assert scores.values == pytest.approx(plain.values | expected)
    assert (scores.reference_n, scores.reference_statistics) == (50, "fid, sfid from the file")
    assert scores.reference_sha256 != plain.reference_sha256
    np.savez(tmp_path / "spatial.npz", **arrays)
    assert evaluate(FAKE, tmp_path / "spatial.npz", Linear(), ["sfid"]).values["sfid"] == pytest.approx(
        expected["sfid"]
    )


def test_statistics_of_another_network_are_refused(tmp_path):
    np.savez(tmp_path / "other.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(ValueError, match="statistics of 2,048 pool features, the extractor linear has 4"):
        evaluate(FAKE, tmp_path / "other.npz", Linear(), ["fid"])


# ---- what is refused, each with a sentence ----


def refused(message: str, images=FAKE, reference=REAL, extractor=None, metrics=METRICS) -> None:
    extractor = extractor or Linear()
    with pytest.raises(ValueError, match=message) as caught:
        evaluate(images, reference, extractor, metrics)
    assert "\n" not in str(caught.value) and extractor.seen <= 1


def test_metrics_that_do_not_exist():
    refused("no metric 'fdi': choose from fid, sfid, kid, is, pr", metrics=["fid", "fdi"])
    refused("no metric ''", metrics=[])


def test_features_that_are_not_finite():
    extractor = Linear()
    extractor.spoilt = True
    with pytest.raises(ValueError, match="50 of 50 vectors hold NaN"):
        evaluate(FAKE, REAL, extractor)


def test_too_few_images(tmp_path):
    refused("1 images are too few; these metrics need 2", Images(pixels(1)), metrics=["fid"])
    refused("9 images are too few; these metrics need 10", Images(pixels(9)), metrics=["is"])
    refused("3 images are too few; these metrics need 4", reference=Images(pixels(3)), metrics=["pr"])
    with pytest.raises(ValueError, match="holds 30 images, not 31"):
        open_images(FAKE).first(31)
    assert open_images(FAKE).first(4).n == 4


def test_sizes_that_differ(tmp_path):
    refused("images of 4×4, 50 images in memory of 5×4: bring them to one size", reference=Images(pixels(50, 1, 5, 4)))
    write_folder(tmp_path / "mixed", pixels(2, 3, 4, 4))
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / "mixed" / "z.png")
    refused(r"several sizes \(00000\.png 4×4, z\.png 6×4\)", tmp_path / "mixed")


def test_a_folder_without_images(tmp_path):
    refused("no PNG or JPEG files in", tmp_path)
    refused("no PNG or JPEG files in", reference=tmp_path)
    refused("no .*npz file with images or arr_0|give a folder", tmp_path / "none.png")


@pytest.mark.parametrize(
    "array, mode",
    [
        (np.zeros((4, 4), np.uint16), "I;16"),
        (np.zeros((4, 4, 4), np.uint8), "RGBA"),
        (np.zeros((4, 4, 2), np.uint8), "LA"),
    ],
)
def test_a_folder_of_what_is_not_8_bit(tmp_path, array, mode):
    Image.fromarray(array).save(tmp_path / "a.png")
    refused(rf"a\.png is of Pillow's mode {mode}: take 8-bit grey or RGB", reference=tmp_path)


def test_an_image_that_is_damaged(tmp_path):
    write_folder(tmp_path / "cut", pixels(12))
    path = tmp_path / "cut" / "00003.png"
    whole = path.read_bytes()
    path.write_bytes(b"nothing")
    refused(r"00003\.png can't be read as an image", tmp_path / "cut")
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"00003\.png can't be read as an image"):
        evaluate(tmp_path / "cut", REAL, Linear())


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"arr_0": np.zeros((20, 4, 4), np.float32)}, "must be 8-bit: .*found float32"),
        ({"arr_0": np.zeros((20, 4, 4, 2), np.uint8)}, r"1 or 3 channels; found uint8 \(20, 4, 4, 2\)"),
        ({"arr_0": np.zeros((0, 4, 4), np.uint8)}, r"found uint8 \(0, 4, 4\)"),
        ({"arr_0": np.full((20, 4, 4), 16, np.uint8)}, "values end at 16, which does not fit 256 levels"),
        (
            {"arr_0": np.full((20, 4, 4), 17, np.uint8), "levels": np.array(17)},
            "end at 17, which does not fit 17 levels",
        ),
        ({"other": np.zeros(3)}, "holds other"),
        ({"mu": np.zeros(4)}, "mu and sigma must be a mean"),
        ({"mu": np.zeros(4), "sigma": np.eye(5)}, "mu and sigma must be a mean"),
        ({"mu": np.full(4, np.nan), "sigma": np.eye(4)}, "NaN"),
    ],
)
def test_files_that_hold_something_else(tmp_path, arrays, message):
    np.savez(tmp_path / "file.npz", **arrays)
    refused(message, reference=tmp_path / "file.npz")


def test_references_that_are_no_images_in_levels(tmp_path):
    refused("'swiss-roll' is no set of 8-bit images", reference="swiss-roll")
    refused("data source 'cats' is not known", reference="cats")
    (tmp_path / "bad.npz").write_bytes(b"PK nothing")
    refused(r"bad\.npz can't be read as an \.npz file", reference=tmp_path / "bad.npz")
    np.savez(tmp_path / "levels.npz", arr_0=pixels(20, 4, 4, brightest=16).numpy(), levels=np.array(17))
    assert open_images(tmp_path / "levels.npz").levels == 17
