"""How good a trained model is."""

from .likelihood import Bound, likelihood_bound, strata
from .metrics import frechet_distance

__all__ = ["Bound", "frechet_distance", "likelihood_bound", "strata"]
