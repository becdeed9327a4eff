"""The flags that choose a sampler, and the likelihood along the ODE."""

import re

import numpy as np
import pytest
import torch
from tiny import files

from minidiff import (
    ContinuousDenoiser,
    EDMPath,
    bits_per_dim,
    churn,
    ddim,
    decode,
    dequantise,
    digits,
    dpmpp,
    load,
    ode,
    ode_log_prob,
    per_image_noise,
    rademacher,
    rk2,
    subsequence,
)


def drawn(name: str) -> np.ndarray:
    return np.load(f"samples/{name}-seed5-n3.npz")["arr_0"][..., 0]


@pytest.mark.parametrize(
    ("flags", "tag", "arguments"),
    [
        (("--steps", 6, "--eta", 0.5), "steps6-eta0.5", (6, "uniform", 0.5)),
        (("--steps", 5, "--spacing", "quadratic"), "steps5-spacing-quadratic", (5, "quadratic", 0.0)),
        ((), "", (30, "uniform", 0.0)),
    ],
)
def test_ddim_draws_what_the_function_draws(minidiff, run, flags, tag, arguments):
    assert minidiff("sample", run, "-n", 3, "--seed", 5, "--sampler", "ddim", *flags).code == 0
    (model, _), noise = load(run), per_image_noise([5, 6, 7], (1, 8, 8))
    n, spacing, eta = arguments
    x = ddim(model.process, model.net, noise(0), noise, subsequence(30, n, spacing), eta)
    found = drawn("-".join(filter(None, [run.parts[-2], "run-ddim", tag])))
    np.testing.assert_array_equal(found, decode(x.float(), 17)[:, 0].numpy())


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_the_ode_begins_at_the_chains_own_prior(minidiff, run, solver):
    assert minidiff("sample", run, "-n", 3, "--seed", 5, "--sampler", solver, "--steps", 5, "--batch", 2).code == 0
    model, _ = load(run)
    denoise = ContinuousDenoiser(model.process, model.net)
    start = per_image_noise([5, 6, 7], (1, 8, 8))(0) / model.process.alpha_bar[-1].sqrt()
    x = ode(denoise, start, denoise.path(), 5, solver)
    found = drawn(f"{run.parts[-2]}-run-{solver}-steps5")
    np.testing.assert_array_equal(found, decode(x.float(), 17)[:, 0].numpy())


CHURN = ("--S-churn", 3, "--S-tmin", 0.1, "--S-tmax", 50, "--S-noise", 1.003)
SOLVERS = {  # what is typed after the sampler: what is called, and how its files are named
    ("heun", "--rho", 3): (lambda denoise, start, noise, path: ode(denoise, start, path, 5), "rho3.0"),
    ("rk2", "--alpha", 0.5): (lambda denoise, start, noise, path: rk2(denoise, start, path, 5, 0.5), "alpha0.5"),
    ("dpmpp",): (lambda denoise, start, noise, path: dpmpp(denoise, start, path, 5), ""),
    ("churn", *CHURN): (
        lambda denoise, start, noise, path: churn(denoise, start, noise, 5, path, 3.0, 0.1, 50.0, 1.003),
        "S_churn3.0-S_tmin0.1-S_tmax50.0-S_noise1.003",
    ),
    ("churn", "--S-churn", 3, "--rho", 3): (
        lambda denoise, start, noise, path: churn(denoise, start, noise, 5, path, 3.0),
        "rho3.0-S_churn3.0",
    ),
}


@pytest.mark.parametrize("flags", SOLVERS, ids=lambda flags: "-".join(map(str, flags)))
def test_solvers_in_sigma_draw_what_the_functions_draw(minidiff, run, flags):
    """Images are those of their seeds in batches of any size, noise on the way included."""
    call, tag = SOLVERS[flags]
    assert minidiff("sample", run, "-n", 3, "--seed", 5, "--steps", 5, "--batch", 2, "--sampler", *flags).code == 0
    model, _ = load(run)
    denoise, noise = ContinuousDenoiser(model.process, model.net), per_image_noise([5, 6, 7], (1, 8, 8))
    path = EDMPath(denoise.path().sigma_min, denoise.path().sigma_max, 3.0 if "--rho" in flags else 7.0)
    x = call(denoise, noise(0) / model.process.alpha_bar[-1].sqrt(), noise, path)
    found = drawn("-".join(filter(None, [run.parts[-2], "run", flags[0], "steps5", tag])))
    np.testing.assert_array_equal(found, decode(x.float(), 17)[:, 0].numpy())


def test_ode_likelihood_is_that_of_the_function(minidiff, run):
    ended = minidiff("likelihood", run, "--ode", "-n", 4, "--seed", 3)
    assert ended.code == 0
    total, error = map(float, re.search(r"ODE +(-?\d+\.\d+) ± (\d+\.\d+) .*\(4 held-out", ended.out).groups())
    model, _ = load(run)
    generator = torch.Generator().manual_seed(3)
    denoise = ContinuousDenoiser(model.process, model.net, clip=False)
    x = dequantise(digits("test").x[:4].double(), 17, generator)
    wide = model.process.alpha_bar[-1].rsqrt().item()
    prior = lambda z: torch.distributions.Normal(0, wide).log_prob(z).sum((1, 2, 3))
    log_p = ode_log_prob(denoise, x, denoise.path(), rademacher(x, generator), prior)
    bits = bits_per_dim(log_p, 64, 17)
    assert (total, error) == pytest.approx((bits.mean().item(), bits.std().item() / 2), abs=6e-5)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--eta", 0.5), "--eta 0.5: only --sampler ddim"),
        (("--sampler", "heun", "--steps", 5, "--eta", 0.0), "--eta 0.0: only --sampler ddim"),
        (("--sampler", "euler", "--steps", 5, "--spacing", "leading"), "--spacing leading: only --sampler ddim"),
        (("--sampler", "heun"), "--steps None: say in how many"),
        (("--sampler", "heun", "--steps", 5, "--alpha", 0.5), "--alpha 0.5: --sampler heun has no such choice"),
        (("--rho", 7), "--rho 7.0: --sampler ancestral has no such choice"),
        (("--sampler", "rk2", "--steps", 5, "--S-noise", 1), "--S-noise 1.0: --sampler rk2 has no such choice"),
        (("--sampler", "rk2", "--steps", 5), "--sampler rk2: it must be told --alpha"),
        (("--sampler", "churn", "--steps", 5), "--sampler churn: it must be told --S-churn"),
        (("--sampler", "churn", "--steps", 5, "--S-churn", -1), "S_churn=-1.0"),
        (("--sampler", "churn", "--steps", 5, "--S-churn", 1, "--S-tmin", 9, "--S-tmax", 1), "S_tmin=9.0, S_tmax=1.0"),
        (("--sampler", "rk2", "--steps", 5, "--alpha", 9), "alpha=9.0"),
        (("--sampler", "dpmpp", "--steps", 5, "--rho", 0), "rho=0.0"),
        (("--sampler", "heun", "--steps", 5, "--rho", "nan"), "rho=nan: give a number from 0.1"),
        (("--sampler", "heun", "--steps", 0), "--steps 0: say in how many"),
        (("--sampler", "ddim", "--steps", 31), "--steps 31: n=31: of 30 steps"),
        (("--sampler", "ddim", "--eta", 1.5), "--eta 1.5: give a number"),
    ],
)
def test_flags_that_do_not_fit_are_refused_and_nothing_is_written(minidiff, run, tmp_path, arguments, named):
    before = files(tmp_path)
    ended = minidiff("sample", run, *arguments)
    assert ended.code == 2 and named in ended.err and ended.err.count("\n") == 1
    assert files(tmp_path) == before and not (tmp_path / "samples").exists()


def test_processes_of_the_first_paper_have_neither(minidiff, tmp_path):
    ended = minidiff("sample", "swissroll-sd", "--sampler", "ddim")
    assert ended.code == 2 and "--sampler ddim: a LearnedGaussian has the ancestral sampler alone" in ended.err
    ended = minidiff("likelihood", "heartbeat-sd", "--ode")
    assert ended.code == 2 and "--ode: for a GaussianDiffusion" in ended.err
