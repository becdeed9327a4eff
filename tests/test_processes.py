"""Who the processes are, and that those who are started again find each other."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from minidiff import processes


def test_without_torchrun_there_is_one():
    assert (processes.rank(), processes.size()) == (0, 1) and processes.same(5)
    assert processes.any_of(True) and not processes.any_of(False)
    x = torch.ones(2)
    assert processes.mean(x) is x and processes.gathered(x) is x
    with processes.process_group(torch.device("cpu")):
        assert not torch.distributed.is_initialized()


def test_a_machine_with_fewer_gpus_than_processes_is_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="process 2 of this machine has no GPU of its own: --nproc-per-node 2"):
        processes.own_device(torch.device("cuda"))
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert processes.own_device(torch.device("cuda")) == torch.device("cuda", 1) and chosen == [1]
    assert processes.own_device(torch.device("cpu")) == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(ValueError, match="process 2"), processes.process_group(torch.device("cuda")):
        raise AssertionError("not reached")


# ---- started again --------------------------------------------------------------------------------------------------

DIES_ONCE = """
import os, time, torch
from minidiff import processes
again, rank = os.environ["TORCHELASTIC_RESTART_COUNT"] == "1", os.environ["RANK"]
time.sleep(2 if again and rank == "1" else 0)  # the other one finds what was there before, if it looks for that
with processes.process_group(torch.device("cpu")):
    print(f"{again} {rank}: {processes.any_of(rank == '1')}", flush=True)
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
        own = processes.untouched(store, rank, world)
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
