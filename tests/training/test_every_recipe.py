"""Every recipe, shrunken: it takes a step, and its forward pass would run on a GPU and wait for nothing there.

A GPU that is not there is stood in for by torch's fake tensors, which have a device and a shape and no numbers.
"""

import dataclasses
from copy import deepcopy
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from minidiff import RECIPES, Images, Points, recipe
from minidiff.data import load_data
from minidiff.diffusion import COLUMNS, EDM
from minidiff.recipes import describe
from minidiff.training import (
    ClassifierConfig,
    Config,
    Description,
    MultiScaleConfig,
    SongUNetConfig,
    UNetConfig,
    begin,
    check,
    time_sampler,
    train,
)

NARROW = {  # what stays are the kinds: convention, injection, resampling, encoder, conditions
    UNetConfig: {"channels": 32, "mult": (1, 2), "blocks": 1, "attention": (1,), "heads": 2, "head_channels": 0},
    SongUNetConfig: {"channels": 8, "mult": (1, 2), "blocks": 1, "attention": (1,)},
    ClassifierConfig: {"channels": 32, "mult": (1, 2), "blocks": 1, "attention": (1,), "head_channels": 16},
    MultiScaleConfig: {"features": 4, "layers": 1, "dense": 1, "scales": 2},
}
CLASSES = 5


def shrunken(name: str) -> Description:
    """The recipe on 8×8 images, or on its own points, with a narrow network and batches of 4."""
    config, shape = recipe(name), describe(name).shape
    kind = type(config.network)
    network = replace(config.network, **NARROW.get(kind, {}))
    if getattr(network, "classes", 0):
        network = replace(network, classes=CLASSES)
    process = replace(config.process, T=50) if hasattr(config.process, "T") else config.process
    training = replace(config.training, images=8, batch=4, tick=4, ramp=0)
    config = Config("", config.data, process, network, training)
    check(config)
    return Description(config, (shape[0], 8, 8) if len(shape) == 3 else shape, describe(name).levels)


DIFFERENT = {str(shrunken(name)): name for name in RECIPES}  # many differ in size alone
each = pytest.mark.parametrize("name", DIFFERENT.values())


def examples(description: Description) -> Images | Points:
    """A few of the recipe's kind."""
    data, generator = description.config.data, torch.Generator().manual_seed(3)
    if len(description.shape) == 1:
        return Points(load_data(data.source, "test").x[:12], description.levels)
    if description.levels is None:
        return Points(torch.randn(12, *description.shape, generator=generator))
    pixels = torch.randint(description.levels, (12, *description.shape), generator=generator).to(torch.uint8)
    told = {"flip": data.flip, "crop": data.crop, "give_labels": data.labels, "low_res": data.low_res}
    told |= {"augment": data.augment, "drop_labels": data.drop_labels}
    return Images(pixels, description.levels, torch.arange(12) % CLASSES, **told)


def test_what_is_shrunken_stands_for_all():
    kinds = {type(recipe(name).network) for name in RECIPES}, {type(recipe(name).process) for name in RECIPES}
    left = [shrunken(name).config for name in DIFFERENT.values()]
    assert ({type(config.network) for config in left}, {type(config.process) for config in left}) == kinds
    assert 15 < len(DIFFERENT) < len(RECIPES)


@each
def test_it_takes_two_steps_and_learns_with_every_parameter(name):
    description = shrunken(name)
    config = description.config
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = begin(description.build(), time_sampler(config), config.training)
    before = [parameter.clone() for parameter in state.model.parameters()]
    train(state, examples(description), config.training)
    assert state.images == 8 and all(line["loss"] > -100 for line in state.metrics)
    moved = [not torch.equal(a, b) for a, b in zip(before, state.model.parameters(), strict=True)]
    assert sum(moved) > len(moved) / 4  # branches that begin as nothing learn one after the other
    assert all(p.grad is not None for p in state.model.parameters() if p.requires_grad)  # or processes would wait


# ---- as if on a GPU -------------------------------------------------------------------------------------------------


class NothingCrosses(TorchDispatchMode):
    """Refuse to copy between the CPU and a GPU: either would wait for the other."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        answer = function(*args, **(kwargs or {}))
        places = {x.device.type for x in (answer, *args) if isinstance(x, Tensor) and x.ndim}
        assert len(places) < 2, f"{function} takes a tensor across"
        return answer


def on_a_gpu_that_is_not_there(description: Description) -> Tensor:
    """The losses of a batch whose model, data, times and noise are on a CUDA device.

    A tensor that is neither a parameter nor a buffer stays on the CPU, as it would.
    """
    model, given = description.build().train(), examples(description)
    x0, cond = given.batch(torch.arange(4), torch.Generator().manual_seed(1))
    t, _ = time_sampler(description.config).draw(4, torch.Generator().manual_seed(2))
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = lambda value: torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda")
        for module in model.modules():
            for name, value in module.named_parameters(recurse=False):
                module._parameters[name] = nn.Parameter(fake(value))
            for name, value in module.named_buffers(recurse=False):
                module._buffers[name] = fake(value)
        x0, t, told = fake(x0), fake(t), {key: fake(value) for key, value in cond.items()}
        model(x0, t, x0, **told)  # what is set up once may wait
        with NothingCrosses():
            return model(x0, t, x0, **told)["loss"]


@each
def test_its_loss_runs_on_a_gpu_with_nothing_on_the_cpu_and_waits_for_nothing(name):
    loss = on_a_gpu_that_is_not_there(shrunken(name))
    assert loss.device.type == "cuda" and loss.shape == (4,)


@pytest.mark.parametrize("fault", ["cpu", "wait", "copy"])
def test_the_stand_in_finds_what_a_gpu_would(fault, monkeypatch):
    """A tensor on the CPU in the middle, an answer that is looked at, a copy back."""
    description = shrunken("digits")
    forward = type(description.build().net).forward

    def faulty(self, x, t, **cond):
        if fault == "cpu":
            x = x + torch.ones(8, device="cpu")
        elif fault == "wait" and (x > 0).any():
            x = -x
        elif fault == "copy":
            x.cpu()
        return forward(self, x, t, **cond)

    monkeypatch.setattr(type(description.build().net), "forward", faulty)
    with pytest.raises(Exception, match=r"device|[Dd]ata.?dependent|_local_scalar_dense|takes a tensor across"):
        on_a_gpu_that_is_not_there(description)


# ---- tables ---------------------------------------------------------------------------------------------------------


def tensors(value: object, where: str, seen: set[int]) -> dict[str, Tensor]:
    """Every tensor that can be reached from an object: attributes, containers, and what functions enclose."""
    if id(value) in seen:
        return {}
    seen.add(id(value))
    if isinstance(value, Tensor):
        return {where: value}
    parts: dict[str, object] = {}
    if isinstance(value, dict):
        parts = {str(key): part for key, part in value.items()}
    elif isinstance(value, list | tuple):
        parts = dict(enumerate(value))
    elif isinstance(value, nn.Module) or dataclasses.is_dataclass(value):
        parts = vars(value)
    elif closure := getattr(value, "__closure__", None):
        parts = dict(zip(value.__code__.co_freevars, [cell.cell_contents for cell in closure], strict=True))
    found = {}
    for name, part in parts.items():
        found |= tensors(part, f"{where}.{name}", seen)
    return found


@cache
def processes() -> dict[str, nn.Module]:
    """One of each kind that a recipe has; EDM has no tables, and functions of σ instead."""
    kinds = {}
    for name in DIFFERENT.values():
        process = shrunken(name).build().process
        if isinstance(process, EDM):
            continue
        kinds[f"{type(process).__name__} {getattr(process, 'predict', '')} {getattr(process, 'loss_kind', '')}"] = name
    return {label: shrunken(name).build().process for label, name in kinds.items()}


@pytest.mark.parametrize("place", ["meta", torch.float32])
@pytest.mark.parametrize("label", sorted(processes()))
def test_a_process_that_is_moved_has_moved_all_that_it_is_made_of(label, place):
    """A table that stays on the CPU would slip through above: a GPU's steps may index it, and wait for the answer."""
    process = processes()[label]
    before = tensors(process, "process", set())
    assert before
    moved = tensors(deepcopy(process).to(place), "process", set())
    assert moved.keys() == before.keys()
    for name, value in moved.items():
        if place == "meta":
            assert value.device.type == "meta", name
        elif value.is_floating_point():
            assert value.dtype == torch.float32, name


@pytest.mark.parametrize("name", COLUMNS)
def test_functions_of_sigma_stay_where_sigma_is(name):
    column = COLUMNS[name]()
    with FakeTensorMode(allow_non_fake_inputs=True):
        u = torch.rand(3, dtype=torch.float64, device="cuda")
        for function in (column.c_skip, column.c_out, column.c_in, column.c_noise, column.weight, column.quantile):
            function(u)  # what is set up once may wait
            with NothingCrosses():
                assert function(u).device.type == "cuda"
