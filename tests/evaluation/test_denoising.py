"""Errors of denoisers, σ by σ: known ones, and the best that knows moments alone."""

import numpy as np
import pytest
import torch

from minidiff import IdealDenoiser, Mixture, denoising_error, digits, gaussian_error

SIGMAS = torch.tensor([0.05, 0.3, 1.0, 4.0])


def test_leaving_the_noise_leaves_its_square(generator):
    """The same noise at every σ, so that even the errors of a curve go together."""
    x0 = torch.randn(300, 2, 3, generator=generator)
    mse, error = denoising_error(lambda x, sigma: x, x0, SIGMAS, torch.Generator().manual_seed(7))
    noise = torch.randn(300, 2, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    square = noise.square().mean((1, 2))
    torch.testing.assert_close(mse, SIGMAS.double() ** 2 * square.mean())
    torch.testing.assert_close(error, SIGMAS.double() ** 2 * square.std() / 300**0.5)


def test_batches_and_conditions_go_with_their_examples(generator):
    x0, labels = torch.randn(23, 4, generator=generator), torch.arange(23)
    denoise = lambda x, sigma, labels: x * sigma + labels[:, None]
    run = lambda batch: denoising_error(
        denoise, x0, SIGMAS, torch.Generator().manual_seed(1), batch, cond={"labels": labels}
    )
    for found, expected in zip(run(5), run(100), strict=True):
        torch.testing.assert_close(found, expected)
    know = lambda x, sigma, labels: x0[labels].double()
    assert (denoising_error(know, x0, SIGMAS, generator, 5, {"labels": labels})[0] == 0).all()


def test_on_normal_data_the_exact_denoiser_has_the_gaussian_error(generator):
    """z-scores below 4, at four σ; the error of D is the trace of the posterior's covariance, by an inverse."""
    root = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.3, 0.0], [-0.5, 0.2, 0.1]], dtype=torch.float64)
    mean, n = torch.tensor([0.3, -1.0, 0.5], dtype=torch.float64), 20_000
    x0 = mean + torch.randn(n, 3, generator=generator, dtype=torch.float64) @ root.T
    cov = torch.cov(x0.T, correction=0)
    gain = lambda sigma: cov @ torch.linalg.inv(cov + sigma**2 * torch.eye(3))
    exact = torch.tensor([torch.trace(cov - gain(s) @ cov).item() / 3 for s in SIGMAS.tolist()], dtype=torch.float64)
    torch.testing.assert_close(gaussian_error(x0, SIGMAS), exact)
    denoise = lambda x, sigma: x0.mean(0) + (x - x0.mean(0)) @ gain(sigma).T
    mse, error = denoising_error(denoise, x0, SIGMAS, generator)
    assert ((mse - exact).abs() < 4 * error).all() and (error < 0.01 * mse).all()


def test_scalars_and_fewer_data_than_dimensions():
    two = torch.tensor([[-1.0], [1.0]])
    assert gaussian_error(two, torch.tensor([1.0])).item() == pytest.approx(0.5)
    wide = torch.zeros(2, 1, 5, 4)
    wide[1] = 2  # variance 1 along the one direction (1, …, 1), 20 in its units
    assert gaussian_error(wide, torch.tensor([2.0])).item() == pytest.approx(20 * 4 / 24 / 20)


def test_a_mixtures_own_denoiser_is_better_than_the_best_linear_one(generator):
    mixture = Mixture(torch.ones(2), torch.tensor([[-1.0], [1.0]]), 0.1)
    x0 = mixture.sample(20_000, generator)
    denoise = lambda x, sigma: mixture.denoise(x, sigma=sigma)
    mse, error = denoising_error(denoise, x0, SIGMAS, generator)
    linear = gaussian_error(x0, SIGMAS)
    assert np.isclose(linear[2], 1.01 / 2.01, rtol=0.02)
    assert (mse[1:3] + 4 * error[1:3] < linear[1:3]).all() and abs(mse[3] - linear[3]) < 4 * error[3]


def test_memory_shows_as_the_gap_between_the_images_seen_and_held_out(generator):
    train, test = digits().x[:300], digits("test").x[:100]
    denoise = IdealDenoiser(train)
    sigmas = torch.tensor([0.1, 0.3])
    seen, _ = denoising_error(denoise, train[:100], sigmas, generator)
    held_out, _ = denoising_error(denoise, test, sigmas, generator)
    assert (seen < 1e-3).all() and (held_out > gaussian_error(test, sigmas)).all()


@pytest.mark.parametrize(
    ("n", "sigmas", "batch", "named"),
    [(1, [1.0], 8, "x0 of 1"), (3, [1.0], 0, "batches of 0"), (3, [1.0, 0.0], 8, r"sigmas=\[1.0, 0.0\]")],
)
def test_what_has_no_error_is_refused(n, sigmas, batch, named, generator):
    with pytest.raises(ValueError, match=named):
        denoising_error(lambda x, sigma: x, torch.ones(n, 2), torch.tensor(sigmas), generator, batch)
