"""One step against many: on Gaussian data along σ = t both sides are known."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from minidiff import EDMPath, VPPath, truncation_error

S = 0.5
denoise = lambda x, sigma, **cond: S**2 / (S**2 + sigma**2) * x + sum(cond.values())
slope = lambda t: t / (t**2 + S**2)  # dx/dt over x


def factor(solver: str, t: float, t_next: float) -> float:
    """What one step multiplies x with."""
    h = t_next - t
    euler = 1 + h * slope(t)
    return euler if solver == "euler" else 1 + h * (slope(t) + euler * slope(t_next)) / 2


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("t, t_next", [(3.0, 2.0), (0.5, 0.3)])
def test_it_is_the_distance_to_many_short_steps(solver, t, t_next, generator):
    """200 short ones unless told otherwise, and these are near the solution itself."""
    x = torch.randn(4, 2, 3, generator=generator, dtype=torch.float64) * torch.tensor([1, 2, 3, 4]).reshape(4, 1, 1)
    size = x.square().mean((1, 2)).sqrt()
    for told, n in (({}, 200), ({"substeps": 7}, 7)):
        short = np.prod([factor("euler", a, b) for a, b in pairwise(np.linspace(t, t_next, n + 1))])
        found = truncation_error(denoise, EDMPath(), x, t, torch.tensor(t_next), **told, solver=solver)
        torch.testing.assert_close(found, abs(factor(solver, t, t_next) - short) * size)
        solution = ((t_next**2 + S**2) / (t**2 + S**2)) ** 0.5
        assert short == pytest.approx(solution, rel=0.1 / n)


def test_euler_against_one_euler_step_is_nothing(generator):
    x = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    assert (truncation_error(denoise, VPPath(), x, 0.5, 0.4, 1, "euler") == 0).all()
    assert (truncation_error(denoise, VPPath(), x, 0.5, 0.4, 1, "heun") > 0).all()


def test_conditions_and_the_path_are_those_of_the_solver(generator):
    x = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    plain = truncation_error(denoise, EDMPath(), x, 2.0, 1.0)
    told = truncation_error(denoise, EDMPath(), x, 2.0, 1.0, cond={"labels": torch.ones(1)})
    assert not torch.allclose(plain, told)
    assert not torch.allclose(plain, truncation_error(denoise, VPPath(), x, 0.5, 0.4))
    to_zero = truncation_error(denoise, EDMPath(), x, 0.01, 0.0)
    assert torch.isfinite(to_zero).all()


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="substeps=0"):
        truncation_error(denoise, EDMPath(), torch.ones(1, 1), 1.0, 0.5, 0)
