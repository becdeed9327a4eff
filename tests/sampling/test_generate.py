"""Many images: the same whatever the batch, on whatever device."""

from copy import deepcopy
from functools import partial

import pytest
import torch

from minidiff import (
    EDM,
    BinomialDiffusion,
    GaussianDiffusion,
    LearnedGaussian,
    UNet,
    ancestral,
    churn,
    ddim,
    dpmpp,
    edm_column,
    generate,
    geometric_betas,
    harmonic_betas,
    heun,
    linear_betas,
    ode,
    per_image_noise,
    rk2,
    sde,
)


@pytest.fixture(scope="module")
def net() -> UNet:
    net = UNet(1, 1, channels=8, mult=(1, 2), blocks=1, attention=(1,), dropout=0.5).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in net.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return net


PROCESS = GaussianDiffusion(linear_betas(40))


@pytest.mark.parametrize("batch", [1, 4, 3])
def test_images_are_the_same_in_any_batch_and_order(net, batch):
    seeds = [11, 12, 13, 14]
    at_once = generate(PROCESS, net, (1, 4, 4), seeds)
    parts = generate(PROCESS, net, (1, 4, 4), seeds[::-1], batch)
    assert at_once.shape == (4, 1, 4, 4) and at_once.dtype == torch.float32
    assert (at_once[0] - at_once[1]).abs().max() > 0.1
    torch.testing.assert_close(parts.flip(0), at_once, rtol=0, atol=1e-5)


def test_an_image_is_the_ancestral_sample_of_its_seed(net):
    noise = per_image_noise([12], (1, 4, 4))
    expected = ancestral(PROCESS, net, noise(0), noise).float()
    torch.testing.assert_close(generate(PROCESS, net, (1, 4, 4), [11, 12])[1:], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_points_and_bits_too_are_the_same_in_any_batch_and_order(batch):
    gauss, bits, seeds = LearnedGaussian(geometric_betas(20)), BinomialDiffusion(harmonic_betas(20), 0.2), range(40)
    nets = {gauss: lambda x, t: torch.cat([x.sin(), x.cos()], 1), bits: lambda x, t: 3 * x.roll(1, 1) - 2}
    for process, net in nets.items():
        at_once = generate(process, net, (6,), seeds)
        assert at_once.dtype == torch.float32 and not at_once.requires_grad
        torch.testing.assert_close(generate(process, net, (6,), seeds[::-1], batch).flip(0), at_once, rtol=0, atol=1e-6)
    assert set(at_once.unique().tolist()) == {0.0, 1.0}
    assert len(at_once.unique(dim=0)) > 10


def test_bits_begin_at_the_rate_of_the_prior():
    """Of 2,000 seeds; the chain is one whose every step stays where it is, but for the first."""
    process = BinomialDiffusion(torch.tensor([1e-9, 0.5]), 0.2, "rate")
    stay = lambda x, t: torch.where(x > 0, 50.0, -50.0).to(x)
    share = generate(process, stay, (5,), range(2_000)).mean().item()
    assert abs(share - 0.2) < 4 * (0.2 * 0.8 / 10_000) ** 0.5


def test_any_sampler_can_lead_down_and_images_stay_those_of_their_seeds(net):
    sampler = partial(ddim, steps=[0, 13, 26, 39], eta=0.7)
    noise = per_image_noise([12], (1, 4, 4))
    expected = ddim(PROCESS, net, noise(0), noise, [0, 13, 26, 39], 0.7).float()
    for batch in (1, 4):
        found = generate(PROCESS, net, (1, 4, 4), [11, 12, 13], batch, sampler=sampler)
        torch.testing.assert_close(found[1:2], expected, rtol=0, atol=1e-5)


SOLVERS = {
    "euler": lambda process, net, start, noise: ode(process.denoiser(net), start, process.path, 6, "euler"),
    "heun": heun,
    "rk2": lambda process, net, start, noise: rk2(process.denoiser(net), start, process.path, 6, 0.5),
    "dpmpp": lambda process, net, start, noise: dpmpp(process.denoiser(net), start, process.path, 6),
    "churn": lambda process, net, start, noise: churn(process.denoiser(net), start, noise, 6, process.path, 3.0),
    "sde": lambda process, net, start, noise: sde(process.denoiser(net), start, process.path, 6, noise, corrections=1),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_under_any_solver_images_are_those_of_their_seeds(net, name):
    process = EDM(edm_column(0.8, sigma_max=10.0), 6)
    seeds, run = [11, 12, 13, 14], partial(generate, process, net, (1, 4, 4), sampler=SOLVERS[name])
    at_once = run(seeds)
    assert (at_once[0] - at_once[1]).abs().max() > 0.1
    torch.testing.assert_close(run(seeds[::-1], 3).flip(0), at_once, rtol=0, atol=1e-5)


def test_progress_is_told_a_batch_at_a_time():
    told = []
    generate(PROCESS, lambda x, t: x, (2,), range(5), batch=2, on_batch=told.append)
    assert told == [2, 2, 1]


@pytest.mark.parametrize("seeds, batch", [([], 4), ([1], 0), ([1], -2)])
def test_nothing_to_draw_is_refused(seeds, batch):
    with pytest.raises(ValueError, match=rf"{len(seeds)} samples in batches of {batch}"):
        generate(PROCESS, lambda x, t: x, (2,), seeds, batch)


@pytest.mark.gpu
def test_a_gpu_draws_the_images_of_the_cpu(net):
    on_cpu = generate(PROCESS, net, (1, 4, 4), range(4))
    process = GaussianDiffusion(linear_betas(40)).to("cuda")
    on_gpu = generate(process, deepcopy(net).to("cuda"), (1, 4, 4), range(4), device="cuda")
    torch.testing.assert_close(on_gpu, on_cpu, rtol=0, atol=1e-3)


def test_a_condition_has_a_row_for_each_seed_whatever_the_batch():
    net = lambda x, t, labels: x - labels[:, None]
    labels = torch.arange(5) - 2
    whole = generate(PROCESS, net, (2,), range(5), cond={"labels": labels})
    parts = generate(PROCESS, net, (2,), range(5), batch=2, cond={"labels": labels})
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6)
    alone = generate(PROCESS, lambda x, t: x - 2, (2,), [4])
    torch.testing.assert_close(whole[4:], alone, rtol=0, atol=1e-6)
    assert not torch.allclose(whole[4:], generate(PROCESS, lambda x, t: x, (2,), [4]))
    with pytest.raises(ValueError, match=r"cond\['labels'\]: 5 rows for 4 seeds"):
        generate(PROCESS, net, (2,), range(4), cond={"labels": labels})


@pytest.mark.parametrize("label", [-2, 3])
def test_a_label_that_the_network_does_not_know_is_refused_before_any_work(label):
    net = UNet(1, 1, channels=8, mult=(1,), blocks=1, attention=(), classes=3).eval()
    net.register_forward_pre_hook(lambda *_: pytest.fail("nothing is to be asked here"))
    with pytest.raises(ValueError, match=rf"labels=.*{label}.*: the network knows the classes 0 … 2"):
        generate(PROCESS, net, (1, 4, 4), range(3), cond={"labels": torch.tensor([0, -1, label])})
