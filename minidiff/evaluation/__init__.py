"""How good a trained model is."""

from .likelihood import Bound, likelihood_bound, strata
from .metrics import frechet_distance
from .trajectories import TrajectoryLikelihood, entropy_bounds, null_likelihood, trajectory_likelihood

__all__ = [
    "Bound",
    "TrajectoryLikelihood",
    "entropy_bounds",
    "frechet_distance",
    "likelihood_bound",
    "null_likelihood",
    "strata",
    "trajectory_likelihood",
]
