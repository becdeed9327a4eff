"""What test_distributed.py has two processes do: ``torchrun pair.py FOLDER`` leaves 0.pt and 1.pt there."""

import fcntl
import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[1]))
import tiny
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from minidiff import GaussianConfig, UniformTimes, processes, train
from minidiff.processes import process_group
from minidiff.training import Execution, State, begin, distributed
from minidiff.training.loop import train_step


def fresh(dropout: float = 0.0, micro: int = 0, **training) -> tuple[State, tiny.Config]:
    """A state with weights that are nowhere 0, so that every gradient counts."""
    config = tiny.config(**{"clip_grad": 0.0, "ramp": 0, **training})
    config = replace(config, network=replace(config.network, dropout=dropout))
    state = tiny.fresh(config)
    generator = torch.Generator().manual_seed(8)
    for parameter in state.model.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return begin(state.model, state.times, config.training, Execution(micro=micro)), config


def gradients(micro: int = 0) -> list[torch.Tensor]:
    """Of one step of 16 examples, whose t and noise follow from their places in the whole batch."""
    state, config = fresh(micro=micro, images=16)
    generator = torch.Generator().manual_seed(9)
    share = 16 // processes.size()
    own = slice(processes.rank() * share, (processes.rank() + 1) * share)
    t, noise = torch.randint(30, (16,), generator=generator), torch.randn(16, *tiny.SHAPE, generator=generator)
    state.times.draw = lambda n, _: (t[own], torch.linspace(0.5, 2, 16)[own])
    state.model.process.draw_noise = lambda x0, _: noise[own]
    train(state, tiny.images(), config.training)
    return [parameter.grad.clone() for parameter in state.model.parameters()]


def exchanges(micro: int) -> int:
    """How often gradients are exchanged in one step."""
    (state, config), calls = fresh(micro=micro), []
    model = distributed.joined(state.model)

    def hook(_, bucket):
        calls.append(bucket.index())
        return allreduce_hook(None, bucket)

    model.register_comm_hook(None, hook)
    train_step(state, tiny.images(), config.training, model)
    return len(calls)


class Watched:
    """Images and times that remember what was asked and drawn; batches after the first ``spoilt`` are no good."""

    def __init__(self, spoilt: int = 99):
        self.images, self.times, self.spoilt, self.index, self.t = tiny.images(), UniformTimes(30), spoilt, [], []

    def __len__(self):
        return len(self.images)

    def batch(self, index, generator):
        self.index.append(index)
        x, cond = self.images.batch(index, generator)
        return (x * float("nan"), cond) if len(self.index) > self.spoilt else (x, cond)

    def draw(self, n, generator):
        t, weight = self.times.draw(n, generator)
        self.t.append(t)
        return t, weight

    def update(self, t, losses): ...


def everything(folder: Path) -> dict:
    """One process's side of it."""
    found = {"gradients": {micro: gradients(micro) for micro in (0, 4, 1)}}
    found["exchanges"] = {micro: exchanges(micro) for micro in (0, 4, 1)}

    state, config = fresh(dropout=0.3)
    watched = Watched()
    state.times = watched
    train(state, watched, config.training)
    found["weights"], found["index"], found["t"] = tiny.weights(state), watched.index, watched.t
    found["metrics"] = state.metrics

    config = replace(config, process=GaussianConfig("cosine", T=4, variance="range", loss="bound"))
    config = replace(config, training=replace(config.training, times="importance"))
    found["importance"] = tiny.weights(train(tiny.fresh(config), tiny.images(), config.training))

    state, config = fresh()
    try:
        train(state, Watched(spoilt=2 if processes.rank() else 99), config.training)
    except FloatingPointError as error:
        found["spoilt"] = str(error), state.images, tiny.weights(state), state.model.training
    state, config = fresh(images=32)
    train(state, tiny.images(), config.training)
    found["before"] = tiny.weights(state)

    state, config = fresh()
    process, far = state.model.process, float("inf") if processes.rank() else 0.0
    loss = process.loss
    process.loss = lambda *args, **cond: {"loss": loss(*args, **cond)["loss"] + far}
    try:
        train(state, tiny.images(), config.training)
    except FloatingPointError as error:
        found["infinite"] = str(error)

    state, config = fresh()
    asked = lambda: processes.rank() == 1 and state.images >= 48
    train(state, tiny.images(), config.training, folder / "run", tiny.describe(config), stop=asked)
    found["stopped"] = state.images

    def refusal(state: State, config: tiny.Config) -> str:
        try:
            train(state, tiny.images(), config.training, folder / "run", tiny.describe(config))
        except ValueError as error:
            return str(error)

    found["refused"] = [refusal(*fresh(batch=15)), refusal(*fresh(micro=3))]
    elsewhere, config = fresh()
    elsewhere.images = 48 + 16 * processes.rank()
    found["refused"].append(refusal(elsewhere, config))
    elsewhere.images = 48
    with (folder / "run" / ".lock").open("a") as file:
        if processes.rank() == 0:
            fcntl.flock(file, fcntl.LOCK_EX)
        processes.any_of(False)  # not before it is taken
        found["refused"].append(refusal(elsewhere, config))
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    with process_group(torch.device("cpu")):
        found = everything(Path(sys.argv[1]))
        torch.save(found, Path(sys.argv[1]) / f"{processes.rank()}.pt")
