"""Several processes that train one model: torchrun starts them, and DistributedDataParallel joins their gradients.

What is here does for one process without torchrun what it should: nothing.
"""

import os
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from uuid import uuid4

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Inside, torchrun's processes know each other, and ``cuda`` is the GPU of this one.

    Gradients go over NCCL between GPUs and over gloo between CPUs. Raises ValueError for fewer GPUs than processes.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    backend = "gloo"
    if device.type == "cuda":
        local, present = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= present:
            raise ValueError(f"process {local} of this machine has no GPU of its own: --nproc-per-node {present}.")
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"  # gloo for what the CPUs agree on, which no GPU is waited for
    store, rank, world = next(distributed.rendezvous("env://"))
    distributed.init_process_group(backend, store=untouched(store, rank, world), rank=rank, world_size=world)
    try:
        yield
        any_of(False)  # all leave together
    finally:
        distributed.destroy_process_group()


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


def portions(batch: int, micro: int) -> tuple[int, int]:
    """How much of the batch is this process's, and how much of that goes through the network at a time (0: all).

    The batch is the same for any number of processes. Raises ValueError where it does not divide.
    """
    share, rest = divmod(batch, size())
    if rest:
        raise ValueError(f"training.batch={batch} does not divide by {size()} processes: start another number of them.")
    if micro < 0 or share % (micro or share):
        raise ValueError(
            f"micro={micro}: {share} examples a process (training.batch={batch} on {size()}) do not divide by it. "
            "Give a divisor, or 0 for all at once."
        )
    return share, micro or share


def joined(model: nn.Module) -> nn.Module:
    """The module to call in training: its gradients come out as the mean over all processes."""
    if size() == 1:
        return model
    device = next(model.parameters()).device
    ids = [device.index] if device.type == "cuda" else None
    with warnings.catch_warnings():  # the newest torch has another name for it, which those before do not know
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        # Buffers are tables, the same everywhere.
        return DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True)


def joining(model: nn.Module, last: bool) -> AbstractContextManager:
    """Around a forward and backward pass: gradients are exchanged after the last one of a step alone."""
    return nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync()


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _largest(number: int) -> int:
    held = torch.tensor(number)  # on the CPU
    distributed.all_reduce(held, distributed.ReduceOp.MAX)
    return int(held)
