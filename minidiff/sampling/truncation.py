"""How far one step of a solver goes wrong, where the step before it was right."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from minidiff.diffusion import Path, flat_mean

from .ancestral import Data
from .ode import Solver, ode


def truncation_error(
    denoise: Callable[..., Tensor],
    path: Path,
    x: Data,
    t: Float[Tensor, ""] | float,
    t_next: Float[Tensor, ""] | float,
    substeps: int = 200,
    solver: Solver = "heun",
    cond: dict[str, Tensor] | None = None,
) -> Float[Tensor, " batch"]:
    """Root mean square over dimensions between one step from x(t) to x(t_next) and many short ones (EDM App. D).

    The ``substeps`` short steps are Euler's, even in t; ``solver`` is the rule of the one step. Returns one number for
    each example. Raises ValueError for fewer than 1 short step.
    """
    if substeps < 1:
        raise ValueError(f"substeps={substeps}: take at least 1.")
    run = lambda n, rule: ode(denoise, x, path, torch.linspace(t, t_next, n + 1, dtype=torch.float64), rule, cond)
    return flat_mean((run(1, solver) - run(substeps, "euler")) ** 2).sqrt()
