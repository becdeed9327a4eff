"""Networks that see the time in their last layer only: its formula, and what the layers below it ignore."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from minidiff import RBF, SigmoidMLP, temporal_bumps
from minidiff.networks import BumpReadout, StepReadout


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def awake(net: nn.Module) -> nn.Module:
    """The same module with a read-out that is not zero."""
    for parameter in net.readout.parameters():
        nn.init.normal_(parameter)
    return net


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@given(T=st.integers(2, 2000), J=st.integers(1, 20), data=st.data())
def test_bumps_are_the_formula_in_numpy(T, J, data):
    """(SD 63): step t = 0 … T − 1 is at time t + 1; centres evenly inside (0, T), the width their spacing."""
    t = np.array([0, data.draw(st.integers(0, T - 1)), T - 1])
    w = T / J
    tau = np.array([w / 2 + j * w for j in range(J)])
    g = np.exp(-((t[:, None] + 1 - tau) ** 2) / (2 * w**2))
    ours = temporal_bumps(torch.from_numpy(t).double(), T, J)
    np.testing.assert_allclose(ours, g / g.sum(1, keepdims=True), rtol=1e-9)
    np.testing.assert_allclose(ours.sum(1), 1, rtol=1e-12)
    np.testing.assert_allclose(ours.flip(0, 1)[0], temporal_bumps(torch.tensor([-1.0]).double(), T, J)[0], rtol=1e-9)


def test_a_readout_per_step_is_a_linear_layer_per_step(float64, generator):
    readout = StepReadout(3, 2, T=5)
    assert parameters(readout) == 5 * (3 * 2 + 2) and not any(p.any() for p in readout.parameters())
    layers = [nn.Linear(3, 2) for _ in range(5)]
    with torch.no_grad():
        for t, layer in enumerate(layers):
            readout.weight[t], readout.bias[t] = layer.weight, layer.bias
    h, t = torch.randn(7, 3, generator=generator), torch.tensor([4.0, 0, 2, 2, 1, 3, 0])
    torch.testing.assert_close(readout(h, t), torch.stack([layers[int(k)](row) for row, k in zip(h, t, strict=True)]))


@pytest.mark.parametrize("middle", [(), (2,), (3, 4)])
def test_a_readout_by_bumps_mixes_one_linear_layer_for_each(middle, float64, generator):
    readout = BumpReadout(3, 2, T=50, bumps=4)
    assert parameters(readout) == 4 * 2 * (3 + 1) and not any(p.any() for p in readout.parameters())
    for parameter in readout.parameters():
        nn.init.normal_(parameter)
    h, t = torch.randn(6, *middle, 3, generator=generator), torch.tensor([0.0, 7, 20, 30, 42, 49])
    g = temporal_bumps(t, 50, 4).numpy()
    weight = readout.y.weight.detach().numpy().reshape(2, 4, 3)  # z_i = Σ_j y_ij g_j (SD 62)
    bias = readout.y.bias.detach().numpy().reshape(2, 4)
    each = np.einsum("oji,b...i->b...oj", weight, h.numpy()) + bias
    np.testing.assert_allclose(
        readout(h, t).detach(), np.stack([layer @ bump for layer, bump in zip(each, g, strict=True)]), rtol=1e-9
    )


def test_rbf_is_its_formula_in_numpy(float64, generator):
    net = awake(RBF(2, 3, T=4, units=6))
    net.log_width.data = torch.randn(6, generator=generator)
    x, t = torch.randn(8, 2, generator=generator), torch.arange(8.0) % 4
    centres, width = net.centres.detach().numpy(), np.exp(net.log_width.detach().numpy())
    features = np.exp(-((x.numpy()[:, None] - centres) ** 2).sum(2) / (2 * width**2))
    features /= features.sum(1, keepdims=True)
    weight, bias = net.readout.weight.detach().numpy(), net.readout.bias.detach().numpy()
    expected = [weight[int(k)] @ row + bias[int(k)] for row, k in zip(features, t, strict=True)]
    np.testing.assert_allclose(net(x, t).detach(), expected, rtol=1e-9)
    assert parameters(net) == 6 * 2 + 6 + 4 * 3 * (6 + 1)


def test_rbf_features_sum_to_one_everywhere(float64, generator):
    """So a read-out whose weights are all c answers c, near and a million away, where exp(−distance²) is 0."""
    net = RBF(2, 1, T=3, units=5)
    net.readout.weight.data.fill_(1.7)
    x = torch.randn(20, 2, generator=generator) * torch.logspace(-3, 6, 20)[:, None]
    torch.testing.assert_close(net(x, torch.zeros(20)), torch.full((20, 1), 1.7))
    far = awake(RBF(2, 1, T=3, units=5))
    far.centres.data[:, 0], far.centres.data[:, 1] = torch.arange(5.0), 0.0
    answer = far(torch.tensor([[1e6, 0.0]]), torch.ones(1))  # the last unit is nearest and alone
    torch.testing.assert_close(answer, far.readout.weight[1, :, 4:].T + far.readout.bias[1])


@pytest.mark.parametrize("bumps", [0, 4])
def test_the_sigmoid_network_is_its_formula_in_numpy(bumps, float64, generator):
    net = awake(SigmoidMLP(5, 3, T=6, width=7, depth=2, bumps=bumps))
    x, t = torch.randn(6, 5, generator=generator), torch.arange(6.0)
    h = x.numpy()
    for layer in (net.hidden[0], net.hidden[2]):
        layer.bias.data.normal_()
        h = 1 / (1 + np.exp(-(h @ layer.weight.detach().numpy().T + layer.bias.detach().numpy())))
    expected = net.readout(torch.from_numpy(h), t)
    torch.testing.assert_close(net(x, t), expected)
    shared = 5 * 7 + 7 + 7 * 7 + 7
    assert parameters(net) == shared + ((7 + 1) * 3 * 4 if bumps else 6 * (7 + 1) * 3)


def test_the_papers_heartbeat_network_has_its_size():
    assert parameters(SigmoidMLP(20, 20, T=2000, bumps=0)) == 21 * 50 + 2 * 51 * 50 + 2000 * 20 * 51


def nets() -> list[nn.Module]:
    return [RBF(3, 3, 9, units=5), SigmoidMLP(3, 3, 9, 8, 2, bumps=4), SigmoidMLP(3, 3, 9, 8, 2, bumps=0)]


@pytest.mark.parametrize("k", range(3))
def test_untrained_they_answer_zero_and_learning_reaches_every_parameter(k, generator):
    net = nets()[k]
    x, t = torch.randn(18, 3, generator=generator), torch.arange(18.0) % 9
    assert not net(x, t).any()
    (awake(net)(x, t) ** 3).sum().backward()
    assert all((p.grad != 0).float().mean() > 0.9 for p in net.parameters())


@pytest.mark.parametrize("k", range(3))
def test_below_the_readout_nothing_sees_the_time(k, generator):
    net, seen = awake(nets()[k]), []
    net.readout.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach()))
    x = torch.randn(4, 3, generator=generator)
    answers = [net(x, torch.full((4,), float(t))) for t in (0, 5, 8)]
    assert all(torch.equal(h, seen[0]) for h in seen)
    assert (answers[0] - answers[1]).abs().min() > 1e-4 and (answers[1] - answers[2]).abs().min() > 1e-4


@pytest.mark.parametrize("k", range(3))
def test_they_fit_a_function_of_point_and_time(k, generator):
    net = nets()[k]
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-2)
    x, t = torch.randn(128, 3, generator=generator), (torch.randint(2, (128,), generator=generator) * 8).float()
    target = torch.where(t[:, None] == 0, x.flip(1), -x).tanh()
    start = (target**2).mean()
    for _ in range(300):
        loss = (net(x, t) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < start / 4  # blind to time it would stay above a half
