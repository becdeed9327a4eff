"""From noise to data."""

from .ancestral import ancestral
from .generate import generate
from .noise import batch_noise, per_image_noise

__all__ = ["ancestral", "batch_noise", "generate", "per_image_noise"]
