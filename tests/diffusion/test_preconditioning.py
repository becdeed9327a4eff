"""EDM's columns: what Table 1 promises of each, checked on Gaussian data, on finite data and against the chains."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from minidiff import (
    COLUMNS,
    EDM,
    Column,
    EDMPath,
    GaussianDiffusion,
    Mixture,
    SigmaTimes,
    UniformTimes,
    cosine_betas,
    edm_column,
    generate,
    heun,
    iddpm_column,
    linear_betas,
    ode,
    per_image_noise,
    ve_column,
    vp_column,
)

SIGMAS = torch.logspace(-3, 4, 29, dtype=torch.float64)
zero = lambda x, t, **cond: torch.zeros_like(x)


LEVEL = {  # σ from what each network is fed, the printed c_noise solved by hand
    "edm": lambda c: torch.exp(4 * c),
    "vp": lambda c: torch.expm1(9.95 * (c / 999) ** 2 + 0.1 * c / 999).sqrt(),
    "ve": lambda c: 2 * torch.exp(c),
}


def gaussian_net(name: str, std: float):
    """The exact network for y ~ N(0, std²): E[y | x] = std² x / (σ² + std²), solved for F where F sees c_in x."""
    column = COLUMNS[name]()

    def net(x, t):
        sigma = LEVEL[name](t)[:, None]
        clean = std**2 / (sigma**2 + std**2)
        return (clean - column.c_skip(sigma)) / column.c_out(sigma) * (x / column.c_in(sigma))

    return net


# ---- the numbers of Table 1 ------------------------------------------------------------------------------------------


def test_edm_by_hand_at_sigma_3_with_data_of_4():
    """5² = 3² + 4², so that everything is a fraction."""
    edm, three = edm_column(sigma_data=4.0), torch.tensor(3.0, dtype=torch.float64)
    values = [f(three).item() for f in (edm.c_skip, edm.c_out, edm.c_in, edm.c_noise, edm.weight)]
    assert values == pytest.approx([16 / 25, 12 / 5, 1 / 5, np.log(3) / 4, 25 / 144])


def test_vp_ve_and_iddpm_by_hand():
    at = torch.tensor([0.75], dtype=torch.float64)
    vp, ve, iddpm = vp_column(), ve_column(), iddpm_column()
    for column, sign in ((vp, -1), (ve, 1), (iddpm, -1)):
        assert (column.c_skip(at).item(), column.c_out(at).item()) == (1, sign * 0.75)
        assert column.weight(at).item() == pytest.approx(16 / 9)
    assert vp.c_in(at).item() == iddpm.c_in(at).item() == pytest.approx(4 / 5) and ve.c_in(at).item() == 1
    assert ve.c_noise(at).item() == pytest.approx(np.log(0.375))
    t = torch.tensor([1.0, 0.3, 1e-3], dtype=torch.float64)  # c_noise is 999 t, and σ = √(e^{9.95 t² + 0.1 t} − 1)
    torch.testing.assert_close(vp.c_noise(torch.sqrt(torch.expm1(9.95 * t**2 + 0.1 * t))), 999 * t)


def test_iddpm_is_fed_the_step_of_the_nearest_level():
    column = iddpm_column()
    u = column.path.u
    assert column.c_noise(u[:-1]).tolist() == list(range(999, -1, -1))
    between = (u[499] + u[500]) / 2  # nearest in σ, not in log σ: halfway is the arithmetic mean
    assert column.c_noise(torch.stack([between * (1 + 1e-9), between * (1 - 1e-9)])).tolist() == [500, 499]
    assert column.c_noise(torch.tensor([1e-6, 1e9], dtype=torch.float64)).tolist() == [0, 999]  # u_M = 0 is no level
    assert iddpm_column(M=100, j_0=2).c_noise(torch.tensor([1e-6], dtype=torch.float64)).tolist() == [0]


def test_options_reach_paths_and_laws():
    assert edm_column(sigma_min=0.01, sigma_max=5.0, rho=3.0).path == EDMPath(0.01, 5.0, 3.0)
    vp = vp_column(beta_min=0.2, beta_d=10.0, eps_s=0.01, eps_t=0.02, M=500)
    assert (vp.path.beta_min, vp.path.beta_d, vp.path.t_min, vp.path.t_max) == (0.2, 10.0, 0.01, 1.0)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(vp.path.t_of_sigma(vp.quantile(ends)), torch.tensor([0.02, 1.0], dtype=torch.float64))
    torch.testing.assert_close(vp.c_noise(vp.quantile(ends)), 499 * torch.tensor([0.02, 1.0], dtype=torch.float64))
    torch.testing.assert_close(ve_column(0.1, 7.0).quantile(ends), torch.tensor([0.1, 7.0], dtype=torch.float64))
    iddpm = iddpm_column(M=50, j_0=3, C_1=0.01, C_2=0.02)
    assert (iddpm.path.M, iddpm.path.j_0, iddpm.path.C_1, iddpm.path.C_2) == (50, 3, 0.01, 0.02)
    assert set(COLUMNS) == {"edm", "vp", "ve", "iddpm"}


# ---- what the first principles promise (EDM App. B.6) ----------------------------------------------------------------


@pytest.mark.parametrize("sigma_data", [0.5, 0.85, 2.0])
def test_edm_gives_the_network_input_and_target_of_variance_one(sigma_data, generator):
    """y and n enter linearly, so the variances are exact: read off unit vectors, not off samples."""
    process = EDM(edm_column(sigma_data))
    seen = []
    y, n = torch.eye(2, dtype=torch.float64)[:, :, None]  # (1, 0) and (0, 1): the coefficients of y and of n
    for sigma in SIGMAS:
        t = sigma.expand(2)
        process.loss(lambda x, t: seen.append(x) or x, y, t, n)
        from_y, from_n = seen.pop()[:, 0]
        assert (from_y * sigma_data) ** 2 + from_n**2 == pytest.approx(1)
        from_y, from_n = process.target(y, t, n)[:, 0]
        assert (from_y * sigma_data) ** 2 + from_n**2 == pytest.approx(1)


@pytest.mark.parametrize("sigma_data", [0.5, 0.85])
def test_edm_has_the_smallest_c_out_of_all_that_keep_the_variance(sigma_data):
    """(EDM 123): c_out² = (1 − c)² σ_d² + c² σ², whose minimum over c a grid finds too."""
    column, c = edm_column(sigma_data), torch.linspace(0, 1, 100_001, dtype=torch.float64)
    for sigma in (0.05, 0.5, 3.0):
        c_out2 = (1 - c) ** 2 * sigma_data**2 + c**2 * sigma**2
        at = torch.tensor(sigma, dtype=torch.float64)
        assert abs(c[c_out2.argmin()] - column.c_skip(at)) < 1e-5
        assert column.c_out(at) ** 2 == pytest.approx(c_out2.min().item(), rel=1e-8)


@pytest.mark.parametrize("name", COLUMNS)
def test_lambda_weighs_every_sigma_alike(name):
    """λ c_out² = 1, the factor before the network's own error in (EDM 8)."""
    column = COLUMNS[name]()
    torch.testing.assert_close(column.weight(SIGMAS) * column.c_out(SIGMAS) ** 2, torch.ones_like(SIGMAS))


def test_a_network_of_zeros_has_loss_one_at_every_sigma_on_data_of_that_mean_square():
    """Exactly: y = ±σ_d and n = ±1 in all four pairs have the mean squares and the zero correlation that count."""
    y = 0.85 * torch.tensor([[1.0, 1.0, -1.0, -1.0]], dtype=torch.float64)
    n = torch.tensor([[1.0, -1.0, 1.0, -1.0]], dtype=torch.float64)
    losses = EDM(edm_column(0.85)).loss(zero, y.expand(29, 4), SIGMAS, n.expand(29, 4))["loss"]
    torch.testing.assert_close(losses, torch.ones_like(losses))
    for column in (vp_column(), ve_column(), iddpm_column()):  # ε-prediction: the noise itself is the error
        losses = EDM(column).loss(zero, y.expand(29, 4), SIGMAS, n.expand(29, 4))["loss"]
        torch.testing.assert_close(losses, torch.ones_like(losses))


def test_the_zero_network_is_best_for_gaussian_data_of_sigma_data():
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]
    process = EDM(edm_column(0.7))
    for sigma in SIGMAS:
        expected = 0.7**2 / (0.7**2 + sigma**2) * x
        torch.testing.assert_close(process.denoise(zero, x, sigma.item()), expected)


@pytest.mark.parametrize("name, sign", [("vp", 1), ("iddpm", 1), ("ve", -1)])
def test_the_other_columns_learn_the_noise_itself(name, sign, generator):
    x0, n = torch.randn(2, 29, 3, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(EDM(COLUMNS[name]()).target(x0, SIGMAS, n), sign * n, rtol=1e-12, atol=1e-12)


# ---- the denoiser (EDM 7) and the loss (EDM 8) -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["edm", "vp", "ve"])
def test_the_best_network_makes_the_best_denoiser(name, generator):
    """The network finds σ by what it is fed alone."""
    column = COLUMNS[name]()
    sigma = torch.logspace(-2, 1.9, 9, dtype=torch.float64)
    x = sigma[:, None] * torch.randn(9, 3, generator=generator, dtype=torch.float64)
    denoised = EDM(column).denoise(gaussian_net(name, 0.7), x, sigma)
    torch.testing.assert_close(denoised, 0.7**2 * x / (sigma[:, None] ** 2 + 0.7**2), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", COLUMNS)
def test_the_loss_is_lambda_times_the_squared_error_of_the_denoiser(name, generator):
    process = EDM(COLUMNS[name]())
    sigma = process.column.quantile(torch.linspace(0.01, 0.99, 12, dtype=torch.float64))
    x0, n = torch.randn(2, 12, 2, 3, generator=generator, dtype=torch.float64)
    net = lambda x, t, labels: torch.sin(x) * t[:, None, None] + labels[:, None, None]
    cond = {"labels": torch.arange(12)}
    losses = process.loss(net, x0, sigma, n, **cond)
    x = x0 + sigma[:, None, None] * n
    error = (process.denoiser(net)(x, sigma, **cond) - x0).square().mean((1, 2))
    torch.testing.assert_close(losses["x0_mse"], error, rtol=1e-6, atol=0)
    torch.testing.assert_close(losses["loss"], process.column.weight(sigma) * error, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", COLUMNS)
def test_single_precision_loses_nothing_at_small_sigma(name, generator):
    """As (y − c_skip (y + σ n)) / c_out stands there, its numerator cancels to 1e-4 of relative error at σ = 0.001."""
    process = EDM(COLUMNS[name]())
    x0, n = torch.randn(2, 29, 50, generator=generator, dtype=torch.float64)
    single = process.target(x0.float(), SIGMAS, n.float())
    exact = process.target(x0, SIGMAS, n)
    assert single.dtype == torch.float32
    assert ((single - exact).norm(dim=1) / exact.norm(dim=1)).max() < 3e-7
    single, exact = (
        process.loss(zero, x0.to(kind), SIGMAS, n.to(kind))["loss"] for kind in (torch.float32, torch.float64)
    )
    torch.testing.assert_close(single.double(), exact, rtol=2e-6, atol=0)


def test_the_network_keeps_its_precision_and_the_solver_its_own():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones((), dtype=torch.bfloat16))

        def forward(self, x, t):
            seen.append((x.dtype, t.dtype))
            return self.gain * x

    seen = []
    denoised = EDM(edm_column()).denoise(Net(), torch.ones(2, 3, dtype=torch.float64), 0.3)
    assert denoised.dtype == torch.float64 and seen == [(torch.bfloat16, torch.float32)]
    assert EDM(edm_column()).denoise(zero, torch.ones(2, 3), 0.3).dtype == torch.float32


def test_a_learned_variance_is_left_alone(generator):
    x, n = torch.randn(2, 3, 2, 4, 4, generator=generator)
    sigma = torch.tensor([0.1, 1.0, 9.0])
    wide = lambda x, t: torch.cat([x.cos(), torch.full_like(x, 1e3)], 1)
    process = EDM(iddpm_column())
    assert torch.equal(process.denoise(wide, x, sigma), process.denoise(lambda x, t: x.cos(), x, sigma))
    narrow = process.loss(lambda x, t: x.cos(), x, sigma, n)["loss"]
    assert torch.equal(process.loss(wide, x, sigma, n)["loss"], narrow)


def test_one_sigma_serves_the_whole_batch(generator):
    x = torch.randn(4, 1, 2, 2, generator=generator, dtype=torch.float64)
    denoise = EDM(vp_column()).denoiser(lambda x, t: x * t[:, None, None, None])
    each = denoise(x, torch.full((4,), 0.4, dtype=torch.float64))
    assert torch.equal(denoise(x, torch.tensor(0.4, dtype=torch.float64)), each) and torch.equal(denoise(x, 0.4), each)


# ---- the chains of the earlier papers --------------------------------------------------------------------------------

some_net = lambda x, t: torch.sin(x + t[:, None] / 300)  # any function will do, if it tells the steps apart


def test_iddpm_is_the_cosine_chain_at_its_own_levels(generator):
    chain, process = GaussianDiffusion(cosine_betas(1000), clip=False), EDM(iddpm_column())
    levels = process.path.u[:-1].flip(0)
    torch.testing.assert_close(chain.sigma, levels, rtol=1e-9, atol=0)
    x = levels[:, None] * torch.randn(1000, 3, generator=generator, dtype=torch.float64)
    expected = chain.denoiser(some_net)(x, levels)
    torch.testing.assert_close(process.denoise(some_net, x, levels), expected, rtol=1e-9, atol=1e-9)


def test_vp_is_the_linear_chain_once_its_step_numbers_are_fed(generator):
    """With the chain's own σ and the whole number of the step; the column's own t and σ are near it, and no more."""
    chain, vp = GaussianDiffusion(linear_betas(1000), clip=False), vp_column()
    nearest = lambda sigma: (chain.sigma - sigma[:, None]).abs().argmin(1).double()
    x = chain.sigma[:, None] * torch.randn(1000, 3, generator=generator, dtype=torch.float64)
    expected = chain.denoiser(some_net)(x, chain.sigma)
    process = EDM(replace(vp, c_noise=nearest))
    torch.testing.assert_close(process.denoise(some_net, x, chain.sigma), expected, rtol=1e-9, atol=1e-9)

    assert chain.sigma[[0, -1]].tolist() == pytest.approx([0.0100, 157.4], rel=1e-3)
    ends = torch.tensor([1e-3, 1.0], dtype=torch.float64)
    assert vp.path.sigma(ends).tolist() == pytest.approx([0.010486, 152.167], rel=1e-5)
    fed = vp.c_noise(chain.sigma) - torch.arange(1000)
    assert 0.5 < fed.abs().max() < 4  # steps of 1000


# ---- the law of σ in training ----------------------------------------------------------------------------------------

N = 20_000


def drawn(column: Column, generator) -> np.ndarray:
    sigma, weight = SigmaTimes(column.quantile).draw(N, generator)
    assert sigma.dtype == torch.float64 and torch.equal(weight, torch.ones(N))
    return sigma.numpy()


@pytest.mark.parametrize(
    "column, to_standard, law",
    [
        (edm_column(), lambda s: (np.log(s) + 1.2) / 1.2, stats.norm),
        (edm_column(P_mean=0.5, P_std=2.0), lambda s: (np.log(s) - 0.5) / 2, stats.norm),
        (vp_column(), lambda s: (np.sqrt(0.1**2 + 39.8 * np.log1p(s**2)) - 0.1) / 19.9, stats.uniform(1e-5, 1 - 1e-5)),
        (ve_column(), lambda s: np.log(s / 0.02) / np.log(100 / 0.02), stats.uniform),
    ],
)
def test_sigma_follows_p_train(column, to_standard, law, generator):
    """Kolmogorov–Smirnov at level 1e-3; the generator is seeded."""
    sigma = drawn(column, generator)
    assert stats.kstest(to_standard(sigma), law.cdf).pvalue > 1e-3
    assert len(np.unique(sigma)) == N  # u has more than the 2^24 values of single precision


def test_iddpm_draws_every_level_alike_and_not_zero(generator):
    column = iddpm_column()
    levels, counts = np.unique(drawn(column, generator), return_counts=True)
    assert set(levels) <= set(column.path.u[:-1].tolist()) and len(levels) == 1000
    assert stats.chisquare(counts).pvalue > 1e-3
    ends = column.quantile(torch.tensor([0.0, 1e-3 - 1e-9, 1e-3, 1 - 1e-9], dtype=torch.float64))
    assert torch.equal(ends, column.path.u[[0, 0, 1, 999]])


def test_no_draw_is_without_noise_or_without_bounds(generator, monkeypatch):
    for u in (0.0, 1 - 2**-53):  # the least and the greatest that torch.rand can give
        monkeypatch.setattr(torch, "rand", lambda n, u=u, **_: torch.full((n,), u, dtype=torch.float64))
        for make in COLUMNS.values():
            sigma, _ = SigmaTimes(make().quantile).draw(1, generator)
            assert 0 < sigma < torch.inf


def test_laws_that_learn_nothing_have_nothing_to_save(generator):
    for times in (SigmaTimes(edm_column().quantile), UniformTimes(10)):
        assert times.state_dict() == {} and times.update(torch.ones(2), torch.ones(2)) is None
        times.load_state_dict({})
        first, second = (times.draw(5, torch.Generator().manual_seed(4))[0] for _ in range(2))
        assert torch.equal(first, second)


# ---- sampling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, std", [("edm", 80.0), ("vp", (1 - np.exp(-10.05)) ** 0.5), ("ve", 100.0), ("iddpm", 80.2037)]
)
def test_sampling_starts_at_the_top_of_the_path(name, std):
    prior = EDM(COLUMNS[name]()).prior
    assert prior.mean == 0 and prior.stddev.item() == pytest.approx(std, rel=1e-4)


@pytest.mark.parametrize("name, steps", [("edm", 100), ("vp", 300), ("ve", 300)])
def test_gaussian_data_are_drawn_as_the_ode_has_them(name, steps):
    """x(σ) grows as √(σ² + σ_d²), so that the start's noise ends as σ_d √(σ_max² / (σ_max² + σ_d²)) of it."""
    process = EDM(COLUMNS[name](), steps)
    x = generate(process, gaussian_net(name, 0.5), (2,), range(6), batch=4)
    top = process.path.sigma(process.path.t_max).item()
    expected = 0.5 * top / (top**2 + 0.5**2) ** 0.5 * per_image_noise(range(6), (2,))(0)
    torch.testing.assert_close(x, expected.float(), rtol=5e-3, atol=0)


def test_generate_takes_heun_and_the_steps_of_the_process():
    process, net = EDM(edm_column(), steps=5), lambda x, t: torch.tanh(x)
    start = 80 * per_image_noise([3], (2,))(0)
    expected = ode(process.denoiser(net), start, EDMPath(), 5, "heun")
    torch.testing.assert_close(generate(process, net, (2,), [3]), expected.float(), rtol=1e-6, atol=0)
    more = ode(process.denoiser(net), start, EDMPath(), 9, "heun")
    assert torch.equal(heun(process, net, start, steps=9), more) and not torch.equal(more, expected)


def test_a_fifth_column_is_a_few_lambdas(generator):
    """A network that gives x̂_0 itself: c_skip = 0, c_out = 1; its ideal denoiser of a mixture is the mixture's own."""
    column = Column(
        path=EDMPath(0.01, 20.0),
        c_skip=torch.zeros_like,
        c_out=torch.ones_like,
        c_in=torch.ones_like,
        c_noise=torch.log,
        weight=torch.ones_like,
        quantile=lambda u: 20**u,
    )
    mixture = Mixture(torch.ones(2), torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), 0.1)
    net = lambda x, t: mixture.denoise(x, sigma=t.exp()[0].item())
    x = generate(EDM(column, 30), net, (2,), range(200))
    distance = (x[:, None] - mixture.means).norm(dim=2).min(1).values  # 0.1 times a Rayleigh variable
    assert distance.square().mean().sqrt() == pytest.approx(0.1 * 2**0.5, rel=0.15)
    losses = EDM(column).loss(zero, x, torch.ones(200), torch.randn(x.shape, generator=generator))
    torch.testing.assert_close(losses["loss"], x.square().mean(1))


@pytest.mark.parametrize("other", ["vp", "ve", "iddpm"])
def test_a_column_trained_as_another(other, generator):
    """D of Table 2: EDM's network under λ = 1/σ² and that column's σ. All that sampling asks for stays."""
    own, theirs = edm_column(0.85), COLUMNS[other]()
    mixed = own.trained_as(theirs)
    u = torch.rand(50, generator=generator, dtype=torch.float64)
    assert torch.equal(mixed.quantile(u), theirs.quantile(u)) and not torch.equal(mixed.quantile(u), own.quantile(u))
    x0, n = torch.randn(2, 29, 3, generator=generator, dtype=torch.float64)
    ours = EDM(own).loss(some_net, x0, SIGMAS, n)
    losses = EDM(mixed).loss(some_net, x0, SIGMAS, n)
    torch.testing.assert_close(losses["loss"], losses["x0_mse"] / SIGMAS**2)
    torch.testing.assert_close(losses["x0_mse"], ours["x0_mse"])
    assert mixed.path == own.path
    assert torch.equal(EDM(mixed).denoise(some_net, x0, SIGMAS), EDM(own).denoise(some_net, x0, SIGMAS))


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: edm_column(sigma_data=0.0), "sigma_data=0.0"),
        (lambda: edm_column(P_std=-1.0), "P_std=-1.0"),
        (lambda: edm_column(sigma_data=float("inf")), "sigma_data=inf"),
        (lambda: edm_column(P_mean=float("nan")), "P_mean=nan"),
        (lambda: edm_column(sigma_min=0.0), "noise levels must rise"),
        (lambda: ve_column(2.0, 1.0), "noise levels must rise"),
        (lambda: iddpm_column(j_0=999), "j_0=999"),
        (lambda: EDM(edm_column(), steps=0), "steps=0"),
    ],
)
def test_what_makes_no_column_is_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
