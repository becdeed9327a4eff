"""The likelihood bound as it is estimated: strata that hold every step once, no bias, honest errors."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from oracles import Chain

from minidiff import (
    BinomialDiffusion,
    GaussianDiffusion,
    encode,
    harmonic_betas,
    likelihood_bound,
    linear_betas,
    strata,
)

BETAS = linear_betas(160)[:80]  # cut in the middle, so that x_T still knows of x_0 and L_T counts
M, S = -0.2, 0.4


@given(T=st.integers(2, 4000), count=st.integers(1, 5000))
@example(T=1000, count=1)
@example(T=1000, count=2)
@example(T=1000, count=1000)
def test_strata_hold_every_step_once(T, count):
    edges = strata(T, count)
    assert edges[0] == 0 and edges[-1] == T and (edges.diff() > 0).all()
    assert len(edges) - 1 <= count
    if count >= T:
        assert (edges.diff() == 1).all()
    elif count > 1:
        assert edges[1] == 1  # the decoder alone


@pytest.fixture(scope="module")
def examples() -> torch.Tensor:
    """400 Gaussian values on 17 levels."""
    x = M + S * torch.randn(400, 1, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    return encode(((x + 1) * 8).round().clamp(0, 16).to(torch.uint8), 17).double()


def closed_form(x0: torch.Tensor, variance: str) -> np.ndarray:
    chain = Chain(BETAS, M, S)
    sigma2 = (chain.betas if variance == "large" else chain.beta_tilde).copy()
    sigma2[0] = chain.beta_tilde[1]
    return chain.bound_terms(x0[:, 0].numpy(), sigma2, 17)


@pytest.mark.parametrize("variance", ["large", "small"])
@pytest.mark.parametrize("count", [1, 2, 12, 40, 80, 1000])
def test_any_number_of_strata_estimates_the_closed_form(count, variance, examples, generator):
    process = GaussianDiffusion(BETAS, variance=variance, levels=17, clip=False)
    bound = likelihood_bound(process, Chain(BETAS, M, S).network("eps"), examples, generator, count, repeats=2)
    terms = closed_form(examples, variance)
    # what remains random, given the examples, is step and noise: their error is that of estimate minus truth
    difference = bound.per_example - torch.from_numpy(terms.sum(0))
    assert abs(difference.mean()) < 4 * difference.std() / 20
    torch.testing.assert_close(bound.prior, torch.from_numpy(terms[-1]))
    assert bound.prior.mean() > 1e-3
    assert bound.total == pytest.approx(bound.per_example.mean().item())
    assert bound.error == pytest.approx(bound.per_example.std().item() / 20)
    assert bound.terms.sum().item() + bound.prior.mean().item() == pytest.approx(bound.total)


def test_each_stratum_estimates_its_own_terms(examples, generator):
    process = GaussianDiffusion(BETAS, levels=17, clip=False)
    bound = likelihood_bound(process, Chain(BETAS, M, S).network("eps"), examples, generator, count=10)
    truth, edges = closed_form(examples, "large").mean(1), bound.edges.tolist()
    for k, (low, high) in enumerate(pairwise(edges)):
        assert abs(bound.terms[k] - truth[low:high].sum()) < 4.5 * bound.terms_error[k]
    assert bound.between(0, 0) == bound.terms[0].item()
    assert bound.between(1, 79) == pytest.approx(bound.terms[1:].sum().item())


def test_error_of_x0_is_that_of_the_exact_posterior(examples, generator):
    """E (x̂_0 − x_0)², where x̂_0 is the posterior mean of N(m, s²), in each step."""
    process, chain = GaussianDiffusion(BETAS, levels=17, clip=False), Chain(BETAS, M, S)
    bound = likelihood_bound(process, chain.network("eps"), examples, generator, count=80, repeats=8)
    shrink = 1 - chain.gain * np.sqrt(chain.alpha_bar)
    offset = (examples.numpy() - M).T ** 2
    expected = (shrink[:, None] ** 2 * offset).mean(1) + chain.gain**2 * (1 - chain.alpha_bar)
    np.testing.assert_allclose(bound.x0_mse.numpy()[[0, 40, 79]], expected[[0, 40, 79]], rtol=0.1)
    assert bound.x0_mse.mean().item() == pytest.approx(expected.mean(), rel=0.01)
    # and of ε, whose error is that of x̂_0 times the signal-to-noise ratio
    noise = expected * chain.alpha_bar / (1 - chain.alpha_bar)
    np.testing.assert_allclose(bound.eps_mse.numpy()[[0, 40, 79]], noise[[0, 40, 79]], rtol=0.1)
    assert bound.eps_mse.mean().item() == pytest.approx(noise.mean(), rel=0.01)


def test_the_error_of_each_term_is_that_of_its_mean_over_examples(examples):
    """40 estimates with fresh noise on one example repeated: their spread is the error that each of them states."""
    process, net = GaussianDiffusion(BETAS, levels=17, clip=False), Chain(BETAS, M, S).network("eps")
    same, generator = examples[:1].expand(100, 1), torch.Generator().manual_seed(9)
    bounds = [likelihood_bound(process, net, same, generator, count=80) for _ in range(40)]
    for key in ("terms", "x0_mse", "eps_mse"):
        means = torch.stack([getattr(bound, key) for bound in bounds])
        stated = torch.stack([getattr(bound, f"{key}_error") for bound in bounds])
        ratio = means.var(0) / (stated**2).mean(0)
        # (n − 1) s²/σ² is χ² with 39 degrees of freedom: its 80 ratios average 1 ± 0.025
        assert ratio.mean().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("batch", [400, 3])
def test_each_example_meets_its_own_condition(batch, examples):
    """A label that names the example: the network answers for it alone, so x̂_0 = x_0 and nothing but L_0 is left."""
    process, x0 = GaussianDiffusion(BETAS, "x0", "small", levels=17), examples[:10]
    net = lambda x, t, labels: x0[labels]
    cond = {"labels": torch.arange(10)}
    bound = likelihood_bound(process, net, x0, torch.Generator().manual_seed(1), count=80, batch=batch, cond=cond)
    assert bound.between(1, 79) < 1e-12 and bound.x0_mse.max() == 0 and bound.between(0, 0) > 0


def test_processes_that_predict_no_noise_have_no_error_of_it(generator):
    process = BinomialDiffusion(harmonic_betas(5), 0.2)
    bits = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    bound = likelihood_bound(process, lambda x, t: x, bits, generator)
    assert bound.eps_mse is None and bound.eps_mse_error is None and len(bound.x0_mse_error) == len(bound.x0_mse) == 5


def test_the_bound_of_data_lies_above_their_entropy(generator):
    """No code is shorter than the entropy: three values with probabilities ½, ¼, ¼ need 1.5 bits."""
    process = GaussianDiffusion(linear_betas(100), levels=3, clip=False)
    x0 = torch.tensor([-1.0, -1.0, 0.0, 1.0]).double().repeat(200)[:, None]
    alpha_bar = torch.cumprod(1 - linear_betas(100), 0)
    values, share = torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([0.5, 0.25, 0.25])

    def net(x, t):  # ε for the exact posterior mean of the three values
        a = alpha_bar[t.long(), None]
        logits = share.log() - (x - a.sqrt() * values) ** 2 / (2 * (1 - a))
        x0_hat = (logits.softmax(1) * values).sum(1, keepdim=True)
        return (x - a.sqrt() * x0_hat) / (1 - a).sqrt()

    bound = likelihood_bound(process, net, x0, generator, count=100)
    assert 1.5 < bound.total - 4 * bound.error
    assert bound.total < 1.5 + 1.0  # and the exact network is not far above it


def test_the_same_generator_gives_the_same_bound(examples):
    process, net = GaussianDiffusion(BETAS, levels=17), Chain(BETAS, M, S).network("eps")
    draw = lambda seed: likelihood_bound(process, net, examples[:9], torch.Generator().manual_seed(seed), 7).per_example
    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))


def test_each_stratum_is_announced(examples, generator):
    told = []
    bound = likelihood_bound(
        GaussianDiffusion(BETAS), lambda x, t: x, examples[:3], generator, 9, on_stratum=lambda: told.append(1)
    )
    assert len(told) == len(bound.terms) == len(bound.edges) - 1


@pytest.mark.parametrize("count, repeats", [(0, 1), (-3, 1), (5, 0)])
def test_nothing_to_evaluate_is_refused(count, repeats, examples, generator):
    with pytest.raises(ValueError, match=rf"count={count}, repeats={repeats}"):
        likelihood_bound(GaussianDiffusion(BETAS), lambda x, t: x, examples, generator, count, repeats)


def test_the_size_of_a_batch_changes_nothing(examples):
    chain = GaussianDiffusion(BETAS, levels=17)
    whole, parts = (
        likelihood_bound(chain, lambda x, t: x.sin(), examples, torch.Generator().manual_seed(1), 9, batch=batch)
        for batch in (400, 37)
    )
    torch.testing.assert_close(whole.per_example, parts.per_example, rtol=1e-12, atol=0)
    torch.testing.assert_close(whole.x0_mse, parts.x0_mse, rtol=1e-12, atol=0)
