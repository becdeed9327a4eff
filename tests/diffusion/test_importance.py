"""Importance-sampled times: the law of t, no bias, less noise, and a history that is the same however it came about."""

import io
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minidiff import ImportanceTimes

SIZES = torch.tensor([8.0, 0.5, 0.1, 2.0, 0.0], dtype=torch.float64)  # √E[L²] at five steps


def filled(T: int = 5, history: int = 4, uniform: float = 0.05) -> ImportanceTimes:
    """Histories whose root mean square is SIZES, of values that differ."""
    times = ImportanceTimes(T, history, uniform)
    for spread in (0.6, 1.0, 1.4, (4 - 0.36 - 1.0 - 1.96) ** 0.5):
        times.update(torch.arange(T), SIZES * spread)
    return times


class Ledger:
    """The same history kept as lists, one loss after the other."""

    def __init__(self, T: int, history: int):
        self.rows, self.history = [[] for _ in range(T)], history

    def update(self, t: torch.Tensor, loss: torch.Tensor) -> None:
        for k, value in zip(t.tolist(), loss.tolist(), strict=True):
            self.rows[k] = [*self.rows[k], value][-self.history :]


def test_steps_are_drawn_in_proportion_to_the_root_mean_square_of_their_losses(generator):
    times, n = filled(), 40_000
    p = 0.95 * SIZES / SIZES.sum() + 0.05 / 5
    torch.testing.assert_close(times.probabilities, p)
    t, weight = times.draw(n, generator)
    found = torch.bincount(t, minlength=5) / n
    assert ((found - p).abs() < 4 * (p * (1 - p) / n).sqrt()).all()
    torch.testing.assert_close(weight, (1 / (5 * p[t])).float())
    assert weight.max() <= 1 / 0.05


@given(losses=st.lists(st.floats(-1, 3), min_size=5, max_size=5), uniform=st.floats(0.001, 1.0))
def test_weights_make_the_expectation_that_of_uniform_times(losses, uniform):
    """Σ p_t w_t L_t = mean of L_t, whatever the history: in exact arithmetic, over all t."""
    times, values = filled(uniform=uniform), torch.tensor(losses).double()
    p = times.probabilities
    assert p.sum().item() == pytest.approx(1)
    assert (p / (5 * p) @ values).item() == pytest.approx(values.mean().item(), abs=1e-12)
    for t, weight in zip(*times.draw(50, torch.Generator().manual_seed(0)), strict=True):
        assert weight.item() == pytest.approx(1 / (5 * p[t].item()), rel=1e-6)


def test_the_estimate_has_no_bias_and_less_noise(generator):
    """20,000 weighted losses, each SIZES · (1 + z/2): the mean to 4 standard errors, which are below uniform ones."""
    times, n, truth = filled(), 20_000, SIZES.mean().item()
    losses = lambda t: SIZES[t] * (1 + 0.5 * torch.randn(n, generator=generator, dtype=torch.float64))
    t, weight = times.draw(n, generator)
    estimate = weight.double() * losses(t)
    error = estimate.std().item() / n**0.5
    assert abs(estimate.mean().item() - truth) < 4 * error
    plain = losses(torch.randint(5, (n,), generator=generator))
    # Var = E[L²/p]/T² − mean²; with p ∝ √E[L²] that is (Σ√E[L²])²/T² − mean², the least that any p gives
    least = 1.25 * SIZES.mean() ** 2 - truth**2
    assert estimate.var().item() == pytest.approx(least.item(), rel=0.2)
    assert estimate.var() < plain.var() / 5


def test_all_steps_are_equally_likely_until_the_last_of_them_has_a_history(generator):
    times = ImportanceTimes(3, history=2)
    for t in ([0, 1, 0, 1, 0, 0], [2, 1, 0]):
        times.update(torch.tensor(t), torch.arange(1.0, 1.0 + len(t)))
        assert times.probabilities.tolist() == [1 / 3] * 3
        assert torch.equal(times.draw(8, generator)[1], torch.ones(8))
    times.update(torch.tensor([2]), torch.tensor([9.0]))
    assert times.probabilities.unique().numel() == 3


@given(data=st.data(), T=st.integers(1, 6), history=st.integers(1, 4))
def test_a_ring_holds_the_last_losses_of_each_step(data, T, history):
    times, ledger = ImportanceTimes(T, history), Ledger(T, history)
    for _ in range(data.draw(st.integers(1, 4))):
        t = torch.tensor(data.draw(st.lists(st.integers(0, T - 1), min_size=1, max_size=25)))
        loss = torch.randn(len(t), generator=torch.Generator().manual_seed(len(t)))
        times.update(t, loss)
        ledger.update(t, loss)
    for row, seen, kept in zip(times.losses.tolist(), times.seen.tolist(), ledger.rows, strict=True):
        assert sorted(row[: min(seen, history)]) == sorted(kept)


@given(data=st.data())
def test_losses_of_two_processes_may_come_in_one_call_or_in_two(data):
    """Gathered by rank they make one batch; the history is what two calls in that order leave, to the bit."""
    ranks = data.draw(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=30), min_size=2, max_size=4))
    generator = torch.Generator().manual_seed(3)
    ranks = [(torch.tensor(t), torch.randn(len(t), generator=generator)) for t in ranks]
    one, two = filled(), filled()
    one.update(torch.cat([t for t, _ in ranks]), torch.cat([loss for _, loss in ranks]))
    for t, loss in ranks:
        two.update(t, loss)
    assert torch.equal(one.losses, two.losses) and torch.equal(one.seen, two.seen)


def test_a_history_survives_a_file_and_goes_on_as_if_nothing_had_happened():
    times, file = filled(), io.BytesIO()
    torch.save(times.state_dict(), file)
    saved = times.state_dict()
    times.update(torch.tensor([1, 1]), torch.tensor([5.0, 6.0]))  # a state that was read out does not change
    assert not torch.equal(saved["losses"], times.losses) and not torch.equal(saved["seen"], times.seen)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    again = ImportanceTimes(5, 4, 0.05)
    again.load_state_dict(state)
    again.update(torch.tensor([1, 1]), torch.tensor([5.0, 6.0]))
    assert torch.equal(again.losses, times.losses) and torch.equal(again.seen, times.seen)
    assert not torch.equal(state["losses"], again.losses)
    draws = [sampler.draw(100, torch.Generator().manual_seed(1)) for sampler in (times, again)]
    assert torch.equal(draws[0][0], draws[1][0]) and torch.equal(draws[0][1], draws[1][1])


@pytest.mark.parametrize("T, history", [(6, 4), (5, 3)])
def test_a_history_of_another_chain_is_refused(T, history):
    with pytest.raises(ValueError, match=rf"times: a history .*\(5, 4\) does not fit one of \({T}, {history}\)"):
        ImportanceTimes(T, history).load_state_dict(filled().state_dict())


@pytest.mark.parametrize("arguments", [(0,), (5, 0), (5, 2, 0.0), (5, 2, 1.5)])
def test_arguments_that_make_no_law_are_refused(arguments):
    with pytest.raises(ValueError, match="T and history ≥ 1, uniform in"):
        ImportanceTimes(*arguments)


def test_defaults_are_those_of_the_paper():
    times = ImportanceTimes(7)
    assert times.losses.shape == (7, 10) and np.isclose(times.uniform, 0.001)


@pytest.mark.gpu
def test_the_history_follows_to_the_gpu():
    times, device = filled(), torch.device("cuda")
    t, weight = times.draw(64, torch.Generator(device).manual_seed(1))
    assert t.is_cuda and weight.is_cuda
    on_cpu = filled()
    for sampler, place in ((times, "cuda"), (on_cpu, "cpu")):
        sampler.update(t.to(place), weight.to(place))
    torch.testing.assert_close(times.probabilities.cpu(), on_cpu.probabilities)


WORKER = """
import sys
import torch
from torch import distributed
from minidiff import ImportanceTimes

distributed.init_process_group("gloo")
rank, times = distributed.get_rank(), ImportanceTimes(6, 3)
generator = torch.Generator().manual_seed(rank)
for _ in range(4):
    t = torch.randint(6, (5,), generator=generator)
    times.update(t, torch.rand(5, generator=generator))
torch.save(times.state_dict(), f"{sys.argv[1]}/{rank}.pt")
distributed.destroy_process_group()
"""


def test_two_processes_keep_one_history(tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended = subprocess.run([*command, tmp_path / "worker.py", tmp_path], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    alone, generators = ImportanceTimes(6, 3), [torch.Generator().manual_seed(rank) for rank in (0, 1)]
    for _ in range(4):
        drawn = [(torch.randint(6, (5,), generator=g), torch.rand(5, generator=g)) for g in generators]
        alone.update(*map(torch.cat, zip(*drawn, strict=True)))
    for state in states:
        assert torch.equal(state["seen"], alone.seen) and torch.equal(state["losses"], alone.losses)
    assert alone.seen.sum() == 40
