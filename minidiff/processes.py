"""Several processes at one work, as torchrun starts them: which one this is, and what they tell each other.

What is here does for one process without torchrun what it should: nothing.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import torch
from torch import Tensor, distributed


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Inside, torchrun's processes know each other, and ``cuda`` is the GPU of this one.

    Tensors go over NCCL between GPUs and over gloo between CPUs. Raises ValueError for fewer GPUs than processes.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    # gloo for what the CPUs agree on, which no GPU is waited for
    backend = "cpu:gloo,cuda:nccl" if own_device(device).type == "cuda" else "gloo"
    store, rank, world = next(distributed.rendezvous("env://"))
    distributed.init_process_group(backend, store=untouched(store, rank, world), rank=rank, world_size=world)
    try:
        yield
        any_of(False)  # all leave together
    finally:
        distributed.destroy_process_group()


def own_device(device: torch.device) -> torch.device:
    """This process's GPU among those of its machine. Raises ValueError for fewer GPUs than processes."""
    if device.type != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    local, present = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= present:
        raise ValueError(f"process {local} of this machine has no GPU of its own: --nproc-per-node {present}.")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def untouched(store: "distributed.Store", rank: int, world: int) -> "distributed.Store":
    """A part of a store that is common to these processes, and to which none before them wrote.

    torchrun keeps one store through all its restarts (pytorch/pytorch#135712): without this a process that is started
    again may find the addresses of the dead there, and wait for them. So each of the others asks under a name that
    nobody had before, and the first one answers until all have heard it.
    """
    name = uuid4().hex
    if rank:
        store.set(f"asking/{rank}", name)
        name = store.get(f"answer/{name}").decode()
        store.set(f"{name}/heard/{rank}", "")
        return distributed.PrefixStore(name, store)
    waiting = set(range(1, world))
    while waiting:
        for other in waiting:  # it may be a dead one's question that is there still: then the next round finds another
            store.set(f"answer/{store.get(f'asking/{other}').decode()}", name)
        time.sleep(0.01)
        waiting -= {other for other in waiting if store.check([f"{name}/heard/{other}"])}
    return distributed.PrefixStore(name, store)


def rank() -> int:
    """Which process this is, from 0."""
    return distributed.get_rank() if _several() else 0


def size() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if _several() else 1


def any_of(flag: bool) -> bool:
    """Whether it holds in one process at least; all get the same answer."""
    return flag if size() == 1 else _largest(int(flag)) == 1


def same(number: int) -> bool:
    """Whether all processes have the same number."""
    return size() == 1 or _largest(number) == -_largest(-number)


def mean(x: Tensor) -> Tensor:
    """Over the processes."""
    if size() == 1:
        return x
    total = x.clone()
    distributed.all_reduce(total)
    return total / size()


def gathered(x: Tensor) -> Tensor:
    """The rows of all processes, each of which gives as many, in the order of their ranks."""
    if size() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(size())]
    distributed.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _largest(number: int) -> int:
    held = torch.tensor(number)  # on the CPU
    distributed.all_reduce(held, distributed.ReduceOp.MAX)
    return int(held)
