"""The Fréchet distance against scipy's matrix square root and against closed forms."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from minidiff import frechet_distance


def vectors(n: int, generator: torch.Generator) -> torch.Tensor:
    mix = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    return torch.randn(n, 5, generator=generator, dtype=torch.float64) @ mix + torch.arange(5.0)


def test_it_is_the_formula_with_a_matrix_square_root(generator):
    a, b = vectors(60, generator).numpy(), vectors(40, generator).numpy()
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real)
    assert frechet_distance(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(expected, rel=1e-9)


def test_a_shift_counts_its_square_and_a_scale_the_difference_of_deviations(generator):
    a = vectors(50, generator)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    shift = torch.tensor([1.0, 0.0, -2.0, 0.0, 0.5], dtype=torch.float64)
    assert frechet_distance(a, a + shift) == pytest.approx(5.25, abs=1e-9)
    scaled = a.mean(0) + 3 * (a - a.mean(0))
    assert frechet_distance(a, scaled) == pytest.approx(4 * torch.cov(a.T).trace().item(), rel=1e-9)


def test_singular_covariances_and_single_dimensions_are_no_obstacle():
    line = torch.linspace(0, 1, 10).double()[:, None]
    assert frechet_distance(line, line + 2) == pytest.approx(4)
    flat = torch.cat([line, torch.zeros_like(line)], dim=1)
    assert frechet_distance(flat, flat.flip(1)) == pytest.approx(2 * 0.25 + 2 * line.var().item())


def test_a_single_vector_is_refused():
    with pytest.raises(ValueError, match="1 and 5 vectors"):
        frechet_distance(torch.zeros(1, 3), torch.zeros(5, 3))
