"""Every test runs with the library's shapes and types checked at run time, on one thread, without a display."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start: their sums must round as ours do

import jaxtyping
import matplotlib
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
matplotlib.use("Agg")  # here and not in the environment, which the kernels of the chapters inherit
jaxtyping.install_import_hook("minidiff", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

settings.register_profile("same every time", deadline=None, derandomize=True, database=None, max_examples=60)
settings.load_profile("same every time")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device here"))


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(2020)


@pytest.fixture
def float64():
    """New modules and tensors are float64 inside the test."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
