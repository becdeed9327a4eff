"""How fast training is beside the bare network and beside other trainers, alone and in twos, on one thread a process.

    OMP_NUM_THREADS=1 .venv/bin/python tests/bench_training.py [step] [others] [compiled] [two]

names the parts to measure (all). Rivals take turns after every one of our steps, so that whatever else the machine does
meets all of them; a figure is the median, over the rounds, of a ratio of process times in one round. The network is
half as wide as that of ddpm-cifar10; ``digits``, where each image costs next to nothing, is the worst case.

``others`` and ``compiled`` need accelerate, ema-pytorch and denoising-diffusion-pytorch, which minidiff does not; and
``compiled`` a C++ compiler. chapters/results/training_speed.py keeps what is measured.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from minidiff import Description, Images, processes, recipe
from minidiff.processes import process_group
from minidiff.training import Execution, State, begin, distributed, time_sampler, train
from minidiff.training.loop import train_step

BATCH = 16  # denoising-diffusion-pytorch takes no less
ROUNDS = {"step": {"digits": 60, "ddpm-cifar10, half": 7}, "others": 5, "compiled": 5, "two": 5}
LEVELS = {"digits": 17, "ddpm-cifar10, half": 256}

Times = dict[str, list[float]]


def description(name: str, batch: int) -> Description:
    """digits as it is, or ddpm-cifar10 at half its width."""
    config = recipe(name.split(",")[0])
    if name == "digits":
        return Description(config, (1, 8, 8), LEVELS[name])
    network, training = replace(config.network, channels=64), replace(config.training, batch=batch)
    return Description(replace(config, network=network, training=training), (3, 32, 32), LEVELS[name])


def images(of: Description) -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(of.levels, (512, *of.shape), generator=generator).to(torch.uint8)
    return Images(pixels, of.levels, flip=of.config.data.flip)


def fresh(of: Description, compile: bool = False) -> State:
    torch.manual_seed(0)
    return begin(of.build(), time_sampler(of.config), of.config.training, Execution(compile=compile))


def in_turns(of: Description, rounds: int, rivals: dict[str, Callable[[], object]], compile: bool = False) -> Times:
    """Process times of our whole step and of each rival's: a real run, with its lines, and a turn after each step."""
    batch, state = of.config.training.batch, fresh(of, compile)
    took: Times = {name: [] for name in ("minidiff", *rivals)}
    began = process_time()

    def turn(_: State) -> None:
        nonlocal began
        took["minidiff"].append(process_time() - began)
        for name, step in rivals.items():
            began = process_time()
            step()
            took[name].append(process_time() - began)
        began = process_time()

    config = replace(of.config.training, images=batch * (rounds + 2), checkpoint=10**9)
    with tempfile.TemporaryDirectory() as run:
        train(state, images(of), config, run, replace(of, config=replace(of.config, training=config)), on_step=turn)
    return {name: each[2:] for name, each in took.items()}  # the first two make buffers, and compile


def ratio(took: Times, over: str, under: str) -> float:
    return median(a / b for a, b in zip(took[over], took[under], strict=True))


# ---- the bare network -----------------------------------------------------------------------------------------------


class Bare:
    """Forward and backward passes and nothing else: of a noisy batch that is there, to a mean squared error."""

    def __init__(self, of: Description):
        batch = of.config.training.batch
        self.net = deepcopy(fresh(of).model.net).train()
        self.x, self.noise = torch.randn(2, batch, *of.shape)
        self.t = torch.linspace(0, 999, batch)

    def __call__(self) -> None:
        for parameter in self.net.parameters():
            parameter.grad = None
        F.mse_loss(self.net(self.x, self.t), self.noise).backward()


def step(name: str) -> Times:
    of = description(name, BATCH)
    return in_turns(of, ROUNDS["step"][name], {"bare": Bare(of)})


# ---- other trainers -------------------------------------------------------------------------------------------------


class Diffusers:
    """A step as diffusers' unconditional example takes it, with its classes and settings, of its own network.

    It is of our shape. Images are in memory and come without augmentation, and no log is written.
    """

    def __init__(self, of: Description, compile: bool = False):
        from accelerate import Accelerator
        from diffusers import DDPMScheduler, UNet2DModel
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel
        from torch.utils.data import DataLoader, TensorDataset

        net = UNet2DModel(
            in_channels=3,
            out_channels=3,
            layers_per_block=2,
            block_out_channels=(64, 128, 128, 128),
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=128,
            downsample_padding=0,
            dropout=of.config.network.dropout,
        )
        self.parameters = sum(p.numel() for p in net.parameters())
        if compile:
            net.compile()
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
        schedule = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=100_000)
        loader = DataLoader(TensorDataset(images(of).x), of.config.training.batch, shuffle=True, drop_last=True)
        self.accelerator, self.noising = Accelerator(cpu=True), DDPMScheduler(1000)
        self.net, self.optimizer, self.loader, self.schedule = self.accelerator.prepare(
            net.train(), optimizer, loader, schedule
        )
        self.ema = EMAModel(net.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
        self.batches = iter(())

    def batch(self) -> Tensor:
        for (x,) in self.batches:
            return x
        self.batches = iter(self.loader)
        return self.batch()

    def __call__(self) -> None:
        x = self.batch()
        noise, t = torch.randn(x.shape), torch.randint(0, 1000, (len(x),))
        with self.accelerator.accumulate(self.net):
            loss = F.mse_loss(self.net(self.noising.add_noise(x, noise, t), t).sample, noise)
            self.accelerator.backward(loss)
            self.accelerator.clip_grad_norm_(self.net.parameters(), 1.0)
            self.optimizer.step()
            self.schedule.step()
            self.ema.step(self.net.parameters())
            self.optimizer.zero_grad()
        loss.item()


class AsTheirs(nn.Module):
    """Our network as denoising-diffusion-pytorch speaks to one."""

    channels, out_dim, self_condition, random_or_learned_sinusoidal_cond = 3, 3, False, False

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor, x_self_cond: None = None) -> Tensor:
        return self.net(x, t.float())


class DenoisingDiffusion:
    """A step of denoising-diffusion-pytorch's Trainer, of our own network: its own has no counterpart of that shape.

    Its images come from files, read by processes whose time does not count here.
    """

    def __init__(self, of: Description, folder: str, compile: bool = False):
        from denoising_diffusion_pytorch import GaussianDiffusion, Trainer

        for k, pixels in enumerate(images(of).pixels.permute(0, 2, 3, 1).numpy()):
            Image.fromarray(pixels).save(f"{folder}/{k}.png")
        net = fresh(of).model.net.train()
        if compile:
            net.compile()
        batch, size = of.config.training.batch, of.shape[1]
        diffusion = GaussianDiffusion(AsTheirs(net), image_size=size, timesteps=1000, objective="pred_noise")
        self.trainer = Trainer(
            diffusion, folder, train_batch_size=batch, calculate_fid=False, results_folder=f"{folder}/results"
        )

    def __call__(self) -> None:
        self.trainer.train_num_steps = self.trainer.step + 1
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            self.trainer.train()


def others(compile: bool = False) -> Times:
    """Each as it comes; or ours compiled, and theirs as they come and compiled."""
    of = description("ddpm-cifar10, half", BATCH)
    example = Diffusers(of)
    assert example.parameters == sum(p.numel() for p in fresh(of).model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        rivals = {"diffusers": example, "denoising-diffusion": DenoisingDiffusion(of, folder)}
        if compile:
            rivals["diffusers, compiled"] = Diffusers(of, compile=True)
            rivals["denoising-diffusion, compiled"] = DenoisingDiffusion(of, folder, compile=True)
        return in_turns(of, ROUNDS["compiled" if compile else "others"], rivals, compile)


# ---- two processes --------------------------------------------------------------------------------------------------


def two() -> Times:
    """Wall-clock and process time of a step of 2 × BATCH images in turns: one process does it alone while the other
    sleeps; two share it; and each does its half without a word to the other, which is as fast as this machine can be.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__, "two"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(ended.stdout.splitlines()[-1])


def one_of_two() -> None:
    """What each of two processes does; the first one prints it."""
    of = description("ddpm-cifar10, half", 2 * BATCH)
    share, whole = of.config.training, replace(of.config.training, batch=4 * BATCH)  # halved by train_step
    data, single, joint = images(of), fresh(of), fresh(of)
    joined = distributed.joined(joint.model.train())
    ways = {
        "alone": lambda: processes.rank() or train_step(single, data, whole, single.model.train()),
        "shared": lambda: train_step(joint, data, share, joined),
        "apart": lambda: train_step(single, data, share, single.model.train()),
    }
    took: Times = {f"{way}, {clock}": [] for way in ways for clock in ("wall", "process")}
    for _ in range(ROUNDS["two"] + 1):
        for way, run in ways.items():
            processes.any_of(False)
            wall, process = perf_counter(), process_time()
            run()
            process = process_time() - process
            processes.any_of(False)  # the slower one decides
            took[f"{way}, wall"].append(perf_counter() - wall)
            mean = processes.mean(torch.tensor(process, dtype=torch.float64)).item()
            took[f"{way}, process"].append(2 * mean if way == "alone" else mean)
    if processes.rank() == 0:
        print(json.dumps({name: each[1:] for name, each in took.items()}))


# ---- what comes of it -----------------------------------------------------------------------------------------------


def measure(parts: list[str]) -> Iterator[tuple[str, Times]]:
    """Each part that is named, or all, and what it took."""
    calls = {f"step, {name}": partial(step, name) for name in LEVELS}
    calls |= {"others": others, "compiled": partial(others, compile=True), "two": two}
    for name, call in calls.items():
        if not parts or name.split(",")[0] in parts:
            yield name, call()


def rows(name: str, took: Times) -> list[tuple[str, float, str]]:
    """What a part compares, the ratio, and the target if there is one."""
    if name.startswith("step"):
        what = f"{name.removeprefix('step, ')}: whole step / bare passes"
        return [(what, ratio(took, "minidiff", "bare"), "≤ 1.05")]
    if name == "two":
        pairs = [(way, clock) for clock in ("wall", "process") for way in ("shared", "apart")]
        return [
            (
                f"one process / two that {'share the batch' if way == 'shared' else 'never speak'}, {clock} time",
                ratio(took, f"alone, {clock}", f"{way}, {clock}"),
                "≥ 1.7" if (way, clock) == ("shared", "wall") else "",
            )
            for way, clock in pairs
        ]
    ours, target = ("minidiff compiled", "≥ 1.15") if name == "compiled" else ("minidiff", "≥ 1")
    rivals = [rival for rival in took if rival != "minidiff"]
    return [(f"step of {rival} / {ours}", ratio(took, rival, "minidiff"), target) for rival in rivals]


def main() -> None:
    parser = argparse.ArgumentParser(description="The speed of training.")
    parser.add_argument("parts", nargs="*", help="step, others, compiled, two; all by default")
    parts = parser.parse_args().parts
    torch.set_num_threads(1)
    if "WORLD_SIZE" in os.environ:
        with process_group(torch.device("cpu")):
            return one_of_two()
    for name, took in measure(parts):
        print(f"\n{name}: " + ", ".join(f"{key} {1e3 * median(each):.0f} ms" for key, each in took.items()))
        for what, value, target in rows(name, took):
            print(f"  {what:<62}{value:8.3f}   {target}", flush=True)


if __name__ == "__main__":
    main()
