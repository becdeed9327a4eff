"""Data: images as stored and as seen, and toys whose every answer is known."""

from .images import Images, decode, digits, encode, held_out, load_images
from .toys import Mixture, Points, swiss_roll

__all__ = ["Images", "Mixture", "Points", "decode", "digits", "encode", "held_out", "load_images", "swiss_roll"]
