"""Quality at equal compute: our recipe and three libraries, each on one thread for the same seconds of processor time.

    python chapters/results/equal_compute.py [--continue] [NAME ...]

trains the recipe mnist16, denoising-diffusion-pytorch, diffusers' unconditional example and smalldiffusion on the
training four fifths of 5,000 MNIST digits at 16×16, and writes equal_compute.json beside this file: the Fréchet
distance of the digits extractor between 1,000 samples and the 1,000 held-out digits, both averaged to 8×8, after each
of SECONDS of training. Those that train at the same time take turns of a few seconds; sampling is not counted. The
recipe was chosen by a fifth of the training digits, without the held-out ones.

It needs the extra notebooks, denoising-diffusion-pytorch, smalldiffusion and accelerate, and some minutes for each of
training. Names restrict it to some contenders. Networks are kept in runs/equal_compute, and with --continue what is
there or in the JSON file is not made again.

Each library keeps its own loss, noise schedule, optimiser, learning rate and average. What had to change is said with
it: 16×16 pixels of one channel, a width at which the network is small and still no smaller than ours, fewer steps of
its own sampler. None mirrors the digits, as two of them would unless told otherwise, and images come from memory.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import io
import itertools
import json
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import minidiff as md
from minidiff.plots import BLUE, GREEN, INK, ORANGE, style
from minidiff.recipes import describe
from minidiff.training import time_sampler

SECONDS = (120, 300, 600)
TOLD = 300  # of them, in the title of the picture
SEEDS = (0,)
N, BATCH, TURN = 1000, 250, 5.0  # samples, at a time; seconds
OUT = Path(__file__).with_suffix(".json")
PICTURE = Path(__file__).parents[2] / "book" / "figures" / "equal_compute.png"
NETS = Path("runs/equal_compute")

train, held_out = md.load_data("mnist-16"), md.load_data("mnist-16", "test")
see = md.DigitsExtractor()


def seen(pixels: Tensor) -> Tensor:
    """The extractor's features of 16×16 digits, averaged to the 8×8 that it knows."""
    return see(F.avg_pool2d(pixels.float(), 2).round().to(torch.uint8), 256).pool


def floor(reference: Tensor) -> list[float]:
    """What real digits would get: the distance of each N of the training digits."""
    lots = [seen(train.pixels[k : k + N]) for k in range(0, len(train), N)]
    return [round(md.frechet_distance(lot, reference), 4) for lot in lots]


class Contender(Protocol):
    """``step`` trains on a few batches and says of how many images; ``draw`` makes images in [−1, 1] with a network."""

    net: nn.Module

    def step(self) -> int: ...

    def nets(self) -> dict[str, nn.Module]: ...

    def draw(self, net: nn.Module, seeds: range) -> Tensor: ...


class Ours:
    """The recipe; its learning rate falls to 0 at the end, so that each of SECONDS is a run of its own.

    The number of images is what this machine trains on in that time, by a trial of thirty steps.
    """

    def __init__(self, x: Tensor, seed: int, seconds: float):
        description = describe("mnist16")
        self.training = replace(description.config.training, seed=seed)
        torch.manual_seed(seed)
        self.model = description.build()
        self.begin = lambda: md.begin(deepcopy(self.model), time_sampler(description.config), self.training)
        self.net = self.model.net
        self.state = self.begin()
        self.step()
        began = time.process_time()
        trial = self.step() + self.step()
        images = trial * seconds / (time.process_time() - began)
        self.training = replace(self.training, images=round(images / self.training.batch) * self.training.batch)
        self.state = self.begin()

    def step(self) -> int:
        before = self.state.images
        md.train(self.state, train, self.training, stop=iter([False] * 9 + [True]).__next__)
        return self.state.images - before  # 0 at the end

    def nets(self) -> dict[str, nn.Module]:
        return {"average": self.state.ema}

    def draw(self, net: nn.Module, seeds: range) -> Tensor:
        return md.generate(net.process, net.net, (1, 16, 16), seeds)


class DenoisingDiffusionPytorch:
    """Its Trainer: v-prediction, sigmoid schedule, batch 16, Adam at 1e-4, average 0.995 every 10 steps; DDIM.

    Its U-Net has its four levels and its attention; the width is 8 for 64. Its DDIM takes 25 steps; 100 of
    them, or noise on the way, change little. The average looks back over most of so short a run, hence also the weights
    of the last step.
    """

    def __init__(self, x: Tensor, seed: int, seconds: float):
        from denoising_diffusion_pytorch import GaussianDiffusion, Trainer, Unet

        torch.manual_seed(seed)
        self.net = Unet(8, channels=1)
        diffusion = GaussianDiffusion(self.net, image_size=16, sampling_timesteps=25)
        with tempfile.TemporaryDirectory() as folder:  # it wants to see a hundred files
            for i in range(100):
                Image.new("L", (16, 16)).save(f"{folder}/{i}.png")
            never = {"calculate_fid": False, "save_and_sample_every": 10**9}
            self.trainer = Trainer(diffusion, folder, results_folder=f"{folder}/results", **never)
        batches = DataLoader((x + 1) / 2, batch_size=16, shuffle=True)
        self.trainer.dl = itertools.chain.from_iterable(itertools.repeat(batches))

    def step(self) -> int:
        self.trainer.train_num_steps = self.trainer.step + 10
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):  # it reports a lot
            self.trainer.train()
        return 10 * 16

    def nets(self) -> dict[str, nn.Module]:
        return {"average": self.trainer.ema.ema_model, "last": self.trainer.model}

    def draw(self, net: nn.Module, seeds: range) -> Tensor:
        return 2 * net.sample(batch_size=len(seeds)) - 1


class Diffusers:
    """Its unconditional example: ε of 1,000 steps, batch 16, AdamW at 1e-4 after 500 steps, falling as a cosine over 100
    epochs, average by powers up to 0.9999; its own chain in 100 steps, no worse here than in 250, where DDIM draws
    little but noise.

    Its U-Net has three levels for six, which 16×16 pixels do not have, of 16, 32 and 48 channels in groups of 16, and
    its attention where it is, in the last level but one.
    """

    def __init__(self, x: Tensor, seed: int, seconds: float):
        from diffusers import DDPMScheduler, UNet2DModel
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel

        torch.manual_seed(seed)
        self.net = UNet2DModel(
            sample_size=16,
            in_channels=1,
            out_channels=1,
            layers_per_block=2,
            block_out_channels=(16, 32, 48),
            norm_num_groups=16,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        )
        self.scheduler = DDPMScheduler(num_train_timesteps=1000)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6)
        batches = DataLoader(x, batch_size=16, shuffle=True)
        self.rate = get_scheduler("cosine", self.optimizer, num_warmup_steps=500, num_training_steps=100 * len(batches))
        self.ema = EMAModel(self.net.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
        self.batches = itertools.chain.from_iterable(itertools.repeat(batches))

    def step(self) -> int:
        x = next(self.batches)
        noise, t = torch.randn_like(x), torch.randint(0, 1000, (len(x),))
        loss = F.mse_loss(self.net(self.scheduler.add_noise(x, noise, t), t).sample, noise)
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self.rate.step()
        self.optimizer.zero_grad()
        self.ema.step(self.net.parameters())
        return len(x)

    def nets(self) -> dict[str, nn.Module]:
        net = deepcopy(self.net)
        self.ema.copy_to(net.parameters())
        return {"average": net, "last": self.net}

    def draw(self, net: nn.Module, seeds: range) -> Tensor:
        from diffusers import DDPMPipeline

        pipeline = DDPMPipeline(net, self.scheduler)
        pipeline.set_progress_bar_config(disable=True)
        images = pipeline(batch_size=len(seeds), num_inference_steps=100, output_type="np").images
        return 2 * torch.from_numpy(images).permute(0, 3, 1, 2) - 1


class SmallDiffusion:
    """Its U-Net example for Fashion-MNIST: ε, 800 levels of σ from 0.01 to 20, AdamW at 7e-4, average 0.999 with its
    ramp; its own sampler in 20 steps with γ = 1.6.

    The width is 32 for 64, the least that its norms of 32 groups take, and attention is at 8×8 for 14×14. Batches are
    of 64, because its 1,024 would make fewer than fifty steps in five minutes; hence also the weights of the last step.
    """

    def __init__(self, x: Tensor, seed: int, seconds: float):
        from smalldiffusion import Scaled, ScheduleLogLinear, Unet, training_loop

        torch.manual_seed(seed)
        self.net = Scaled(Unet)(16, 1, 1, ch=32, ch_mult=(1, 1, 2), attn_resolutions=(8,))
        self.mean, self.steps = deepcopy(self.net), 0
        self.schedule = ScheduleLogLinear(N=800, sigma_min=0.01, sigma_max=20)
        self.loop = training_loop(DataLoader(x, batch_size=64, shuffle=True), self.net, self.schedule, lr=7e-4)

    @torch.no_grad()
    def step(self) -> int:
        with torch.enable_grad():
            images = len(next(self.loop).x0)
        self.steps += 1
        decay = min(0.999, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(list(self.mean.parameters()), list(self.net.parameters()), 1 - decay)
        return images

    def nets(self) -> dict[str, nn.Module]:
        return {"average": self.mean, "last": self.net}

    def draw(self, net: nn.Module, seeds: range) -> Tensor:
        from smalldiffusion import samples

        *_, x = samples(net, self.schedule.sample_sigmas(20), gam=1.6, batchsize=len(seeds))
        return x


CONTENDERS: dict[str, Callable[[Tensor, int, float], Contender]] = {
    "minidiff": Ours,
    "denoising-diffusion-pytorch": DenoisingDiffusionPytorch,
    "diffusers": Diffusers,
    "smalldiffusion": SmallDiffusion,
}


@dataclass
class Run:
    """A contender on its way through some of SECONDS of its own processor time."""

    name: str
    seed: int
    budgets: tuple[int, ...]
    contender: Contender | None = None
    randomness: Tensor | None = None
    spent: float = 0.0
    images: int = 0

    def file(self, seconds: int) -> Path:
        return NETS / f"{self.name}-{self.seed}-{seconds}.pt"

    def turn(self) -> bool:
        """Train for some seconds, and keep the networks where a budget is used up; whether there is more to come."""
        if self.contender is None:
            self.contender = CONTENDERS[self.name](train.x, self.seed, max(self.budgets))
            self.randomness = torch.get_rng_state()
        torch.set_rng_state(self.randomness)
        ended, began, until = False, time.process_time(), min(TURN, self.budgets[0] - self.spent)
        while not ended and time.process_time() - began < until:
            images = self.contender.step()
            self.images, ended = self.images + images, images == 0
        self.spent += time.process_time() - began
        self.randomness = torch.get_rng_state()
        if ended or self.spent >= self.budgets[0]:
            nets = {name: net.state_dict() for name, net in self.contender.nets().items()}
            kept = {"seconds": self.budgets[0], "spent": self.spent, "images": self.images, "nets": nets}
            torch.save(kept, self.file(self.budgets[0]))
            self.budgets = self.budgets[1:]
        return bool(self.budgets)


def runs(name: str, seed: int) -> list[Run]:
    """One through all of SECONDS, or one for each where the learning rate knows its end."""
    return [Run(name, seed, budgets) for budgets in ([(s,) for s in SECONDS] if name == "minidiff" else [SECONDS])]


def judged(name: str, seed: int, kept: dict, reference: Tensor) -> dict:
    """A row: the distance of N samples of each of the networks."""
    contender, found = CONTENDERS[name](train.x, seed, kept["seconds"]), {}
    for which, net in contender.nets().items():
        net.load_state_dict(kept["nets"][which])
        torch.manual_seed(seed)
        parts = [contender.draw(net.eval(), range(k, k + BATCH)) for k in range(0, N, BATCH)]
        found[which] = round(md.frechet_distance(seen(md.decode(torch.cat(parts).float(), 256)), reference), 4)
    row = {"parameters": sum(p.numel() for p in contender.net.parameters()), "images": kept["images"]}
    return row | {"spent": round(kept["spent"], 1), "distance": found}


def best(rows: dict, name: str, seconds: int) -> list[float]:
    """For each seed the least distance of a contender's networks."""
    return [min(rows[f"{name}, {seed}, {seconds}"]["distance"].values()) for seed in SEEDS]


def picture(results: dict) -> Figure:
    """Distance against minutes of training, and as the title which share of the least of the others' ours is."""
    style()
    figure, ax = plt.subplots(figsize=(6.4, 3.4))
    mean = {name: [sum(best(results["rows"], name, s)) / len(SEEDS) for s in SECONDS] for name in CONTENDERS}
    at = SECONDS.index(TOLD)
    factor = min(values[at] for name, values in mean.items() if name != "minidiff") / mean["minidiff"][at]
    looks = zip((BLUE, ORANGE, GREEN, INK), "osD^", (0, 0, -5, 5), strict=True)  # the last two names would overlap
    for (name, values), (colour, mark, up) in zip(mean.items(), looks, strict=True):
        ax.plot(SECONDS, values, color=colour, marker=mark, linewidth=2.4 if name == "minidiff" else 1.4)
        ax.annotate(name, (SECONDS[-1], values[-1]), (7, up), textcoords="offset points", va="center", color=colour)
    real = sum(results["training_digits"]) / len(results["training_digits"])
    ax.axhline(real, color=INK, linewidth=0.8, linestyle=":")
    ax.annotate("as many real digits", (SECONDS[0], real), (0, 3), textcoords="offset points", fontsize=8.5)
    ax.set(xscale="log", yscale="log", xlim=(SECONDS[0] * 0.93, SECONDS[-1] * 2.3))
    ax.set(xlabel="minutes of training on one thread", ylabel="Fréchet distance to held-out digits")
    ax.set_xticks(SECONDS, [f"{s // 60}" for s in SECONDS])
    ax.minorticks_off()
    ax.set_title(f"After {TOLD // 60} minutes minidiff's distance is 1/{int(factor)} of the next one's")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description="Quality at equal compute.")
    parser.add_argument("names", nargs="*", help="contenders; all unless given")
    parser.add_argument("--continue", action="store_true", dest="goes_on", help="make nothing again that is there")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    packages = [*list(CONTENDERS)[1:], "accelerate", "ema-pytorch", "torch"]
    reference = seen(held_out.pixels)
    results = {
        "command": "python chapters/results/equal_compute.py",
        "seeds": SEEDS,
        "n": N,
        "reference": "the 1,000 held-out digits, averaged to 8×8",
        "commit": commit,
        "machine": f"1 thread of {platform.machine()}",
        "date": datetime.date.today().isoformat(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "training_digits": floor(reference),
        "rows": {},
    }
    if asked.goes_on and OUT.exists():
        results["rows"] = json.loads(OUT.read_text())["rows"]
    NETS.mkdir(parents=True, exist_ok=True)
    entered = [run for seed in SEEDS for name in asked.names or CONTENDERS for run in runs(name, seed)]
    waiting = [run for run in entered if not (asked.goes_on and all(run.file(s).exists() for s in run.budgets))]
    while waiting:
        waiting = [run for run in waiting if run.turn()]
    for name in asked.names or CONTENDERS:
        for seed, seconds in itertools.product(SEEDS, SECONDS):
            key, file = f"{name}, {seed}, {seconds}", Run(name, seed, ()).file(seconds)
            if not (asked.goes_on and key in results["rows"]):
                results["rows"][key] = judged(name, seed, torch.load(file, weights_only=True), reference)
                print(key, results["rows"][key], flush=True)
                OUT.write_text(json.dumps(results) + "\n")
    if len(results["rows"]) < len(CONTENDERS) * len(SEEDS) * len(SECONDS):
        return
    PICTURE.parent.mkdir(exist_ok=True)
    picture(results).savefig(PICTURE, dpi=120, metadata={"Software": None})


if __name__ == "__main__":
    main()
