"""How good a trained model is."""

from .denoising import denoising_error, gaussian_error
from .features import INCEPTION_SHA256, DigitsExtractor, Extractor, Features, InceptionExtractor
from .image_sets import ImageSet, open_images
from .level_losses import level_losses
from .likelihood import Bound, likelihood_bound, strata
from .manifold import precision_recall
from .metrics import Moments, frechet_distance, inception_score, kernel_distance
from .ode_likelihood import bits_per_dim, dequantise, ode_decode, ode_encode, ode_log_prob, rademacher
from .reference import Reference, open_reference
from .sample_folder import Kind, SampleFolder
from .score import METRICS, Scores, check, check_metrics, compare, evaluate
from .trajectories import TrajectoryLikelihood, entropy_bounds, null_likelihood, trajectory_likelihood
