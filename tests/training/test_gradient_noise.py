"""The gradient-noise scale where the law of the gradient is known: a network of one number."""

import pytest
import torch
from torch import nn

from minidiff import (
    GaussianDiffusion,
    Images,
    ImportanceTimes,
    Model,
    UniformTimes,
    cosine_betas,
    gradient_noise,
)

T, D, W, DRAWS = 8, 4, 0.5, 1200
WEIGHT = torch.tensor([16.0, 4.0, 2.0, 1.0, 1.0, 0.5, 0.25, 0.0])


class Constant(nn.Module):
    """ε̂ = w: the squared error of D noises has the gradient 2 (w − ε̄), of mean 2w and variance 4/D."""

    def __init__(self):
        super().__init__()
        self.w, self.unused = nn.Parameter(torch.tensor(W)), nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.w.expand_as(x)


def model(weight: torch.Tensor | None = None) -> Model:
    return Model(Constant(), GaussianDiffusion(cosine_betas(T), weight=weight))


IMAGES = Images(torch.zeros(10, 1, 2, 2, dtype=torch.uint8), 17)


def ideal() -> ImportanceTimes:
    """p_t in proportion to the weights of the loss."""
    times = ImportanceTimes(T, history=1, uniform=1e-9)
    times.update(torch.arange(T), WEIGHT)
    return times


@pytest.mark.parametrize("batch", [1, 16])
def test_signal_noise_and_scale_are_those_of_one_example_whatever_the_batch(batch, generator):
    found = gradient_noise(model(), IMAGES, UniformTimes(T), generator, batch, DRAWS)
    # a sample variance of n normal draws errs by √(2/n); the mean's square by 2 |G| √(Σ/n)
    assert found.noise == pytest.approx(4 / D, rel=4.5 * (2 / DRAWS) ** 0.5)
    assert found.signal == pytest.approx((2 * W) ** 2, abs=4.5 * 4 * W * (4 / D / batch / DRAWS) ** 0.5)
    assert found.scale == pytest.approx(found.noise / found.signal)


def test_few_draws_are_not_biased(generator):
    """400 estimates from 2 draws each: the mean of both, to 4 of its standard errors."""
    found = [gradient_noise(model(), IMAGES, UniformTimes(T), generator, 1, 2) for _ in range(400)]
    for values, truth in (([f.signal for f in found], (2 * W) ** 2), ([f.noise for f in found], 4 / D)):
        values = torch.tensor(values)
        assert abs(values.mean() - truth) < 4 * values.std() / 20


def test_times_drawn_by_the_size_of_the_loss_leave_the_signal_and_take_the_noise(generator):
    """Weights a_t: uniform times give E[a²] (4w² + 4/D) − 4w² E[a]², times with p ∝ a only E[a]² 4/D."""
    uniform, drawn = (
        gradient_noise(model(WEIGHT), IMAGES, times, generator, 16, DRAWS) for times in (UniformTimes(T), ideal())
    )
    first, second = WEIGHT.mean().item(), (WEIGHT**2).mean().item()
    assert uniform.noise == pytest.approx(second * (4 * W**2 + 4 / D) - (2 * W * first) ** 2, rel=0.2)
    assert drawn.noise == pytest.approx(first**2 * 4 / D, rel=0.2)
    for found in (uniform, drawn):
        assert found.signal == pytest.approx(
            (2 * W * first) ** 2, abs=4.5 * 4 * W * first * (found.noise / 16 / DRAWS) ** 0.5
        )
    assert drawn.scale < uniform.scale / 5


def test_nothing_is_left_changed(generator):
    net, times = model(), ideal()
    net.train()
    before, seen = {key: value.clone() for key, value in net.state_dict().items()}, times.seen.clone()
    gradient_noise(net, IMAGES, times, generator)
    assert net.training and all(torch.equal(net.state_dict()[key], value) for key, value in before.items())
    assert all(parameter.grad is None for parameter in net.parameters()) and torch.equal(times.seen, seen)


def test_dropout_is_no_part_of_it():
    net = Model(nn.Sequential(), GaussianDiffusion(cosine_betas(T)))

    class Dropping(Constant):
        def forward(self, x, t):
            return nn.functional.dropout(super().forward(x, t), 0.5, self.training)

    net.net = Dropping().train()
    torch.manual_seed(1)
    first = gradient_noise(net, IMAGES, UniformTimes(T), torch.Generator().manual_seed(2))
    torch.manual_seed(3)
    assert gradient_noise(net, IMAGES, UniformTimes(T), torch.Generator().manual_seed(2)) == first


def test_what_cannot_be_measured_is_refused(generator):
    with pytest.raises(ValueError, match="batch=8, draws=1"):
        gradient_noise(model(), IMAGES, UniformTimes(T), generator, draws=1)
    with pytest.raises(ValueError, match="batch=0, draws=64"):
        gradient_noise(model(), IMAGES, UniformTimes(T), generator, batch=0)
    with pytest.raises(ValueError, match="requires a gradient"):
        gradient_noise(model().requires_grad_(False), IMAGES, UniformTimes(T), generator)
