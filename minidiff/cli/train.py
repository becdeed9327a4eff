"""``minidiff train RECIPE``: from a recipe, or a run that was interrupted, to a trained model with samples."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro
from tqdm import tqdm

from minidiff import training
from minidiff.cli.common import Device, choose_device, classes_of, place
from minidiff.data import Images, Points, load_data
from minidiff.pretrained import load
from minidiff.recipes import recipe
from minidiff.sampling import generate
from minidiff.training import (
    Config,
    DataConfig,
    Description,
    NetworkConfig,
    ProcessConfig,
    State,
    TrainingConfig,
)


@dataclass(frozen=True)
class Options:
    """Train a recipe. Every number of the recipe can be changed by its name."""

    data: DataConfig
    process: tyro.conf.AvoidSubcommands[ProcessConfig]
    network: tyro.conf.AvoidSubcommands[NetworkConfig]
    training: TrainingConfig
    out: Path
    """Folder of the run."""
    resume: bool = False
    """Go on from the newest checkpoint in the folder; begin where there is none."""
    init_from: Path | None = None
    """Take the averaged weights of another run, or of a model that ships, and nothing else of it."""
    device: Device = "auto"
    """cpu, cuda or mps; auto takes a CUDA GPU where there is one."""
    samples: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 64
    """How many are drawn at the end, for samples.png."""


def run(argv: list[str]) -> None:
    """Train; write checkpoints, metrics.jsonl, loss.png and samples.png, and say where they are."""
    if not argv or argv[0].startswith("-"):
        argv = ["--help"] if argv in ([], ["-h"], ["--help"]) else argv
        name = "digits"
        if argv != ["--help"]:
            raise ValueError("name a recipe first: minidiff train digits --out runs/digits.")
        print("minidiff train RECIPE [options]; `minidiff recipes` lists them. The options of digits:")
    else:
        name, *argv = argv
    base = recipe(name)
    default = Options(base.data, base.process, base.network, base.training, Path("runs") / name)
    options = tyro.cli(Options, default=default, args=argv, prog=f"minidiff train {name}")
    latest = training.newest(options.out)
    if options.resume and latest:  # a run goes on with its own settings; what is typed is compared with them
        own = training.read_description(latest).config
        if own.recipe != name:
            raise ValueError(f"{options.out} is a run of {own.recipe}, not of {name}: give another --out.")
        default = Options(own.data, own.process, own.network, own.training, options.out)
        options = tyro.cli(Options, default=default, args=argv, prog=f"minidiff train {name}")
    config = Config(name, options.data, options.process, options.network, options.training)
    state, description, images = prepare(config, options)

    print(f"{name}: {sum(p.numel() for p in state.model.parameters()):,} parameters, into {options.out}")
    train_with_bar(state, images, description, options.out)
    report(state, description, images, options.out, options.samples)


def prepare(config: Config, options: Options) -> tuple[State, Description, Images | Points]:
    """Everything that can be refused, before anything is written."""
    training.check(config)
    if options.samples < 1:
        raise ValueError(f"--samples {options.samples}: at least 1.")
    if options.resume and options.init_from:
        raise ValueError("--resume goes on with a run, --init-from begins another with its weights: give one of them.")
    device = choose_device(options.device)
    latest = training.newest(options.out)
    if latest and not options.resume:
        raise ValueError(f"{options.out} holds a run already: add --resume to go on with it, or give another --out.")
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"{options.out} is a file: give --out a folder.")
    data = config.data
    images = load_data(**asdict(data))
    if data.labels and (most := int(images.labels.max())) >= config.network.classes:
        given = config.network.classes
        raise ValueError(f"network.classes={given}, but the data have a label {most}: give {most + 1}.")
    if Path(config.data.source).is_file():  # so that later commands find it from anywhere
        source = str(Path(config.data.source).resolve())
        config = replace(config, data=replace(config.data, source=source))
    description = Description(config, images.shape, images.levels)
    if latest:
        compare(training.read_description(latest), description, options.out)

    with torch.random.fork_rng():
        torch.manual_seed(config.training.seed)
        model = description.build()
    if options.init_from:
        other, donor = load(options.init_from)
        for key in ("predict", "variance", "column", "rescale_times"):
            ours, theirs = (getattr(process, key, None) for process in (config.process, donor.config.process))
            if ours != theirs:
                raise ValueError(f"--init-from {options.init_from}: its process.{key} is {theirs}, not {ours}.")
        try:
            model.load_state_dict(other.state_dict())
        except RuntimeError as error:
            raise ValueError(f"--init-from {options.init_from}: {str(error).splitlines()[-1].strip()}") from error
    state = training.begin(place(model, device), training.time_sampler(config), config.training)
    if latest:
        training.resume(state, options.out)
    return state, description, images


def compare(old: Description, new: Description, out: Path) -> None:
    """Raises ValueError where the run in the folder was made with other settings.

    Its length may change, how often it reports and saves, and where its data lie.
    """
    free = ("training.images:", "training.tick:", "training.checkpoint:", "data.source:")
    changed = [line for line in training.differences(old.config, new.config) if not line.startswith(free)]
    if (old.shape, old.levels) != (new.shape, new.levels):
        changed.append(f"data: {old.shape} in {old.levels} levels, {new.shape} in {new.levels}")
    if changed:
        raise ValueError(
            f"{out} was trained with other settings ({changed[0]}): resume it with its own, or give another --out."
        )


def train_with_bar(state: State, images: Images | Points, description: Description, out: Path) -> None:
    """The loop, with a progress bar on a terminal and a line a tick elsewhere."""
    config = description.config.training
    if state.images:
        print(f"{'going on after' if state.images < config.images else 'already trained on'} {state.images:,} images")
    out.mkdir(parents=True, exist_ok=True)
    with tqdm(total=config.images, initial=state.images, unit=" images", unit_scale=True, disable=None) as bar:

        def on_tick(state: State) -> None:
            line = state.metrics[-1]
            bar.set_postfix(loss=f"{line['loss']:.4f}")
            if bar.disable:
                speed = f"{line['images_per_second']:.0f}/s"
                print(f"{line['images']:>12,} images   loss {line['loss']:.4f}   {speed}", flush=True)

        try:
            training.train(
                state, images, config, out, description, on_step=lambda _: bar.update(config.batch), on_tick=on_tick
            )
        except KeyboardInterrupt:
            latest = training.newest(out)
            where = f"goes on after {int(latest.name):,}" if latest else "begins again: there is no checkpoint yet"
            print(f"\nstopped after {state.images:,} images; the same command with --resume {where}.")
            raise


def report(state: State, description: Description, images: Images | Points, out: Path, n: int) -> None:
    """Draw the loss curve and samples of the averaged model, and name every file."""
    from minidiff import plots  # here, because matplotlib is slow to import and training should not wait for it

    plots.style()
    seen, loss = ([line[key] for line in state.metrics] for key in ("images", "loss"))
    plots.loss_curve(seen, loss, f"{description.config.recipe}: training loss").savefig(out / "loss.png", dpi=120)
    model, device = state.ema, next(state.ema.parameters()).device
    cond = classes_of(model.net, range(n))
    if description.config.data.low_res > 1:  # the second of two stages: the first is played by the data
        _, cond = images.batch(torch.arange(n) % len(images), torch.Generator().manual_seed(0))
    with tqdm(total=n, desc="samples", disable=None) as bar:
        told = {"device": device, "on_batch": bar.update, "cond": cond}
        samples = generate(model.process, model.net, description.shape, range(n), **told)
    plots.save_samples(samples, out / "samples.png", description.levels)
    print(f"trained on {state.images:,} images" + (f", last loss {loss[-1]:.4f}" if loss else ""))
    for label, path in {
        "checkpoint": training.newest(out),
        "metrics": out / "metrics.jsonl",
        "loss curve": out / "loss.png",
        "samples": out / "samples.png",
    }.items():
        print(f"  {label:<11}{path}")
