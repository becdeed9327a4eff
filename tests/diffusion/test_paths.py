"""Paths: the derivatives are derivatives, the SDE has the marginals, the ODE has the flow, and the papers' numbers."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from minidiff import (
    EDMPath,
    GaussianDiffusion,
    GeometricVEPath,
    IDDPMPath,
    Path,
    SubVPPath,
    VEPath,
    VPPath,
    cosine_betas,
)


@dataclass(frozen=True)
class Straight(Path):
    """x(t) = (1 − t) x_0 + t n: a path that the library does not have."""

    t_min: float = 0.01
    t_max: float = 0.99
    sigma = lambda self, t: t / (1 - t)
    sigma_dot = lambda self, t: (1 - t) ** -2
    s = lambda self, t: 1 - t
    s_dot = lambda self, t: -torch.ones_like(t)
    t_of_sigma = lambda self, sigma: sigma / (1 + sigma)


ALL = [VPPath(), VPPath(0.5, 0.0), SubVPPath(), GeometricVEPath(), VEPath(), IDDPMPath(), EDMPath(), Straight()]
by_name = pytest.mark.parametrize("path", ALL, ids=lambda path: type(path).__name__)


def inside(path: Path) -> torch.Tensor:
    return path.t_of_sigma(torch.linspace(0, 1, 9).double() * path.sigma(path.t_max) * 0.99 + path.sigma(path.t_min))


def beta(t):
    return 0.1 + 19.9 * t


def beta_integral(t):
    return 0.1 * t + 19.9 * t**2 / 2


@by_name
def test_dots_are_derivatives_and_the_inverse_inverts(path):
    t = inside(path).requires_grad_()
    (sigma_dot,) = torch.autograd.grad(path.sigma(t).sum(), t)
    torch.testing.assert_close(path.sigma_dot(t), sigma_dot)
    s = path.s(t)
    s_dot = torch.autograd.grad(s.sum(), t)[0] if s.requires_grad else torch.zeros_like(t)
    torch.testing.assert_close(path.s_dot(t), s_dot)
    torch.testing.assert_close(path.t_of_sigma(path.sigma(t)), t)


@by_name
def test_times_fall_from_end_to_end_and_then_to_zero(path):
    times = path.steps(7)
    assert len(times) == 8 and times[-1] == 0 and (times.diff() < 0).all()
    assert times[0].item() == pytest.approx(path.t_max) and times[-2].item() == pytest.approx(path.t_min)
    assert path.steps(1).tolist() == pytest.approx([path.t_max, 0])


SDES = [  # f and g² of the papers' SDEs, in numpy
    (VPPath(), lambda t: -beta(t) / 2, beta),
    (SubVPPath(), lambda t: -beta(t) / 2, lambda t: beta(t) * (1 - np.exp(-2 * beta_integral(t)))),
    (GeometricVEPath(0.1, 20), lambda t: 0 * t, lambda t: 0.01 * 2 * np.log(200) * 200 ** (2 * t)),
    (VEPath(0.1, 2), lambda t: 0 * t, lambda t: 1 + 0 * t),
    (EDMPath(0.1, 5), lambda t: 0 * t, lambda t: 2 * t),
]


@pytest.mark.parametrize(("path", "f", "g_square"), SDES, ids=[type(each[0]).__name__ for each in SDES])
def test_the_sde_is_the_papers_and_has_the_marginals_of_the_path(path, f, g_square):
    times = np.linspace(path.t_min, path.t_max, 20)
    torch.testing.assert_close(path.f(torch.from_numpy(times)), torch.from_numpy(f(times)))
    torch.testing.assert_close(path.g(torch.from_numpy(times)) ** 2, torch.from_numpy(g_square(times)))

    def moments(t, state):  # of dx = f x dt + g dw from a point at t = 0
        mean, variance = state
        return [f(t) * mean, 2 * f(t) * variance + g_square(t)]

    solved = solve_ivp(moments, (0, path.t_max), [1.0, 0.0], t_eval=times, rtol=1e-10, atol=1e-13, method="DOP853")
    np.testing.assert_allclose(path.s(torch.from_numpy(times)), solved.y[0], rtol=1e-7)
    np.testing.assert_allclose(path.std(torch.from_numpy(times)) ** 2, solved.y[1], rtol=1e-6)


def test_marginals_have_the_closed_forms_of_the_paper():
    t = torch.linspace(0.01, 1, 50).double()
    b = beta_integral(t)
    torch.testing.assert_close(VPPath().std(t) ** 2, 1 - torch.exp(-b))
    torch.testing.assert_close(SubVPPath().std(t), 1 - torch.exp(-b))
    torch.testing.assert_close(VPPath().s(t), torch.exp(-b / 2))
    torch.testing.assert_close(SubVPPath().s(t), torch.exp(-b / 2))
    torch.testing.assert_close(GeometricVEPath(0.01, 50).std(t) ** 2, 1e-4 * 5000 ** (2 * t) - 1e-4)


@by_name
def test_a_point_of_the_path_has_mean_and_deviation(path, generator):
    x0, noise = torch.randn(2, 9, 3, 2, generator=generator, dtype=torch.float64)
    for t in (inside(path), inside(path)[4].item()):
        s, sigma = (torch.as_tensor(v).expand(9)[:, None, None] for v in (path.s(t), path.sigma(t)))
        torch.testing.assert_close(path.q_sample(x0, t, noise), s * (x0 + sigma * noise))
    assert path.q_sample(x0.float(), inside(path), noise.float()).dtype == torch.float32


@by_name
def test_score_and_velocity_of_gaussian_data(path, generator):
    """A point of N(m, v) data moves as s m + s √(v + σ²) c: the slope of that curve is the velocity."""
    m, v, t = 0.3, 0.49, inside(path).requires_grad_()
    c = torch.randn(9, 2, generator=generator, dtype=torch.float64)
    s, sigma = path.s(t)[:, None], path.sigma(t)[:, None]
    x = s * m + s * (v + sigma**2).sqrt() * c
    slope = torch.stack([torch.autograd.grad(x[:, k].sum(), t, retain_graph=True)[0] for k in range(2)], 1)
    x, t = x.detach(), t.detach()
    denoise = lambda x, sigma: m + v / (v + sigma[:, None] ** 2) * (x - m)
    x0_hat = path.denoised(denoise, x, t)
    torch.testing.assert_close(path.velocity(x, x0_hat, t), slope, rtol=1e-7, atol=1e-9)

    variance = path.s(t)[:, None] ** 2 * (v + path.sigma(t)[:, None] ** 2)
    score = -(x - path.s(t)[:, None] * m) / variance
    torch.testing.assert_close(path.score(x, x0_hat, t), score, rtol=1e-6, atol=1e-9)
    expected = path.f(t)[:, None] * x - 0.5 * path.g(t)[:, None] ** 2 * score
    torch.testing.assert_close(path.velocity(x, x0_hat, t), expected, rtol=1e-6, atol=1e-9)


@by_name
def test_one_time_serves_the_whole_batch(path, generator):
    x = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    t = inside(path)[4]
    asked = []
    denoise = lambda x, sigma, shift: asked.append(sigma) or x / 2 + shift
    x0_hat = path.denoised(denoise, x, t, shift=torch.ones(1).double())
    assert asked == [path.sigma(t).item()]  # a plain number
    torch.testing.assert_close(x0_hat, x / path.s(t) / 2 + 1)
    for method in (path.score, path.velocity):
        assert torch.equal(method(x, x0_hat, t), method(x, x0_hat, t.expand(4)))


def test_numbers_of_the_columns():
    vp, edm, u = VPPath(), EDMPath(), IDDPMPath().u
    assert [vp.sigma(t).item() for t in (1, 1e-3, 1e-5)] == pytest.approx([152.16697, 0.010485993, 0.0010004976])
    published = "80 57.585985 40.785574 28.374585 19.352453 12.910082 8.400935 5.315195 3.256822 1.92334 1.088171 "
    published += ".585348 .296442 .139516 .059947 .022935 .007528 .002 0"
    assert edm.steps(18).tolist() == pytest.approx([float(t) for t in published.split()], abs=1e-6)
    expected = [20291.170, 641.662, 320.830, 0.01176598, 0.00935049, 0.00642541, 0]
    assert u[[0, 1, 2, 997, 998, 999, 1000]].tolist() == pytest.approx(expected, rel=2e-6)
    torch.testing.assert_close(vp.s(inside(vp)) ** 2 * (1 + vp.sigma(inside(vp)) ** 2), torch.ones(9).double())
    steps = VEPath().steps(11)
    assert VEPath().sigma(steps[0]).item() == pytest.approx(100) and steps[10].item() == pytest.approx(0.02**2)
    torch.testing.assert_close(
        steps[1:11] / steps[:10], torch.full((10,), (0.02**2 / 100**2) ** 0.1, dtype=torch.float64)
    )


def test_the_levels_of_the_third_column_are_those_of_the_cosine_chain():
    chain = GaussianDiffusion(cosine_betas(1000))
    torch.testing.assert_close(IDDPMPath().u[:-1], chain.sigma.flip(0), rtol=1e-9, atol=0)


@pytest.mark.parametrize(("n", "j"), [(3, [8, 504, 999]), (992, range(8, 1000)), (5, [8, 256, 504, 751, 999])])
def test_the_third_column_keeps_the_nearest_levels(n, j):
    path = IDDPMPath()
    assert torch.equal(path.grid(n), path.u[list(j)])


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: VPPath(-1.0), "beta_min=-1.0"),
        (lambda: VPPath(t_min=2.0), "t_min=2.0"),
        (lambda: VPPath(t_min=0.0), "t_min=0.0"),
        (lambda: VEPath(3.0, 1.0), "sigma_min=3.0, sigma_max=1.0"),
        (lambda: GeometricVEPath(2.0, 1.0), "sigma_min=2.0, sigma_max=1.0"),
        (lambda: EDMPath(0.0), "sigma_min=0.0"),
        (lambda: EDMPath(1.0, float("inf")), "sigma_max=inf"),
        (lambda: EDMPath(rho=0.0), "rho=0.0"),
        (lambda: EDMPath(rho=1e-3), "rho=0.001"),
        (lambda: EDMPath(rho=float("inf")), "rho=inf"),
        (lambda: EDMPath(rho=float("nan")), "rho=nan"),
        (lambda: IDDPMPath(j_0=-5), "j_0=-5"),
        (lambda: IDDPMPath(j_0=999), "j_0=999"),
        (lambda: EDMPath().steps(0), "n=0"),
        (lambda: IDDPMPath().steps(993), "n=993"),
    ],
)
def test_what_makes_no_path_is_refused(make, named):
    with pytest.raises(ValueError, match=named):
        make()


@pytest.mark.parametrize("path", ALL[:-1], ids=lambda path: type(path).__name__)
def test_the_default_device_changes_nothing(path):
    """A model is sized up on the meta device, where no tensor has values."""
    fields = {name: getattr(path, name) for name in getattr(path, "__dataclass_fields__", {})}
    expected = path.steps(5)
    with torch.device("meta"):
        assert torch.equal(type(path)(**fields).steps(5), expected) and path.g(path.t_max).item() > 0
