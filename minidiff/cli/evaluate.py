"""``minidiff evaluate RUN``: FID and its kin of a run's samples, of a folder or of an ``.npz`` file."""

import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from tqdm import tqdm

from minidiff.cli.common import Device, check_folder, choose_device, classes_of, load_diffusion, place
from minidiff.data import decode
from minidiff.evaluation import (
    METRICS,
    DigitsExtractor,
    Extractor,
    ImageSet,
    InceptionExtractor,
    Scores,
    check,
    check_metrics,
    compare,
    evaluate,
    open_images,
    open_reference,
)
from minidiff.evaluation.sample_folder import CARD
from minidiff.files import write_text
from minidiff.pretrained import names
from minidiff.processes import process_group, rank, size
from minidiff.sampling import generate
from minidiff.training import Description, Model, newest


@dataclass(frozen=True)
class Options:
    """How near samples come to data, as a network sees both. Under torchrun (``torchrun --nproc-per-node 8 -m minidiff
    evaluate RUN``) every process draws its share of the images."""

    run: tyro.conf.Positional[Path]
    """Folder of a run or of one checkpoint, or the name of a model that ships; or a folder of PNG or JPEG files or of
    samples in shards, or an .npz file with images or arr_0."""
    metrics: str = ",".join(METRICS)
    """Which, with commas between them; pr is precision and recall."""
    n: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None
    """How many samples: 50,000 of a run by default, all of a folder or file."""
    reference: str | None = None
    """What to compare with: a data source such as digits, a folder or .npz file of images, or statistics of ADM or EDM
    (.npz with mu and sigma); the run's own training data by default."""
    extractor: Literal["digits", "inception"] | None = None
    """The network that looks: by default digits for grey images of 8×8, else inception."""
    extractor_weights: Path | None = None
    """File of the Inception weights; by default the official one, which torch-fidelity fetches once."""
    seeds: int = 1
    """Ranges of seeds: 0 … n-1, n … 2n-1 and so on, each evaluated by itself. EDM takes the minimum of 3."""
    out: Path | None = None
    """Folder for the JSON file: by default the run's own, or evaluations."""
    weights: str | None = None
    """model for the run's raw weights, ema-… for an average; the longest average by default."""
    batch: int = 64
    """How many images at a time."""
    device: Device = "auto"
    """cpu, cuda or mps; auto takes a CUDA GPU where there is one."""


def run(argv: list[str]) -> None:
    """Print a table, and write the scores and all that they depend on as JSON."""
    options = tyro.cli(Options, args=argv, prog="minidiff evaluate")
    if (options.n is not None and options.n < 2) or options.seeds < 1 or options.batch < 1:
        raise ValueError(f"-n {options.n} --seeds {options.seeds} --batch {options.batch}: n ≥ 2, seeds and batch ≥ 1.")
    metrics = check_metrics(options.metrics.split(","))
    check_folder(options.out)
    device = choose_device(options.device)
    sets, source = image_sets(options, device)
    if options.reference is None and source is None:
        raise ValueError(f"--reference is missing: say what {options.run} should be compared with, such as digits.")
    reference = open_reference(options.reference or source)
    extractor = extractor_for(options, sets[0].shape, device)
    check(sets[0], reference, extractor, metrics)

    scores, known = [], reference.images.n if reference.images else 0
    with process_group(device):
        first_process = rank() == 0
        quiet = None if first_process else True  # None: a bar only on a terminal
        with (
            tqdm(total=known, unit=" images", desc="reference", leave=False, disable=quiet) as first,
            tqdm(total=sum(images.n for images in sets) // size(), unit=" images", disable=quiet) as bar,
        ):
            for images in sets:
                told = {"batch": options.batch, "on_batch": bar.update, "on_reference": first.update}
                scores.append(evaluate(images, reference, extractor, metrics, **told))
    if first_process:
        path = write(scores, options, shlex.join(["minidiff", "evaluate", *argv]))
        print(f"{table(scores)}\nwritten to {path}")


def image_sets(options: Options, device: torch.device) -> tuple[list[ImageSet], str | None]:
    """What is evaluated: for a run one set for each range of seeds, and the source of its training data."""
    path = options.run
    is_run = (path / "config.json").is_file() or newest(path) is not None
    if path.suffix == ".npz" or (path.is_dir() and not is_run):
        if options.seeds > 1 or options.weights:
            raise ValueError(f"{path} is no run: --seeds and --weights are for runs.")
        try:
            images = open_images(path)
        except ValueError as error:
            other = str(path) in names() or (path / CARD).is_file()
            hint = f" Nor is there a checkpoint in {path}." if path.is_dir() and not other else ""
            raise ValueError(f"{error}{hint}") from error
        return [images if options.n is None else images.first(options.n)], None
    model, description = load_diffusion(path, options.weights)
    if len(description.shape) != 3 or description.levels is None:
        raise ValueError(f"{path} draws {description.config.data.source}, which are no images in levels: see sample.")
    model = place(model, device)
    n = options.n or 50_000
    ranges = [range(k * n, (k + 1) * n) for k in range(options.seeds)]
    label = f"{path}, {options.weights or f'ema-{max(description.config.training.ema)}'}"
    if latest := newest(path):
        label += f" after {int(latest.name):,} images"
    return [drawn(model, description, seeds, device, label) for seeds in ranges], description.config.data.source


def drawn(model: Model, description: Description, seeds: Sequence[int], device: torch.device, label: str) -> ImageSet:
    """The images of these seeds, drawn when they are read and brought to the nearest of their levels."""

    def read(first: int, last: int) -> torch.Tensor:
        part = seeds[first:last]
        told = classes_of(model.net, part)
        x = generate(model.process, model.net, description.shape, part, len(part), device, cond=told)
        return decode(x, description.levels)

    source = f"{label}, seeds {seeds[0]}–{seeds[-1]}"
    return ImageSet(source, len(seeds), description.shape, description.levels, read)


def extractor_for(options: Options, shape: tuple[int, ...], device: torch.device) -> Extractor:
    """The extractor that was asked for, or the one for images of this shape."""
    name = options.extractor or ("digits" if shape == (1, 8, 8) else "inception")
    if name == "inception":
        return InceptionExtractor(options.extractor_weights, device)
    if options.extractor_weights is not None:
        raise ValueError("--extractor-weights is for --extractor inception: the digits extractor ships with its own.")
    return DigitsExtractor(device=device)


def write(scores: list[Scores], options: Options, command: str) -> Path:
    """Write the JSON file in one move. Its name is of what was measured, so that only a repetition replaces it."""
    folder, own = options.out, options.run.parent.parent if options.run.parent.name == "checkpoints" else options.run
    if folder is None:
        folder = own if (own / "checkpoints").is_dir() else Path("evaluations")
    made_of = [
        {key: value for key, value in each.to_dict().items() if key not in ("values", "torch")} for each in scores
    ]
    made_of.append(sorted(scores[0].values))
    tag = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:8]
    path = folder / f"evaluation-{scores[0].extractor}-n{scores[0].n}-{tag}.json"
    content = {"command": command, "scores": [each.to_dict() for each in scores], **summary(scores)}
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return path


def summary(scores: list[Scores]) -> dict[str, dict[str, float]]:
    """Minimum and mean of each number over the ranges of seeds."""
    columns = {name: values for name, values in compare(*scores).items() if not name.endswith("_std")}
    return {
        "minimum": {name: min(values) for name, values in columns.items()},
        "mean": {name: sum(values) / len(values) for name, values in columns.items()},
    }


def table(scores: list[Scores]) -> str:
    """The numbers, one column for each range of seeds, then minimum and mean; below them what they depend on."""
    first, several = scores[0], len(scores) > 1
    heads = [each.images.rsplit("seeds ", 1)[-1] for each in scores] + ["minimum", "mean"] if several else [""]
    columns = [each.values for each in scores] + ([*summary(scores).values()] if several else [])
    lines = ["".join([f"{'':<12}", *(f"{head:>16}" for head in heads)])] if several else []
    for name in (name for name in first.values if not name.endswith("_std")):
        cells = [f"{column[name]:.4f}" for column in columns]
        if f"{name}_std" in first.values and not several:
            cells[0] += f" ± {first.values[f'{name}_std']:.4f}"
        lines.append("".join([f"{name:<12}", *(f"{cell:>16}" for cell in cells)]).rstrip())
    of = f", {first.reference_n:,} images" if first.reference_n else ""
    settings = ", ".join(f"{key} {value}" for key, value in first.settings.items())
    lines += [
        "",
        f"images      {first.images}" + (f" and on, {first.n:,} in each column" if several else f", n = {first.n:,}"),
        f"reference   {first.reference}{of}, {first.reference_statistics}",
        f"extractor   {first.extractor}, SHA-256 {first.extractor_sha256}",
        f"resampling  {first.resampling}" + (f"\nsettings    {settings}" if settings else ""),
    ]
    return "\n".join(lines + [f"note        {each}" for each in filter(None, first.warning.split("; "))])
