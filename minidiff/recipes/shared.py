"""What the recipes of several papers share."""

import math

from minidiff.training import TrainingConfig


def half_life(decay: float, batch: int) -> int:
    """In how many images an average that keeps ``decay`` of itself at every step of ``batch`` forgets a half."""
    return round(batch * math.log(0.5) / math.log(decay))


def levels(size: int, *resolutions: int) -> tuple[int, ...]:
    """The levels of a network for images of this size at which features have these resolutions."""
    return tuple(int(math.log2(size // resolution)) for resolution in resolutions)


def openai_training(batch: int, steps: int, lr: float, **more) -> TrainingConfig:
    """As OpenAI trained: the full rate from the first step, gradients as they come, an average of decay 0.9999."""
    return TrainingConfig(
        **{
            "images": batch * steps,
            "batch": batch,
            "lr": lr,
            "ramp": 0,
            "clip_grad": 0.0,
            "ema": (half_life(0.9999, batch),),
            "tick": 1_000 * batch,
            "checkpoint": 10_000 * batch,
            **more,
        }
    )
