"""The training loop. Its one clock is the number of images seen; everything else is a function of it."""

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.amp import GradScaler

from minidiff import processes

from . import checkpoint, distributed, folder
from .build import Model
from .config import TrainingConfig, check_training
from .cost import Cost, peak_memory
from .ema import EMA
from .execution import Execution, moved

CPU = torch.device("cpu")

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
    execution: Execution = field(default_factory=Execution)  # may differ from one start to the next
    scaler: GradScaler = field(default_factory=lambda: GradScaler(enabled=False))  # of the loss, under fp16

    @property
    def ema(self) -> Model:
        """The average with the longest half-life: the model to sample from."""
        return max(self.emas, key=lambda ema: ema.half_life).model


def begin(model: Model, times: TimeSampler, config: TrainingConfig, execution: Execution | None = None) -> State:
    """A state that has seen nothing yet, on the model's device; on a GPU the model is laid out channels last."""
    execution, device = execution or Execution(), next(model.parameters()).device
    if device.type == "cuda":
        model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
    state = State(model, optimizer, [EMA(model, half_life) for half_life in config.ema], times, execution=execution)
    state.scaler = GradScaler(device.type, enabled=execution.dtype(device)[0] == torch.float16)
    if execution.compile:
        model.net.compile()
    return state


def train(
    state: State,
    data: Data,
    config: TrainingConfig,
    run: Path | str | None = None,
    description: checkpoint.Description | None = None,
    on_step: Callable[[State], None] | None = None,
    on_tick: Callable[[State], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> State:
    """Train until ``config.images`` images are seen, and return the state (DDPM Alg. 1, for any process).

    With ``run`` and ``description`` ``run/metrics.jsonl`` is cut back to the state, then grows a line at every tick,
    and checkpoints are written. A line has the means of loss and gradient's norm over the tick (an update that fp16
    leaves out counts as 0), the learning rate of its last step, images and FLOPs a second in all processes together,
    and the most bytes that the first process has held so far, on its GPU where it has one. ``on_step`` and ``on_tick``
    are called after each. A step after which ``stop()`` is true is the last for now, and is written down. Inside
    ``process_group`` each process takes its share of a batch, the first one writes, and one that stops stops all.
    Torch's global random state is left as it was found.

    Raises FloatingPointError before an update whose loss or gradient is not finite; under fp16 an update whose gradient
    overflows is left out, and only a loss is refused. Raises ValueError for a setting that no training can have, and
    for a folder in which another run trains or whose run is further than the state.
    """
    check_training(config)
    distributed.portions(config.batch, state.execution.micro)
    if run is not None and description is None:
        raise ValueError("run is given without description: a checkpoint has to say what it is of.")
    if not processes.same(state.images):
        raise ValueError("the processes begin at different checkpoints: give a folder that all of them see.")
    with ExitStack() as inside:
        if run is not None:
            run = Path(run)
            run.mkdir(parents=True, exist_ok=True)
            inside.enter_context(folder.locked(run))
            latest = checkpoint.newest(run)
            if latest is not None and int(latest.name) > state.images:
                raise ValueError(f"{run} holds a run of {latest.name} images: resume it, or give another folder.")
        writes = run is not None and processes.rank() == 0
        if writes:
            folder.rewrite_metrics(run, state.metrics)  # without what a killed run wrote after its last checkpoint
        inside.enter_context(torch.random.fork_rng(devices=range(torch.cuda.device_count())))
        inside.enter_context(state.execution.kernels())
        inside.callback(state.model.eval)
        model = distributed.joined(state.model.train())
        flops = None if description is None else Cost(description).training
        total, steps, began = 0.0, 0, time.perf_counter()
        next_checkpoint = (state.images // config.checkpoint + 1) * config.checkpoint
        done = state.images >= config.images
        while not done:
            before = state.images
            try:
                total, steps = total + train_step(state, data, config, model), steps + 1
            except FloatingPointError as error:
                raise FloatingPointError(f"{error}{_last_good(run)}") from None
            if on_step is not None:
                on_step(state)
            stopped = stop is not None and processes.any_of(stop())
            done = stopped or state.images >= config.images
            if state.images // config.tick > before // config.tick or done:
                loss, norm = (each / steps for each in processes.mean(total).tolist())
                speed = steps * config.batch / (time.perf_counter() - began)
                if not math.isfinite(loss) or state.scaler.get_scale() < 1:  # fp16 gave up: no scale is small enough
                    raise FloatingPointError(NOT_FINITE.format(images=state.images) + _last_good(run))
                line = {
                    "images": state.images,
                    "loss": loss,
                    "lr": learning_rate(config, before),
                    "gradient_norm": norm,
                    "images_per_second": round(speed, 1),
                    **({"flops_per_second": round(speed * flops)} if flops else {}),
                    "peak_memory": peak_memory(next(state.model.parameters()).device),
                }
                state.metrics.append(line)
                if writes:
                    folder.append_metrics(run, line)
                if state.images >= next_checkpoint or done:
                    if writes:
                        save(state, run, description)
                        checkpoint.prune(run, state.execution.keep, state.execution.milestone)
                    next_checkpoint = (state.images // config.checkpoint + 1) * config.checkpoint
                if on_tick is not None:
                    on_tick(state)
                total, steps, began = 0.0, 0, time.perf_counter()
    return state


def train_step(state: State, data: Data, config: TrainingConfig, model: nn.Module) -> Tensor:
    """One update: draw data, times and noise; descend; average.

    ``model`` is the state's, joined with those of other processes. Returns the loss of this process's share and the
    norm of the gradient of all, as one tensor, without waiting for them on a GPU.
    """
    device, rank = next(state.model.parameters()).device, processes.rank()
    share, micro = distributed.portions(config.batch, state.execution.micro)
    generator = seeded(config.seed, rank, state.images, device)
    # Data are made on the CPU: with a GPU's random numbers each of their draws would wait for it.
    of_data = generator if device == CPU else seeded(config.seed, rank, state.images, CPU, globally=False)
    x0, cond = data.batch(data_order(state.images + rank * share, share, len(data), config.seed), of_data)
    x0, cond = moved(x0, device), {key: moved(value, device) for key, value in cond.items()}
    t, weight = state.times.draw(share, generator)
    noise = state.model.process.draw_noise(x0, generator)

    state.optimizer.zero_grad(set_to_none=True)
    parts, found = [slice(k, k + micro) for k in range(0, share, micro)], []
    for part in parts:
        with distributed.joining(model, part is parts[-1]):
            with state.execution.autocast(device):
                told = {key: value[part] for key, value in cond.items()}
                losses = model(x0[part], t[part], noise[part], **told)["loss"]
            loss = state.scaler.scale((weight[part] * losses).mean() / len(parts))
            loss.backward(1 + 0 * loss.detach())  # a loss that is not finite spoils the gradient of all processes
        found.append(losses.detach())
    losses = torch.cat(found)
    return descend(state, config, t, losses, (weight * losses).mean())


def descend(state: State, config: TrainingConfig, t: Tensor, losses: Tensor, loss: Tensor) -> Tensor:
    """The second half of a step: look at the gradient that is there, update, average, and count the images."""
    state.scaler.unscale_(state.optimizer)  # it does nothing but under fp16, here and below
    parameters = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, config.clip_grad or math.inf)
    if not state.scaler.is_enabled():
        loss = loss + 0 * norm  # not finite where either is not
        if loss.device.type != "cpu":  # a GPU is not waited for: its fused optimiser leaves the weights, a tick raises
            state.optimizer.found_inf = (~torch.isfinite(loss)).float()
        elif not torch.isfinite(loss):
            raise FloatingPointError(NOT_FINITE.format(images=state.images))
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(config, state.images)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    for ema in state.emas:
        ema.update(state.model, state.images, config.batch)
    state.times.update(t, losses)
    state.images += config.batch
    return torch.stack([loss, norm.to(loss).nan_to_num(0, 0)])


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
    return torch.randperm(n, generator=seeded(seed, epoch, -1, CPU, globally=False))


def seeded(seed: int, rank: int, images: int, device: torch.device, globally: bool = True) -> torch.Generator:
    """A generator for the step that begins after ``images`` images, and torch's own seeded alike, for dropout.

    Because each step starts from (seed, rank, images) alone, a resumed run draws what an unbroken one would have drawn.
    """
    state = np.random.SeedSequence([seed, rank, images + 1]).generate_state(1, np.uint64)
    value = int(state[0] >> 1)
    if globally:  # torch.manual_seed goes round all kinds of device, which on the CPU takes longer than drawing does
        (torch.default_generator if device == CPU else torch).manual_seed(value)
    return torch.Generator(device).manual_seed(value)


def save(state: State, run: Path, description: checkpoint.Description) -> Path:
    """Write the state down as a checkpoint of the run."""
    weights = {"model": state.model.state_dict()}
    weights |= {f"ema-{ema.half_life}": ema.model.state_dict() for ema in state.emas}
    train_state = {"optimizer": state.optimizer.state_dict(), "times": state.times.state_dict()}
    if state.scaler.is_enabled():
        train_state["scaler"] = state.scaler.state_dict()
    return checkpoint.save(run, state.images, description, weights, train_state)


def resume(state: State, run: Path | str) -> bool:
    """Bring a fresh state to where the run's newest checkpoint was; False where there is none.

    Metrics are read up to that point; nothing is written. Raises ValueError for a damaged checkpoint.
    """
    latest = checkpoint.newest(Path(run))
    if latest is None:
        return False
    checkpoint.read_weights(latest, "model", state.model)
    for ema in state.emas:
        checkpoint.read_weights(latest, f"ema-{ema.half_life}", ema.model)
    train_state = checkpoint.read_train_state(latest)
    try:
        state.optimizer.load_state_dict(train_state["optimizer"])
        state.times.load_state_dict(train_state["times"])
        if "scaler" in train_state:
            state.scaler.load_state_dict(train_state["scaler"])
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{latest / 'train_state.pt'} does not fit this run: {error}") from error
    for parameter, kept in state.optimizer.state.items():
        for key, value in kept.items():
            if value.shape == parameter.shape:  # laid out as the parameter, which on a GPU may have its channels last
                kept[key] = torch.empty_like(parameter, requires_grad=False).copy_(value)
    state.images = int(latest.name)
    state.metrics = folder.read_metrics(run, state.images)
    return True


def _last_good(run: Path | None) -> str:
    """Where the weights from before a failure are, as the end of a message."""
    latest = checkpoint.newest(run) if run is not None else None
    return f" That is {latest}." if latest else " There is none yet."
