"""Importance-sampled times in the loop: their history is part of the run, also of one that is resumed."""

from dataclasses import replace

import pytest
import tiny
import torch

from minidiff import GaussianConfig, GaussianDiffusion, ImportanceTimes, RBFConfig, UniformTimes, resume, train
from minidiff.training import check, time_sampler

BOUND = GaussianConfig("cosine", T=4, variance="range", loss="bound", lambda_vlb=0.25, rescale_times=True)


def config(**training):
    return replace(tiny.config(times="importance", **training), process=BOUND)


def test_a_resumed_run_is_bit_equal_to_an_unbroken_one_history_and_all(tmp_path):
    settings = config()
    unbroken = train(tiny.fresh(settings), tiny.images(), settings.training)
    half = replace(settings.training, images=64)
    train(tiny.fresh(settings), tiny.images(), half, tmp_path, tiny.describe(settings))
    again = tiny.fresh(settings, seed=1)
    assert resume(again, tmp_path) and again.images == 64
    assert again.times.seen.sum() == 64 and again.times.seen.min() >= 10  # the law is no longer uniform
    assert again.times.probabilities.unique().numel() > 1
    train(again, tiny.images(), settings.training)
    assert torch.equal(again.times.losses, unbroken.times.losses) and torch.equal(again.times.seen, unbroken.times.seen)
    ours, theirs = tiny.weights(again), tiny.weights(unbroken)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_the_history_holds_the_losses_without_their_weights():
    settings = config(images=96)
    state, kept = tiny.fresh(settings), []
    loss = GaussianDiffusion.loss

    def spy(self, net, x0, t, noise, **cond):
        terms = loss(self, net, x0, t, noise, **cond)
        kept.extend(zip(t.tolist(), (4 * terms["bits"]).tolist(), strict=True))
        return terms

    state.model.process.loss = spy.__get__(state.model.process)
    train(state, tiny.images(), settings.training)
    for k in range(4):
        last = [value for t, value in kept if t == k][-10:]
        assert sorted(state.times.losses[k].tolist()) == pytest.approx(sorted(last), rel=1e-6)


def test_a_configuration_names_the_law_and_the_options_of_the_process():
    settings = config()
    times = time_sampler(settings)
    assert isinstance(times, ImportanceTimes) and times.T == 4
    assert isinstance(time_sampler(tiny.config()), UniformTimes)
    model = tiny.describe(settings).build()
    assert (model.process.variance, model.process.lambda_vlb) == ("range", 0.25)
    assert model.process.fed.tolist() == [0.0, 250.0, 500.0, 750.0]
    x = torch.zeros(2, *tiny.SHAPE)
    assert model.net(x, torch.zeros(2)).shape == (2, 2, 4, 4)  # twice the channels


def test_networks_that_count_steps_are_fed_bare_ones():
    with pytest.raises(ValueError, match=r"process.rescale_times: RBFConfig has read-outs for steps 0 … T − 1"):
        check(replace(config(), network=RBFConfig()))
