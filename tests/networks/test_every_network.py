"""What holds for every network: sizes, devices, memory formats, precision, recomputation, compilation."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from formula import fill, wave
from torch import nn

from minidiff import MLP, UNet
from minidiff.networks import Classifier, SongUNet
from minidiff.networks.layers import Attention, ResBlock

U = {"in_channels": 3, "out_channels": 3, "blocks": 1, "attention": (1,), "dropout": 0.3}
DDPM = {**U, "channels": 8, "mult": (1, 2)}
OPENAI = {**U, "channels": 32, "mult": (1, 2), "convention": "openai"}
SONG = {**U, "channels": 8, "mult": (1, 2)}
CLASSIFIER = {"in_channels": 3, "size": (8, 12), "classes": 5, "channels": 32, "mult": (1, 2), "blocks": 1}

NETWORKS = {
    "DDPM": partial(UNet, **DDPM),
    "rescaled": partial(UNet, **DDPM, rescale=True, inject="scale"),
    "IDDPM": partial(UNet, **OPENAI, heads=4, inject="scale", classes=5),
    "ADM": partial(UNet, **OPENAI, head_channels=16, inject="scale", resample="block", classes=5),
    "upsampler": partial(UNet, **OPENAI, head_channels=16, inject="scale", resample="block", classes=5, low_res=True),
    "DDPM++": partial(SongUNet, **SONG, classes=5, augment=4),
    "NCSN++": partial(SongUNet, **SONG, augment=4, embedding="fourier", taps=(1, 3, 3, 1), encoder="residual"),
    "skip": partial(SongUNet, **SONG, embedding="fourier", taps=(1, 3, 3, 1), encoder="skip"),
    "classifier": partial(Classifier, **CLASSIFIER, attention=(1,), head_channels=16, dropout=0.3),
    "MLP": partial(MLP, 3),
}
OF_IMAGES = [name for name in NETWORKS if name != "MLP"]
UNETS = [name for name in OF_IMAGES if name != "classifier"]


def inputs(net: nn.Module, batch: int = 3, size: tuple[int, ...] = (8, 12)) -> tuple[tuple, dict]:
    """An image or a point, a time, and every condition that the network takes."""
    shape = (batch, 3) if isinstance(net, MLP) else (batch, 3, *size)
    cond = {}
    if getattr(net, "classes", 0) and not isinstance(net, Classifier):
        cond["labels"] = torch.arange(batch) % 5
    if getattr(net, "augment", 0):
        cond["augment"] = wave(batch, 4, phase=2)
    if getattr(net, "low_res", False):
        cond["low_res"] = wave(batch, 3, 2, 3, phase=3)
    return (wave(*shape, phase=1), torch.linspace(0.3, 9, batch)), cond


def on(device: str, value):
    if isinstance(value, torch.Tensor):
        return value.to(device)
    return {k: v.to(device) for k, v in value.items()} if isinstance(value, dict) else [v.to(device) for v in value]


@pytest.mark.parametrize("name", NETWORKS)
def test_it_runs_on_the_meta_device(name):
    """No tensor of it lives elsewhere, and its answer is a batch of what it was asked."""
    with torch.device("meta"):
        net = NETWORKS[name]()
        args, cond = inputs(net)
        answer = net(*on("meta", args), **on("meta", cond))
    assert answer.device.type == "meta"
    assert answer.shape == ((3, 5) if name == "classifier" else args[0].shape)


@pytest.mark.parametrize("name", UNETS)
@pytest.mark.parametrize("size", [(4, 4), (4, 20), (16, 8), (12, 28)])
def test_any_sides_that_its_levels_halve(name, size):
    net = fill(NETWORKS[name]())
    args, cond = inputs(net, 1, size)
    answer = net(*args, **cond)
    assert answer.shape == args[0].shape and answer.isfinite().all() and answer.std() > 0.01


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_each_image_is_answered_apart_from_its_batch(name, float64):
    net = fill(NETWORKS[name]())
    (x, t), cond = inputs(net)
    one = lambda k: net(x[k : k + 1], t[k : k + 1], **{key: value[k : k + 1] for key, value in cond.items()})
    torch.testing.assert_close(net(x, t, **cond), torch.cat([one(k) for k in range(3)]))


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_every_input_matters(name, float64):
    net = fill(NETWORKS[name]())
    (x, t), cond = inputs(net)
    answer = net(x, t, **cond)
    changed = {"x": net(x.flip(0), t, **cond), "t": net(x, t.flip(0), **cond)}
    changed |= {key: net(x, t, **{**cond, key: value.flip(0)}) for key, value in cond.items()}
    for key, other in changed.items():
        assert (other - answer)[0].abs().max() > 1e-3, key


@pytest.mark.parametrize("name", NETWORKS)
def test_learning_reaches_every_parameter(name, float64):
    net = fill(NETWORKS[name]())
    args, cond = inputs(net)
    answer = net(*args, **cond)
    (answer * wave(*answer.shape, phase=5)).sum().backward()
    assert [key for key, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", OF_IMAGES)
def test_channels_last_changes_no_answer_and_no_gradient(name, float64):
    net = fill(NETWORKS[name]())
    (x, t), cond = inputs(net)
    found = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        net, image = net.to(memory_format=memory_format), x.contiguous(memory_format=memory_format).requires_grad_()
        answer = net(image, t, **cond)
        gradients = torch.autograd.grad(answer.square().sum(), [image, *net.parameters()])
        found.append([answer, *gradients])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


def counted(net: nn.Module) -> list[nn.Module]:
    """A list that grows with every residual block that is computed."""
    counts = []
    for module in net.modules():
        if isinstance(module, ResBlock):
            module.register_forward_pre_hook(lambda block, _: counts.append(block))
    return counts


@pytest.mark.parametrize("name", OF_IMAGES)
def test_recomputing_activations_changes_nothing_dropout_included(name, float64):
    found, passes = [], []
    for recompute in (False, True):
        net = fill(NETWORKS[name](checkpoint=recompute)).train()
        (x, t), cond = inputs(net)
        x.requires_grad_()
        counts = counted(net)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            answer = net(x, t, **cond)
            found.append([answer, *torch.autograd.grad(answer.square().sum(), [x, *net.parameters()])])
        passes.append(len(counts))
    assert passes[1] == 2 * passes[0]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_without_gradients_nothing_is_computed_twice():
    net = fill(NETWORKS["ADM"](checkpoint=True))
    args, cond = inputs(net)
    counts = counted(net)
    with torch.no_grad():
        net(*args, **cond)
    assert len(counts) == len(set(counts)) == sum(isinstance(module, ResBlock) for module in net.modules())


@torch.no_grad()
@pytest.mark.parametrize("name", OF_IMAGES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_it_answers_in_kind_though_activations_are_large(name, dtype):
    """The first convolution gives numbers of about 3,000: the squares that normalisation sums are beyond 65,504."""
    net = fill(NETWORKS[name]())
    net.conv_in.weight *= 3000
    (x, t), cond = inputs(net)
    expected = net(x, t, **cond)
    half = {key: value.to(dtype) if value.is_floating_point() else value for key, value in cond.items()}
    answer = net.to(dtype)(x.to(dtype), t, **half)
    assert answer.dtype == dtype
    error = (answer.float() - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert error < 20 * torch.finfo(dtype).eps


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_untrained_it_answers_nothing_yet(name):
    """Zero; almost zero in Song's networks. The classifier has no such end, and begins with blocks of nothing alone."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = NETWORKS[name]().eval()
    args, cond = inputs(net)
    answer = net(*args, **cond)
    if name in ("DDPM++", "NCSN++", "skip"):
        assert 0 < answer.abs().max() < 1e-3
    elif name != "classifier":
        assert not answer.any()
    smallest = 1e-4 if isinstance(net, SongUNet) else 0
    for module in net.modules():
        if isinstance(module, ResBlock | Attention):
            end = module.conv2 if isinstance(module, ResBlock) else module.out
            assert end.weight.abs().max() <= smallest and not end.bias.any()


COMPILED = """
import sys
import torch
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
from test_every_network import NETWORKS, fill, inputs
every = [(name, {}) for name in ("rescaled", "IDDPM", "upsampler", "DDPM++", "NCSN++", "skip", "classifier", "MLP")]
for name, options in [*every, ("DDPM", {"checkpoint": True})]:
    net = fill(NETWORKS[name](**options))
    args, cond = inputs(net)
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*args, **cond), net(*args, **cond))
    print(name)
"""


def test_it_compiles_to_one_graph():
    """In a process without the checks of shapes, which would be traced with the networks.

    These have every option; what is left out is a choice among theirs.
    """
    here = __file__.rsplit("/", 1)[0]
    run = subprocess.run([sys.executable, "-c", COMPILED, here], capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-2000:]
    assert len(run.stdout.split("\n")) == 9 + 1
