"""The training loop. Its one clock is the number of images seen; everything else is a function of it."""

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from . import checkpoint
from .build import Model
from .config import TrainingConfig, check_training
from .ema import EMA

NOT_FINITE = (
    "the loss or its gradient is not finite after {images:,} images: no update was made with it. Look at the data, or "
    "begin a run with a lower training.lr; --init-from takes the weights of the last good checkpoint."
)


@runtime_checkable
class Data(Protocol):
    """What can be trained on: a length, and batches by index."""

    def __len__(self) -> int: ...

    def batch(self, index: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]: ...


@runtime_checkable
class TimeSampler(Protocol):
    """The law of t: draws with weights, and whatever it learns from the losses."""

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]: ...

    def update(self, t: Tensor, loss: Tensor) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class State:
    """All that changes while training; a checkpoint is this, written down."""

    model: Model
    optimizer: torch.optim.Optimizer
    emas: list[EMA]
    times: TimeSampler
    images: int = 0
    metrics: list[dict[str, float]] = field(default_factory=list)

    @property
    def ema(self) -> Model:
        """The average with the longest half-life: the model to sample from."""
        return max(self.emas, key=lambda ema: ema.half_life).model


def begin(model: Model, times: TimeSampler, config: TrainingConfig) -> State:
    """A state that has seen nothing yet."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
    return State(model, optimizer, [EMA(model, half_life) for half_life in config.ema], times)


def train(
    state: State,
    data: Data,
    config: TrainingConfig,
    run: Path | str | None = None,
    description: checkpoint.Description | None = None,
    on_step: Callable[[State], None] | None = None,
    on_tick: Callable[[State], None] | None = None,
) -> State:
    """Train until ``config.images`` images are seen, and return the state (DDPM Alg. 1, for any process).

    With ``run`` and ``description`` ``run/metrics.jsonl`` is cut back to the state, then grows a line at every tick,
    and checkpoints are written. ``on_step`` and ``on_tick`` are called after each. Torch's global random state is left
    as it was found. Raises FloatingPointError before an update whose loss or gradient is not finite, and ValueError for
    a setting that no training can have and for a folder whose run is further than the state.
    """
    check_training(config)
    device = next(state.model.parameters()).device
    if run is not None and description is None:
        raise ValueError("run is given without description: a checkpoint has to say what it is of.")
    if run is not None:
        run, latest = Path(run), checkpoint.newest(Path(run))
        if latest is not None and int(latest.name) > state.images:
            raise ValueError(f"{run} holds a run of {latest.name} images: resume it, or give another folder.")
        run.mkdir(parents=True, exist_ok=True)
        _rewrite(run / "metrics.jsonl", state.metrics)  # without what a killed run wrote after its last checkpoint
    total, steps, began = torch.zeros((), device=device), 0, time.perf_counter()
    next_checkpoint = (state.images // config.checkpoint + 1) * config.checkpoint
    state.model.train()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        while state.images < config.images:
            before = state.images
            try:
                loss = train_step(state, data, config, device)
            except FloatingPointError as error:
                raise FloatingPointError(f"{error}{_last_good(run)}") from None
            total, steps = total + loss, steps + 1
            if on_step is not None:
                on_step(state)
            done = state.images >= config.images
            if state.images // config.tick > before // config.tick or done:
                seconds, mean = time.perf_counter() - began, total.item() / steps
                if not math.isfinite(mean):
                    raise FloatingPointError(NOT_FINITE.format(images=state.images) + _last_good(run))
                line = {
                    "images": state.images,
                    "loss": mean,
                    "lr": learning_rate(config, before),
                    "images_per_second": round(steps * config.batch / seconds, 1),
                }
                state.metrics.append(line)
                if run is not None:
                    _append(run / "metrics.jsonl", line)
                    if state.images >= next_checkpoint or done:
                        save(state, run, description)
                        next_checkpoint = (state.images // config.checkpoint + 1) * config.checkpoint
                if on_tick is not None:
                    on_tick(state)
                total, steps, began = torch.zeros((), device=device), 0, time.perf_counter()
    state.model.eval()
    return state


def train_step(state: State, data: Data, config: TrainingConfig, device: torch.device) -> Tensor:
    """One update: draw data, times and noise; descend; average. Returns the loss, without waiting for it on a GPU."""
    generator = seeded(config.seed, 0, state.images, device)
    x0, cond = data.batch(data_order(state.images, config.batch, len(data), config.seed), generator)
    x0, cond = x0.to(device), {key: value.to(device) for key, value in cond.items()}
    t, weight = state.times.draw(len(x0), generator)
    noise = state.model.process.draw_noise(x0, generator)

    losses = state.model(x0, t, noise, **cond)["loss"]
    loss = (weight * losses).mean()
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), config.clip_grad or math.inf)
    checked = loss.detach() + 0 * norm  # not finite where either is not
    if device.type != "cpu":  # a GPU is not waited for: its fused optimiser leaves the weights, the next tick raises
        state.optimizer.found_inf = (~torch.isfinite(checked)).float()
    elif not torch.isfinite(checked):
        raise FloatingPointError(NOT_FINITE.format(images=state.images))
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(config, state.images)
    state.optimizer.step()
    for ema in state.emas:
        ema.update(state.model, state.images, config.batch)
    state.times.update(t, losses.detach())
    state.images += config.batch
    return checked


def learning_rate(config: TrainingConfig, images: int) -> float:
    """Rises linearly over the ramp, then stays, or falls to 0 where it is annealed."""
    risen = min(1.0, (images + config.batch) / config.ramp) if config.ramp else 1.0
    return config.lr * risen * (1 - images / config.images if config.anneal else 1.0)


def data_order(images: int, batch: int, n: int, seed: int) -> Int[Tensor, " batch"]:
    """Places of the next examples: epoch after epoch, each in an order of its own."""
    position = torch.arange(images, images + batch)
    epochs = range(images // n, (images + batch - 1) // n + 1)
    order = torch.cat([_permutation(seed, epoch, n) for epoch in epochs])
    return order[position - epochs[0] * n]


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, n: int) -> Tensor:
    return torch.randperm(n, generator=seeded(seed, epoch, -1, torch.device("cpu"), globally=False))


def seeded(seed: int, rank: int, images: int, device: torch.device, globally: bool = True) -> torch.Generator:
    """A generator for the step that begins after ``images`` images, and torch's own seeded alike, for dropout.

    Because each step starts from (seed, rank, images) alone, a resumed run draws what an unbroken one would have drawn.
    """
    state = np.random.SeedSequence([seed, rank, images + 1]).generate_state(1, np.uint64)
    value = int(state[0] >> 1)
    if globally:
        torch.manual_seed(value)
    return torch.Generator(device).manual_seed(value)


def save(state: State, run: Path, description: checkpoint.Description) -> Path:
    """Write the state down as a checkpoint of the run."""
    weights = {"model": state.model.state_dict()}
    weights |= {f"ema-{ema.half_life}": ema.model.state_dict() for ema in state.emas}
    train_state = {"optimizer": state.optimizer.state_dict(), "times": state.times.state_dict()}
    return checkpoint.save(run, state.images, description, weights, train_state)


def resume(state: State, run: Path | str) -> bool:
    """Bring a fresh state to where the run's newest checkpoint was; False where there is none.

    Metrics are read up to that point; nothing is written. Raises ValueError for a damaged checkpoint.
    """
    run = Path(run)
    folder = checkpoint.newest(run)
    if folder is None:
        return False
    checkpoint.read_weights(folder, "model", state.model)
    for ema in state.emas:
        checkpoint.read_weights(folder, f"ema-{ema.half_life}", ema.model)
    train_state = checkpoint.read_train_state(folder)
    try:
        state.optimizer.load_state_dict(train_state["optimizer"])
        state.times.load_state_dict(train_state["times"])
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{folder / 'train_state.pt'} does not fit this run: {error}") from error
    state.images = int(folder.name)
    state.metrics = read_metrics(run, state.images)
    return True


def read_metrics(run: Path | str, until: float = float("inf")) -> list[dict[str, float]]:
    """The lines of metrics.jsonl up to ``until`` images; a last line that was cut off by a crash is left out."""
    path, lines = Path(run) / "metrics.jsonl", []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict) and line.get("images", math.inf) <= until:
            lines.append(line)
    return lines


def _last_good(run: Path | None) -> str:
    """Where the weights from before a failure are, as the end of a message."""
    folder = checkpoint.newest(run) if run is not None else None
    return f" That is {folder}." if folder else " There is none yet."


def _append(path: Path, line: dict[str, float]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _rewrite(path: Path, lines: list[dict[str, float]]) -> None:
    """Replace the file in one move."""
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))
    temporary.replace(path)
