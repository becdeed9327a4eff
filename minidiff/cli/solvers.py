"""The flags of samplers that solve an ODE, or an SDE, in σ; any network that is a denoiser runs under them."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from minidiff.diffusion import EDM, ContinuousDenoiser, EDMPath, GaussianDiffusion
from minidiff.sampling import churn, dpmpp, ode, rk2
from minidiff.training import Model

Denoise = Callable[..., Tensor]
Solver = Literal["euler", "heun", "rk2", "churn", "dpmpp"]


@dataclass(frozen=True)
class SolverOptions:
    """What only some solvers take."""

    rho: float | None = None
    """Of every solver in σ: steps even in σ^(1/ρ), 7 in EDM's paper, between the noise levels of the run. The steps of
    its own path unless given."""
    alpha: float | None = None
    """Of rk2: 0.5 for the midpoint rule, 0.667 for Ralston's, 1 for Heun's."""
    S_churn: float | None = None
    """Of churn: how much noise is put back, as a sum over all steps of its share in σ."""
    S_tmin: float | None = None
    """Of churn: the least σ at which noise is put back; 0 unless given."""
    S_tmax: float | None = None
    """Of churn: the greatest; no bound unless given."""
    S_noise: float | None = None
    """Of churn: the deviation of that noise; 1 unless given."""

    def given(self) -> dict[str, float]:
        """Those that were typed."""
        return {each.name: value for each in fields(self) if (value := getattr(self, each.name)) is not None}


def check_flags(name: str, options: SolverOptions) -> None:
    """Raises ValueError for a flag that this sampler does not take, and for one that it lacks."""
    takes = {"rk2": ("rho", "alpha"), "churn": ("rho", "S_churn", "S_tmin", "S_tmax", "S_noise")}
    known = takes.get(name, ("rho",) if name in get_args(Solver) else ())
    for flag, value in options.given().items():
        if flag not in known:
            raise ValueError(f"--{flag.replace('_', '-')} {value}: --sampler {name} has no such choice.")
    for sampler, flag, example in (("rk2", "alpha", "0.5"), ("churn", "S_churn", "40")):
        if name == sampler and getattr(options, flag) is None:
            raise ValueError(f"--sampler {name}: it must be told --{flag.replace('_', '-')}, such as {example}.")


def choose_solver(
    model: Model, name: Solver, steps: str | None, options: SolverOptions, guided: Callable[[Denoise], Denoise]
) -> Callable[..., Tensor]:
    """The sampler that ``generate`` takes. Raises ValueError for flags that do not fit together, or not the process."""
    process = model.process
    if not isinstance(process, EDM | GaussianDiffusion):
        raise ValueError(f"--sampler {name}: a {type(process).__name__} has the ancestral sampler alone.")
    if isinstance(process, EDM):
        if steps is not None and not steps.isdecimal():
            raise ValueError(f"--steps {steps}: {name} takes a number of steps.")
        denoise, path, n = process.denoiser(model.net), process.path, process.steps if steps is None else int(steps)
        wide = process.prior.stddev.item()
    else:
        if steps is None or not steps.isdecimal() or int(steps) < 1:
            raise ValueError(f"--steps {steps}: say in how many steps, 1 or more, {name} should solve the ODE.")
        denoise = ContinuousDenoiser(process, model.net)
        path, n = denoise.path(), int(steps)
        wide = path.sigma_max / (1 + path.sigma_max**2) ** 0.5  # x_T is N(0, 1), and √ᾱ_T is divided out
    if options.rho is not None:
        path = EDMPath(path.sigma(path.t_min).item(), path.sigma(path.t_max).item(), options.rho)
    try:
        times = path.steps(n)
    except ValueError as error:
        raise ValueError(f"--steps {steps}: {error}") from error
    wide = path.std(path.t_max).item() / wide

    def sampler(_: Any, net: Any, start: Tensor, noise: Callable[[int], Tensor], cond: Any = None) -> Tensor:
        return solve(guided(denoise), wide * start, noise, cond)

    def solve(denoise: Denoise, start: Tensor, noise: Callable[[int], Tensor], cond: Any) -> Tensor:
        match name:
            case "rk2":
                return rk2(denoise, start, path, times, options.alpha, cond)
            case "churn":
                told = {flag: value for flag, value in options.given().items() if flag.startswith("S_")}
                return churn(denoise, start, noise, times, path, **told, cond=cond)
            case "dpmpp":
                return dpmpp(denoise, start, path, times, cond)
        return ode(denoise, start, path, times, name, cond)

    nothing = torch.zeros(1, 1, dtype=torch.float64)
    solve(lambda x, sigma: x, nothing, lambda i: nothing, None)  # so that it refuses before any work what it would
    return sampler
