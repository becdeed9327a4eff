"""The smallest run that has everything a real one has: two levels, attention, dropout, two averages."""

from pathlib import Path

import torch

from minidiff import Config, Description, GaussianConfig, Images, State, TrainingConfig, UNetConfig, begin
from minidiff.training import time_sampler

SHAPE, LEVELS = (1, 4, 4), 17


def config(**training) -> Config:
    """Batches of 16, a line every 32 images, a checkpoint every 64; dropout is on."""
    settings = {"images": 160, "batch": 16, "lr": 1e-3, "ramp": 100, "ema": (50, 2000), "tick": 32, "checkpoint": 64}
    return Config(
        "digits",
        process=GaussianConfig(T=30),
        network=UNetConfig(channels=4, mult=(1, 2), blocks=1, attention=(1,), dropout=0.3),
        training=TrainingConfig(**{**settings, "seed": 3, **training}),
    )


def images(n: int = 40) -> Images:
    pixels = torch.randint(LEVELS, (n, *SHAPE), generator=torch.Generator().manual_seed(6))
    return Images(pixels.to(torch.uint8), LEVELS)


def describe(config: Config) -> Description:
    return Description(config, SHAPE, LEVELS)


def fresh(config: Config, seed: int = 0) -> State:
    """A state before its first image; ``seed`` decides the initial weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return begin(describe(config).build(), time_sampler(config), config.training)


def weights(state: State) -> dict[str, torch.Tensor]:
    """A copy of every tensor of the model and of its averages."""
    named = {f"model.{key}": value.clone() for key, value in state.model.state_dict().items()}
    for ema in state.emas:
        named |= {f"ema-{ema.half_life}.{key}": value.clone() for key, value in ema.model.state_dict().items()}
    return named


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def without_speed(metrics: list[dict[str, float]]) -> list[dict[str, float]]:
    """What metrics.jsonl says but for what the machine decides."""
    of_machine = {"images_per_second", "flops_per_second", "peak_memory"}
    return [{key: value for key, value in line.items() if key not in of_machine} for line in metrics]
