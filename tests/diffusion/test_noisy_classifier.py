"""The classifier of noisy data: its loss by hand, and that it learns p(y | x_t), which is known for two Gaussians."""

import numpy as np
import pytest
import torch

from minidiff import MLP, GaussianDiffusion
from minidiff.data import Mixture
from minidiff.diffusion import NoisyClassifier

BETAS = torch.tensor([0.05, 0.2, 0.35, 0.5, 0.7], dtype=torch.float64)


@pytest.mark.parametrize("rescale, unit", [(False, 1), (True, 200)])
def test_the_loss_is_the_cross_entropy_at_the_noisy_point(rescale, unit, float64, generator):
    process = NoisyClassifier(GaussianDiffusion(BETAS, rescale_times=rescale))
    matrix = torch.randn(4, 3, generator=generator)
    x0, noise = torch.randn(5, 3, generator=generator), torch.randn(5, 3, generator=generator)
    t, labels = torch.tensor([0, 1, 2, 3, 4]), torch.tensor([3, 0, 2, 2, 1])
    found = process.loss(lambda x, t: x @ matrix.T + t[:, None] * torch.arange(4.0) / 100, x0, t, noise, labels)
    alpha_bar = np.cumprod(1 - BETAS.numpy())
    x_t = np.sqrt(alpha_bar)[:, None] * x0.numpy() + np.sqrt(1 - alpha_bar)[:, None] * noise.numpy()
    logits = x_t @ matrix.numpy().T + unit * np.arange(5)[:, None] * np.arange(4.0) / 100
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    np.testing.assert_allclose(found["loss"], -log_p[np.arange(5), labels.numpy()], rtol=1e-9)
    np.testing.assert_array_equal(found["correct"], logits.argmax(1) == labels.numpy())


def test_its_steps_and_its_noise_are_those_of_the_process():
    inner = GaussianDiffusion(BETAS)
    process = NoisyClassifier(inner)
    x0 = torch.zeros(4, 3)
    draw = lambda p: p.draw_noise(x0, torch.Generator().manual_seed(1))
    assert process.T == 5 and torch.equal(draw(process), draw(inner))


def test_trained_it_answers_the_probability_of_the_class_behind_the_noise(generator):
    """Two Gaussians of deviation 0.3 at ±1, one drawn thrice as often: the odds at x_t are those of two Gaussians."""
    process = NoisyClassifier(GaussianDiffusion(torch.linspace(1e-2, 0.3, 20).double()))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MLP(1, 2, width=32, depth=2)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for step in range(600):
        labels = (torch.rand(512, generator=generator) < 0.75).long()
        x0 = 2.0 * labels[:, None] - 1 + 0.3 * torch.randn(512, 1, generator=generator)
        t, noise = torch.randint(20, (512,), generator=generator), process.draw_noise(x0, generator)
        loss = process.loss(net, x0, t, noise, labels)["loss"].mean()
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / 600)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert error(net, process) < 0.03
    assert error(lambda x, t: torch.tensor([0.25, 0.75]).log().expand(len(x), 2), process) > 0.2  # the share alone


@torch.no_grad()
def error(net, process: NoisyClassifier) -> float:
    """Root mean square difference from the true probability, over points and steps as they come."""
    generator, square = torch.Generator().manual_seed(5), []
    for t in range(process.T):
        alpha_bar = process.process.alpha_bar[t].item()
        scale, sigma = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
        parts = [Mixture(torch.ones(1), torch.tensor([[m]]), 0.3) for m in (-1.0, 1.0)]
        whole = Mixture(torch.tensor([0.25, 0.75]), torch.tensor([[-1.0], [1.0]]), 0.3)
        z = scale * whole.sample(500, generator) + sigma * torch.randn(500, 1, generator=generator).double()
        log_odds = np.log(3) + (parts[1].log_prob(z, scale, sigma) - parts[0].log_prob(z, scale, sigma)).numpy()
        found = net(z.float(), torch.full((500,), float(t))).softmax(1)[:, 1].double().numpy()
        square.append((found - 1 / (1 + np.exp(-log_odds))) ** 2)
    return float(np.mean(square) ** 0.5)
