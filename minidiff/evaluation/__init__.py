"""How good a trained model is."""

from .likelihood import Bound, likelihood_bound, strata

__all__ = ["Bound", "likelihood_bound", "strata"]
