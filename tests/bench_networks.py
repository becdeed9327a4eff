"""How fast the U-Net is beside diffusers' of the same shape, on one thread, and where its time goes.

    OMP_NUM_THREADS=1 .venv/bin/python tests/bench_networks.py

The networks take turns, so that whatever else the machine does meets all of them; a figure is the median of a network's
turns in process time, and what counts are the ratios. Run it on an idle machine: the caches are shared. The first run
also compiles, which needs a C++ compiler and some minutes; add ``--eager`` to do without.
"""

import argparse
from collections.abc import Callable
from statistics import median
from time import process_time

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from minidiff import UNet

BATCH, SIZE, ROUNDS = 16, 32, 9


def ours() -> UNet:
    """ADM's kind of network: 3.2 GFLOPs an image."""
    return UNet(3, 6, 64, (1, 2, 2), 2, (1, 2), dropout=0.0, heads=4, inject="scale", convention="openai")


def diffusers() -> UNet2DModel:
    """The same but for the norm in front of the middle's attention, which it leaves out unless told otherwise."""
    return UNet2DModel(
        in_channels=3,
        out_channels=6,
        layers_per_block=2,
        block_out_channels=(64, 128, 128),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
        attn_norm_num_groups=32,
        resnet_time_scale_shift="scale_shift",
        downsample_padding=1,
        freq_shift=0,
        flip_sin_to_cos=True,
    )


def drawn(net: nn.Module) -> nn.Module:
    """With every weight drawn at random: a network that starts at zero has gradients of zero."""
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        fan = parameter[0].numel() if parameter.ndim > 1 else 4
        parameter.data = torch.randn(parameter.shape, generator=generator) / fan**0.5
    return net


class Case:
    """A network with its optimiser and input, in one memory format, compiled or not."""

    def __init__(self, net: nn.Module, memory_format: torch.memory_format, compiled: bool = False):
        self.x = torch.randn(BATCH, 3, SIZE, SIZE).contiguous(memory_format=memory_format)
        self.t = torch.linspace(0, 999, BATCH)
        self.net = drawn(net).to(memory_format=memory_format)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-6, fused=True)
        self.run = torch.compile(self.net, fullgraph=isinstance(net, UNet)) if compiled else self.net

    def forward(self) -> Tensor:
        answer = self.run(self.x, self.t)
        return answer if isinstance(answer, Tensor) else answer.sample

    @torch.no_grad()
    def sample(self) -> None:
        self.forward()

    def train(self) -> None:
        self.optimizer.zero_grad()
        self.forward().square().mean().backward()
        self.optimizer.step()


def seconds(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """The median process time of each call, in turns after one to warm up."""
    times = {name: [] for name in calls}
    for turn in range(ROUNDS + 1):
        for name, call in calls.items():
            start = process_time()
            call()
            if turn:
                times[name].append(process_time() - start)
    return {name: median(each) for name, each in times.items()}


def flops() -> int:
    """Of one forward pass; on ``meta``, where attention is counted."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        ours()(torch.zeros(BATCH, 3, SIZE, SIZE), torch.zeros(BATCH))
    return counter.get_total_flops()


def table(cases: dict[str, Case]) -> None:
    """Time, time of diffusers' eager network over it, and the share of the machine's rate, for both kinds of pass."""
    a, b = torch.randn(2, 2048, 2048)
    for title, forwards, calls in (
        ("forward", 1, {name: case.sample for name, case in cases.items()}),
        ("training step (three forwards' operations)", 3, {name: case.train for name, case in cases.items()}),
    ):
        took = seconds({"product": lambda: a @ b, **calls})
        rate = 2 * 2048**3 / took.pop("product")
        print(f"\nfloat32 products of 2,048 × 2,048 in between: {rate / 1e9:.0f} GFLOP/s")
        print(f"{title:<44}{'ms':>8}{'× diffusers':>14}{'of the rate':>14}")
        for name, s in took.items():
            print(f"  {name:<42}{1e3 * s:8.0f}{took['diffusers'] / s:14.2f}{forwards * flops() / s / rate:14.2f}")


def where(case: Case) -> None:
    """The operations that take most of a training step."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        case.train()
    rows = sorted(profiled.key_averages(), key=lambda row: -row.self_cpu_time_total)
    total = sum(row.self_cpu_time_total for row in rows)
    for row in rows[:14]:
        print(f"  {row.key[:60]:<62}{row.count:6}{row.self_cpu_time_total / total:8.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description="The U-Net's speed beside diffusers'.")
    parser.add_argument("--eager", action="store_true", help="compile nothing")
    eager_only = parser.parse_args().eager
    torch.set_num_threads(1)
    last = torch.channels_last
    cases = {
        "diffusers": Case(diffusers(), torch.contiguous_format),
        "minidiff": Case(ours(), torch.contiguous_format),
        "diffusers, channels last": Case(diffusers(), last),
        "minidiff, channels last": Case(ours(), last),
    }
    if not eager_only:
        cases["diffusers, channels last, compiled"] = Case(diffusers(), last, compiled=True)
        cases["minidiff, channels last, compiled"] = Case(ours(), last, compiled=True)
    sizes = {name: sum(p.numel() for p in case.net.parameters()) for name, case in cases.items()}
    print(f"{set(sizes.values())} parameters, {flops() / BATCH / 1e9:.2f} GFLOPs an image, batch {BATCH}")
    table(cases)
    for name in ("minidiff", list(cases)[-1]):
        print(f"\na training step of {name}: operation, calls, share of the time")
        where(cases[name])


if __name__ == "__main__":
    main()
