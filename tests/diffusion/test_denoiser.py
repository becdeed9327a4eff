"""A discrete process's network seen as a denoiser: the exact answer on Gaussian data at the chain's own σ."""

import pytest
import torch
from oracles import Chain

from minidiff import GaussianDiffusion, linear_betas

BETAS = linear_betas(200)
ALPHA_BAR = torch.cumprod(1 - BETAS, 0)
SIGMA = ((1 - ALPHA_BAR) / ALPHA_BAR).sqrt()


@pytest.mark.parametrize("predict", ["eps", "x0", "mean", "v"])
def test_centred_gaussian_data_have_the_textbook_denoiser(predict, generator):
    sigma_d = 0.5
    denoise = GaussianDiffusion(BETAS, predict, clip=False).denoiser(Chain(BETAS, 0.0, sigma_d).network(predict))
    x = SIGMA[:, None] * torch.randn(200, 3, generator=generator, dtype=torch.float64)
    expected = sigma_d**2 * x / (SIGMA[:, None] ** 2 + sigma_d**2)
    torch.testing.assert_close(denoise(x, SIGMA), expected, rtol=1e-9, atol=1e-9)


def test_one_sigma_serves_the_whole_batch(generator):
    denoise = GaussianDiffusion(BETAS).denoiser(Chain(BETAS, 0.2, 0.5).network("eps"))
    x = torch.randn(4, 1, 2, 2, generator=generator, dtype=torch.float64)
    each = denoise(x, SIGMA[80].expand(4))
    assert torch.equal(denoise(x, SIGMA[80]), each) and torch.equal(denoise(x, SIGMA[80].item()), each)


def test_sigma_between_two_levels_is_served_by_the_nearer():
    asked = []

    def net(x, t):
        asked.append(t.long().tolist())
        return torch.zeros_like(x)

    denoise = GaussianDiffusion(BETAS).denoiser(net)
    low, high = SIGMA[0], SIGMA[1]
    middle = (low * high).sqrt()  # nearer in log σ: the middle is the geometric mean
    assert middle * 1.0001 < (low + high) / 2
    denoise(torch.zeros(4, 1).double(), torch.stack([middle * 0.9999, middle * 1.0001, SIGMA[0] / 9, SIGMA[-1] * 9]))
    assert asked == [[0, 1, 0, 199]]


def test_the_denoiser_clips_where_the_process_clips():
    far = lambda x, t: torch.full_like(x, 4.0)
    for clip, answer in ((True, 1.0), (False, 4.0)):
        denoise = GaussianDiffusion(BETAS, "x0", clip=clip).denoiser(far)
        assert denoise(torch.zeros(1, 1).double(), SIGMA[20]).item() == pytest.approx(answer)


def test_data_of_float32_stay_float32():
    denoise = GaussianDiffusion(BETAS).denoiser(lambda x, t: torch.zeros_like(x))
    assert denoise(torch.ones(2, 1), 0.5).dtype == torch.float32
