"""The loss by noise level, where it is known."""

import pytest
import torch

from minidiff import EDM, GaussianDiffusion, edm_column, linear_betas
from minidiff.evaluation import level_losses

STEPS = torch.tensor([0, 7, 29])


def test_of_a_network_that_answers_a_constant_it_is_known(generator):
    """ε predicted as c costs (ε − c)² at every step; an example has one ε at all of them."""
    process, x0 = GaussianDiffusion(linear_betas(30)), torch.randn(50, 2, 3, generator=generator)
    net = lambda x, t: (t / 10).reshape(-1, 1, 1).expand_as(x)
    mean, error = level_losses(process, net, x0, STEPS, torch.Generator().manual_seed(4), batch=7)
    noise = torch.randn(50, 2, 3, generator=torch.Generator().manual_seed(4)).double()
    for k, t in enumerate(STEPS.tolist()):
        each = ((noise - t / 10) ** 2).mean((1, 2))
        assert mean[k].item() == pytest.approx(each.mean().item(), rel=1e-5)
        assert error[k].item() == pytest.approx(each.std().item() / 50**0.5, rel=1e-5)


def test_conditions_go_with_their_examples(generator):
    process, x0 = GaussianDiffusion(linear_betas(30)), torch.zeros(23, 1)
    labels = torch.arange(23)
    net = lambda x, t, labels: labels[:, None] * torch.ones_like(x)
    told = [
        level_losses(process, net, x0, STEPS, torch.Generator().manual_seed(1), b, {"labels": labels}) for b in (5, 23)
    ]
    torch.testing.assert_close(told[0], told[1])
    noise = torch.randn(23, 1, generator=torch.Generator().manual_seed(1))
    assert told[0][0][0].item() == pytest.approx(((noise[:, 0] - labels) ** 2).mean().item(), rel=1e-5)


def test_edms_levels_are_sigmas_and_a_network_of_zeros_costs_the_targets_variance(generator):
    """Of normal data with σ_data the target has variance 1 at every σ (EDM App. B.6); z-scores below 4."""
    process, x0 = EDM(edm_column()), 0.5 * torch.randn(20_000, 4, generator=generator)
    sigmas = torch.tensor([0.01, 0.5, 30.0], dtype=torch.float64)
    mean, error = level_losses(process, lambda x, t: torch.zeros_like(x), x0, sigmas, generator)
    assert ((mean - 1).abs() < 4 * error).all() and (error < 0.01).all()


def test_one_example_has_no_error():
    with pytest.raises(ValueError, match="x0 of 1"):
        level_losses(GaussianDiffusion(linear_betas(30)), lambda x, t: x, torch.zeros(1, 2), STEPS, torch.Generator())
