"""What Improved DDPM adds to the process: a variance between two ends, the hybrid objective, times on a fixed scale."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st
from oracles import Chain, log_mass
from torch import nn

from minidiff import GaussianDiffusion, ImportanceTimes, cosine_betas, encode, linear_betas

SHORT = torch.tensor([0.05, 0.2, 0.35, 0.5, 0.7], dtype=torch.float64)
PREDICTIONS = ["eps", "x0", "mean", "v"]


def ranged(betas: torch.Tensor = SHORT, **options) -> GaussianDiffusion:
    return GaussianDiffusion(betas, **{"variance": "range", "loss": "hybrid", "levels": 17, "clip": False, **options})


def ends(betas: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """β̃ and β of each step, where β̃_1 = 0 gives way to β̃_2."""
    low = Chain(betas, 0.0, 1.0).beta_tilde.copy()
    low[0] = low[1]
    return low, betas.numpy()


def constant_head(v: float):
    """A network that predicts 0 and answers v' everywhere."""
    return lambda x, t: torch.cat([torch.zeros_like(x), torch.full_like(x, v)], dim=1)


class TwoHeads(nn.Module):
    """ε from one matrix, v' from another, so that it can be seen which of them a gradient reaches."""

    def __init__(self, dims: int = 3):
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        weight = lambda: nn.Parameter(0.4 * torch.randn(dims, dims, generator=generator, dtype=torch.float64))
        self.mean, self.variance = weight(), weight()

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.tanh(x @ self.mean), torch.sin(x @ self.variance + t[:, None])], dim=1)


# ---- the variance between its two ends ------------------------------------------------------------------------------


@given(T=st.integers(2, 60), v=st.floats(-1, 1))
def test_the_variance_lies_between_its_ends_at_the_share_that_the_head_names(T, v):
    betas = cosine_betas(T)
    low, high = ends(betas)
    scale = ranged(betas).reverse(constant_head(v), torch.zeros(T, 1).double(), torch.arange(T)).scale
    expected = low ** ((1 - v) / 2) * high ** ((1 + v) / 2)
    np.testing.assert_allclose(scale[:, 0].numpy() ** 2, expected, rtol=1e-10)
    assert (low <= expected * (1 + 1e-12)).all() and (expected <= high * (1 + 1e-12)).all()


def test_the_head_is_not_bounded():
    low, high = ends(SHORT)
    for v, expected in ((3.0, high**2 / low), (-3.0, low**2 / high)):
        scale = ranged().reverse(constant_head(v), torch.zeros(5, 1).double(), torch.arange(5)).scale
        np.testing.assert_allclose(scale[:, 0].numpy() ** 2, expected, rtol=1e-12)


@given(v=st.floats(-2, 2), t=st.integers(1, 4))
def test_the_variance_is_that_of_diffusers(v, t):
    theirs = DDPMScheduler(num_train_timesteps=5, trained_betas=SHORT.tolist(), variance_type="learned_range")
    log_variance = theirs._get_variance(t, predicted_variance=torch.tensor(v))
    scale = ranged().reverse(constant_head(v), torch.zeros(1, 1).double(), torch.tensor([t])).scale
    assert 2 * scale.log().item() == pytest.approx(log_variance.item(), abs=1e-5)


@pytest.mark.parametrize("predict", PREDICTIONS)
def test_bound_terms_of_gaussian_data_reach_their_closed_form_with_the_best_variance(predict):
    """The head that names Var(x_{t−1} | x_t): no other reverse step of this mean has a smaller divergence."""
    betas = linear_betas(40)
    chain = Chain(betas, -0.4, 0.3)
    low, high = ends(betas)
    share = 2 * np.log(chain.best_variance / low) / np.log(high / low) - 1

    def net(x, t):
        v = torch.from_numpy(share)[t.long(), None].expand_as(x)
        return torch.cat([chain.network(predict)(x, t), v], dim=1)

    nodes, weights = np.polynomial.hermite_e.hermegauss(150)
    noise = torch.from_numpy(nodes)[:, None]
    process, x0 = ranged(betas, predict=predict), torch.full_like(noise, 0.375)
    terms = [process.bound_term(net, x0, torch.full((150,), t), noise)["bits"].numpy() for t in range(40)]
    closed = chain.bound_terms(np.array([0.375]), chain.best_variance, levels=17)[:40, 0]
    np.testing.assert_allclose([weights @ term / weights.sum() for term in terms], closed, rtol=1e-6, atol=1e-9)


# ---- the hybrid objective -------------------------------------------------------------------------------------------


def gradients(process: GaussianDiffusion, key: str = "loss") -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    net, x0 = TwoHeads(), torch.rand(5, 3, generator=generator, dtype=torch.float64)
    process.loss(net, x0, torch.arange(5), process.draw_noise(x0, generator))[key].sum().backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in net.named_parameters()}


@pytest.mark.parametrize("predict", PREDICTIONS)
def test_the_bound_teaches_the_variance_and_leaves_the_mean_alone(predict):
    options = {"predict": predict, "weight": torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0])}
    hybrid = gradients(ranged(lambda_vlb=0.7, **options))
    bits, mse = gradients(ranged(**options), "bits"), gradients(ranged(predict=predict), "mse")
    bound = gradients(ranged(predict=predict, loss="bound"))
    assert torch.equal(bits["mean"], torch.zeros(3, 3).double())  # exactly
    assert bound["mean"].abs().min() > 1e-3  # which the stop of the gradient did
    torch.testing.assert_close(hybrid["variance"], 0.7 * bound["variance"])
    assert bound["variance"].abs().max() > 1e-3
    assert torch.equal(mse["variance"], torch.zeros(3, 3).double())
    simple = gradients(ranged(lambda_vlb=1e-9, **options))  # the mean's gradient is that of the weighted squares alone
    assert torch.equal(hybrid["mean"], simple["mean"])
    assert not torch.allclose(hybrid["mean"], mse["mean"])
    unweighted = gradients(ranged(predict=predict))
    torch.testing.assert_close(unweighted["mean"], mse["mean"])


@given(T=st.integers(2, 40), weight=st.floats(1e-4, 2.0))
def test_lambda_times_the_bound_is_the_mean_of_the_rescaled_terms(T, weight):
    """Over all t: E[loss − mse] = λ (L_0 + … + L_{T−1}), bits per dimension; and 0.001 is T/1000 on each term."""
    process, generator = ranged(cosine_betas(T), lambda_vlb=weight), torch.Generator().manual_seed(T)
    x0 = torch.rand(1, 3, generator=generator, dtype=torch.float64).expand(T, 3)
    t, noise = torch.arange(T), process.draw_noise(x0, generator)
    losses = process.loss(TwoHeads(), x0, t, noise)
    bound = sum(
        process.bound_term(TwoHeads(), x0[:1], t[k : k + 1], noise[k : k + 1], clip=False)["bits"] for k in range(T)
    )
    torch.testing.assert_close((losses["loss"] - losses["mse"]).mean(), weight * bound[0])
    default, plain = (ranged(cosine_betas(T), lambda_vlb=w).loss(TwoHeads(), x0, t, noise) for w in (0.001, 1 / T))
    torch.testing.assert_close(default["loss"], default["mse"] + default["bits"] * T / 1000)
    torch.testing.assert_close(plain["loss"], plain["mse"] + plain["bits"])


def test_the_hybrid_loss_never_clips():
    generator = torch.Generator().manual_seed(5)
    x0, t = torch.rand(5, 3, generator=generator, dtype=torch.float64), torch.arange(5)
    noise = ranged().draw_noise(x0, generator)
    far = lambda x, t: torch.cat([torch.full_like(x, 4.0), torch.zeros_like(x)], dim=1)
    clipped, free = (ranged(predict="x0", clip=clip).loss(far, x0, t, noise) for clip in (True, False))
    assert all(torch.equal(clipped[key], free[key]) for key in ("loss", "mse", "bits", "x0_mse"))
    torch.testing.assert_close(free["x0_mse"], ((4 - x0) ** 2).mean(1))


def test_the_noise_error_is_that_of_the_noise_left_over_by_the_clipped_estimate():
    generator = torch.Generator().manual_seed(6)
    x0, t = torch.rand(5, 3, generator=generator, dtype=torch.float64), torch.arange(5)
    process = GaussianDiffusion(SHORT, "eps", levels=17)
    noise = process.draw_noise(x0, generator)
    terms = process.bound_term(lambda x, t: 3 * x.sin(), x0, t, noise)
    a, xt = torch.cumprod(1 - SHORT, 0)[:, None], process.q_sample(x0, t, noise)
    believed = ((xt - (1 - a).sqrt() * 3 * xt.sin()) / a.sqrt()).clamp(-1, 1)
    left = (xt - a.sqrt() * believed) / (1 - a).sqrt()
    torch.testing.assert_close(terms["eps_mse"], ((left - noise) ** 2).mean(1))
    free = process.bound_term(lambda x, t: 3 * x.sin(), x0, t, noise, clip=False)
    torch.testing.assert_close(free["eps_mse"], ((3 * xt.sin() - noise) ** 2).mean(1))


# ---- one example, learned by heart ----------------------------------------------------------------------------------


class Affine(nn.Module):
    """What the best network for a single example is: at each step a multiple of x_t plus a constant; and v' beside."""

    def __init__(self, T: int, dims: int, heads: int):
        super().__init__()
        self.slope, self.offset = nn.Parameter(torch.zeros(T, dims)), nn.Parameter(torch.zeros(T, dims))
        self.head = nn.Parameter(torch.zeros(T, dims)) if heads == 2 else None

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        t = t.long()
        answer = self.slope[t] * x + self.offset[t]
        return answer if self.head is None else torch.cat([answer, self.head[t]], dim=1)


@pytest.mark.parametrize("variance", ["small", "range"])
def test_one_example_learned_by_the_bound_costs_what_the_decoder_costs(variance, float64):
    """T = 10: every divergence goes to 0, and L_0 to the mass of the decoder around x_0, or below where σ is free.

    The values are inner ones: an outermost bin reaches to infinity, and a mean beyond it would cost nothing.
    """
    process = GaussianDiffusion(cosine_betas(10), "eps", variance, loss="bound", levels=17, clip=False)
    x0 = encode(torch.tensor([[2, 5, 11, 14]], dtype=torch.uint8), 17).double()
    net, times, generator = Affine(10, 4, 2 if variance == "range" else 1), ImportanceTimes(10), torch.Generator()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1000)
    generator.manual_seed(0)
    for _ in range(1000):
        t, weight = times.draw(64, generator)
        loss = process.loss(net, x0.expand(64, 4), t, torch.randn(64, 4, generator=generator))["loss"]
        optimizer.zero_grad()
        (weight * loss).mean().backward()
        optimizer.step()
        schedule.step()
        times.update(t, loss.detach())
    batch, noise = x0.expand(2000, 4), torch.randn(2000, 4, generator=generator)
    with torch.no_grad():
        terms = [process.bound_term(net, batch, torch.full((2000,), t), noise)["bits"].mean() for t in range(10)]
    low, _ = ends(cosine_betas(10))
    floor = -log_mass(x0.numpy(), x0.numpy(), low[0] ** 0.5, 17).mean() / np.log(2)
    assert sum(terms[1:]) < 2e-3  # bits per dimension, all nine together
    if variance == "small":
        assert terms[0].item() == pytest.approx(floor, abs=2e-3) and floor > 0.05
    else:
        assert terms[0] < 0.02


# ---- what the network is fed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "T, rescale, fed", [(4000, True, 0.25), (4000, False, 1.0), (250, True, 4.0), (50, True, 20.0)]
)
def test_rescaled_times_run_to_a_thousand_whatever_T(T, rescale, fed):
    seen = []

    def net(x, t):
        seen.append(t)
        return torch.cat([x, x], dim=1)

    process, x = ranged(linear_betas(T), rescale_times=rescale), torch.zeros(3, 1)
    t = torch.tensor([0, 7, T - 1])
    process.loss(net, x, t, x)
    process.reverse(net, x, t)
    process.bound_term(net, x, t, x)
    process.denoiser(net)(x, process.sigma[t])
    assert len(seen) == 4
    for asked in seen:
        assert asked.tolist() == [0.0, 7 * fed, (T - 1) * fed] and asked.dtype == torch.float32
