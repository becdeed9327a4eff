"""Which sampler ``minidiff sample`` and its like draw with."""

from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

from torch import Tensor, nn

from minidiff.cli.solvers import Denoise, Solver, SolverOptions, check_flags, choose_solver
from minidiff.diffusion import EDM, GaussianDiffusion, respace, sections, subsequence
from minidiff.diffusion.timesteps import Spacing
from minidiff.sampling import ancestral, ddim
from minidiff.training import Model

Sampler = Literal["ancestral", "ddim"] | Solver


def usual_sampler(model: Model) -> Sampler:
    """Ancestral, or heun for EDM, which has no chain."""
    return "heun" if isinstance(model.process, EDM) else "ancestral"


def choose_sampler(
    model: Model,
    name: Sampler,
    steps: str | None,
    eta: float | None = None,
    spacing: Spacing | None = None,
    guided: Callable[[Denoise], Denoise] = lambda denoise: denoise,
    solver: SolverOptions | None = None,
) -> tuple[nn.Module, Callable[..., Tensor]]:
    """The process and the sampler that ``generate`` takes, for these flags; ``guided`` is done to a solver's denoiser.

    Raises ValueError for flags that do not fit together, or not the process.
    """
    process = model.process
    for flag, value in (("eta", eta), ("spacing", spacing)):
        if value is not None and name != "ddim":
            raise ValueError(f"--{flag} {value}: only --sampler ddim has that choice.")
    solver = solver or SolverOptions()
    check_flags(name, solver)
    if name in get_args(Solver):
        return process, choose_solver(model, name, steps, solver, guided)
    if isinstance(process, EDM):
        raise ValueError(f"--sampler {name}: EDM has no chain; take one of {', '.join(get_args(Solver))}.")
    if name == "ancestral":
        if steps is not None:
            if not isinstance(process, GaussianDiffusion):
                raise ValueError(f"--steps {steps}: a {type(process).__name__} walks its whole chain.")
            process = respace(process, steps)
        return process, ancestral
    if not isinstance(process, GaussianDiffusion):
        raise ValueError(f"--sampler {name}: a {type(process).__name__} has the ancestral sampler alone.")
    if not 0 <= (eta or 0.0) <= 1:
        raise ValueError(f"--eta {eta}: give a number from 0 (no noise) to 1 (as much as DDPM).")
    return process, partial(ddim, steps=kept_steps(process.T, steps, spacing), eta=eta or 0.0)


def kept_steps(T: int, steps: str | None, spacing: Spacing | None) -> list[int]:
    """The steps of the whole chain that ddim keeps. Raises ValueError for what says nothing of this chain."""
    if steps is not None and not steps.isdecimal():
        if spacing is not None:
            raise ValueError(f"--spacing {spacing}: --steps {steps} has its own.")
        return sections(T, steps)
    try:
        return subsequence(T, T if steps is None else int(steps), spacing or "uniform")
    except ValueError as error:
        raise ValueError(f"--steps {steps}: {error}") from error
