"""One model trained by several processes: DistributedDataParallel joins their gradients."""

import warnings
from contextlib import AbstractContextManager, nullcontext

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from minidiff.processes import size


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
