"""What one sees of a training run while it goes on: a bar or lines, TensorBoard, grids of samples."""

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from minidiff import training
from minidiff.cli.common import classes_of
from minidiff.cli.info import scaled
from minidiff.cli.samplers import choose_sampler
from minidiff.data import Images, Points
from minidiff.diffusion import EDM, GaussianDiffusion
from minidiff.processes import rank
from minidiff.sampling import generate
from minidiff.training import Description, Model, State

FEW = 25  # steps of a grid's samples


def train_with_bar(
    state: State,
    images: Images | Points,
    description: Description,
    out: Path,
    grids: Callable[[State], dict[str, Path]] | None = None,
    tensorboard: bool = False,
) -> None:
    """The loop, with a progress bar on a terminal and a line a tick elsewhere; SIGTERM ends it after a step.

    ``grids(state)`` is called at each tick and gives the pictures that it drew. ``tensorboard`` writes what
    metrics.jsonl holds, and these pictures, for it too.
    """
    config = description.config.training
    name, parameters = description.config.recipe, sum(p.numel() for p in state.model.parameters())
    say(f"{name}: {parameters:,} parameters, into {out}")
    dtype, why = state.execution.dtype(next(state.model.parameters()).device)
    say(f"in {str(dtype).removeprefix('torch.')}: {why}")
    if state.images:
        say(f"{'going on after' if state.images < config.images else 'already trained on'} {state.images:,} images")
    quiet = None if is_first() else True  # None: a bar on a terminal alone
    with (
        tqdm(total=config.images, initial=state.images, unit=" images", unit_scale=True, disable=quiet) as bar,
        events(out, state.images) if tensorboard and is_first() else nullcontext() as writer,
        terminated() as stop,
    ):

        def on_tick(state: State) -> None:
            line = state.metrics[-1]
            rate, memory = scaled(line["flops_per_second"], "FLOP/s"), scaled(line["peak_memory"], "B", 1024)
            bar.set_postfix(loss=f"{line['loss']:.4f}", rate=rate, memory=memory)
            if bar.disable:
                speed = f"{line['images_per_second']:.0f}/s   {rate}   {memory}"
                say(f"{line['images']:>12,} images   loss {line['loss']:.4f}   {speed}")
            pictures = grids(state) if grids and is_first() else {}
            if writer is not None:
                record(writer, line, pictures)

        try:
            step = lambda _: bar.update(config.batch)
            training.train(state, images, config, out, description, on_step=step, on_tick=on_tick, stop=stop)
        except KeyboardInterrupt:
            latest = training.newest(out)
            where = f"goes on after {int(latest.name):,}" if latest else "begins again: there is no checkpoint yet"
            say(f"\nstopped after {state.images:,} images; the same command with --resume {where}.")
            raise


@contextmanager
def terminated() -> Iterator[Callable[[], bool]]:
    """Inside, SIGTERM does not end the process, which may ask whether it has come."""
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append(True))
    try:
        yield lambda: bool(seen)
    finally:
        signal.signal(signal.SIGTERM, before)


def is_first() -> bool:
    """Whether this is the one process, or torchrun's first."""
    return rank() == 0


def say(line: str) -> None:
    """Print once, however many processes there are."""
    if is_first():
        print(line, flush=True)


# ---- TensorBoard ----------------------------------------------------------------------------------------------------


def events(out: Path, images: int) -> AbstractContextManager[Any]:
    """TensorBoard's writer into ``out/tensorboard``; what a killed run wrote there after ``images`` is not shown."""
    from torch.utils.tensorboard import SummaryWriter  # here, because only --tensorboard needs the package

    return SummaryWriter(out / "tensorboard", purge_step=images + 1)


def record(writer: Any, line: dict[str, float], pictures: dict[str, Path]) -> None:
    """A tick's line and pictures as events, at the number of images seen."""
    from matplotlib.image import imread

    for key, value in line.items():
        if key != "images":
            writer.add_scalar(key, value, line["images"])
    for key, path in pictures.items():
        writer.add_image(f"samples/{key}", imread(path), line["images"], dataformats="HWC")
    writer.flush()


# ---- samples --------------------------------------------------------------------------------------------------------


def grids_every(
    every: int, state: State, description: Description, images: Images | Points, out: Path, n: int
) -> Callable[[State], dict[str, Path]]:
    """At the first tick after each multiple of ``every`` images: samples of the raw weights and of the longest average,
    always of the seeds 0 … n − 1, as ``out/samples/<images>-raw.png`` and ``-ema.png``."""
    drawn = state.images

    def grids(state: State) -> dict[str, Path]:
        nonlocal drawn
        before, drawn = drawn, state.images
        if state.images // every == before // every:
            return {}
        from minidiff import plots  # here, because matplotlib is slow to import

        folder = out / "samples"
        folder.mkdir(exist_ok=True)
        paths = {kind: folder / f"{state.images}-{kind}.png" for kind in ("raw", "ema")}
        for path, model in zip(paths.values(), (state.model.eval(), state.ema), strict=True):
            plots.save_samples(samples(model, description, images, n, few=True), path, description.levels)
        state.model.train()
        return paths

    return grids


def samples(model: Model, description: Description, images: Images | Points, n: int, few: bool = False) -> Tensor:
    """What a model draws in training: it is told classes in turn, and smaller images of the data.

    ``few``: by the deterministic sampler that makes do with few steps, where the process has one.
    """
    cond, told = classes_of(model.net, range(n)), {}
    if description.config.data.low_res > 1:  # the second of two stages: the first is played by the data
        _, cond = images.batch(torch.arange(n) % len(images), torch.Generator().manual_seed(0))
    if few and isinstance(model.process, EDM | GaussianDiffusion):
        name, most = ("heun", model.process.steps) if isinstance(model.process, EDM) else ("ddim", model.process.T)
        told["sampler"] = choose_sampler(model, name, str(min(FEW, most)))[1]
    with tqdm(total=n, desc="samples", disable=True if few else None) as bar:
        told |= {"device": next(model.parameters()).device, "on_batch": bar.update, "cond": cond}
        return generate(model.process, model.net, description.shape, range(n), **told)
