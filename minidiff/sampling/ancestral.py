"""Down the learned chain, one step after the other."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from minidiff.diffusion import draw

from .noise import Noise, solver_dtype

Data = Float[Tensor, "batch *dims"]
Callback = Callable[..., None]


@torch.no_grad()
def ancestral(
    process,
    net: Callable[..., Tensor],
    start: Data,
    noise: Noise,
    cond: dict[str, Tensor] | None = None,
    callback: Callback | None = None,
    first: int | None = None,
    last: int = 0,
) -> Data:
    """Draw x_{t−1} ~ p_θ(x_{t−1} | x_t) from the top of the chain to the data (DDPM Alg. 2).

    Args:
        process: gives ``T`` and ``reverse``, and says with ``noise_at_end`` whether the last step is drawn or ends on
            its mean.
        net: the network.
        start: x_T (batch, *dims), or x at step ``first``.
        noise: ``noise(i)`` is the noise of the i-th step of the whole chain, i = 1 … T, also where a part is run.
        cond: what the network is conditioned on.
        callback: called as ``callback(step=, x=, t=, x0_hat=)`` before each step with the point it starts from.
        first, last: run only the steps t = first … last (T − 1 … 0 unless given).

    Returns x_0 (batch, *dims) in float64, or x below step ``last``.
    """
    cond = cond or {}
    top = process.T - 1 if first is None else first
    if not 0 <= last <= top < process.T:
        raise ValueError(f"steps from {top} down to {last}: this chain has the steps {process.T - 1} … 0.")
    x = start.to(solver_dtype(start.device))
    for i, t in enumerate(range(top, last - 1, -1)):
        at = torch.full((len(x),), t, device=x.device)
        kernel = process.reverse(net, x, at, **cond)
        if callback is not None:
            callback(step=i, x=x, t=t, x0_hat=process.x0_from_mean(kernel.mean, x, at))
        x = draw(kernel, noise(process.T - t).to(x)) if t > 0 or process.noise_at_end else kernel.mean
    return x
