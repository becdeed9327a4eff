"""A discrete process's network between its steps."""

import pytest
import torch
from oracles import Chain

from minidiff import ContinuousDenoiser, GaussianDiffusion, LearnedGaussian, geometric_betas, linear_betas

BETAS = linear_betas(200)


@pytest.mark.parametrize("predict", ["eps", "x0", "v"])
@pytest.mark.parametrize("variance", ["small", "learned"])
def test_at_the_chains_own_levels_it_is_the_rounding_denoiser(predict, variance, generator):
    loss = "bound" if variance == "learned" else "simple"
    process = GaussianDiffusion(BETAS, predict, variance=variance, loss=loss, clip=False)
    net = Chain(BETAS, 0.2, 0.5).network(predict, variance == "learned")
    x = process.sigma[:, None] * torch.randn(200, 3, generator=generator, dtype=torch.float64)
    exact = ContinuousDenoiser(process, lambda x, t: net(x, t.round()))
    torch.testing.assert_close(exact(x, process.sigma), process.denoiser(net)(x, process.sigma), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("predict", ["eps", "x0", "v"])
def test_between_two_levels_the_network_is_asked_between_them(predict):
    """The net answers as the exact one for N(0, s²) at the σ that it reads off its fractional t."""
    process, s = GaussianDiffusion(BETAS, predict, clip=False), 0.6
    levels = process.sigma.log()

    def net(x, t):
        k = t.long().clamp(max=198)
        sigma = torch.lerp(levels[k], levels[k + 1], t - k).exp()[:, None]
        signal, noise = 1 / (1 + sigma**2).sqrt(), sigma / (1 + sigma**2).sqrt()
        x0 = s**2 / (s**2 + sigma**2) * x / signal
        eps = (x - signal * x0) / noise
        return {"eps": eps, "x0": x0, "v": signal * eps - noise * x0}[predict]

    sigma = (levels[3:150:20] + 0.3 * (levels[4:151:20] - levels[3:150:20])).exp()
    x = torch.linspace(-2, 2, len(sigma)).double()[:, None]
    denoise = ContinuousDenoiser(process, net)
    torch.testing.assert_close(denoise(x, sigma), s**2 / (s**2 + sigma[:, None] ** 2) * x)
    assert torch.equal(denoise(x[:1], sigma[0].item()), denoise(x[:1], sigma[:1]))


def test_the_network_is_fed_what_the_process_feeds_it_and_no_more_than_the_ends():
    asked = []
    process = GaussianDiffusion(BETAS)
    denoise = ContinuousDenoiser(process, lambda x, t: asked.extend(t.tolist()) or torch.zeros_like(x))
    middle = (process.sigma[50] * process.sigma[51]).sqrt()
    denoise(torch.zeros(3, 1).double(), torch.stack([process.sigma[0] / 9, middle, process.sigma[-1] * 9]))
    assert asked == pytest.approx([0, 50.5, 199])


@pytest.mark.parametrize(
    ("own", "override", "answer"), [(True, None, 1), (False, None, 4), (True, False, 4), (False, True, 1)]
)
def test_clipping_is_the_processes_unless_said(own, override, answer):
    process = GaussianDiffusion(BETAS, "x0", clip=own)
    denoise = ContinuousDenoiser(process, lambda x, t: torch.full_like(x, 4.0), override)
    assert denoise(torch.zeros(1, 1).double(), 0.7).item() == answer


def test_its_path_spans_the_chain():
    path = ContinuousDenoiser(GaussianDiffusion(BETAS), torch.nn.Identity()).path()
    alpha_bar = torch.cumprod(1 - BETAS, 0)
    ends = [(1 / alpha_bar[k] - 1).sqrt().item() for k in (0, -1)]
    assert [path.sigma_min, path.sigma_max] == pytest.approx(ends)


def test_processes_without_a_denoiser_are_refused():
    for process in (LearnedGaussian(geometric_betas(9)), GaussianDiffusion(BETAS, "mean")):
        with pytest.raises(ValueError, match="no x̂_0 between its steps"):
            ContinuousDenoiser(process, torch.nn.Identity())
    endless = GaussianDiffusion(torch.tensor([0.1, 1.0]), "x0")
    with pytest.raises(ValueError, match="sigma_max=inf"):
        ContinuousDenoiser(endless, torch.nn.Identity()).path()
