"""Two processes over gloo are one that sees the whole batch; what one of them meets, both know."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pair
import pytest
import torch

from minidiff.training import distributed
from minidiff.training.loop import data_order

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo and locks are for Linux and macOS here")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("pair")


@pytest.fixture(scope="module")
def both(folder) -> list[dict]:
    """What each of two processes found."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended = subprocess.run([*command, pair.__file__, folder], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone() -> list[torch.Tensor]:
    """The gradients of one process with the whole batch at once."""
    return pair.gradients()


def largest_difference(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    return max((x - y).abs().max().item() for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("micro", [0, 4, 1])
def test_gradients_of_two_are_those_of_one_with_the_whole_batch(micro, both, alone):
    """In one portion, in two and in eight."""
    assert min(gradient.abs().max() for gradient in alone) > 1e-4
    for each in both:
        assert largest_difference(each["gradients"][micro], alone) <= 1e-6


@pytest.mark.parametrize("micro", [8, 2])
def test_gradients_of_one_in_portions_are_those_of_the_whole_batch(micro, alone):
    assert largest_difference(pair.gradients(micro), alone) <= 1e-6


def test_gradients_are_exchanged_once_a_step_however_many_portions_there_are(both):
    for each in both:
        assert each["exchanges"][0] == each["exchanges"][4] == each["exchanges"][1] > 0


def test_each_has_its_share_of_the_order_and_draws_of_its_own(both):
    for step in range(10):
        index = torch.cat([each["index"][step] for each in both])
        assert torch.equal(index, data_order(16 * step, 16, 40, 3)) and len(both[1]["index"][step]) == 8
        assert not torch.equal(both[0]["t"][step], both[1]["t"][step])


@pytest.mark.parametrize("run", ["weights", "importance"])
def test_weights_and_averages_are_the_same_on_both_to_the_bit(run, both):
    a, b = (each[run] for each in both)
    assert a.keys() == b.keys() and any(name.startswith("ema-2000") for name in a)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert a["model.net.conv_in.weight"].std() > 0


def test_a_line_tells_the_loss_of_all(both):
    losses = [[line["loss"] for line in each["metrics"]] for each in both]
    assert losses[0] == losses[1] and [line["images"] for line in both[0]["metrics"]] == [32, 64, 96, 128, 160]


def test_what_is_not_finite_on_one_stops_both_before_the_update(both):
    """Only the second process has bad images, in its third batch."""
    for each in both:
        said, images, weights, in_training = each["spoilt"]
        assert "not finite after 32 images: no update was made" in said and images == 32 and not in_training
        assert all(torch.equal(weights[name], value) for name, value in each["before"].items())


def test_an_infinite_loss_with_a_gradient_as_ever_stops_both_too(both):
    """Were one to go on, it would wait for the other."""
    assert all("not finite after 0 images: no update was made" in each["infinite"] for each in both)


def test_one_that_is_told_to_stop_stops_both_and_the_first_writes(both, folder):
    assert [each["stopped"] for each in both] == [48, 48]
    assert [path.name for path in (folder / "run" / "checkpoints").iterdir()] == ["48"]
    assert len((folder / "run" / "metrics.jsonl").read_text().splitlines()) == 2


def test_both_refuse_what_one_would_have_to(both):
    for each in both:
        sentences = ["batch=15 does not divide by 2", "micro=3: 8 examples a process", "different checkp", "is in use"]
        assert all(part in said for part, said in zip(sentences, each["refused"], strict=True))


def test_without_torchrun_there_is_one():
    assert (distributed.rank(), distributed.size()) == (0, 1) and distributed.same(5)
    assert distributed.any_of(True) and not distributed.any_of(False)
    model, x = torch.nn.Linear(1, 1), torch.ones(2)
    assert distributed.joined(model) is model and distributed.mean(x) is x
    assert distributed.portions(12, 0) == (12, 12) and distributed.portions(12, 4) == (12, 4)
    with distributed.process_group(torch.device("cpu")):
        assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("micro", [-1, 5, 24])
def test_a_portion_divides_the_share(micro):
    with pytest.raises(ValueError, match=f"micro={micro}: 12 examples a process"):
        distributed.portions(12, micro)


def test_a_machine_with_fewer_gpus_than_processes_is_refused(monkeypatch):
    for key, value in {"WORLD_SIZE": "8", "LOCAL_RANK": "2"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with (
        pytest.raises(ValueError, match="process 2 of this machine has no GPU of its own: --nproc-per-node 2"),
        distributed.process_group(torch.device("cuda")),
    ):
        raise AssertionError("not reached")


# ---- started again --------------------------------------------------------------------------------------------------

DIES_ONCE = """
import os, time, torch
from minidiff.training import distributed
again, rank = os.environ["TORCHELASTIC_RESTART_COUNT"] == "1", os.environ["RANK"]
time.sleep(2 if again and rank == "1" else 0)  # the other one finds what was there before, if it looks for that
with distributed.process_group(torch.device("cpu")):
    print(f"{again} {rank}: {distributed.any_of(rank == '1')}", flush=True)
    again or os._exit(9)
"""


def test_torchrun_starts_them_again_and_they_find_each_other_however_late_one_is(tmp_path):
    (script := tmp_path / "dies_once.py").write_text(DIES_ONCE)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts"]
    ended = subprocess.run([*command, "1", script], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert "True 0: True" in ended.stdout and "True 1: True" in ended.stdout


@pytest.mark.parametrize("late", [0, 1, 2])
def test_a_store_is_shared_by_those_of_one_start_and_by_none_before(late):
    store, world = torch.distributed.HashStore(), 3

    def enter(rank: int) -> torch.distributed.Store:
        time.sleep(0.2 if rank == late else 0)
        own = distributed.untouched(store, rank, world)
        own.set(f"of {rank}", str(rank))
        return own

    starts = []
    for start in range(3):
        with ThreadPoolExecutor(world) as pool:
            now = list(pool.map(enter, range(world)))
        assert [[each.get(f"of {rank}") for rank in range(world)] for each in now] == [[b"0", b"1", b"2"]] * 3
        now[0].set(f"start {start}", "")
        starts.append([each.check([f"start {k}"]) for each in now for k in range(3)])
    assert starts == [3 * [k == start for k in range(3)] for start in range(3)]
