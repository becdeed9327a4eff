"""``minidiff likelihood RUN``: the bound on held-out data, term by term."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from minidiff.cli.common import Device, choose_device, held_out_data, load_diffusion, place
from minidiff.diffusion import EDM, ContinuousDenoiser, GaussianDiffusion, respace, standard_error
from minidiff.evaluation import (
    Bound,
    bits_per_dim,
    dequantise,
    likelihood_bound,
    null_likelihood,
    ode_log_prob,
    rademacher,
    strata,
    trajectory_likelihood,
)
from minidiff.sampling.noise import solver_dtype
from minidiff.training import Model


@dataclass(frozen=True)
class Options:
    """Bits that a trained chain needs for held-out data."""

    run: tyro.conf.Positional[Path]
    """Folder of a run or of one checkpoint, or the name of a model that ships."""
    data: str | None = None
    """Another data source than the run's own."""
    n: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None
    """Only the first n held-out examples."""
    count: int = 100
    """Strata of steps; one step is drawn in each, for each example."""
    trajectories: int = 0
    """Also estimate the likelihood itself, from this many forward trajectories of each example: as many network calls
    as the chain has steps."""
    ode: bool = False
    """The likelihood itself in place of the bound, along the probability-flow ODE, of uniformly dequantised data."""
    steps: str | None = None
    """Keep a part of the chain's steps, as --steps of sample does: 25, or 90,60,60,20,20, or ddim25."""
    seed: int = 0
    """Of the steps and the noise."""
    batch: int = 500
    """Examples that the network sees at a time."""
    weights: str | None = None
    """model for the raw weights, ema-… for an average; the longest average by default."""
    device: Device = "auto"
    """cpu, cuda or mps; auto takes a CUDA GPU where there is one."""


def run(argv: list[str]) -> None:
    """Print the bound, its standard error and where its bits are."""
    options = tyro.cli(Options, args=argv, prog="minidiff likelihood")
    if not 0 <= options.seed < 2**63 or options.batch < 1:
        raise ValueError(f"--seed {options.seed} --batch {options.batch}: 0 ≤ seed < 2**63, batch ≥ 1.")
    if options.count < 2 or (options.n is not None and options.n < 2):
        raise ValueError(f"--count {options.count} -n {options.n}: count ≥ 2, n ≥ 2.")
    device = choose_device(options.device)
    model, description = load_diffusion(options.run, options.weights)
    if options.trajectories == 1 or options.trajectories < 0:
        raise ValueError(f"--trajectories {options.trajectories}: at least 2, or 0 for the bound alone.")
    if options.trajectories and isinstance(model.process, GaussianDiffusion):
        raise ValueError("--trajectories: this chain ends on grey levels, and the ratio of (SD 9) is one of densities.")
    if options.ode and (options.trajectories or not isinstance(model.process, GaussianDiffusion | EDM)):
        raise ValueError("--ode: for a GaussianDiffusion or EDM, and without --trajectories.")
    if isinstance(model.process, EDM) and not options.ode:
        raise ValueError("EDM has no chain and no bound: add --ode for the likelihood itself.")
    if options.ode and not isinstance(model.process, EDM):
        ContinuousDenoiser(model.process, model.net).path()  # refuses what no ODE can be solved for
    if options.steps and (options.ode or not isinstance(model.process, GaussianDiffusion)):
        raise ValueError(f"--steps {options.steps}: for the bound of a GaussianDiffusion.")
    process = respace(model.process, options.steps) if options.steps else model.process
    data = held_out_data(options.run, description, options.data)
    model, process = place(model, device), place(process, device)
    x0 = data.x[: options.n].to(device, solver_dtype(device))
    generator = torch.Generator(device).manual_seed(options.seed)
    if options.ode:
        with tqdm(total=len(x0), unit=" examples", disable=None) as bar:
            bits = ode_bits(model, x0, data.levels, generator, options.batch, bar.update)
        print(f"bits/dim by the ODE {bits.mean():>9.4f} ± {standard_error(bits):.4f}   ({len(bits)} held-out examples)")
        return
    _, cond = data.batch(torch.arange(len(x0)), generator)
    cond = {name: rows.to(device) for name, rows in cond.items()}
    parts = len(strata(process.T, options.count)) - 1
    with tqdm(total=parts, unit=" strata", disable=None) as bar:
        told = {"batch": options.batch, "on_stratum": bar.update, "cond": cond}
        bound = likelihood_bound(process, model.net, x0, generator, options.count, **told)
    print(table(bound, len(x0), process.T))
    if isinstance(model.process, GaussianDiffusion):
        return
    dims, null = x0[0].numel(), null_likelihood(model.process, x0)
    rows = {"K, log2 p is at least": -dims * bound.per_example, "L_null, independent noise": null}
    rows["K - L_null"] = -dims * bound.per_example - null
    if options.trajectories:
        estimate = trajectory_likelihood(model.process, model.net, x0, generator, options.trajectories)
        rows["log2 p by trajectories"] = estimate.log_p
    print(f"\n{'bits':<28}per example{'':>10}per dimension")
    for label, bits in rows.items():
        print(f"{label:<28}{bits.mean():>9.4f} ± {standard_error(bits):.4f}{bits.mean() / dims:>13.4f}")


def ode_bits(
    model: Model,
    x0: Tensor,
    levels: int,
    generator: torch.Generator,
    batch: int,
    on_batch: Callable[[int], None] | None = None,
) -> Float[Tensor, " n"]:
    """Bits per dimension of each example, dequantised once, with the divergence estimated from one probe.

    x̂_0 is not clipped: no density has slopes with corners, and what is clipped tells examples no longer apart.
    """
    if isinstance(model.process, EDM):
        denoise, path, prior = model.process.denoiser(model.net), model.process.path, model.process.prior
    else:
        denoise = ContinuousDenoiser(model.process, model.net, clip=False)
        path = denoise.path()
        prior = torch.distributions.Normal(0.0, (1 + path.sigma_max**2) ** 0.5)  # N(0, 1) of x_T, without √ᾱ_T
    log_prior = lambda x: prior.log_prob(x).flatten(1).sum(1)
    bits = []
    for part in x0.split(batch):
        x = dequantise(part, levels, generator)
        log_p = ode_log_prob(denoise, x, path, rademacher(x, generator), log_prior)
        bits.append(bits_per_dim(log_p, x[0].numel(), levels))
        if on_batch is not None:
            on_batch(len(part))
    return torch.cat(bits)


def table(bound: Bound, n: int, T: int) -> str:
    """The bound and its parts, in the papers' count of steps from 1 to T."""
    rows = [("L_T, what is left in x_T", bound.prior.mean().item()), ("t = 1, the decoder", bound.between(0, 0))]
    edges = bound.edges.tolist()
    for first, last in [(1, 9), (10, 99), (100, T - 1)]:
        inside = [k for k in range(len(edges) - 1) if first <= edges[k] <= last]
        if inside:
            span = f"t = {edges[inside[0]] + 1} … {edges[inside[-1] + 1]}"
            rows.append((span, bound.between(first, last)))
    lines = [f"{label:<28}{bits:>9.4f}" for label, bits in rows]
    lines.append(f"{'bits/dim, at most':<28}{bound.total:>9.4f} ± {bound.error:.4f}   ({n} held-out examples)")
    return "\n".join(lines)
