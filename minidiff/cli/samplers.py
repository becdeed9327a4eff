"""Which sampler ``minidiff sample`` and its like draw with."""

from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import Tensor, nn

from minidiff.diffusion import EDM, ContinuousDenoiser, GaussianDiffusion, respace, sections, subsequence
from minidiff.diffusion.timesteps import Spacing
from minidiff.sampling import ancestral, ddim, heun, ode
from minidiff.training import Model

Sampler = Literal["ancestral", "ddim", "euler", "heun"]


def choose_sampler(
    model: Model, name: Sampler, steps: str | None, eta: float | None, spacing: Spacing | None
) -> tuple[nn.Module, Callable[..., Tensor]]:
    """The process and the sampler that ``generate`` takes, for these flags.

    Raises ValueError for flags that do not fit together, or not the process.
    """
    process = model.process
    for flag, value in (("eta", eta), ("spacing", spacing)):
        if value is not None and name != "ddim":
            raise ValueError(f"--{flag} {value}: only --sampler ddim has that choice.")
    if isinstance(process, EDM):
        if name not in ("euler", "heun"):
            raise ValueError(f"--sampler {name}: EDM has no chain; take heun or euler.")
        if steps is not None and not steps.isdecimal():
            raise ValueError(f"--steps {steps}: {name} takes a number of steps.")
        try:
            process.path.steps(process.steps if steps is None else int(steps))
        except ValueError as error:
            raise ValueError(f"--steps {steps}: {error}") from error
        return process, partial(heun, steps=None if steps is None else int(steps), solver=name)
    if name == "ancestral":
        if steps is not None:
            if not isinstance(process, GaussianDiffusion):
                raise ValueError(f"--steps {steps}: a {type(process).__name__} walks its whole chain.")
            process = respace(process, steps)
        return process, ancestral
    if not isinstance(process, GaussianDiffusion):
        raise ValueError(f"--sampler {name}: a {type(process).__name__} has the ancestral sampler alone.")
    if name == "ddim":
        if not 0 <= (eta or 0.0) <= 1:
            raise ValueError(f"--eta {eta}: give a number from 0 (no noise) to 1 (as much as DDPM).")
        return process, partial(ddim, steps=kept_steps(process.T, steps, spacing), eta=eta or 0.0)
    if steps is None or not steps.isdecimal() or int(steps) < 1:
        raise ValueError(f"--steps {steps}: say in how many steps, 1 or more, {name} should solve the ODE.")
    denoise = ContinuousDenoiser(process, model.net)
    path = denoise.path()
    wide = (1 + path.sigma_max**2) ** 0.5  # of the prior N(0, 1) of x_T when √ᾱ_T is divided out
    return process, lambda _, net, start, noise, cond=None: ode(denoise, wide * start, path, int(steps), name, cond)


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
