"""``minidiff sample RUN``: images, points or sequences from a trained model."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from torch import Tensor, nn
from tqdm import tqdm

from minidiff.cli.common import (
    Device,
    check_drawn,
    check_folder,
    choose_device,
    classes_of,
    load_diffusion,
    numbers,
    place,
    write_samples,
)
from minidiff.cli.guidance import At, Guide, classifier_free, open_guide
from minidiff.cli.samplers import Sampler, choose_sampler, usual_sampler
from minidiff.cli.shards import check_shards, fill, place_among
from minidiff.cli.solvers import SolverOptions
from minidiff.cli.stages import Drawing, Stage, open_second
from minidiff.data import encode
from minidiff.diffusion.timesteps import Spacing
from minidiff.evaluation import Kind, SampleFolder, open_images
from minidiff.evaluation.image_sets import labels_of
from minidiff.training import Description, Model, newest


@dataclass(frozen=True)
class Options:
    """Draw samples from a run, or from a model that ships, such as digits."""

    run: tyro.conf.Positional[Path]
    """Folder of a run or of one checkpoint, or the name of a model that ships."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 64
    """How many."""
    seed: int = 0
    """Image i has the seed SEED + i and is the same in any batch."""
    sampler: Sampler | None = None
    """Down the chain with its own noise (ancestral) or with less (ddim); or the probability-flow ODE (euler, heun, rk2,
    dpmpp), or the same with noise put back in every step (churn). Unless given it is ancestral, or heun for EDM, which
    has no chain."""
    steps: str | None = None
    """How many: 250, or for the two samplers of the chain also how many in each of its equal parts, 90,60,60,20,20, or
    every k-th, ddim25. All of the chain's unless given, or EDM's own; where a chain is solved as an ODE it must be."""
    eta: float | None = None
    """Of ddim: 0 for no noise, the default, to 1 for as much as the chain's own."""
    spacing: Spacing | None = None
    """Which steps ddim keeps where their number is given: uniform by default."""
    solver: tyro.conf.OmitArgPrefixes[SolverOptions] = field(default_factory=SolverOptions)
    classes: str | None = None
    """Of a class-conditional network or a classifier, such as 3,7: taken in turn by seed. Unless given, those of the
    images of --low-res where their file says them, or all."""
    classifier: Path | None = None
    """A classifier of noisy images that guides the samples to their classes: folder of its run, or the name of one that
    ships, such as digits-classifier. The network itself may be told the classes, or know of none."""
    scale: float | None = None
    """How strongly the classifier guides: 1 unless given."""
    at: At | None = None
    """Where ancestral asks the classifier: at the mean of each step, as ADM derives and the default, or at x, the point
    it starts from, as ADM's code does."""
    classifier_free: float | None = None
    """Guidance without a classifier, of a network trained with data.drop_labels: 0 is its answer without a class, 1
    that with it, and 3 goes three times as far."""
    low_res: Path | None = None
    """For the second of two stages: the first one's samples, a file or a folder; make them with another --seed, or both
    stages start from the same noise."""
    upsample: Path | None = None
    """Both stages in one: the second, by its run or its name, such as mnist16-upsample. It is told the same classes and
    guided by nothing, and its image i has the seed SEED + i + 1,000,000,000."""
    upsample_steps: str | None = None
    """The second stage's --steps."""
    format: Kind | None = None
    """Write no picture and one array, but shards: each .npz array, or folder of PNG files, of --shard images. What is
    there stays and what is missing is drawn, so the same command goes on with what was killed; under torchrun
    (torchrun --nproc-per-node 8 -m minidiff sample RUN -n 50000 --out DIR) processes share the shards, in npz."""
    shard: int | None = None
    """How many images in each; 500 unless given."""
    out: Path | None = None
    """Folder for the two files, samples by default; or for all shards, samples/NAME by default."""
    weights: str | None = None
    """model for the raw weights, ema-… for an average; the longest average by default."""
    batch: int = 256
    """How many at a time."""
    device: Device = "auto"
    """cpu, cuda or mps; auto takes a CUDA GPU where there is one."""


def run(argv: list[str]) -> None:
    """Write a picture of the first hundred, and all of them as an .npz array; or shards."""
    options = tyro.cli(Options, args=argv, prog="minidiff sample")
    check(options)
    device = choose_device(options.device)
    model, description = load_diffusion(options.run, options.weights)
    kind = options.sampler or usual_sampler(model)
    if options.at and kind != "ancestral":
        raise ValueError(f"--at {options.at}: only --sampler ancestral has that choice.")
    scale, at = 1.0 if options.scale is None else options.scale, options.at or "mean"
    guide = open_guide(options.classifier, model, description, scale, at, device) if options.classifier else None
    cond = conditions(model.net, guide, description, options)
    first, second = first_stage(model, description, kind, guide, options, device), None
    if options.upsample:
        classes = getattr(guide or model.net, "classes", 0)
        second = open_second(options.upsample, options.upsample_steps, description, classes, device)
    drawing = Drawing(first, second, cond, options.seed, options.batch, device)
    out = options.out or Path("samples")
    stem = out / f"{name(options, kind, usual_sampler(model))}-seed{options.seed}-n{options.n}"
    if options.format or place_among()[1] > 1:
        samples = shards_of(options, drawing.description)
        fill(drawing, samples, options.out or stem)
        return
    out.mkdir(parents=True, exist_ok=True)  # before the work, so that a folder that can't be made costs none
    with tqdm(total=options.n * (2 if second else 1), unit=" samples", disable=None) as bar:
        x = drawing(range(options.n), bar.update)
    arrays = {"seeds": options.seed + np.arange(options.n)}
    arrays |= {"labels": cond["labels"].numpy()} if "labels" in cond else {}
    print(write_samples(x, stem, drawing.description, arrays))


def check(options: Options) -> None:
    """Raises ValueError for numbers that can't be, and for flags that have no meaning without another."""
    check_drawn(options.n, options.seed, options.batch)
    check_folder(options.out)
    sharded = options.format or place_among()[1] > 1
    if options.shard is not None and (options.shard < 1 or not sharded):
        raise ValueError(f"--shard {options.shard}: at least 1, and it has a meaning only with --format.")
    for flag, value in (("scale", options.scale), ("classifier-free", options.classifier_free)):
        if value is not None and not 0 <= value < float("inf"):
            raise ValueError(f"--{flag} {value}: give a number of at least 0.")
    for flag, value, of, given in (
        ("scale", options.scale, "classifier", options.classifier),
        ("at", options.at, "classifier", options.classifier),
        ("upsample-steps", options.upsample_steps, "upsample", options.upsample),
    ):
        if value is not None and given is None:
            raise ValueError(f"--{flag} {value}: it has a meaning only with --{of}.")
    if options.classifier and options.classifier_free is not None:
        raise ValueError("--classifier and --classifier-free are two ways to guide: give one of them.")


def first_stage(
    model: Model, description: Description, kind: Sampler, guide: Guide | None, options: Options, device: torch.device
) -> Stage:
    """The model and its sampler, guided by what was asked for."""
    if options.classifier_free is not None:
        model = classifier_free(model, description, options.classifier_free)
    flags = (kind, options.steps, options.eta, options.spacing)
    process, sampler = choose_sampler(
        place(model, device), *flags, guide.denoiser if guide else lambda denoise: denoise, options.solver
    )
    process = place(process, device)
    if guide and kind in ("ancestral", "ddim"):
        process = guide.chain(process)
    return Stage(description, model.net, process, sampler)


def name(options: Options, kind: Sampler, usual: Sampler) -> str:
    """Of the two files, told by all that decides what is in them, so that no samples write over others."""

    def of(path: Path) -> str:
        return "-".join(path.parts[-2:]).replace("/", "")

    parts = [of(options.run), *([options.weights] if options.weights else [])]
    given = {"": kind, "steps": options.steps, "eta": options.eta, "spacing-": options.spacing}
    given |= options.solver.given()
    if kind != usual or options.steps or options.solver.given():
        parts += [f"{key}{value}" for key, value in given.items() if value is not None]
    if options.classifier:
        parts += [of(options.classifier), f"scale{1.0 if options.scale is None else options.scale}"]
        parts += [f"at-{options.at}"] if options.at else []
    if options.classifier_free is not None:
        parts += [f"free{options.classifier_free}"]
    if options.low_res:
        parts += ["of", options.low_res.name.removesuffix(".npz")]
    if options.upsample:
        parts += [of(options.upsample), *([f"steps{options.upsample_steps}"] if options.upsample_steps else [])]
    return "-".join(parts + ([f"classes{options.classes}"] if options.classes else []))


def shards_of(options: Options, description: Description) -> SampleFolder:
    """What the folder of shards is to hold. Raises ValueError for what it can't."""
    free = ("n", "seed", "format", "shard", "out", "batch", "device", "solver")
    made = {key: str(value) for key, value in vars(options).items() if key not in free and value is not None}
    made |= {key: str(value) for key, value in options.solver.given().items()}
    for key in ("run", "classifier", "upsample"):  # whose weights change while they are trained
        if (path := getattr(options, key)) and (latest := newest(path)):
            made[f"checkpoint of {key}"] = latest.name
    what = (options.format or "npz", options.n, options.seed, options.shard or 500)
    samples = SampleFolder(*what, description.shape, description.levels, made)
    check_shards(samples)
    return samples


def conditions(net: nn.Module, guide: Guide | None, description: Description, options: Options) -> dict[str, Tensor]:
    """What the network and its guide are told of each image.

    Raises ValueError for flags that they have no use for, or that they lack.
    """
    cond = classes_of(guide or net, range(options.seed, options.seed + options.n), numbers(options.classes))
    if bool(options.low_res) != getattr(net, "low_res", False):
        wanted = "no smaller image" if options.low_res else "a smaller image of each: give their file or folder"
        raise ValueError(f"--low-res {options.low_res}: this network takes {wanted}.")
    if options.low_res:
        small, factor = open_images(options.low_res).first(options.n), description.config.data.low_res
        channels, height, width = description.shape
        if small.shape != (channels, height // factor, width // factor):
            raise ValueError(f"--low-res {options.low_res}: images {small.shape}, {factor} times smaller are wanted.")
        cond["low_res"] = encode(small.read(0, options.n), small.levels)
        drawn = labels_of(options.low_res)
        if "labels" in cond and drawn is not None and not options.classes:
            cond |= classes_of(net, range(options.n), drawn[: options.n])
    return cond
