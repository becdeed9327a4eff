"""``minidiff report``: a page that shows each run, and never numbers of two extractors in one column."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
from matplotlib.image import imread
from test_refusals import refused  # noqa: F401
from tiny import files

from minidiff import RECIPES, Scores, load, read_metrics
from minidiff.evaluation import INCEPTION_SHA256
from minidiff.recipes import PAPERS

SCORES = Scores(
    values={"fid": 4.5, "kid": 0.012, "kid_std": 0.003, "precision": 0.7, "recall": 0.6},
    **{"images": "run, seeds 0–9", "n": 10, "levels": 17, "seed": 0, "settings": {"pr_k": 3}},
    **{"extractor": "digits", "extractor_sha256": "a" * 64, "resampling": "none", "torch": "2"},
    **{"reference": "digits", "reference_sha256": "d" * 64, "reference_n": 1438, "reference_statistics": "computed"},
    warning="10 images are few; and more",
)


def leave(run: Path, name: str, *scores: Scores) -> None:
    (run / f"evaluation-{name}.json").write_text(json.dumps({"scores": [each.to_dict() for each in scores]}))


def tables(page: str) -> list[list[list[str]]]:
    """The cells of each table of the page, without the line below the head."""
    blocks = re.findall(r"(?:^\|.*\|$\n?)+", page, flags=re.MULTILINE)
    rows = [[line.strip("|\n").split("|") for line in block.splitlines()] for block in blocks]
    return [[[cell.strip() for cell in row] for row in block if set(row[0].strip()) != {"-"}] for block in rows]


def test_a_page_shows_runs_side_by_side(minidiff, run):
    other = Path(shutil.copytree(run, "other"))
    leave(run, "a", SCORES, dataclasses.replace(SCORES, values={"fid": 5.5, "recall": 0.5}))
    leave(other, "a", dataclasses.replace(SCORES, images="other", n=20, warning="20 images are few"))
    before = files(run)
    ended = minidiff("report", run, "other", "--out", "page/of")
    assert ended.code == 0 and "page/of/report.md" in ended.out and files(run) == before
    page = Path("page/of/report.md").read_text()
    assert sorted(path.name for path in Path("page/of").iterdir()) == [
        *("loss.png", "report.md", "samples-1.png", "samples-2.png"),
    ]
    assert all((Path("page/of") / name).is_file() for name in re.findall(r"!\[[^]]*\]\(([^)]*)\)", page))
    assert Path("page/of/samples-1.png").read_bytes() == (run / "samples.png").read_bytes()
    settings, scores = tables(page)
    model, _ = load(run)
    cells = dict((row[0], row[1:]) for row in settings)
    assert cells[""] == [str(run), "other"]
    assert cells["parameters"] == [f"{sum(p.numel() for p in model.parameters()):,}"] * 2
    assert cells["checkpoint"] == ["96 images"] * 2 and "T 30" in cells["process"][0]
    assert scores == [
        ["images", "n", "fid", "kid", "precision", "recall"],
        ["run, seeds 0–9", "10", "4.5", "0.012 ± 0.003", "0.7", "0.6"],
        ["run, seeds 0–9", "10", "5.5", "", "", "0.5"],
        ["other", "20", "4.5", "0.012 ± 0.003", "0.7", "0.6"],
    ]
    notes = re.findall(r"^Note: (.*)\.$", page, flags=re.MULTILINE)
    assert notes == ["10 images are few", "and more", "20 images are few"]


def test_a_page_says_what_data_are_called_and_not_where_they_lie(minidiff, run):
    other = Path(shutil.copytree(run, "other"))
    (config,) = other.glob("checkpoints/96/config.json")
    values = json.loads(config.read_text())
    values["config"]["data"]["source"] = "/home/somebody/photos64"
    config.write_text(json.dumps(values))
    leave(other, "a", dataclasses.replace(SCORES, reference="/home/somebody/photos64"))
    assert minidiff("report", "other", run, "--out", "page").code == 0
    page = Path("page/report.md").read_text()
    assert "/home" not in page and "Data: source photos64, " in page and "Reference photos64, " in page
    assert "Data: source digits, " in page


@pytest.mark.parametrize(
    "change", [{"extractor_sha256": "b" * 64}, {"reference_sha256": "e" * 64}, {"resampling": "bicubic"}]
)
def test_what_does_not_compare_has_a_table_of_its_own(minidiff, run, change):
    leave(run, "a", SCORES)
    leave(run, "b", dataclasses.replace(SCORES, values={"fid": 99.0}, **change))
    assert minidiff("report", run).code == 0
    page = Path("report/report.md").read_text()
    _, first, second = tables(page)
    assert "99" not in str(first) and second[1:] == [["run, seeds 0–9", "10", "99"]]
    assert "do not compare, so each has a table of its own" in page


def rename(run: Path, recipe: str) -> None:
    for path in run.glob("checkpoints/*/config.json"):
        path.write_text(path.read_text().replace('"recipe": "digits"', f'"recipe": "{recipe}"'))


def test_the_papers_row_stands_beside_the_official_inception_alone(minidiff, run):
    rename(run, "ddpm-cifar10")
    leave(run, "a", SCORES)
    assert minidiff("report", run).code == 0
    page = Path("report/report.md").read_text()
    assert "3.17" not in page and "The paper's row of ddpm-cifar10 is left out" in page
    leave(run, "b", dataclasses.replace(SCORES, extractor_sha256=INCEPTION_SHA256, values={"fid": 3.4, "is": 9.4}))
    assert minidiff("report", run).code == 0
    page = Path("report/report.md").read_text()
    _, first, second = tables(page)
    assert "3.17" not in str(first) and "left out" not in page
    assert second == [
        ["images", "n", "fid", "is"],
        ["run, seeds 0–9", "10", "3.4", "9.4"],
        ["DDPM, Table 1: 50,000 samples against the training images", "50,000", "3.17", "9.46"],
    ]


def test_the_papers_numbers_are_of_recipes_that_exist_and_say_the_same():
    assert set(PAPERS) <= set(RECIPES)
    told = {name: re.findall(r"FID ([\d.]+) in the paper", make.__doc__) for name, make in RECIPES.items()}
    told = {name: fids for name, fids in told.items() if fids}
    assert len(told) == 4 and told == {name: [str(PAPERS[name].values["fid"])] for name in told}


def test_a_run_without_pictures_gets_them(minidiff, run):
    (run / "samples.png").unlink()
    (run / "metrics.jsonl").unlink()
    assert read_metrics(run) == []
    assert minidiff("report", run).code == 0
    assert imread("report/samples-1.png").shape[:2] == (8 * 68 + 4, 8 * 68 + 4)
    page = Path("report/report.md").read_text()
    assert not Path("report/loss.png").exists() and "No run here has kept its `metrics.jsonl`" in page
    assert "None yet: `minidiff evaluate RUN`" in page


def test_points_and_sequences_have_a_page_too(minidiff, first_paper):
    assert minidiff("report", *first_paper.values()).code == 0
    assert len(list(Path("report").glob("samples-*.png"))) == 3


def test_what_evaluate_leaves_is_found(minidiff, run, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    assert minidiff("evaluate", run, "-n", 10, "--metrics", "fid,is", "--seeds", 2).code == 0
    assert minidiff("report", run).code == 0
    _, scores = tables(Path("report/report.md").read_text())
    assert [row[0].split(", ")[-1] for row in scores[1:]] == ["seeds 0–9", "seeds 10–19"]


def test_a_report_of_nothing(minidiff, refused, run, tmp_path):  # noqa: F811
    assert minidiff("report").code == 2
    assert "there is no run nowhere" in refused("report", run, "nowhere")
    assert "named twice" in refused("report", run, run)
    (tmp_path / "taken").write_text("mine")
    assert "taken is a file" in refused("report", run, "--out", "taken")


@pytest.mark.parametrize("text", ["", "{}", '{"scores": [{"fid": 3}]}', '{"scores": 3}', "[]"])
def test_scores_that_are_damaged(refused, run, text):  # noqa: F811
    (run / "evaluation-x.json").write_text(text)
    assert "evaluation-x.json is no file of scores" in refused("report", run)
