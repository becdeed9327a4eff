"""From noise to data."""

from .ancestral import ancestral
from .generate import generate
from .noise import batch_noise, per_image_noise
from .posteriors import Posterior, known

__all__ = ["Posterior", "ancestral", "batch_noise", "generate", "known", "per_image_noise"]
