"""Guidance against what is known: Gaussians and mixtures conditioned exactly, finite differences, and no guidance."""

import re
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from oracles import Chain
from torch import nn

from minidiff import (
    MLP,
    ClassifierFree,
    ClassLogProb,
    EDMPath,
    GaussianDiffusion,
    Guided,
    GuidedDenoiser,
    LearnedGaussian,
    Mixture,
    NoisyClassifier,
    ancestral,
    batch_noise,
    cosine_betas,
    ddim,
    ddim_encode,
    generate,
    linear_betas,
    ode,
    ode_log_prob,
    respace,
    subsequence,
)

T = 40
BETAS = linear_betas(T)
ALPHA_BAR = torch.cumprod(1 - BETAS, 0)
SIGMA = ((1 - ALPHA_BAR) / ALPHA_BAR).sqrt()
AT = pytest.mark.parametrize("at", ["mean", "x"])


def curved(x, t):
    """No solution of anything, but different at every x and t."""
    return torch.sin(2 * x + t[:, None] / 9) + 0.3 * x.roll(1, 1)


def told(x, t, labels):
    """Another answer for every class."""
    return curved(x, t) + 0.1 * labels[:, None]


def wave(x, t, labels):
    """A log p that is no law of anything, of its own at every step and for every class."""
    return (torch.sin(x + 0.3 * t[:, None]) * (1 + labels[:, None])).sum(1)


def never(*asked, **more):
    pytest.fail("nothing is to be asked here")


def small_classifier(classes: int = 4) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MLP(3, classes, width=16, depth=2)
        for layer in net.layers[::2]:
            nn.init.normal_(layer.weight, std=0.6)
    return net


@pytest.fixture
def x(generator):
    return torch.randn(5, 3, generator=generator, dtype=torch.float64)


STEPS, LABELS = torch.tensor([0, 1, 7, 20, 39]), torch.tensor([2, 0, 1, 3, 2])
COND = {"labels": LABELS}


# ---- nothing to say -------------------------------------------------------------------------------------------------


@AT
def test_a_constant_classifier_changes_no_bit(x, at):
    process, noise = GaussianDiffusion(BETAS), lambda k: batch_noise(torch.Generator().manual_seed(k), 5, (3,))(k)
    flat = ClassLogProb(process, lambda x, t: 0 * x.sum(1, keepdim=True) + torch.tensor([1.0, 5.0, -2.0, 0.0]))
    guided = Guided(process, flat, 7.0, at, tell_net=False)
    ours, plain = guided.reverse(curved, x, STEPS, labels=LABELS), process.reverse(curved, x, STEPS)
    assert torch.equal(ours.mean, plain.mean) and torch.equal(ours.scale, plain.scale)
    end = ancestral(guided, curved, x, noise, COND)
    assert torch.equal(end, ancestral(process, curved, x, noise))
    torch.testing.assert_close(ddim(guided, curved, x, never, cond=COND), ddim(process, curved, x, never))


@AT
def test_scale_0_is_the_process_and_asks_no_classifier(x, at):
    process = GaussianDiffusion(BETAS)
    guided = Guided(process, never, 0.0, at)
    ours, plain = guided.reverse(told, x, STEPS, labels=LABELS), process.reverse(told, x, STEPS, labels=LABELS)
    assert torch.equal(ours.mean, plain.mean) and torch.equal(ours.scale, plain.scale)
    believed = guided.believe(told, x, STEPS, labels=LABELS)[0]
    assert torch.equal(believed, process.believe(told, x, STEPS, labels=LABELS)[0])
    denoise = process.denoiser(told)
    assert torch.equal(GuidedDenoiser(denoise, never, 0.0)(x, 2.0, **COND), denoise(x, 2.0, **COND))


# ---- where, and how far ---------------------------------------------------------------------------------------------


def test_at_the_mean_the_slope_is_that_of_the_step_below_and_the_last_step_has_none(x):
    process, asked = GaussianDiffusion(BETAS), []
    log_p = lambda x, t, labels: asked.append((x.detach(), t, labels)) or wave(x, t, labels)
    kernel = process.reverse(curved, x, STEPS)
    ours = Guided(process, log_p, 1.5, tell_net=False).reverse(curved, x, STEPS, labels=LABELS)
    ((at, t, labels),) = asked
    assert torch.equal(at, kernel.mean[1:]) and t.tolist() == [0, 6, 19, 38] and torch.equal(labels, LABELS[1:])
    slope = torch.cos(at + 0.3 * t[:, None]) * (1 + labels[:, None])
    torch.testing.assert_close(ours.mean[1:], kernel.mean[1:] + 1.5 * kernel.scale[1:] ** 2 * slope)
    assert torch.equal(ours.mean[0], kernel.mean[0]) and torch.equal(ours.scale, kernel.scale)
    last = Guided(process, never, 1.5, tell_net=False).reverse(curved, x, 0 * STEPS, labels=LABELS)
    assert torch.equal(last.mean, process.reverse(curved, x, 0 * STEPS).mean)


def test_at_x_the_slope_is_that_of_the_step_itself_also_in_the_last_one(x):
    process = GaussianDiffusion(BETAS)
    kernel = process.reverse(curved, x, STEPS)
    ours = Guided(process, wave, 1.5, "x", tell_net=False).reverse(curved, x, STEPS, labels=LABELS)
    slope = torch.cos(x + 0.3 * STEPS[:, None]) * (1 + LABELS[:, None])
    torch.testing.assert_close(ours.mean, kernel.mean + 1.5 * kernel.scale**2 * slope)


@pytest.mark.parametrize("variance", ["learned", "range", "small"])
def test_the_mean_moves_by_the_variance_that_the_network_learned(x, variance):
    learned = variance != "small"
    process = GaussianDiffusion(BETAS, variance=variance, loss="hybrid" if learned else "simple")
    net = lambda x, t: torch.cat([curved(x, t), 0.3 * x - 1], 1) if learned else curved(x, t)
    kernel = process.reverse(net, x, STEPS)
    ours = Guided(process, wave, -2.0, "x", tell_net=False).reverse(net, x, STEPS, labels=LABELS)
    slope = torch.cos(x + 0.3 * STEPS[:, None]) * (1 + LABELS[:, None])
    torch.testing.assert_close((ours.mean - kernel.mean) / kernel.scale**2, -2 * slope, rtol=1e-6, atol=1e-6)
    led = Guided(process, wave, tell_net=False).believe(net, x, STEPS, labels=LABELS)[1]
    plain = process.believe(net, x, STEPS)[1]
    assert (led is None) == (plain is None) == (not learned) and (not learned or torch.equal(led, plain))


@AT
def test_the_slope_of_a_network_matches_finite_differences(x, at):
    process, net = GaussianDiffusion(BETAS), small_classifier().double()
    ours = Guided(process, ClassLogProb(process, net), 2.0, at, tell_net=False)
    ours = ours.reverse(curved, x, STEPS, labels=LABELS)
    kernel = process.reverse(curved, x, STEPS)

    @torch.no_grad()
    def log_p(x, t):
        logits = net(x, t.double()).numpy()
        return (logits - np.log(np.exp(logits).sum(1, keepdims=True)))[np.arange(5), LABELS.numpy()]

    point, t = (x, STEPS) if at == "x" else (kernel.mean, STEPS - 1)
    for k in range(3):
        h = 1e-5 * torch.eye(3)[k].double()
        slope = (log_p(point + h, t) - log_p(point - h, t)) / 2e-5
        if at == "mean":
            slope[0] = 0
        moved = (ours.mean - kernel.mean)[:, k] / (2 * kernel.scale[:, k] ** 2)
        np.testing.assert_allclose(moved, slope, rtol=1e-6, atol=1e-8)
    assert np.abs(slope).max() > 0.05


@pytest.mark.parametrize("clip", [True, False])
def test_the_belief_is_that_of_the_shifted_noise_and_is_not_clipped_again(x, clip):
    """(ADM Alg. 2) written out: ε of the (clipped) x̂_0, shifted, then x̂_0 of it."""
    process = GaussianDiffusion(BETAS, clip=not clip)
    guided = Guided(process, wave, 3.0, tell_net=False)
    a = ALPHA_BAR[STEPS][:, None]
    x0_hat = process.believe(curved, x, STEPS, clip)[0]
    eps = (x - a.sqrt() * x0_hat) / (1 - a).sqrt()
    eps = eps - (1 - a).sqrt() * 3 * torch.cos(x + 0.3 * STEPS[:, None]) * (1 + LABELS[:, None])
    expected = (x - (1 - a).sqrt() * eps) / a.sqrt()
    found, log_variance = guided.believe(curved, x, STEPS, clip, labels=LABELS)
    torch.testing.assert_close(found, expected)
    assert log_variance is None and expected.abs().max() > 1.5


def test_s_times_the_slope_is_the_slope_of_the_power_and_not_of_a_sharpened_softmax(x):
    process, net, s = GaussianDiffusion(BETAS), small_classifier().double(), 3.0
    log_p = ClassLogProb(process, net)
    power = lambda *asked: s * log_p(*asked)  # log p^s, which sums to no 1 over the classes
    sharp = ClassLogProb(process, lambda x, t: s * net(x, t))  # p^s / Σ p^s
    mean = lambda log_p, s: Guided(process, log_p, s, "x", tell_net=False).reverse(curved, x, STEPS, labels=LABELS).mean
    believed = lambda log_p, s: Guided(process, log_p, s, tell_net=False).believe(curved, x, STEPS, labels=LABELS)[0]
    torch.testing.assert_close(mean(log_p, s), mean(power, 1.0))
    torch.testing.assert_close(believed(log_p, s), believed(power, 1.0))
    at = x.clone().requires_grad_()
    norm = lambda s: torch.autograd.grad((s * net(at, STEPS.double())).logsumexp(1).sum(), at)[0]  # ∇ log Σ e^(s z)
    variance = process.reverse(curved, x, STEPS).scale ** 2
    apart = variance * (s * norm(1.0) - norm(s))
    torch.testing.assert_close(mean(sharp, 1.0) - mean(log_p, s), apart, rtol=1e-6, atol=1e-9)
    assert (apart.abs() / variance).max() > 0.1


# ---- a chain that leaves steps out ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("rescale", "unit"), [(False, 1), (True, 25)])
def test_on_a_respaced_chain_the_classifier_is_asked_at_the_steps_that_were_kept(x, rescale, unit):
    whole, asked = GaussianDiffusion(BETAS, rescale_times=rescale), []
    process = respace(whole, [0, 3, 17, 30, 39])
    net = lambda x, t: asked.append(t.tolist()) or torch.stack([x.sum(1), -x.sum(1)], 1)
    t, labels = torch.arange(5), torch.tensor([0, 1, 0, 1, 0])
    for chain in (whole, process):  # it may be given with either
        log_p = ClassLogProb(chain, net)
        for at in ("mean", "x"):
            Guided(process, log_p, at=at, tell_net=False).reverse(curved, x, t, labels=labels)
        Guided(process, log_p, tell_net=False).believe(curved, x, t, labels=labels)
    kept = [unit * k for k in (0, 3, 17, 30, 39)]
    assert asked == 2 * [kept[:-1], kept, kept]


def test_a_function_is_asked_by_the_indices_of_the_chain_that_is_guided(x):
    asked, process = [], respace(GaussianDiffusion(BETAS), [0, 3, 17, 30, 39])
    log_p = lambda x, t, labels: asked.append(t.tolist()) or x.sum(1)
    Guided(process, log_p, tell_net=False).reverse(curved, x, torch.arange(5), labels=LABELS)
    assert asked == [[0, 1, 2, 3]]


@pytest.mark.parametrize(
    "theirs", [linear_betas(T, last=0.018), cosine_betas(T), linear_betas(T + 1), linear_betas(T)[:-1]]
)
def test_a_classifier_of_other_noise_is_refused(theirs):
    log_p = ClassLogProb(GaussianDiffusion(theirs), never)
    with pytest.raises(ValueError, match="log_p: the classifier was trained on the noise of another chain"):
        Guided(GaussianDiffusion(BETAS), log_p)
    with pytest.raises(ValueError, match="another chain"):
        Guided(GaussianDiffusion(BETAS, rescale_times=True), ClassLogProb(GaussianDiffusion(BETAS), never))


def test_a_classifier_of_the_same_noise_is_taken_under_any_parametrisation():
    theirs = GaussianDiffusion(BETAS, "x0", levels=17)
    for T in (2, 17, 40, 1000):
        ours = GaussianDiffusion(cosine_betas(T), variance="range", loss="hybrid", clip=False)
        assert Guided(ours, ClassLogProb(GaussianDiffusion(cosine_betas(T)), never)).T == T
    assert Guided(respace(GaussianDiffusion(BETAS), "7"), ClassLogProb(theirs, never)).T == 7


# ---- Gaussians: x_0 ~ N(m, s²) and y = x_0 + τ n, in every dimension ------------------------------------------------

M, S, TAU = 0.3, 0.8, 0.5
Y = torch.tensor([-0.9, 1.4], dtype=torch.float64)  # the label says which was seen


def evidence(alpha_bar):
    """log p(y | x_t) but for a constant, by x_0 | x_t."""

    def log_p(x, t, labels):
        a = alpha_bar[t][:, None]
        marginal = a * S**2 + 1 - a
        mean = M + a.sqrt() * S**2 / marginal * (x - a.sqrt() * M)
        return -((Y[labels][:, None] - mean) ** 2 / (2 * (S**2 * (1 - a) / marginal + TAU**2))).sum(1)

    return log_p


def truth(label: int) -> tuple[float, float]:
    """Mean and variance of x_0 given y."""
    variance = 1 / (1 / S**2 + 1 / TAU**2)
    return variance * (M / S**2 + Y[label].item() / TAU**2), variance


def moments(process, net, label: int) -> np.ndarray:
    """Of the chain's x_0, where every step is affine."""
    t = torch.arange(process.T).repeat_interleave(2)
    x = torch.tensor([0.0, 1.0]).double().repeat(process.T)[:, None]
    kernel = process.reverse(net, x, t, labels=torch.full_like(t, label))
    at, spread = kernel.mean.reshape(-1, 2).numpy(), kernel.variance[::2, 0].numpy()
    mean, variance = 0.0, 1.0
    for t in reversed(range(process.T)):
        slope = at[t, 1] - at[t, 0]
        mean, variance = at[t, 0] + slope * mean, slope**2 * variance + (spread[t] if t else 0)
    return np.array([mean, variance])


@AT
@pytest.mark.parametrize("label", [0, 1])
def test_guided_steps_lead_to_the_exact_conditional_at_first_order(at, label):
    """Twice the steps, half the error of mean and variance, with the best network and the exact log p(y | x_t)."""
    errors = []
    for T in (500, 1000, 2000, 4000):
        betas = linear_betas(T)
        process = GaussianDiffusion(betas, variance="learned", loss="bound", clip=False)
        log_p = evidence(torch.cumprod(1 - betas, 0))
        guided = Guided(process, log_p, at=at, tell_net=False)
        net = Chain(betas, M, S).network("eps", learned=True)
        errors.append(moments(guided, net, label) - truth(label))
    errors = np.array(errors)
    assert np.allclose(errors[:-1] / errors[1:], 2, atol=0.2), errors
    assert np.abs(errors[-1]).max() < 0.003 < 0.3 < abs(truth(label)[0] - M)


def test_a_guided_denoiser_is_that_of_the_conditional_law(x):
    """D + σ² ∇ log p(y | x; σ) of Gaussians is E[x_0 | x, y]: precisions add."""

    def log_p(x, sigma, labels):
        v = sigma[:, None] ** 2
        mean, variance = (v * M + S**2 * x) / (v + S**2), v * S**2 / (v + S**2)
        return -((Y[labels][:, None] - mean) ** 2 / (2 * (variance + TAU**2))).sum(1)

    square = lambda sigma: torch.as_tensor(sigma, dtype=torch.float64).reshape(-1, 1) ** 2
    denoise = lambda x, sigma: M + S**2 / (S**2 + square(sigma)) * (x - M)
    labels = torch.tensor([0, 1, 1, 0, 1])
    guided = GuidedDenoiser(denoise, log_p, tell_net=False)
    for sigma in (0.1, 1.0, 30.0, torch.tensor([0.03, 0.5, 1.0, 4.0, 80.0], dtype=torch.float64)):
        v = square(sigma)
        exact = (M / S**2 + Y[labels][:, None] / TAU**2 + x / v) / (1 / S**2 + 1 / TAU**2 + 1 / v)
        torch.testing.assert_close(guided(x, sigma, labels), exact, rtol=1e-12, atol=1e-12)

    path = EDMPath(0.01, 80.0)  # and the likelihood along its ODE is p(x_0 | y), for the slope has a slope itself
    mean, variance = torch.tensor([truth(k) for k in labels.tolist()]).double().T
    law = lambda x, sigma: torch.distributions.Normal(mean, (variance + sigma**2).sqrt()).log_prob(x[:, 0])
    found = ode_log_prob(guided, x[:, :1], path, cond={"labels": labels}, log_prior=lambda x: law(x, 80.0))
    torch.testing.assert_close(found, law(x, 0.01), rtol=0, atol=1e-3)


# ---- classes: a mixture whose every component is one ----------------------------------------------------------------

CENTRES = torch.tensor([[-1.0, 0.0], [0.5, 0.8], [0.7, -0.6]])
MIXTURE = Mixture(torch.tensor([0.5, 0.3, 0.2]), CENTRES, 0.3)
ALONE = [Mixture(torch.ones(1), CENTRES[k : k + 1], 0.3) for k in range(3)]


def of_each(method: str, x, sigma, labels):
    """What the class of each row says, or for −1 the whole mixture."""
    parts = torch.stack([getattr(one, method)(x, 1.0, sigma) for one in [*ALONE, MIXTURE]])
    return parts[labels, torch.arange(len(x))]


def class_log_p(x, sigma, labels):
    (sigma,) = set(sigma.tolist())
    joint = torch.stack([w.log() + one.log_prob(x, 1.0, sigma) for w, one in zip(MIXTURE.weights, ALONE, strict=True)])
    return joint.log_softmax(0)[labels, torch.arange(len(x))]


@pytest.mark.parametrize("sigma", [0.05, 0.4, 2.0])
def test_guided_to_a_component_the_mixture_s_denoiser_is_the_component_s(x, sigma):
    x, labels = x[:, :2], torch.tensor([0, 1, 2, 1, 0])
    denoise = lambda x, sigma: MIXTURE.denoise(x, 1.0, sigma)
    guided = GuidedDenoiser(denoise, class_log_p, tell_net=False)
    torch.testing.assert_close(guided(x, sigma, labels), of_each("denoise", x, sigma, labels))


@pytest.mark.parametrize("s", [0.0, 0.5, 1.0, 4.0])
def test_with_exact_answers_both_kinds_of_guidance_agree(x, s):
    """F(∅) + s (F(y) − F(∅)) is D + s σ² ∇ log p(y | x), where a network knows its law."""
    x, labels, sigma = x[:, :2], torch.tensor([0, 1, 2, 1, 0]), 0.7
    free = ClassifierFree(lambda x, t, labels: of_each("denoise", x, sigma, labels), s)
    unconditional = lambda x, sigma: MIXTURE.denoise(x, 1.0, sigma)
    guided = GuidedDenoiser(unconditional, class_log_p, s, tell_net=False)
    torch.testing.assert_close(free(x, torch.zeros(5), labels), guided(x, sigma, labels))


# ---- one thing in two forms -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("steps", [list(range(T)), [2, 11, 25, 39]])
def test_ddim_and_euler_s_rule_take_the_same_guided_steps(x, steps, clip):
    process, path = GaussianDiffusion(BETAS, clip=clip), EDMPath(SIGMA[0].item(), SIGMA[-1].item())
    log_p = ClassLogProb(process, small_classifier().double())
    by_ddim = ddim(Guided(process, log_p, 2.5), told, x, never, steps, cond=COND)
    denoise = GuidedDenoiser(process.denoiser(told), log_p.at_sigma, 2.5)
    times = torch.cat([SIGMA[steps].flip(0), torch.zeros(1).double()])
    start = x * (1 + SIGMA[steps[-1]] ** 2).sqrt()
    torch.testing.assert_close(ode(denoise, start, path, times, "euler", COND), by_ddim)
    assert (by_ddim - ddim(process, told, x, never, steps, cond=COND)).abs().max() > 0.05


def test_guided_ddim_follows_the_ode_of_the_conditional_law_to_first_order_both_ways(x):
    """Where p(x_0 | y) = N(m, v), x̄ = x/√ᾱ keeps (x̄ − m)/√(v + σ²)."""
    betas, labels = linear_betas(4000, first=2.5e-5, last=0.005), LABELS % 2
    process, net = GaussianDiffusion(betas, clip=False), Chain(betas, M, S).network("eps")
    guided = Guided(process, evidence(process.alpha_bar), tell_net=False)
    m, v = torch.tensor([truth(k) for k in labels.tolist()]).double().T[:, :, None]
    signal, wide = process.alpha_bar[-1].sqrt(), (v + process.sigma[-1] ** 2).sqrt()
    down, up = m + (x / signal - m) * v.sqrt() / wide, signal * (m + (x - m) * wide / v.sqrt())
    errors = []
    for n in (50, 100, 200):
        kept, cond = subsequence(4000, n, "trailing"), {"labels": labels}
        ends = ddim(guided, net, x, never, kept, cond=cond), ddim_encode(guided, net, x, kept, cond=cond)
        errors.append([(end - exact).abs().max() for end, exact in zip(ends, (down, up), strict=True)])
    errors = np.array(errors)
    assert np.allclose(errors[:-1] / errors[1:], 2, atol=0.25) and errors[-1].max() < 0.1, errors


# ---- the classifier -------------------------------------------------------------------------------------------------


def test_the_log_probabilities_are_in_nats_and_sum_to_one(x):
    process, net = GaussianDiffusion(BETAS, rescale_times=True), small_classifier()
    found = torch.stack([ClassLogProb(process, net)(x, STEPS, torch.full((5,), k)) for k in range(4)], 1)
    assert found.dtype == torch.float64
    logits = net(x.float(), 25 * STEPS.float()).detach().double()
    np.testing.assert_allclose(found.detach().exp().sum(1), np.ones(5), rtol=1e-12)
    np.testing.assert_allclose((found - found[:, :1]).detach(), logits - logits[:, :1], rtol=1e-5, atol=1e-6)


def test_at_sigma_it_is_asked_at_the_nearest_level_of_its_own_chain(x):
    process, asked = GaussianDiffusion(BETAS), []
    net = lambda x, t: asked.append((x, t.tolist())) or torch.stack([x.sum(1), 0 * x.sum(1)], 1)
    log_p, labels = ClassLogProb(process, net), torch.zeros(5, dtype=torch.long)
    between = ((SIGMA[1] * SIGMA[2]).sqrt() + (SIGMA[1] + SIGMA[2]) / 2) / 2  # in log σ it is the upper one's
    near = torch.tensor([1e-9, between, 0.99 * SIGMA[7], SIGMA[20], 1e9], dtype=torch.float64)
    log_p.at_sigma(x, near, labels)
    log_p.at_sigma(x, 1.01 * SIGMA[7].item(), labels)
    assert asked[0][1] == [0, 2, 7, 20, 39] and asked[1][1] == [7] * 5
    torch.testing.assert_close(asked[0][0], x / (1 + near[:, None] ** 2).sqrt())


@pytest.mark.parametrize("label", [-100, -1, 4])
def test_a_label_that_the_classifier_lacks_is_an_error(x, label):
    """Also −100, which torch's cross-entropy would pass over."""
    process, labels = GaussianDiffusion(BETAS), torch.tensor([0, 1, label, 2, 3])
    asked = re.escape(f"labels={sorted({0, 1, label, 2, 3})}")
    with pytest.raises(ValueError, match=f"{asked}: the classifier knows the classes 0 … 3"):
        ClassLogProb(process, small_classifier())(x, STEPS, labels)


def test_no_parameter_collects_a_gradient_and_the_networks_keep_their_precision(x):
    process, classifier, seen = GaussianDiffusion(BETAS), small_classifier(), []
    classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    log_p = ClassLogProb(process, classifier)
    guided = Guided(process, log_p, tell_net=False)
    for context in (torch.no_grad(), torch.enable_grad()):
        with context:
            kernel = guided.reverse(curved, x, STEPS, labels=LABELS)
            x0_hat, _ = guided.believe(curved, x, STEPS, labels=LABELS)
            denoised = GuidedDenoiser(process.denoiser(curved), log_p.at_sigma, tell_net=False)(x, 2.0, LABELS)
        for answer in (kernel.mean, x0_hat, denoised):
            assert answer.dtype == torch.float64 and not answer.requires_grad
    assert set(seen) == {torch.float32} and not x.requires_grad
    assert all(p.requires_grad and p.grad is None for p in classifier.parameters())


# ---- a process like any other ---------------------------------------------------------------------------------------


class Conditional(nn.Module):
    """A tame network of points in single precision, which listens to the class where it is told one."""

    def __init__(self):
        super().__init__()
        self.net = small_classifier(3)

    def forward(self, x, t, labels=None):
        answer = 0.3 * self.net(x, t).tanh()
        return answer if labels is None else answer + 0.1 * labels[:, None]


@pytest.mark.parametrize("sampler", [ancestral, partial(ddim, steps=[0, 9, 25], eta=0.5)], ids=["ancestral", "ddim"])
@AT
def test_an_image_is_the_same_in_any_batch_and_draws_nothing_of_torch_s_own(at, sampler):
    process = GaussianDiffusion(BETAS, "x0")
    guided = Guided(process, ClassLogProb(process, small_classifier()), 2.0, at, tell_net=False)
    before = torch.random.get_rng_state()
    labels = torch.arange(7) % 4
    draw = lambda seeds, **told: generate(guided, Conditional(), (3,), seeds, sampler=sampler, **told)
    x = draw(range(7), cond={"labels": labels})
    again = draw([6, 2, 5], cond={"labels": labels[[6, 2, 5]]}, batch=2)
    torch.testing.assert_close(again, x[[6, 2, 5]], rtol=0, atol=1e-5)
    assert torch.equal(before, torch.random.get_rng_state())
    other = draw(range(7), cond={"labels": (labels + 1) % 4})
    assert ((other - x).abs().amax(1) > 1e-4).all()


def test_the_network_is_told_the_class_or_it_is_not(x):
    process, seen = GaussianDiffusion(BETAS), []
    net = lambda x, t, **cond: seen.append(sorted(cond)) or curved(x, t)
    for tell_net in (True, False):
        guided = Guided(process, wave, tell_net=tell_net)
        cond = {"labels": LABELS, "low_res": x}
        guided.reverse(net, x, STEPS, **cond)
        guided.believe(net, x, STEPS, **cond)
        GuidedDenoiser(process.denoiser(net), wave, tell_net=tell_net)(x, 2.0, **cond)
    assert seen == 3 * [["labels", "low_res"]] + 3 * [["low_res"]]


def test_without_labels_there_is_nowhere_to_lead(x):
    process = GaussianDiffusion(BETAS)
    for ask in (
        lambda: Guided(process, wave, tell_net=False).reverse(curved, x, STEPS),
        lambda: Guided(process, wave, tell_net=False).believe(curved, x, STEPS),
        lambda: GuidedDenoiser(process.denoiser(curved), wave, tell_net=False)(x, 2.0),
        lambda: ClassifierFree(told, 2.0)(x, STEPS),
    ):
        with pytest.raises(ValueError, match="labels: guidance leads to a class"):
            ask()


def test_it_has_what_samplers_ask_a_process_for(x):
    process = GaussianDiffusion(BETAS)
    guided = Guided(process, wave)
    assert (guided.T, guided.noise_at_end, guided.prior.scale.item()) == (T, False, 1.0)
    assert torch.equal(guided.alpha_bar, process.alpha_bar) and torch.equal(guided.sigma, process.sigma)
    assert torch.equal(guided.x0_from_mean(x, 2 * x, STEPS), process.x0_from_mean(x, 2 * x, STEPS))
    clipped = guided.reverse(lambda x, t, labels: 9 * x, x, STEPS, True, labels=LABELS).mean
    assert not torch.equal(clipped, guided.reverse(lambda x, t, labels: 9 * x, x, STEPS, False, labels=LABELS).mean)


def test_a_process_without_a_gaussian_s_tables_is_refused():
    with pytest.raises(ValueError, match=r"process: .* GaussianDiffusion, no LearnedGaussian"):
        Guided(LearnedGaussian(BETAS), wave)


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "made", [partial(Guided, GaussianDiffusion(BETAS), wave), partial(GuidedDenoiser, curved, wave)]
)
def test_a_scale_that_is_no_number_is_refused(made, scale):
    for guide in (made, partial(ClassifierFree, told)):
        with pytest.raises(ValueError, match=f"scale={scale}: give a finite number"):
            guide(scale)


def test_another_place_for_the_slope_is_refused_where_types_are_not_checked():
    code = """
import minidiff as md
try:
    md.Guided(md.GaussianDiffusion(md.linear_betas(30)), lambda x, t, labels: x.sum(1), at="mu")
except ValueError as error:
    print(error)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "at='mu': take one of mean, x.\n"


# ---- without a classifier -------------------------------------------------------------------------------------------


def answers(x, t, labels, low_res=None):
    """Mean and variance; of a class, of each row its own."""
    shift = labels[:, None].to(x.dtype) + 2
    return torch.cat([curved(x, t) * shift, x - shift], 1)


def test_the_two_answers_are_mixed_linearly_and_the_variance_is_the_class_s(x):
    t, nobody = STEPS.double(), torch.full_like(LABELS, -1)
    told, untold = answers(x, t, LABELS), answers(x, t, nobody)
    assert torch.equal(ClassifierFree(answers, 1.0)(x, t, LABELS), told)
    free = ClassifierFree(answers, 0.0)(x, t, LABELS)
    assert torch.equal(free[:, :3], untold[:, :3]) and torch.equal(free[:, 3:], told[:, 3:])
    for s in (-1.0, 0.3, 2.0, 7.5):
        free = ClassifierFree(answers, s)(x, t, labels=LABELS)
        torch.testing.assert_close(free[:, :3], untold[:, :3] + s * (told - untold)[:, :3])
        assert torch.equal(free[:, 3:], told[:, 3:])
    torch.testing.assert_close(ClassifierFree(answers, 7.5)(x, t, nobody), untold)


def test_a_network_without_a_variance_is_mixed_whole_and_other_conditions_pass(x):
    asked = []
    net = lambda x, t, labels, low_res: asked.append((labels.tolist(), low_res)) or answers(x, t, labels)[:, :3]
    found = ClassifierFree(net, 2.0)(x, STEPS, LABELS, low_res=x)
    torch.testing.assert_close(found, curved(x, STEPS) * (1 + 2 * (LABELS[:, None] + 1)))
    assert sorted(labels for labels, _ in asked) == [[-1] * 5, LABELS.tolist()] and all(low is x for _, low in asked)


def test_it_is_a_network_to_a_process_also_in_single_precision(x):
    process, net = GaussianDiffusion(BETAS), Conditional()
    found = process.believe(ClassifierFree(net, 3.0), x, STEPS, False, labels=LABELS)[0]
    told, untold = (process.believe(net, x, STEPS, False, labels=y)[0] for y in (LABELS, torch.full_like(LABELS, -1)))
    torch.testing.assert_close(found, untold + 3 * (told - untold), rtol=1e-5, atol=1e-4)


def test_a_classifiers_objective_in_the_place_of_its_process_is_refused():
    objective = NoisyClassifier(GaussianDiffusion(BETAS))
    with pytest.raises(
        ValueError, match=r"NoisyClassifier is no GaussianDiffusion; of a NoisyClassifier give \.process"
    ):
        ClassLogProb(objective, torch.nn.Identity())
