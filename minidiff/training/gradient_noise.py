"""How noisy the gradient of an objective is, and so how large a batch has to be before it says something."""

from dataclasses import dataclass

import torch

from .build import Model
from .loop import Data, TimeSampler


@dataclass(frozen=True)
class GradientNoise:
    """Of an objective at one set of weights.

    ``signal``: |G|², the square of the expected gradient's norm. ``noise``: tr Σ, the variance of one example's
    gradient about G, summed over the parameters. Both are estimated without bias, so the signal can come out below 0.
    """

    signal: float
    noise: float

    @property
    def scale(self) -> float:
        """tr Σ / |G|², the batch size at which noise and signal are equal: the gradient-noise scale (IDDPM §3.3)."""
        return self.noise / self.signal


def gradient_noise(
    model: Model, data: Data, times: TimeSampler, generator: torch.Generator, batch: int = 8, draws: int = 64
) -> GradientNoise:
    """Signal and noise from ``draws`` gradients of mean(weight · loss), each of ``batch`` examples drawn anew.

    Examples come with replacement, and with t and noise of their own; dropout is off, and ``times`` learns nothing. The
    answer does not depend on ``batch``, but its error does: signal stands out where batch · draws is well above
    ``scale``. Raises ValueError for fewer than two draws and for a model without a parameter to differentiate by.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if batch < 1 or draws < 2:
        raise ValueError(f"batch={batch}, draws={draws}: batch ≥ 1, draws ≥ 2.")
    if not parameters:
        raise ValueError("model: none of its parameters requires a gradient. Call model.requires_grad_() first.")
    device, training = parameters[0].device, model.training
    model.eval()
    total, squares = 0.0, 0.0
    for _ in range(draws):
        index = torch.randint(len(data), (batch,), generator=generator, device=generator.device)
        x0, cond = data.batch(index.cpu(), generator)
        x0, cond = x0.to(device), {key: value.to(device) for key, value in cond.items()}
        t, weight = times.draw(batch, generator)
        losses = model(x0, t, model.process.draw_noise(x0, generator), **cond)["loss"]
        parts = torch.autograd.grad((weight * losses).mean(), parameters, materialize_grads=True)
        gradient = torch.cat([part.flatten() for part in parts]).double()
        total, squares = total + gradient, squares + gradient.square().sum().item()
    model.train(training)
    mean_square = (total / draws).square().sum().item()
    variance = (squares - draws * mean_square) / (draws - 1)  # of one draw, as any sample variance
    return GradientNoise(signal=mean_square - variance / draws, noise=batch * variance)
