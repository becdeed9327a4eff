"""The network for points: nothing at the start, everything a function of point and time, and able to fit."""

import torch

from minidiff import MLP


def test_untrained_it_answers_zero(generator):
    assert not MLP(2, out_dim=4)(torch.randn(5, 2, generator=generator), torch.arange(5.0)).any()


def test_it_fits_a_function_of_point_and_time(generator):
    torch.manual_seed(0)
    net = MLP(2, width=32)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    x, t = torch.randn(256, 2, generator=generator), torch.randint(2, (256,), generator=generator).float()
    target = torch.where(t[:, None] == 0, x.flip(1), -x)
    for _ in range(300):
        loss = (net(x, t) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.01  # 1 at the start; without the time nothing under 0.5 is possible


def test_precision_is_the_callers(generator):
    x = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    assert MLP(2).double()(x, torch.zeros(3).double()).dtype == torch.float64
