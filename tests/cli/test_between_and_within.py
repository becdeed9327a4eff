"""``interpolate`` and ``inpaint``: what the functions draw, between two ends and around what is known."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_refusals import refused  # noqa: F401

from minidiff import ContinuousDenoiser, ddim, ddim_encode, decode, digits, draw, encode, load, ode, slerp, subsequence
from minidiff.sampling import Posterior, ancestral, heun, known, per_image_noise


def save(name: str, pixels: torch.Tensor, white: int) -> Path:
    """Stored values 0 … white as a grey PNG."""
    Image.fromarray(np.rint(pixels.numpy() / white * 255).astype(np.uint8)).save(name)
    return Path(name)


def arrays(pattern: str) -> dict[str, np.ndarray]:
    (path,) = Path("samples").glob(pattern)
    assert path.with_suffix(".png").exists()
    return dict(np.load(path))


def assert_drawn(found: np.ndarray, x: torch.Tensor) -> None:
    np.testing.assert_array_equal(found[..., 0], decode(x.float(), 17)[:, 0].numpy())


def never(step: int):
    raise AssertionError(step)


# ---- interpolate ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags, solver", [((), "ddim"), (("--sampler", "heun", "--steps", 6), "heun")])
def test_between_two_seeds_noises_turn_from_one_to_the_other(minidiff, run, flags, solver):
    assert minidiff("interpolate", run, "--seeds", 3, 7, "-n", 5, *flags).code == 0
    (model, _), ends = load(run), per_image_noise([3, 7], (1, 8, 8))(0)
    noise = torch.cat([slerp(ends[:1], ends[1:], weight) for weight in (0, 0.25, 0.5, 0.75, 1)])
    if solver == "ddim":
        x = ddim(model.process, model.net, noise, never)
    else:
        denoise = ContinuousDenoiser(model.process, model.net)
        x = ode(denoise, noise / model.process.alpha_bar[-1].sqrt(), denoise.path(), 6)
    told = arrays(f"interpolation-*run-{solver}-steps{30 if solver == 'ddim' else 6}-3-7-n5.npz")
    assert_drawn(told["arr_0"], x)
    assert told["weights"].tolist() == [0, 0.25, 0.5, 0.75, 1]


def test_the_ends_are_the_samples_of_their_seeds(minidiff, run):
    """Of ``minidiff sample`` with the same sampler."""
    assert minidiff("interpolate", run, "--seeds", 4, 5, "-n", 3, "--steps", 10).code == 0
    row = arrays("interpolation-*.npz")["arr_0"]
    assert minidiff("sample", run, "-n", 2, "--seed", 4, "--sampler", "ddim", "--steps", 10, "--out", "there").code == 0
    (path,) = Path("there").glob("*.npz")
    np.testing.assert_array_equal(row[[0, 2]], np.load(path)["arr_0"])


def test_edm_starts_at_its_own_width(minidiff):
    assert minidiff("interpolate", "digits-edm", "--seeds", 1, 2, "-n", 2, "--steps", 4).code == 0
    model, _ = load("digits-edm")
    start = draw(model.process.prior, per_image_noise([1, 2], (1, 8, 8))(0))
    assert_drawn(arrays("*-heun-steps4-1-2-n2.npz")["arr_0"], heun(model.process, model.net, start, steps=4))


def test_a_class_is_one_for_all(minidiff):
    assert minidiff("interpolate", "digits-classes", "--seeds", 1, 2, "-n", 3, "--steps", 4, "--classes", 5).code == 0
    model, _ = load("digits-classes")
    ends = per_image_noise([1, 2], (1, 8, 8))(0)
    noise = torch.cat([ends[:1], slerp(ends[:1], ends[1:], 0.5), ends[1:]])
    told = {"steps": subsequence(model.process.T, 4), "cond": {"labels": torch.full((3,), 5)}}
    assert_drawn(arrays("*.npz")["arr_0"], ddim(model.process, model.net, noise, never, **told))


def test_rows_that_differ_do_not_write_over_each_other(minidiff):
    draw = ("interpolate", "digits-classes", "--seeds", 1, 2, "--steps", 2, "-n")
    for more in ((2,), (3,), (2, "--classes", 5), (2, "--classes", 6), (2, "--weights", "ema-20000")):
        assert minidiff(*draw, *more).code == 0
    assert len(list(Path("samples").glob("*.npz"))) == 5


def test_between_two_images_by_their_codes(minidiff):
    """In many steps the ends are the images themselves, nearly."""
    pixels = digits("test").pixels[[0, 2], 0]
    paths = [save(f"{name}.png", image, 16) for name, image in zip("ab", pixels, strict=True)]
    assert minidiff("interpolate", "digits", "--images", *paths, "-n", 3, "--steps", 100).code == 0
    (model, _), kept = load("digits"), subsequence(1000, 100)
    codes = ddim_encode(model.process, model.net, encode(pixels[:, None], 17).double(), kept)
    noise = torch.cat([codes[:1], slerp(codes[:1], codes[1:], 0.5), codes[1:]])
    found = arrays("interpolation-digits-ddim-steps100-a-b-n3.npz")["arr_0"]
    assert_drawn(found, ddim(model.process, model.net, noise, never, kept, clip=False))
    assert np.abs(found[[0, 2], ..., 0].astype(int) - pixels.numpy()).max() <= 1


def test_what_has_nothing_between_is_refused(refused, run, first_paper, tmp_path):  # noqa: F811
    assert "give two ends" in refused("interpolate", run)
    assert "n ≥ 2" in refused("interpolate", run, "--seeds", 1, 2, "-n", 1)
    assert "--steps 0: n ≥ 2, seed ≥ 0, steps ≥ 1" in refused("interpolate", run, "--seeds", 1, 2, "--steps", 0)
    assert "give one class" in refused("interpolate", run, "--seeds", 1, 2, "--classes", "1,2")
    assert "knows no classes" in refused("interpolate", run, "--seeds", 1, 2, "--classes", "1")
    assert "EDM has no chain" in refused("interpolate", "digits-edm", "--seeds", 1, 2, "--sampler", "ddim")
    assert "--steps 31" in refused("interpolate", run, "--seeds", 1, 2, "--steps", 31)
    assert "no sampler without noise" in refused("interpolate", first_paper["heartbeat-sd"], "--seeds", 1, 2)
    assert "enlarges images" in refused("interpolate", "mnist16-upsample", "--seeds", 1, 2)
    path = save(tmp_path / "wide.png", torch.zeros(8, 9), 16)
    assert "--images wide.png: it is 9×8, and the run draws 8×8" in refused(
        "interpolate", run, "--images", path.name, path.name
    )
    assert "decoded by heun" in refused("interpolate", "digits-edm", "--images", path.name, path.name)


# ---- inpaint --------------------------------------------------------------------------------------------------------


def test_what_is_known_stays_and_the_hole_is_filled_in_several_ways(minidiff, run):
    pixels, hole = digits("test").pixels[3, 0], torch.zeros(8, 8, dtype=torch.int64)
    hole[:, 5:] = 1
    image, mask = save("image.png", pixels, 16), save("mask.png", hole, 1)
    assert minidiff("inpaint", run, image, "--mask", mask, "-n", 4, "--seed", 2, "--batch", 3).code == 0
    told = arrays("inpainted-*run-image-mask-seed2-n4.npz")
    found = told["arr_0"][..., 0]
    assert (found[:, :, :5] == pixels[:, :5].numpy()).all() and told["seeds"].tolist() == [2, 3, 4, 5]
    assert (found[0, :, 5:] != found[1, :, 5:]).any() and (told["hole"][0] == hole.numpy()).all()

    assert minidiff("inpaint", run, image, "--mask", mask, "-n", 4, "--seed", 2, "--weights", "model").code == 0
    assert len(list(Path("samples").glob("inpainted-*-image-mask-seed2-n4.npz"))) == 2  # of other weights, another file

    (model, _), noise = load(run), per_image_noise([2, 3, 4, 5], (1, 8, 8))
    x = encode(pixels[None], 17).double()
    posterior = Posterior(model.process, known(x, hole[None] == 0, model.process))
    assert_drawn(told["arr_0"], ancestral(posterior, model.net, draw(posterior.prior, noise(0)), noise))
    picture = Image.open(next(Path("samples").glob("*.png")))
    assert picture.size == (3 * 68 + 4, 2 * 68 + 4)  # the question stands before the four


def test_a_trained_model_fills_a_hole_better_than_it_draws_without_being_told(minidiff):
    """Nearer to what was there, over six images: the middle of a digit follows in part from its rim."""
    pixels, hole = digits("test").pixels[:6, 0], torch.zeros(8, 8, dtype=torch.int64)
    hole[2:6, 3:6] = 1
    mask, told, free = save("mask.png", hole, 1), [], []
    assert minidiff("sample", "digits", "-n", 6, "--steps", 50, "--out", "free").code == 0
    (path,) = Path("free").glob("*.npz")
    for k, image in enumerate(pixels):
        path_of = save(f"{k}.png", image, 16)
        assert minidiff("inpaint", "digits", path_of, "--mask", mask, "-n", 6, "--steps", 50).code == 0
        found = arrays(f"inpainted-digits-{k}-mask-steps50-*.npz")["arr_0"][..., 0]
        error = lambda drawn, image=image: ((drawn.astype(float) - image.numpy()) ** 2)[:, hole.bool().numpy()].mean()
        told.append(error(found))
        free.append(error(np.load(path)["arr_0"][..., 0]))
    assert np.mean(told) < 0.7 * np.mean(free), (told, free)


def test_what_can_not_be_filled_is_refused(refused, run, first_paper, tmp_path):  # noqa: F811
    black, white = save(tmp_path / "black.png", torch.zeros(8, 8), 1), save(tmp_path / "white.png", torch.ones(8, 8), 1)
    half = save(tmp_path / "half.png", torch.arange(64).reshape(8, 8), 63)
    small = save(tmp_path / "small.png", torch.zeros(4, 8), 1)
    (tmp_path / "no.png").write_text("no picture")
    ask = lambda image, mask, *flags, of=run: refused("inpaint", of, image.name, "--mask", mask.name, *flags)
    assert "--mask black.png: nothing is white" in ask(half, black)
    assert "--mask white.png: everything is white" in ask(half, white)
    assert "--mask small.png: it is 8×4, and the run draws 8×8" in ask(half, small)
    assert "IMAGE small.png: it is 8×4" in ask(small, half)
    assert "no.png can't be read as an image" in ask(tmp_path / "no.png", half)
    assert "gone.png can't be read as an image" in ask(tmp_path / "gone.png", half)
    assert "n and batch ≥ 1" in ask(half, half, "-n", 0)
    assert "knows no classes" in ask(half, half, "--classes", 3)
    assert "EDM has no chain" in ask(half, half, of="digits-edm")
    assert "no grey or RGB images" in ask(half, half, of=first_paper["swissroll-sd"])
    assert "enlarges images" in ask(half, half, of="mnist16-upsample")
