"""Guidance, two stages and several recipes on the command line: what the library does, by name."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_flags import TINY
from tiny import files

from minidiff import (
    ClassifierFree,
    ClassLogProb,
    ContinuousDenoiser,
    Guided,
    GuidedDenoiser,
    ddim,
    decode,
    encode,
    generate,
    load,
    ode,
    respace,
    subsequence,
)
from minidiff.recipes import SETS, recipe
from minidiff.training import Description, newest
from minidiff.training.checkpoint import save

CHAIN = "--process.schedule cosine --process.T 8".split()
SHORT = """--training.images 32 --training.batch 16 --training.tick 32 --training.checkpoint 32 --training.ema 50
--device cpu -n 1""".split()
EDM = [*TINY[: TINY.index("--process.T")], *SHORT]
SMALL = [*EDM, *CHAIN]
CLASSIFIER = [*"--network.mult 1 --network.attention".split(), *CHAIN, *SHORT]
DRAWN = ("--device", "cpu", "-n", 3, "--classes", "3,7")
LABELS = torch.tensor([3, 7, 3])
SCALE = 3.0


def made(folder: Path, name: str, data: dict, network: dict) -> Path:
    """A run of a recipe made small, its weights anything but zero, so that each thing that it is told matters."""
    config, (shape, levels) = recipe(name), SETS[data.get("source", recipe(name).data.source)]
    config = replace(
        config,
        data=replace(config.data, **data),
        process=replace(config.process, schedule="cosine", T=8),
        network=replace(config.network, **network),
        training=replace(config.training, ema=(50,)),
    )
    description = Description(config, shape, levels)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = description.build()
        weights = {key: value + torch.randn_like(value) / 5 for key, value in model.state_dict().items()}
    save(folder, 0, description, {"ema-50": weights}, {})
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs with classes and without, the classifier beside them, two stages, the second also without classes."""
    folder, net = tmp_path_factory.mktemp("guided"), {"channels": 4, "mult": (1, 2), "attention": ()}
    of = {
        "conditional": ("digits-classes", {}, net),
        "plain": ("digits", {}, net),
        "classifier": ("digits-classifier", {}, {"mult": (1,), "attention": ()}),
        "eleven": ("digits-classifier", {}, {"mult": (1,), "attention": (), "classes": 11}),
        "small": ("mnist8", {}, net),
        "large": ("mnist16-upsample", {}, net),
        "large-of-all": ("mnist16-upsample", {"labels": False}, {**net, "classes": 0}),
    }
    return {name: made(folder / name, *how) for name, how in of.items()}


@pytest.fixture
def sampled(minidiff, tmp_path):
    """Draw with these flags; what the file holds."""

    def call(*arguments) -> dict[str, np.ndarray]:
        ended = minidiff("sample", *arguments, "--out", "drawn")
        assert ended.code == 0, ended.err
        (file,) = (tmp_path / "drawn").glob("*.npz")
        with np.load(file) as arrays:
            found = dict(arrays)
        file.unlink()
        return found

    return call


def log_p(runs) -> ClassLogProb:
    classifier, _ = load(runs["classifier"])
    return ClassLogProb(classifier.process.process, classifier.net)


def levels(x: torch.Tensor, levels: int = 17) -> np.ndarray:
    """As a file holds them."""
    return decode(x, levels).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("steps", [None, "5", "2,3"])
@pytest.mark.parametrize("at", [None, "mean", "x"])
def test_the_chain_is_guided_at_the_mean_or_at_x(steps, at, sampled, runs):
    flags = [*(["--steps", steps] if steps else []), *(["--at", at] if at else [])]
    found = sampled(runs["conditional"], *DRAWN, "--classifier", runs["classifier"], "--scale", SCALE, *flags)
    model, description = load(runs["conditional"])
    process = respace(model.process, steps) if steps else model.process
    told = {"cond": {"labels": LABELS}}
    x = generate(Guided(process, log_p(runs), SCALE, at or "mean"), model.net, description.shape, range(3), **told)
    plain = generate(process, model.net, description.shape, range(3), **told)
    assert np.array_equal(found["arr_0"], levels(x)) and not np.array_equal(levels(x), levels(plain))
    assert found["labels"].tolist() == [3, 7, 3]


def test_ddim_and_solvers_are_guided(sampled, runs):
    model, description = load(runs["conditional"])
    guided = ("--classifier", runs["classifier"], "--scale", SCALE)
    told = {"cond": {"labels": LABELS}}
    found = sampled(runs["conditional"], *DRAWN, *guided, "--sampler", "ddim", "--steps", 5)
    sampler = partial(ddim, steps=subsequence(8, 5))
    process = Guided(model.process, log_p(runs), SCALE)
    x = generate(process, model.net, description.shape, range(3), sampler=sampler, **told)
    assert np.array_equal(found["arr_0"], levels(x))

    denoise = ContinuousDenoiser(model.process, model.net)
    path = denoise.path()
    led = GuidedDenoiser(denoise, log_p(runs).at_sigma, SCALE)
    for solver in ("euler", "heun"):
        found = sampled(runs["conditional"], *DRAWN, *guided, "--sampler", solver, "--steps", 4)
        wide = (1 + path.sigma_max**2) ** 0.5
        solve = lambda _p, _n, start, _z, cond, solver=solver: ode(led, wide * start, path, 4, solver, cond)  # noqa: B023
        x = generate(model.process, model.net, description.shape, range(3), sampler=solve, **told)
        assert np.array_equal(found["arr_0"], levels(x))


def test_a_network_that_knows_no_classes_is_led_by_the_classifier_alone(sampled, runs):
    found = sampled(runs["plain"], *DRAWN, "--classifier", runs["classifier"], "--scale", SCALE)
    model, description = load(runs["plain"])
    process = Guided(model.process, log_p(runs), SCALE, tell_net=False)
    x = generate(process, model.net, description.shape, range(3), cond={"labels": LABELS})
    assert np.array_equal(found["arr_0"], levels(x)) and found["labels"].tolist() == [3, 7, 3]
    every = sampled(runs["plain"], "--device", "cpu", "-n", 3, "--seed", 8, "--classifier", runs["classifier"])
    assert every["labels"].tolist() == [8, 9, 0]


def test_edm_is_guided_at_its_own_noise_levels(sampled, runs, minidiff, tmp_path):
    assert minidiff("train", "digits-edm", "--out", "edm", *EDM).code == 0
    found = sampled("edm", *DRAWN, "--classifier", runs["classifier"], "--scale", SCALE, "--steps", 4)
    model, description = load(tmp_path / "edm")
    led = GuidedDenoiser(model.process.denoiser(model.net), log_p(runs).at_sigma, SCALE, tell_net=False)
    solve = lambda process, _n, start, _z, cond: ode(led, start, process.path, 4, "heun", cond)
    x = generate(model.process, model.net, description.shape, range(3), sampler=solve, cond={"labels": LABELS})
    assert np.array_equal(found["arr_0"], levels(x))
    refused = minidiff("sample", "edm", "--classifier", runs["classifier"], "--at", "x")
    assert refused.code == 2 and "--at x: only --sampler ancestral" in refused.err


def test_the_scale_is_1_unless_given_and_0_is_no_guidance(sampled, runs):
    drawn = partial(sampled, runs["conditional"], *DRAWN)
    guided = partial(drawn, "--classifier", runs["classifier"])
    assert np.array_equal(guided()["arr_0"], guided("--scale", 1)["arr_0"])
    assert np.array_equal(guided("--scale", 0)["arr_0"], drawn()["arr_0"])


def test_guidance_without_a_classifier(sampled, runs):
    drawn = partial(sampled, runs["conditional"], *DRAWN)
    model, description = load(runs["conditional"])
    told = {"cond": {"labels": LABELS}}
    for sampler, flags in ((None, []), (partial(ddim, steps=subsequence(8, 5)), ["--sampler", "ddim", "--steps", 5])):
        net = ClassifierFree(model.net, SCALE)
        x = generate(model.process, net, description.shape, range(3), sampler=sampler, **told)
        assert np.array_equal(drawn("--classifier-free", SCALE, *flags)["arr_0"], levels(x))
        plain = drawn(*flags)["arr_0"]
        assert np.array_equal(drawn("--classifier-free", 1, *flags)["arr_0"], plain)
        assert not np.array_equal(levels(x), plain)
    denoise = ContinuousDenoiser(model.process, ClassifierFree(model.net, SCALE))
    wide = (1 + denoise.path().sigma_max ** 2) ** 0.5
    solve = lambda _p, _n, start, _z, cond: ode(denoise, wide * start, denoise.path(), 4, "heun", cond)
    x = generate(model.process, model.net, description.shape, range(3), sampler=solve, **told)
    found = drawn("--classifier-free", SCALE, "--sampler", "heun", "--steps", 4)
    assert np.array_equal(found["arr_0"], levels(x))


@pytest.mark.parametrize("large", ["large", "large-of-all"])
def test_two_stages_in_one_command_are_those_of_two(large, sampled, runs, tmp_path):
    """The base guided, its images stored on their levels, and the second stage's seeds a thousand million further."""
    guided = ("--classifier", runs["classifier"], "--scale", SCALE)
    flags = ("--upsample", runs[large], "--upsample-steps", 4)
    found = sampled(runs["small"], *DRAWN, "--seed", 2, *guided, *flags)
    small = sampled(runs["small"], *DRAWN, "--seed", 2, *guided)
    assert small["arr_0"].shape == (3, 8, 8, 1) and int(small["levels"]) == 256
    model, description = load(runs[large])
    cond = {"low_res": encode(torch.from_numpy(small["arr_0"]).permute(0, 3, 1, 2), 256)}
    if large == "large":
        cond["labels"] = torch.tensor([3, 7, 3])
    seeds = [10**9 + 2 + i for i in range(3)]
    x = generate(respace(model.process, "4"), model.net, description.shape, seeds, cond=cond)
    assert np.array_equal(found["arr_0"], levels(x, 256)) and found["arr_0"].shape == (3, 16, 16, 1)
    assert (found["labels"].tolist(), found["seeds"].tolist(), int(found["levels"])) == ([3, 7, 3], [2, 3, 4], 256)

    np.savez(tmp_path / "small.npz", **small)  # the same by hand; the classes are those that the file says
    by_hand = ("--device", "cpu", "-n", 3, "--low-res", "small.npz", "--seed", 10**9 + 2, "--steps", 4)
    again = sampled(runs[large], *by_hand)
    assert np.array_equal(again["arr_0"], found["arr_0"])
    if large == "large":
        assert again["labels"].tolist() == [3, 7, 3]
        assert sampled(runs[large], *by_hand, "--classes", "5")["labels"].tolist() == [5, 5, 5]


def test_the_classes_of_shards_come_along(minidiff, sampled, runs):
    flags = ("--device", "cpu", "-n", 5, "--classes", "4,9", "--format", "npz", "--shard", 2, "--out", "shards")
    assert minidiff("sample", runs["small"], *flags).code == 0
    found = sampled(runs["large"], "--device", "cpu", "-n", 3, "--seed", 31, "--low-res", "shards", "--steps", 2)
    assert found["labels"].tolist() == [4, 9, 4]


def test_an_image_is_the_same_in_any_batch_guided_and_enlarged(sampled, runs):
    flags = ("--classifier", runs["classifier"], "--scale", SCALE, "--upsample", runs["large"], "--upsample-steps", 4)
    drawn = partial(sampled, runs["small"], "--device", "cpu", "--classes", "3,7", "--steps", 6, *flags)
    whole = drawn("-n", 5)["arr_0"]
    assert np.array_equal(drawn("-n", 5, "--batch", 2)["arr_0"], whole)
    assert np.array_equal(drawn("-n", 2, "--seed", 3)["arr_0"], whole[3:])


def test_samples_of_other_guidance_do_not_write_over_each_other(minidiff, runs, tmp_path):
    classifier = ["--classifier", runs["classifier"]]
    other = [
        [],
        classifier,
        [*classifier, "--scale", 2],
        [*classifier, "--at", "x"],
        ["--classifier-free", 2],
        ["--classifier-free", 3],
    ]
    stages = [["--upsample", runs["large"]], ["--upsample", runs["large"], "--upsample-steps", 3]]
    for flags in other:
        assert minidiff("sample", runs["conditional"], "--device", "cpu", "-n", 1, "--steps", 2, *flags).code == 0
    for flags in ([], *stages):
        assert minidiff("sample", runs["small"], "--device", "cpu", "-n", 1, "--steps", 2, *flags).code == 0
    for name in ("first.npz", "second.npz"):
        np.savez(tmp_path / name, arr_0=np.zeros((1, 8, 8), np.uint8), levels=np.array(256))
        flags = ("--device", "cpu", "-n", 1, "--steps", 2, "--low-res", name)
        assert minidiff("sample", runs["large"], *flags).code == 0
    assert len(list((tmp_path / "samples").glob("*.npz"))) == len(other) + 1 + len(stages) + 2


@pytest.mark.parametrize(
    "flags, sentence",
    [
        ("conditional --classifier digits", "--classifier digits: a run of digits, which tells no classes apart"),
        ("conditional --classifier nowhere", "there is no run nowhere"),
        ("conditional --classifier digits-classifier", "its process.schedule is linear, not cosine"),
        ("conditional --scale 2", "--scale 2.0: it has a meaning only with --classifier"),
        ("conditional --at x", "--at x: it has a meaning only with --classifier"),
        ("conditional --upsample-steps 3", "--upsample-steps 3: it has a meaning only with --upsample"),
        ("conditional --classifier CLASSIFIER --scale -1", "--scale -1.0: give a number of at least 0"),
        ("conditional --classifier CLASSIFIER --scale nan", "--scale nan: give a number of at least 0"),
        ("conditional --classifier CLASSIFIER --at x --sampler ddim", "--at x: only --sampler ancestral"),
        ("conditional --classifier CLASSIFIER --classifier-free 2", "two ways to guide: give one of them"),
        ("conditional --classifier CLASSIFIER --classes 3,10", "--classes 10: this network knows 0 … 9"),
        ("large --classifier CLASSIFIER", "it sees images (1, 8, 8), and (1, 16, 16) are drawn"),
        ("digits --classifier-free 2", "--classifier-free 2.0: the network was never trained without a class"),
        ("heartbeat-sd --classifier CLASSIFIER", "it guides a GaussianDiffusion or EDM, no BinomialDiffusion"),
        ("conditional --upsample conditional", "this network takes no smaller image"),
        ("conditional --upsample classifier", "is a classifier of noisy images, which draws none"),
        ("large --low-res FILE --upsample large", "it enlarges images (1, 8, 8) in levels, and (1, 16, 16) are drawn"),
        ("digits --upsample large", "it is told one of 10 classes, and the first stage has 0"),
        (
            "conditional --upsample large --upsample-steps 9",
            "--upsample-steps 9: steps='9': a section of 8 steps cannot keep 9",
        ),
    ],
)
def test_what_does_not_belong_together_is_refused_before_anything_is_written(flags, sentence, minidiff, runs, tmp_path):
    np.savez(tmp_path / "x.npz", arr_0=np.zeros((64, 8, 8), np.uint8), levels=np.array(256))
    named = {"CLASSIFIER": runs["classifier"], "FILE": "x.npz", **runs}
    words = [named.get(word, word) for word in flags.split()]
    refused = minidiff("sample", *words, "--device", "cpu")
    assert refused.code == 2 and sentence in refused.err and refused.err.count("\n") == 1 and refused.out == ""
    assert files(tmp_path).keys() == {"x.npz"}


@pytest.mark.parametrize(
    "changed, key",
    [
        (["--process.schedule", "linear", "--process.T", "30"], "process.schedule is linear, not cosine"),
        (["--process.T", "9"], "process.T is 9, not 8"),
        (["--process.schedule-options", "s", "0.01"], "process.schedule_options is {'s': 0.01}, not {}"),
        (["--process.rescale-times"], "process.rescale_times is True, not False"),
    ],
)
def test_a_classifier_of_another_process_is_refused_by_what_differs(changed, key, minidiff, runs):
    assert minidiff("train", "digits-classifier", "--out", "other", *CLASSIFIER, *changed).code == 0
    assert {path.name for path in Path("other").iterdir()} == {".lock", "checkpoints", "metrics.jsonl", "loss.png"}
    refused = minidiff("sample", runs["conditional"], "--device", "cpu", "--classifier", "other")
    assert refused.code == 2 and f"--classifier other: its {key}" in refused.err


def test_a_classifier_of_another_number_of_classes_is_refused(minidiff, runs):
    refused = minidiff("train", "digits-classifier", *CLASSIFIER, "--network.classes", 9)
    assert refused.code == 2 and "network.classes=9, but the data have a label 9: give 10" in refused.err
    refused = minidiff("sample", runs["conditional"], "--device", "cpu", "--classifier", runs["eleven"])
    assert refused.code == 2 and "it knows 11 classes, and the network 10" in refused.err


def test_a_classifier_needs_labels(minidiff, tmp_path):
    np.savez(tmp_path / "bare.npz", images=np.zeros((10, 8, 8), np.uint8))
    refused = minidiff("train", "digits-classifier", *CLASSIFIER, "--data.source", "bare.npz")
    assert refused.code == 2 and "data.labels: bare.npz holds none" in refused.err and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", ["sample", "likelihood", "evaluate"])
def test_a_classifier_draws_nothing(command, minidiff, runs, tmp_path):
    refused = minidiff(command, runs["classifier"], "--device", "cpu")
    assert refused.code == 2 and f"minidiff sample RUN --classifier {runs['classifier']}" in refused.err
    assert refused.err.count("\n") == 1 and files(tmp_path) == {}


def test_a_classifier_is_reported_without_samples(minidiff, runs, tmp_path):
    ended = minidiff("report", runs["classifier"], runs["conditional"], "--out", "page")
    page = (tmp_path / "page" / "report.md").read_text(encoding="utf-8")
    assert ended.code == 0 and f"{runs['classifier']} is a classifier of noisy images, which draws none" in page
    assert not (tmp_path / "page" / "samples-1.png").exists() and (tmp_path / "page" / "samples-2.png").exists()


def test_several_recipes_are_trained_in_turn_each_into_its_folder(minidiff, tmp_path):
    ended = minidiff("train", "mnist8", "mnist16-upsample", *SMALL)
    assert ended.code == 0
    for name in ("mnist8", "mnist16-upsample"):
        assert newest(tmp_path / "runs" / name).name == "32" and load(tmp_path / "runs" / name)[1].config.recipe == name
    assert ended.out.index("mnist8: ") < ended.out.index("trained on 32") < ended.out.index("mnist16-upsample: ")
    assert (
        minidiff("sample", "runs/mnist8", "--upsample", "runs/mnist16-upsample", "-n", 1, "--device", "cpu").code == 0
    )


@pytest.mark.parametrize(
    "words, sentence",
    [
        (("mnist8", "mnist61"), "there is no recipe 'mnist61'"),
        (("mnist8", "digits", "--out", "x"), "--out x: several recipes go into runs/NAME each"),
        (("mnist8", "mnist8"), "mnist8 is named twice"),
        (("digits", "swissroll-sd", "--network.channels", "4"), "--network.channels"),
        (("digits", "ddpm-cifar10"), "no data file cifar10.npz"),
    ],
)
def test_none_of_several_recipes_begins_where_one_is_refused(words, sentence, minidiff, tmp_path):
    flags = SHORT if "--network.channels" not in words else ["--network.channels", "4"]
    refused = minidiff("train", *words, *(flags if words[1] != "swissroll-sd" else []))
    assert refused.code == 2 and sentence in refused.err and files(tmp_path) == {}
