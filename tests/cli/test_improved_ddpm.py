"""Improved DDPM on the command line: fewer steps, classes by name, two stages, a learned variance."""

import numpy as np
import pytest
import torch
from cli_flags import TINY

from minidiff import decode, generate, held_out, likelihood_bound, load, load_data, respace
from minidiff.cli.common import classes_of
from minidiff.cli.main import main

HYBRID = "--process.variance range --process.loss hybrid --process.rescale-times --training.times importance".split()
BY_CLASS = ["--data.labels", "--network.classes", "10"]


@pytest.fixture(scope="module")
def by_class(tmp_path_factory):
    run = tmp_path_factory.mktemp("by-class") / "run"
    assert main(["train", "digits", "--out", str(run), *TINY, *HYBRID, *BY_CLASS]) == 0
    return run


def written(folder) -> dict[str, np.ndarray]:
    (file,) = folder.glob("*.npz")
    with np.load(file) as arrays:
        return dict(arrays)


def test_classes_are_taken_in_turn_by_seed_and_stand_beside_the_images(minidiff, by_class, tmp_path):
    sample = ["sample", by_class, "--device", "cpu", "-n", 4, "--seed", 9]
    assert minidiff(*sample, "--out", "all").code == 0
    assert minidiff(*sample, "--classes", "3,7", "--out", "two").code == 0
    every, two = written(tmp_path / "all"), written(tmp_path / "two")
    assert every["labels"].tolist() == [9, 0, 1, 2]
    assert two["labels"].tolist() == [7, 3, 7, 3]
    model, description = load(by_class)
    cond = {"labels": torch.tensor([7, 3, 7, 3])}
    x = generate(model.process, model.net, description.shape, range(9, 13), cond=cond)
    assert np.array_equal(two["arr_0"], decode(x, 17).permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize("classes", [(), (4,), (1, 8, 5)])
def test_the_class_is_a_function_of_the_seed(classes):
    net = type("Net", (torch.nn.Module,), {"classes": 10})()
    whole = classes_of(net, range(40), classes)["labels"]
    assert torch.equal(classes_of(net, range(17, 31), classes)["labels"], whole[17:31])
    assert set(whole.tolist()) == set(classes or range(10))
    assert classes_of(torch.nn.Linear(1, 1), range(4)) == {}


@pytest.mark.parametrize("steps", ["6", "2,3", "ddim6"])
def test_the_ancestral_sampler_walks_the_steps_that_are_kept(steps, minidiff, trained, tmp_path):
    assert minidiff("sample", trained, "--device", "cpu", "-n", 3, "--steps", steps, "--out", "few").code == 0
    model, description = load(trained)
    x = generate(respace(model.process, steps), model.net, description.shape, range(3))
    assert np.array_equal(written(tmp_path / "few")["arr_0"], decode(x, 17).permute(0, 2, 3, 1).numpy())


def test_files_of_other_steps_and_classes_do_not_write_over_each_other(minidiff, by_class, tmp_path):
    for more in ([], ["--steps", "5"], ["--steps", "2,2"], ["--classes", "1"], ["--sampler", "ddim", "--steps", "2,2"]):
        assert minidiff("sample", by_class, "--device", "cpu", "-n", 1, "--out", "here", *more).code == 0
    assert len(list((tmp_path / "here").glob("*.npz"))) == 5


def test_the_bound_is_that_of_the_kept_steps_and_of_each_images_class(minidiff, by_class):
    ended = minidiff("likelihood", by_class, "--device", "cpu", "-n", 40, "--steps", "7", "--seed", 5)
    model, _ = load(by_class)
    data = load_data("digits", "test")
    process, generator = respace(model.process, "7"), torch.Generator().manual_seed(5)
    cond = {"labels": data.labels[:40]}
    bound = likelihood_bound(process, model.net, data.x[:40].double(), generator, cond=cond)
    assert f"{bound.total:.4f} ± {bound.error:.4f}" in ended.out and ended.code == 0
    assert len(data.labels) == len(held_out(1797, "test"))


def test_two_stages_make_large_images_of_small_ones(minidiff, tmp_path, trained):
    large = tmp_path / "large"
    second = [*TINY, "--data.low-res", 2, "--network.low-res"]
    assert minidiff("train", "digits", "--out", large, *second).code == 0
    small = np.random.default_rng(1).integers(0, 17, (3, 4, 4, 1), dtype=np.uint8)
    np.savez(tmp_path / "small.npz", arr_0=small, levels=np.array(17))
    sample = ["sample", large, "--device", "cpu", "-n", 3]
    assert minidiff(*sample, "--low-res", "small.npz", "--out", "up").code == 0
    model, description = load(large)
    cond = {"low_res": torch.from_numpy(small).permute(0, 3, 1, 2) / 8 - 1}
    x = generate(model.process, model.net, description.shape, range(3), cond=cond)
    assert np.array_equal(written(tmp_path / "up")["arr_0"], decode(x, 17).permute(0, 2, 3, 1).numpy())

    refused = minidiff(*sample, "--out", "no")
    assert refused.code == 2 and "--low-res None: this network takes a smaller image of each" in refused.err
    refused = minidiff(*sample[:-1], 4, "--low-res", "small.npz", "--out", "no")
    assert refused.code == 2 and "holds 3 images, not 4" in refused.err
    np.savez(tmp_path / "large.npz", arr_0=small.repeat(2, 1), levels=np.array(17))
    refused = minidiff(*sample, "--low-res", "large.npz", "--out", "no")
    assert refused.code == 2 and "2 times smaller are wanted" in refused.err
    refused = minidiff("sample", trained, "--low-res", "small.npz", "--out", "no")
    assert refused.code == 2 and "takes no smaller image" in refused.err
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--classes", "3"], "--classes 3: this network knows no classes"),
        (["--classes", "three"], "--classes three: give whole numbers and commas"),
        (["--steps", "x"], "steps='x': say how many each section keeps"),
        (["--steps", "31"], "a section of 30 steps cannot keep 31"),
        (["--steps", "1"], "keep at least 2 of 0 … 29"),
        (["--sampler", "ddim", "--steps", "2,3", "--spacing", "uniform"], "--spacing uniform: --steps 2,3 has its own"),
        (["--sampler", "heun", "--steps", "2,3"], "--steps 2,3: say in how many steps"),
    ],
)
def test_flags_that_say_nothing_are_refused_before_anything_is_written(flags, sentence, minidiff, trained, tmp_path):
    refused = minidiff("sample", trained, "--device", "cpu", "--out", "no", *flags)
    assert refused.code == 2 and sentence in refused.err and not (tmp_path / "no").exists()


def test_a_class_that_is_not_there_is_refused(minidiff, by_class):
    refused = minidiff("sample", by_class, "--device", "cpu", "--classes", "3,10")
    assert refused.code == 2 and "--classes 10: this network knows 0 … 9" in refused.err


def test_a_chain_of_another_kind_walks_whole(minidiff, first_paper):
    for command in ("sample", "likelihood"):
        refused = minidiff(command, first_paper["swissroll-sd"], "--device", "cpu", "--steps", "3")
        assert refused.code == 2 and "--steps 3: " in refused.err
