"""Ancestral sampling: the chain in closed form on Gaussian data, its parts, its noise and its callback."""

import numpy as np
import pytest
import torch
from oracles import BitChain, Chain

from minidiff import (
    MLP,
    BinomialDiffusion,
    GaussianDiffusion,
    LearnedGaussian,
    ancestral,
    batch_noise,
    draw,
    linear_betas,
    per_image_noise,
)

BETAS = linear_betas(50)


def silent(step: int) -> torch.Tensor:
    raise AssertionError("no noise was due")


@pytest.mark.parametrize("variance", ["large", "small", "learned"])
@pytest.mark.parametrize("predict", ["eps", "v"])
def test_samples_have_the_moments_that_the_affine_chain_gives_them(predict, variance, generator):
    """Each step is x ← a + b x + σ z: mean and variance follow exactly, 20,000 samples must agree to 4.5 errors."""
    m, s, n = 0.3, 0.5, 20_000
    chain, learned = Chain(BETAS, m, s), variance == "learned"
    process = GaussianDiffusion(BETAS, predict, variance, loss="bound" if learned else "simple", clip=False)
    sigma2 = {"large": chain.betas, "small": chain.beta_tilde, "learned": chain.best_variance}[variance]
    mean, var = 0.0, 1.0
    for t in reversed(range(50)):
        into = (1 - chain.betas[t]) ** 0.5 * (1 - chain.before[t]) / (1 - chain.alpha_bar[t])
        slope = into + chain.coefficient[t] * chain.gain[t]
        mean = slope * mean + chain.coefficient[t] * m * (1 - chain.gain[t] * chain.alpha_bar[t] ** 0.5)
        var = slope**2 * var + (sigma2[t] if t else 0.0)

    noise = batch_noise(generator, n, (1,))
    x = ancestral(process, chain.network(predict, learned), noise(0), noise)
    assert abs(x.mean().item() - mean) < 4.5 * (var / n) ** 0.5
    assert abs(x.var().item() - var) < 4.5 * var * (2 / n) ** 0.5
    if learned:  # the exact posterior at every step: only the last step's missing noise is missing
        assert mean == pytest.approx(m, abs=0.3 * chain.alpha_bar[-1] ** 0.5)
        assert var == pytest.approx(s**2 - chain.best_variance[0], abs=s**2 * chain.alpha_bar[-1])


def test_no_noise_is_added_in_the_last_step():
    asked = []

    def noise(step: int) -> torch.Tensor:
        asked.append(step)
        return torch.zeros(2, 1)

    process = GaussianDiffusion(BETAS)
    ancestral(process, Chain(BETAS, 0.0, 1.0).network("eps"), torch.zeros(2, 1), noise)
    assert asked == list(range(1, 50))
    ancestral(process, Chain(BETAS, 0.0, 1.0).network("eps"), torch.zeros(2, 1), silent, first=0)


@pytest.mark.parametrize("predict", ["pull", "shift"])
def test_a_density_is_drawn_from_to_the_last_step(predict, generator):
    """The best reverse of N(m, s²) with the forward kernel as its last step: the moments, and noise in every step."""
    m, s, n, asked = 0.6, 0.8, 20_000, []
    chain, process = Chain(BETAS, m, s), LearnedGaussian(BETAS, predict=predict)
    drawn = batch_noise(generator, n, (1,))
    x = ancestral(process, chain.learned(predict), drawn(0), lambda step: asked.append(step) or drawn(step))
    mean = (1 - chain.betas[0]) ** 0.5 * chain.alpha_bar[0] ** 0.5 * m  # but for what x_T still knows of x_0
    variance = (1 - chain.betas[0]) * chain.marginal[0] + chain.betas[0]
    assert asked == list(range(1, 51))
    assert abs(x.mean().item() - mean) < 4 * (variance / n) ** 0.5 + m * chain.alpha_bar[-1] ** 0.5
    assert abs(x.var().item() - variance) < 4 * variance * (2 / n) ** 0.5 + chain.alpha_bar[-1]


@pytest.mark.parametrize("betas", [[0.1, 0.3, 0.5, 0.7], [0.25, 0.4, 1.0]])
@pytest.mark.parametrize("data", [[0.7, 0.3], [0.45, 0.05, 0.2, 0.3]])
def test_bits_are_drawn_as_the_product_of_the_step_matrices_says(data, betas, generator):
    """Every bit of every step by its exact conditional, the last one by the forward kernel (SD 44)."""
    chain, n = BitChain(betas := torch.tensor(betas).double(), 0.2, data), 20_000
    law = lambda rate: np.where(chain.states == 1, rate[:, None], 1 - rate[:, None]).prod(2)
    expected = chain.end
    for t in reversed(range(chain.T)):
        joint = chain.joint(t, t + 1)
        exact = (joint.T @ chain.states) / joint.sum(0)[:, None]
        expected = expected @ law(exact if t else chain.single[0][:, 1][chain.states])
    process, noise = BinomialDiffusion(betas, 0.2), batch_noise(generator, n, (chain.d,))
    x = ancestral(process, chain.network(), draw(process.prior, noise(0)), noise)
    assert set(x.unique().tolist()) == {0.0, 1.0} and x.dtype == torch.float64
    state = (x @ 2.0 ** torch.arange(chain.d - 1, -1, -1).double()).long()
    found = torch.bincount(state, minlength=len(data)).numpy() / n
    assert (np.abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / n)).all()


def test_parts_make_up_the_whole():
    process, net = GaussianDiffusion(BETAS), Chain(BETAS, 0.2, 0.6).network("eps")
    noise = per_image_noise([5, 6], (3,))
    whole = ancestral(process, net, noise(0), noise)
    middle = ancestral(process, net, noise(0), noise, last=20)
    assert torch.equal(ancestral(process, net, middle, noise, first=19), whole)
    assert not torch.equal(middle, whole)


def test_the_callback_sees_each_point_before_its_step():
    process, net = GaussianDiffusion(BETAS, clip=True), Chain(BETAS, 0.2, 0.6).network("eps")
    noise, seen = per_image_noise([5, 6], (3,)), []
    end = ancestral(process, net, 3 * noise(0), noise, callback=lambda **point: seen.append(point), last=10)
    assert [point["step"] for point in seen] == list(range(40))
    assert [point["t"] for point in seen] == list(range(49, 9, -1))
    assert all(set(point) == {"step", "x", "t", "x0_hat"} for point in seen)
    assert torch.equal(seen[0]["x"], 3 * noise(0))
    for point, after in zip(seen, [p["x"] for p in seen[1:]] + [end], strict=True):
        t = torch.full((2,), point["t"])
        x0_hat = process.x0_from(net(point["x"], t.double()), point["x"], t).clamp(-1, 1)
        torch.testing.assert_close(point["x0_hat"], x0_hat, rtol=1e-8, atol=1e-8)
        kernel = process.reverse(net, point["x"], t)
        torch.testing.assert_close(after, kernel.mean + kernel.scale * noise(50 - point["t"]))


@pytest.mark.parametrize("first, last", [(50, 0), (10, 11), (10, -1), (-1, 0)])
def test_steps_that_the_chain_does_not_have_are_refused(first, last):
    with pytest.raises(ValueError, match=rf"steps from {first} down to {last}: this chain has the steps 49 … 0"):
        ancestral(GaussianDiffusion(BETAS), silent, torch.zeros(1, 1), silent, first=first, last=last)


def test_the_chain_is_kept_in_float64_while_the_network_is_float32(generator):
    net, dtypes = MLP(2), set()
    net.register_forward_hook(lambda module, inputs, output: dtypes.update({inputs[0].dtype, output.dtype}))
    noise, seen = batch_noise(generator, 4, (2,)), []
    note = lambda **point: seen.append(point["x"].dtype)
    x = ancestral(GaussianDiffusion(BETAS), net, noise(0).float(), noise, callback=note)
    assert x.dtype == torch.float64 and set(seen) == {torch.float64} and dtypes == {torch.float32}


def test_gradients_are_off_unless_turned_on_inside():
    grad = []

    def net(x, t):
        grad.append(torch.is_grad_enabled())
        with torch.enable_grad():  # what guidance does
            y = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad((y**2).sum(), y)
        return gradient

    x = ancestral(GaussianDiffusion(BETAS), net, torch.ones(1, 1), lambda step: torch.zeros(1, 1))
    assert grad == [False] * 50 and not x.requires_grad


def test_conditioning_reaches_the_network():
    labels, seen = torch.tensor([3, 4]), []

    def net(x, t, labels):
        seen.append(labels)
        return x

    ancestral(GaussianDiffusion(BETAS), net, torch.ones(2, 1), lambda step: torch.zeros(2, 1), {"labels": labels})
    assert len(seen) == 50 and all(given is labels for given in seen)
