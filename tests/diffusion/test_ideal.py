"""The ideal denoiser: its formula on small sets, the score that it gives, and what it does where σ is very small."""

import pytest
import torch

from minidiff import EDMPath, IdealDenoiser, digits, ode


def shares(x, y, sigma):
    """N(x; y_i, σ²) of (EDM 57), scaled to sum to 1."""
    return (-((x[:, None] - y) ** 2).sum(2) / (2 * sigma[:, None] ** 2)).softmax(1)


@pytest.mark.parametrize("batch", [1, 3, 7, 50])
def test_it_is_the_weighted_mean_whatever_the_batch(batch, generator):
    y, x = torch.randn(20, 4, generator=generator).double(), torch.randn(6, 4, generator=generator).double()
    sigma = torch.tensor([0.1, 0.3, 0.5, 1, 5, 80]).double()
    found = IdealDenoiser(y.reshape(20, 1, 2, 2), batch=batch)(x.reshape(6, 1, 2, 2), sigma)
    torch.testing.assert_close(found, (shares(x, y, sigma) @ y).reshape(6, 1, 2, 2), rtol=1e-12, atol=1e-12)
    one = IdealDenoiser(y, batch=batch)(x, 0.3)
    torch.testing.assert_close(one, shares(x, y, torch.full_like(sigma, 0.3)) @ y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sigma", [1e-4, 1e-2, 0.3, 1.0, 100.0])
@pytest.mark.parametrize("batch", [1, 2])
def test_two_points_have_a_closed_form(sigma, batch):
    """y = ±1: the shares are those of a coin of log odds 2x/σ²."""
    x = sigma**2 * torch.tensor([-30.0, -1.0, -0.2, 0.0, 0.5, 2.0]).double()[:, None]
    found = IdealDenoiser(torch.tensor([[-1.0], [1.0]]), batch=batch)(x, sigma)
    torch.testing.assert_close(found, torch.tanh(x / sigma**2), rtol=0, atol=1e-7)


@pytest.mark.parametrize("sigma", [1e-8, 1e-160, 0.0])
@pytest.mark.parametrize("batch", [2, 100])
def test_without_noise_the_answer_is_the_nearest_datum(sigma, batch, generator):
    y = torch.randn(9, 3, generator=generator).double()
    order = torch.tensor([4, 0, 8, 3])
    x = y[order] + 1e-3 * torch.randn(4, 3, generator=generator).double()
    assert torch.equal(IdealDenoiser(y, batch=batch)(x, sigma), y[order])
    far = IdealDenoiser(y, batch=batch)(1e4 * x, sigma)
    assert torch.equal(far, y[torch.cdist(1e4 * x, y).argmin(1)])


def test_the_score_is_the_slope_of_the_mixtures_log_density(generator):
    """(EDM 3) and (EDM 45), by automatic differentiation; and the denoiser itself can be differentiated."""
    y, x = torch.randn(20, 2, generator=generator).double(), torch.randn(5, 2, generator=generator).double()
    x.requires_grad_()
    log_p = (-((x[:, None] - y) ** 2).sum(2) / (2 * 0.4**2)).logsumexp(1)
    (score,) = torch.autograd.grad(log_p.sum(), x)
    denoise = IdealDenoiser(y, batch=6)
    torch.testing.assert_close((denoise(x, 0.4) - x) / 0.4**2, score)
    slope = torch.autograd.functional.jacobian(lambda x: denoise(x[None], 0.4)[0], x[0].detach())
    share = shares(x[:1], y, torch.tensor([0.4]))[0].detach()
    torch.testing.assert_close(slope, torch.cov(y.T, aweights=share, correction=0) / 0.4**2)  # Cov[y | x] / σ²


def test_much_noise_leaves_the_mean():
    train = digits().x
    x = 1e4 * torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = IdealDenoiser(train)(x, 1e7)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, train.mean(0).expand(2, 1, 8, 8), rtol=0, atol=1e-3)


@pytest.mark.parametrize("batch", [1, 5, 100])
def test_labels_choose_the_data(batch, generator):
    y, x = torch.randn(12, 2, generator=generator).double(), torch.randn(4, 2, generator=generator).double()
    of = torch.tensor([0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2])
    denoise = IdealDenoiser(y, of, batch)
    for sigma in (1e-200, 0.7):
        for label in range(3):
            expected = IdealDenoiser(y[of == label])(x, sigma)
            torch.testing.assert_close(denoise(x, sigma, labels=torch.full((4,), label)), expected)
        mixed = denoise(x, sigma, labels=torch.tensor([2, 0, 1, 0]))
        torch.testing.assert_close(mixed[0], denoise(x, sigma, labels=torch.full((4,), 2))[0])
        torch.testing.assert_close(mixed[2], denoise(x, sigma, labels=torch.ones(4).long())[2])
        torch.testing.assert_close(denoise(x, sigma), IdealDenoiser(y)(x, sigma))


def test_the_ode_leads_to_the_images_that_were_given(generator):
    """All memory: every end is a training image, and no two starts need share it."""
    train = digits().x[:200].double()
    start = 80 * torch.randn(20, 1, 8, 8, generator=generator, dtype=torch.float64)
    ends = ode(IdealDenoiser(train), start, EDMPath(), 18)
    nearest = (ends.flatten(1)[:, None] - train.flatten(1)).abs().amax(2).min(1)
    assert nearest.values.max() < 1e-6 and len(nearest.indices.unique()) > 10


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda y: IdealDenoiser(y[:0]), "data of 0"),
        (lambda y: IdealDenoiser(y, batch=0), "batches of 0"),
        (lambda y: IdealDenoiser(y, torch.ones(2).long()), "labels: 2 of them for 3 data"),
        (lambda y: IdealDenoiser(y)(y[:, :1], 1.0), r"x \(3, 1\)"),
        (lambda y: IdealDenoiser(y)(y, 1.0, torch.ones(3).long()), "these data have none"),
        (lambda y: IdealDenoiser(y, torch.arange(3))(y, 1.0, torch.tensor([0, 5, 1])), r"labels=\[0, 1, 5\]"),
    ],
)
def test_what_has_no_answer_is_refused(call, named):
    with pytest.raises(ValueError, match=named):
        call(torch.ones(3, 2))
