"""A discrete process's network between its steps, for solvers that choose their own times."""

import torch
from jaxtyping import Float
from torch import Tensor

from .gaussian import Data, GaussianDiffusion, Net, call_network
from .paths import EDMPath
from .stats import over


class ContinuousDenoiser:
    """``denoise(x, sigma, **cond) -> x0_hat`` at any σ: the network is asked at a fraction of a step.

    Where ``GaussianDenoiser`` rounds σ to a level of the chain, here t is interpolated in log σ, so that x̂_0 is
    continuous in σ; solvers of high order and adaptive ones rely on that. ``clip`` overrides the process's own choice.
    Raises ValueError for a process that is not a GaussianDiffusion, or whose network predicts a mean, which belongs to
    one step.
    """

    def __init__(self, process, net: Net, clip: bool | None = None):
        if not isinstance(process, GaussianDiffusion) or process.predict == "mean":
            raise ValueError(f"process: {type(process).__name__} has no x̂_0 between its steps; take ε, x_0 or v.")
        self.process, self.net, self.clip = process, net, process.clip if clip is None else clip

    def path(self) -> EDMPath:
        """From the chain's first noise level to its last. Raises ValueError where the last is infinite."""
        return EDMPath(self.process.sigma[0].item(), self.process.sigma[-1].item())

    def __call__(self, x: Data, sigma: Float[Tensor, "*t"] | float, **cond: Tensor) -> Data:
        """x̂_0 of x = x_0 + σ n at noise level sigma, a number or one for each example."""
        process = self.process
        sigma = torch.as_tensor(sigma, dtype=process.sigma.dtype, device=x.device).expand(len(x))
        levels = process.sigma.log()
        above = torch.searchsorted(levels, sigma.log()).clamp(1, process.T - 1)
        share = ((sigma.log() - levels[above - 1]) / (levels[above] - levels[above - 1])).clamp(0, 1)
        t = torch.lerp(process.fed[above - 1], process.fed[above], share)

        signal, noise = over(1 / (1 + sigma**2).sqrt(), x), over(sigma / (1 + sigma**2).sqrt(), x)
        answer = call_network(self.net, signal * x, t, cond)
        if process.variance not in ("large", "small"):
            answer = answer.chunk(2, dim=1)[0]
        if process.predict == "eps":
            x0_hat = x - over(sigma, x) * answer
        else:
            x0_hat = answer if process.predict == "x0" else signal**2 * x - noise * answer
        return x0_hat.clamp(-1, 1) if self.clip else x0_hat
