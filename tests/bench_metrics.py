"""How long the metrics take beside torch-fidelity's, from the same features, on one thread.

    OMP_NUM_THREADS=1 .venv/bin/python -m pytest tests/bench_metrics.py --benchmark-columns=min,median,max

pytest collects this file only when it is named. Each group is one table; the figure in brackets is the ratio to the
fastest line of that table, which is what counts: seconds of different machines or hours do not compare. It takes about
2 minutes and 3 GB.
"""

import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from minidiff import Moments, frechet_distance, kernel_distance, precision_recall


def features(n: int, seed: int) -> torch.Tensor:
    """Non-negative float32, as the pooled features of Inception are."""
    return torch.randn(n, 2048, generator=torch.Generator().manual_seed(seed)).relu_()


@pytest.fixture(scope="module")
def many() -> torch.Tensor:
    return features(50_000, 0)


@pytest.fixture(scope="module")
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    return features(10_000, 1), features(10_000, 2) * 0.9


@pytest.mark.benchmark(group="mean and covariance of 50,000 × 2,048")
@pytest.mark.parametrize("whose", ["minidiff", "torch-fidelity"])
def test_moments(whose, benchmark, many):
    run = {"minidiff": Moments.of, "torch-fidelity": fid_features_to_statistics}[whose]
    benchmark.pedantic(run, (many,), rounds=4)


@pytest.mark.benchmark(group="Fréchet distance from moments of 2,048 dimensions")
@pytest.mark.parametrize("whose", ["minidiff", "torch-fidelity"])
def test_frechet(whose, benchmark, pair):
    if whose == "minidiff":
        benchmark.pedantic(frechet_distance, [Moments.of(x) for x in pair], rounds=2)
    else:
        benchmark.pedantic(fid_statistics_to_metric, [*map(fid_features_to_statistics, pair), False], rounds=2)


@pytest.mark.benchmark(group="kernel distance, 10 subsets of 1,000 × 2,048")
@pytest.mark.parametrize("whose", ["minidiff", "torch-fidelity"])
def test_kernel(whose, benchmark, pair):
    settings = {"kid_subsets": 10, "kid_subset_size": 1000, "rng_seed": 0, "verbose": False}
    if whose == "minidiff":
        benchmark.pedantic(kernel_distance, (*pair, torch.Generator(), 10), rounds=3)
    else:
        benchmark.pedantic(kid_features_to_metric, pair, settings, rounds=3)


@pytest.mark.benchmark(group="precision and recall of 10,000 × 10,000 × 2,048")
@pytest.mark.parametrize("whose", ["minidiff", "torch-fidelity"])
def test_manifold(whose, benchmark, pair):
    settings = {"prc_neighborhood": 3, "prc_batch_size": 10_000, "save_cpu_ram": False, "verbose": False}
    if whose == "minidiff":
        benchmark.pedantic(precision_recall, pair, rounds=1)
    else:
        benchmark.pedantic(prc_features_to_metric, pair, settings, rounds=1)
