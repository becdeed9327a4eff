"""``minidiff evaluate``: the library's numbers, of the images that the seeds name, and nothing written when refused."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_refusals import refused  # noqa: F401

from minidiff import DigitsExtractor, Images, Scores, compare, decode, digits, evaluate, generate, load
from minidiff.cli import evaluate as command


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def written(out: str) -> dict:
    """The JSON file that the last line names."""
    return json.loads(Path(re.search(r"written to (.*)$", out).group(1)).read_text())


def drawn(run: Path, seeds: range) -> Images:
    model, description = load(run)
    return Images(decode(generate(model.process, model.net, description.shape, seeds), 17), 17)


def test_a_run_is_evaluated_against_its_own_data(minidiff, run):
    ended = minidiff("evaluate", run, "-n", 20, "--batch", 7)
    assert ended.code == 0
    (file,) = run.glob("evaluation-digits-n20-*.json")
    assert str(file) in ended.out
    told = json.loads(file.read_text())
    scores = Scores.from_dict(told["scores"][0])
    expected = evaluate(drawn(run, range(20)), "digits", DigitsExtractor())
    assert scores.values == pytest.approx(expected.values, rel=1e-4)
    assert told["command"] == f"minidiff evaluate {run} -n 20 --batch 7"
    assert scores.images == f"{run}, ema-50 after 96 images, seeds 0–19"
    assert (scores.reference, scores.reference_n, scores.extractor, scores.levels) == ("digits", 1438, "digits", 17)
    for name, value in scores.values.items():
        if not name.endswith("_std"):
            assert re.search(rf"^{name} +{value:.4f}", ended.out, re.MULTILINE)
    assert DigitsExtractor().sha256 in ended.out and "20 images are fewer than 10,000" in ended.out


def test_two_processes_come_to_the_numbers_of_one(minidiff, run, tmp_path):
    arguments = ("evaluate", str(run), "-n", "13", "--batch", "4")
    alone = written(minidiff(*arguments, "--out", "alone").out)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended = subprocess.run(
        [*command, "-m", "minidiff", *arguments, "--out", "both"], capture_output=True, text=True, cwd=tmp_path
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("written to") == 1 and len(list((tmp_path / "both").iterdir())) == 1
    ours, theirs = (told["scores"][0] for told in (alone, written(ended.stdout)))
    assert theirs.pop("values") == pytest.approx(ours.pop("values"), rel=1e-5)
    assert ours == theirs


def test_more_processes_than_images_are_refused(tmp_path):
    np.savez(tmp_path / "one.npz", images=digits("test").pixels[:2, 0].numpy(), levels=17)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minidiff.processes.size", lambda: 3)
        with pytest.raises(ValueError, match="2 images on 3 processes: start no more"):
            evaluate(tmp_path / "one.npz", "digits", DigitsExtractor(), ["fid"])


def test_ranges_of_seeds_are_evaluated_one_by_one(minidiff, run):
    ended = minidiff("evaluate", run, "-n", 12, "--seeds", 3, "--metrics", "fid,is")
    assert ended.code == 0
    told = written(ended.out)
    scores = [Scores.from_dict(each) for each in told["scores"]]
    assert [each.images.split("seeds ")[1] for each in scores] == ["0–11", "12–23", "24–35"]
    assert set(scores[0].values) == {"fid", "is", "is_std"}
    for each, first in zip(scores, (0, 12, 24), strict=True):
        expected = evaluate(drawn(run, range(first, first + 12)), "digits", DigitsExtractor(), ["fid", "is"])
        assert each.values == pytest.approx(expected.values, rel=1e-4)
    fids = compare(*scores)["fid"]
    assert told["minimum"]["fid"] == min(fids) and told["mean"]["fid"] == pytest.approx(np.mean(fids))
    (row,) = (line for line in ended.out.splitlines() if line.startswith("fid"))
    assert row.split()[1:] == [f"{x:.4f}" for x in (*fids, min(fids), np.mean(fids))]
    assert ended.out.split("\n")[0].split() == ["0–11", "12–23", "24–35", "minimum", "mean"]


def test_what_sample_wrote_scores_as_the_run(minidiff, run):
    assert minidiff("sample", run, "-n", 12, "--seed", 0, "--out", "s").code == 0
    (file,) = Path("s").glob("*.npz")
    of_run = written(minidiff("evaluate", run, "-n", 12).out)["scores"][0]
    ended = minidiff("evaluate", file, "--reference", "digits")
    of_file = written(ended.out)["scores"][0]
    assert of_file["values"] == pytest.approx(of_run["values"], rel=1e-4)
    assert (of_file["images"], of_file["levels"], of_file["n"]) == (str(file), 17, 12)
    assert len(list(Path("evaluations").glob("evaluation-digits-n12-*.json"))) == 1


def test_a_folder_of_pictures_is_evaluated_whole_or_in_part(minidiff):
    Path("pictures").mkdir()
    for k in range(14):
        Image.fromarray(np.full((8, 8), 255 * (k % 2), np.uint8)).save(f"pictures/{k:02}.png")
    whole = written(minidiff("evaluate", "pictures", "--reference", "digits", "--out", "here").out)["scores"][0]
    part = written(minidiff("evaluate", "pictures", "--reference", "digits", "-n", 10).out)["scores"][0]
    assert (whole["n"], part["n"], whole["levels"]) == (14, 10, 256)
    assert whole["values"]["fid"] > 5 and whole["values"]["precision"] == 0


def test_a_repetition_replaces_its_own_file_and_another_measurement_does_not(minidiff, run):
    for arguments in (("-n", 12), ("-n", 12), ("-n", 12, "--metrics", "fid"), ("-n", 12, "--weights", "model")):
        assert minidiff("evaluate", run, *arguments).code == 0
    assert len(list(run.glob("evaluation-*.json"))) == 3


def test_a_checkpoint_leaves_its_scores_with_its_run(minidiff, run):
    ended = minidiff("evaluate", run / "checkpoints" / "32", "-n", 5, "--metrics", "fid")
    assert ended.code == 0 and len(list(run.glob("evaluation-*.json"))) == 1


def test_the_model_that_ships_is_evaluated_offline(minidiff):
    ended = minidiff("evaluate", "digits", "-n", 4, "--metrics", "fid,sfid,kid,pr")
    values = written(ended.out)["scores"][0]["values"]
    assert ended.code == 0 and values["precision"] >= 0.5 and values["fid"] < 50


def test_the_inception_of_a_file_can_be_asked_for(minidiff, run, monkeypatch):
    asked = []

    class Inception(DigitsExtractor):
        name, warning = "inception", "not the official Inception weights"

        def __init__(self, path, device):
            asked.append(path)
            super().__init__()

    monkeypatch.setattr(command, "InceptionExtractor", Inception)
    ended = minidiff("evaluate", run, "-n", 10, "--extractor", "inception", "--extractor-weights", "file.pth")
    assert ended.code == 0 and asked == [Path("file.pth")]
    assert "note        not the official Inception weights" in ended.out


# ---- refused ----


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("-n", 1), "-n 1"),
        (("-n", 5), "5 images are too few; these metrics need 10"),
        (("--seeds", 0), "--seeds 0"),
        (("--batch", 0), "--batch 0"),
        (("--metrics", "fid,kdi"), "no metric 'kdi': choose from fid, sfid, kid, is, pr"),
        (("--metrics", ""), "no metric ''"),
        (("--reference", "cats"), "data source 'cats' is not known"),
        (("--reference", "swiss-roll"), "'swiss-roll' is no set of 8-bit images"),
        (("--weights", "ema-51"), "There are: ema-50, model"),
        (("--extractor-weights", "file.pth"), "ships with its own"),
        (("--extractor", "inception", "--extractor-weights", "gone.pth"), "no Inception weights gone.pth"),
    ],
)
def test_a_run_with_what_cannot_be(refused, run, arguments, message):  # noqa: F811
    assert message in refused("evaluate", run, *arguments)


def test_what_is_not_there_or_empty(refused, tmp_path):  # noqa: F811
    assert "there is no run nowhere" in refused("evaluate", "nowhere")
    (tmp_path / "empty").mkdir()
    said = refused("evaluate", "empty", "--reference", "digits")
    assert "no PNG or JPEG files in empty" in said and "Nor is there a checkpoint" in said
    assert "gone.npz" in refused("evaluate", "gone.npz", "--reference", "digits")


def test_images_with_nothing_to_compare_with_or_with_the_wrong_options(refused, tmp_path):  # noqa: F811
    np.savez(tmp_path / "s.npz", arr_0=np.full((12, 8, 8), 99, np.uint8))
    assert "--reference is missing" in refused("evaluate", "s.npz")
    assert "s.npz is no run" in refused("evaluate", "s.npz", "--reference", "digits", "--seeds", 3)
    assert "holds 12 images, not 13" in refused("evaluate", "s.npz", "--reference", "digits", "-n", 13)
    np.savez(tmp_path / "edm.npz", mu=np.zeros(64), sigma=np.eye(64))
    said = refused("evaluate", "s.npz", "--reference", "edm.npz")
    assert "give fid alone: leave out sfid, kid, pr, or give images" in said
    np.savez(tmp_path / "large.npz", arr_0=np.full((12, 9, 9), 99, np.uint8))
    said = refused("evaluate", "large.npz", "--reference", "digits", "--extractor", "digits")
    assert "large.npz has images of 9×9, digits of 8×8" in said


def test_a_file_in_the_place_of_the_folder_of_scores(refused, run, tmp_path):  # noqa: F811
    (tmp_path / "taken").write_text("mine")
    assert "taken is a file" in refused("evaluate", run, "--out", "taken")


def test_runs_that_do_not_draw_images_in_levels(refused, first_paper):  # noqa: F811
    for name in ("swissroll-sd", "dead-leaves-sd"):
        assert "no images in levels" in refused("evaluate", first_paper[name], "-n", 10)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device that must be missing")
def test_a_device_that_is_missing(refused, run):  # noqa: F811
    assert "--device cuda: this machine" in refused("evaluate", run, "--device", "cuda")
