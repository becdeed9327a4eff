"""How many bits a trained chain needs for data it has not seen: the bound, term by term."""

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minidiff.diffusion import standard_error


@dataclass(frozen=True)
class Bound:
    """The variational bound of a set of examples, in bits per dimension.

    ``per_example`` (n,): L_T + L_{T−1} + … + L_0 of each; ``prior`` (n,): its L_T.
    ``edges`` (strata + 1,): stratum k holds the steps edges[k] … edges[k+1] − 1, counted from 0.
    ``terms`` (strata,): sum of the stratum's terms, mean over examples.
    ``x0_mse`` (strata,): mean squared error of x̂_0 at the stratum's steps, in units of [−1, 1].
    ``eps_mse`` (strata,): the same of the noise that x̂_0 leaves over; None where no noise is predicted.
    ``…_error``: standard error of each, over examples.
    """

    per_example: Float[Tensor, " n"]
    prior: Float[Tensor, " n"]
    edges: Int[Tensor, " edges"]
    terms: Float[Tensor, " strata"]
    terms_error: Float[Tensor, " strata"]
    x0_mse: Float[Tensor, " strata"]
    x0_mse_error: Float[Tensor, " strata"]
    eps_mse: Float[Tensor, " strata"] | None = None
    eps_mse_error: Float[Tensor, " strata"] | None = None

    @property
    def total(self) -> float:
        """Mean over the examples, bits per dimension."""
        return self.per_example.mean().item()

    @property
    def error(self) -> float:
        """Standard error of ``total``, over examples and drawn steps together."""
        return standard_error(self.per_example)

    def between(self, first: int, last: int) -> float:
        """Bits per dimension of the strata that begin at steps first … last, counted from 0."""
        begins = self.edges[:-1]
        return self.terms[(begins >= first) & (begins <= last)].sum().item()


def strata(T: int, count: int) -> Int[Tensor, " edges"]:
    """At most ``count`` strata over the steps 0 … T − 1: single steps first, then widths growing geometrically.

    The early steps carry the bits and the variance, so each of them is evaluated; late terms are nearly equal to their
    neighbours, and one of many is enough.
    """
    if count >= T:
        return torch.arange(T + 1)
    inner = torch.logspace(0, math.log10(T), count)[:-1]
    return torch.cat([torch.tensor([0.0]), inner, torch.tensor([float(T)])]).round().long().unique()


@torch.no_grad()
def likelihood_bound(
    process,
    net: Callable[..., Tensor],
    x0: Float[Tensor, "n *dims"],
    generator: torch.Generator,
    count: int = 100,
    repeats: int = 1,
    batch: int = 500,
    on_stratum: Callable[[], None] | None = None,
    cond: dict[str, Tensor] | None = None,
) -> Bound:
    """An unbiased estimate of the bound (DDPM 5) for each example, with one step drawn in each of ``count`` strata.

    A stratum of w steps contributes w times the term at the step drawn in it, averaged over ``repeats`` draws of step
    and noise; the network sees ``batch`` examples at a time. ``on_stratum()`` is called after each stratum. ``cond``
    has a row for each example. Raises ValueError for a count below 1.
    """
    if min(count, repeats, batch) < 1:
        raise ValueError(f"count={count}, repeats={repeats}, batch={batch}: each must be at least 1.")
    edges = strata(process.T, count)
    means, errors = defaultdict(list), defaultdict(list)
    total = prior = process.prior_term(x0)
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        found = defaultdict(float)
        for _ in range(repeats):
            t = torch.randint(low, high, (len(x0),), generator=generator, device=x0.device)
            noise = process.draw_noise(x0, generator)
            given = {"x0": x0, "t": t, "noise": noise, **(cond or {})}
            parts = zip(*(values.split(batch) for values in given.values()), strict=True)
            terms = [process.bound_term(net, **dict(zip(given, part, strict=True))) for part in parts]
            for key in terms[0]:
                found[key] = found[key] + torch.cat([term[key] for term in terms]) / repeats
        found["bits"] = (high - low) * found["bits"]
        total = total + found["bits"]
        for key, values in found.items():
            means[key].append(values.mean())
            errors[key].append(standard_error(values))
        if on_stratum is not None:
            on_stratum()
    means["terms"], errors["terms"] = means.pop("bits"), errors.pop("bits")
    columns = {key: torch.stack(values) for key, values in means.items()}
    columns |= {f"{key}_error": torch.tensor(values) for key, values in errors.items()}
    return Bound(total, prior, edges, **columns)
