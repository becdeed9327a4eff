"""``minidiff train RECIPE…``: from recipes, or runs that were interrupted, to trained models with samples.

Under torchrun every process runs this, and the first one speaks.
"""

import importlib.util
from dataclasses import asdict, dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Annotated

import torch
import tyro

from minidiff import training
from minidiff.cli.common import Device, check_folder, choose_device, place
from minidiff.cli.watch import grids_every, is_first, samples, say, train_with_bar
from minidiff.data import Images, Points, Shards, load_data
from minidiff.diffusion import NoisyClassifier
from minidiff.pretrained import load
from minidiff.processes import process_group
from minidiff.recipes import recipe
from minidiff.training import (
    ClassifierConfig,
    Config,
    DataConfig,
    Description,
    Execution,
    NetworkConfig,
    ProcessConfig,
    State,
    TrainingConfig,
)


@dataclass(frozen=True)
class Options:
    """Train a recipe. Every number of the recipe can be changed by its name.

    On several GPUs: torchrun --nproc-per-node 8 --max-restarts 3 -m minidiff train RECIPE --resume.
    """

    data: DataConfig
    process: tyro.conf.AvoidSubcommands[ProcessConfig]
    network: tyro.conf.AvoidSubcommands[NetworkConfig]
    training: TrainingConfig
    out: Path
    """Folder of the run."""
    resume: bool = False
    """Go on from the newest checkpoint in the folder; begin where there is none."""
    init_from: Path | None = None
    """Begin with the averaged weights of another run, or of a model that ships, and nothing else of it."""
    device: Device = "auto"
    """cpu, cuda or mps; auto takes a CUDA GPU where there is one."""
    samples: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 64
    """How many are drawn at the end, for samples.png, and each time before."""
    samples_every: int = 0
    """Also draw them, in 25 steps, at the tick after each multiple of so many images: samples/<images>-raw.png and
    -ema.png, of the raw and the averaged weights; 0: never."""
    tensorboard: bool = False
    """Also write what metrics.jsonl holds, and these samples, into the folder tensorboard."""
    execution: tyro.conf.OmitArgPrefixes[Execution] = field(default_factory=Execution)


def run(argv: list[str]) -> None:
    """Train one recipe, or several in turn; write checkpoints, metrics.jsonl, loss.png and samples.png, and say where
    they are."""
    names = list(takewhile(lambda each: not each.startswith("-"), argv))
    argv = argv[len(names) :]
    if not names:
        if argv not in ([], ["-h"], ["--help"]):
            raise ValueError("name a recipe first: minidiff train digits --out runs/digits.")
        print("minidiff train RECIPE… [options]; `minidiff recipes` lists them. The options of digits:")
        names, argv = ["digits"], ["--help"]
    chosen = [settings(name, argv) for name in names]
    if len(names) > 1 and (out := chosen[0][0].out) != Path("runs") / names[0]:
        raise ValueError(f"--out {out}: several recipes go into runs/NAME each; name one recipe to choose its folder.")
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{twice[0]} is named twice: name each recipe once.")
    device = choose_device(chosen[0][0].device)
    with process_group(device):
        jobs = [(options, *prepare(config, options, device)) for options, config in chosen]  # refusals come first
        for options, state, description, images in jobs:
            grids = None
            if options.samples_every:
                told = (state, description, images, options.out, options.samples)
                grids = grids_every(options.samples_every, *told)
            train_with_bar(state, images, description, options.out, grids, options.tensorboard)
            if state.images < description.config.training.images:
                say(f"stopped by SIGTERM after {state.images:,} images; the same command with --resume goes on.")
                return
            if is_first():
                report(state, description, images, options.out, options.samples)


def settings(name: str, argv: list[str]) -> tuple[Options, Config]:
    """What was typed, on top of the recipe; or on top of the run's own settings, where one goes on."""
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
    return options, Config(name, options.data, options.process, options.network, options.training)


def prepare(config: Config, options: Options, device: torch.device) -> tuple[State, Description, Images | Points]:
    """Everything that can be refused, before anything is written."""
    training.check(config)
    if options.samples < 1:
        raise ValueError(f"--samples {options.samples}: at least 1.")
    if options.samples_every < 0:
        raise ValueError(f"--samples-every {options.samples_every}: at least 1, or 0 for none.")
    if options.samples_every and isinstance(config.network, ClassifierConfig):
        raise ValueError(f"--samples-every {options.samples_every}: a classifier of noisy images draws none.")
    if options.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ValueError("--tensorboard: the package is not installed. Run pip install tensorboard, or leave it out.")
    training.portions(config.training.batch, options.execution.micro)
    latest = training.newest(options.out)
    if latest and not options.resume:
        raise ValueError(f"{options.out} holds a run already: add --resume to go on with it, or give another --out.")
    check_folder(options.out)
    if training.in_use(options.out):
        raise ValueError(f"{options.out} is in use: another process trains there. Wait for it, or give another --out.")
    data = config.data
    images = load_data(**asdict(data))
    if data.labels and (most := int(images.labels.max())) >= config.network.classes:
        given = config.network.classes
        raise ValueError(f"network.classes={given}, but the data have a label {most}: give {most + 1}.")
    prepared = isinstance(images, Images) and isinstance(images.pixels, Shards)
    if prepared or Path(config.data.source).is_file():  # so that later commands find it from anywhere
        source = str(Path(config.data.source).resolve())
        config = replace(config, data=replace(config.data, source=source))
    description = Description(config, images.shape, images.levels)
    if latest:
        compare(training.read_description(latest), description, options.out)

    with torch.random.fork_rng():
        torch.manual_seed(config.training.seed)
        model = description.build()
    if options.init_from and not latest:
        other, donor = load(options.init_from)
        for key in ("predict", "variance", "column", "rescale_times"):
            ours, theirs = (getattr(process, key, None) for process in (config.process, donor.config.process))
            if ours != theirs:
                raise ValueError(f"--init-from {options.init_from}: its process.{key} is {theirs}, not {ours}.")
        try:
            model.load_state_dict(other.state_dict())
        except RuntimeError as error:
            raise ValueError(f"--init-from {options.init_from}: {str(error).splitlines()[-1].strip()}") from error
    state = training.begin(place(model, device), training.time_sampler(config), config.training, options.execution)
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


def report(state: State, description: Description, images: Images | Points, out: Path, n: int) -> None:
    """Draw the loss curve and samples of the averaged model, where it draws any, and name every file."""
    from minidiff import plots  # here, because matplotlib is slow to import and training should not wait for it

    plots.style()
    seen, loss = ([line[key] for line in state.metrics] for key in ("images", "loss"))
    figure = plots.loss_curve(seen, loss, f"{description.config.recipe}: training loss")
    figure.savefig(out / "loss.png", dpi=120)
    plots.plt.close(figure)
    files = {"checkpoint": training.newest(out), "metrics": out / "metrics.jsonl", "loss curve": out / "loss.png"}
    if not isinstance(state.model.process, NoisyClassifier):
        files["samples"] = out / "samples.png"
        plots.save_samples(samples(state.ema, description, images, n), files["samples"], description.levels)
    print(f"trained on {state.images:,} images" + (f", last loss {loss[-1]:.4f}" if loss else ""))
    for label, path in files.items():
        print(f"  {label:<11}{path}")
