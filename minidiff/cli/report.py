"""``minidiff report RUN…``: one page of runs side by side."""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

from minidiff.cli.common import check_folder, check_runs, classes_of
from minidiff.diffusion import NoisyClassifier
from minidiff.evaluation import INCEPTION_SHA256, Scores, compare
from minidiff.pretrained import load
from minidiff.recipes import PAPERS
from minidiff.sampling import generate
from minidiff.training import Description, Model, newest, read_metrics

NAMES = ("fid", "sfid", "kid", "is", "precision", "recall")


@dataclass(frozen=True)
class Options:
    """Write one Markdown page about runs, with its pictures: configuration, losses, samples, scores."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs, or names of models that ship."""
    out: Path = Path("report")
    """Folder for report.md and the pictures."""


@dataclass(frozen=True)
class Run:
    """What the page tells of one run."""

    path: Path
    model: Model
    description: Description
    losses: list[dict[str, float]]
    scores: list[Scores]


def run(argv: list[str]) -> None:
    """Read everything first, then write the page."""
    options = tyro.cli(Options, args=argv, prog="minidiff report")
    check_runs(options.runs, "minidiff report runs/digits --out report")
    check_folder(options.out)
    runs = [read(path) for path in options.runs]
    options.out.mkdir(parents=True, exist_ok=True)
    parts = [
        f"# {', '.join(str(each.path) for each in runs)}",
        "## Configuration\n\n" + configuration(runs),
        "## Loss\n\n" + losses(runs, options.out),
        "## Samples\n\n" + "\n\n".join(samples(each, k, options.out) for k, each in enumerate(runs)),
        "## Scores\n\n" + scores(runs),
    ]
    page = options.out / "report.md"
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(f"page     {page}")


def read(path: Path) -> Run:
    """A run and its files of scores. Raises ValueError for what is damaged."""
    model, description = load(path)
    found = []
    for file in sorted(path.glob("evaluation-*.json")):
        try:
            found += [Scores.from_dict(each) for each in json.loads(file.read_text(encoding="utf-8"))["scores"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} is no file of scores: {error}. Remove it, or evaluate again.") from error
    return Run(path, model, description, read_metrics(path), found)


def configuration(runs: list[Run]) -> str:
    """What was trained, one column for each run."""

    def told(values: dict[str, Any]) -> str:
        values |= {"source": short(values["source"])} if "source" in values else {}
        return ", ".join(f"{name} {value}" for name, value in values.items() if value not in ({}, None))

    rows: dict[str, list[Any]] = {"recipe": [each.description.config.recipe for each in runs]}
    rows["parameters"] = [f"{sum(p.numel() for p in each.model.parameters()):,}" for each in runs]
    rows["checkpoint"] = [f"{int(at.name):,} images" if (at := newest(each.path)) else "" for each in runs]
    for part in ("data", "process", "network", "training"):
        of = [getattr(each.description.config, part) for each in runs]
        rows[part] = [f"{type(each).__name__.removesuffix('Config')}: {told(asdict(each))}" for each in of]
    return markdown(["", *(str(each.path) for each in runs)], [[name, *cells] for name, cells in rows.items()])


def losses(runs: list[Run], out: Path) -> str:
    """Write loss.png with the curve of each run that has one."""
    from minidiff import plots  # here, because matplotlib is slow to import

    drawn = [each for each in runs if each.losses]
    if not drawn:
        return "No run here has kept its `metrics.jsonl`."
    plots.style()
    curve = [([line["images"] for line in each.losses], [line["loss"] for line in each.losses]) for each in drawn]
    figure = plots.loss_curve(*curve[0], "training loss")
    for x, y in curve[1:]:
        figure.axes[0].loglog(x, y, marker="o", markersize=2.5)
    figure.axes[0].legend(figure.axes[0].lines, [str(each.path) for each in drawn])
    figure.savefig(out / "loss.png", dpi=120)
    plots.plt.close(figure)
    return "![training loss](loss.png)"


def samples(of: Run, k: int, out: Path) -> str:
    """Copy the run's samples.png; draw 64 where it has none."""
    from minidiff import plots

    if isinstance(of.model.process, NoisyClassifier):
        return f"{of.path} is a classifier of noisy images, which draws none."
    target = out / f"samples-{k + 1}.png"
    if (of.path / "samples.png").is_file():
        shutil.copyfile(of.path / "samples.png", target)
    else:
        with tqdm(total=64, desc=f"samples of {of.path}", disable=None) as bar:
            net, seeds = of.model.net, range(64)
            told = {"on_batch": bar.update, "cond": classes_of(net, seeds)}
            x = generate(of.model.process, net, of.description.shape, seeds, **told)
        plots.save_samples(x, target, of.description.levels)
    return f"{of.path}:\n\n![samples of {of.path}]({target.name})"


def scores(runs: list[Run]) -> str:
    """One table for each extractor and reference: numbers of different ones never share a column."""
    groups: dict[tuple[str, ...], list[tuple[Run, Scores]]] = {}
    for each in runs:
        for found in each.scores:
            key = (found.extractor, found.extractor_sha256, found.resampling, found.reference_sha256)
            groups.setdefault(key, []).append((each, found))
    if not groups:
        return "None yet: `minidiff evaluate RUN` leaves them in the folder of the run."
    parts = [table(group) for group in groups.values()]
    if len(parts) > 1:
        parts.insert(0, "Numbers of different extractors or references do not compare, so each has a table of its own.")
    untold = [
        f"The paper's row of {recipe} is left out: it is of the official Inception weights, and no score here is."
        for recipe in dict.fromkeys(each.description.config.recipe for each in runs)
        if recipe in PAPERS and all(key[1] != INCEPTION_SHA256 for key in groups)
    ]
    return "\n\n".join(parts + untold)


def table(group: list[tuple[Run, Scores]]) -> str:
    """Scores of one extractor against one reference, with the papers' where they are of that extractor."""
    compare(*(found for _, found in group))  # refuses what does not belong together
    first = group[0][1]
    shown = [name for name in NAMES if any(name in found.values for _, found in group)]
    rows = []
    for _, found in group:
        rows.append([found.images, f"{found.n:,}", *(cell(found.values, name) for name in shown)])
    if first.extractor_sha256 == INCEPTION_SHA256:
        for recipe in dict.fromkeys(each.description.config.recipe for each, _ in group):
            if recipe in PAPERS:
                paper = PAPERS[recipe]
                rows.append([paper.source, "50,000", *(cell(paper.values, name) for name in shown)])
    of = f", {first.reference_n:,} images" if first.reference_n else ""
    head = f"Extractor {first.extractor}, SHA-256 `{first.extractor_sha256}`; resampling: {first.resampling}. "
    head += f"Reference {short(first.reference)}{of}."
    notes = dict.fromkeys(note for _, found in group for note in found.warning.split("; ") if note)
    return "\n\n".join([head, markdown(["images", "n", *shown], rows), *(f"Note: {note}." for note in notes)])


def short(source: str) -> str:
    """A data source by its name: where it lies on this machine tells a reader nothing."""
    return Path(source).name if Path(source).is_absolute() else source


def cell(values: dict[str, float], name: str) -> str:
    """A number, with its deviation where it has one."""
    if name not in values:
        return ""
    return f"{values[name]:.4g}" + (f" ± {values[f'{name}_std']:.2g}" if f"{name}_std" in values else "")


def markdown(head: list[str], rows: list[list[Any]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(each).replace("|", "\\|") for each in line) + " |" for line in lines)
