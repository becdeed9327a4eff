"""What training costs, counted on ``meta``, where tensors have shapes and no numbers.

An operation is a multiplication or an addition, in matrix products and convolutions; the rest is not counted.
"""

import sys
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from .checkpoint import Description
from .config import ClassifierConfig

try:
    import resource
except ImportError:  # Windows
    resource = None

GIB = 2**30
USABLE = 0.9  # of a GPU's memory: the driver, workspaces and what is short-lived in the backward pass need the rest

Precision = Literal["bf16", "tf32"]
GPUName = Literal["a100", "h100", "h200", "b200", "l40s", "rtx4090"]


@dataclass(frozen=True)
class GPU:
    """Peak rates of dense matrix products in FLOP/s, and bytes of memory, from NVIDIA's data sheets."""

    bf16: float
    tf32: float
    memory: int


GPUS: dict[str, GPU] = {  # of those with a socket of their own (SXM) where there are several
    "a100": GPU(312e12, 156e12, 80 * GIB),
    "h100": GPU(989e12, 494.5e12, 80 * GIB),
    "h200": GPU(989e12, 494.5e12, 141 * GIB),
    "b200": GPU(2250e12, 1125e12, 180 * GIB),
    "l40s": GPU(362e12, 183e12, 48 * GIB),
    "rtx4090": GPU(165.2e12, 82.6e12, 24 * GIB),
}


@dataclass(frozen=True, kw_only=True)
class Assumed:
    """What an estimate rests on."""

    gpu: GPUName = "h100"
    """Whose peak rate and memory."""
    precision: Precision = "tf32"
    """tf32: activations of 32 bits; bf16: of 16, beside weights of 32."""
    utilisation: float = 0.35
    """Share of the peak rate that training reaches; a small network stays far below what a large one does."""

    def __str__(self) -> str:
        """In words."""
        return f"one {self.gpu} at {self.utilisation:.0%} of its {self.precision} rate, {self.rate / 1e12:.0f} TFLOP/s"

    @property
    def rate(self) -> float:
        """FLOP/s. Raises ValueError for a share that is none."""
        if not 0 < self.utilisation <= 1:
            raise ValueError(f"utilisation={self.utilisation}: give a share of the peak rate, above 0 and at most 1.")
        return self.utilisation * getattr(GPUS[self.gpu], self.precision)


class Cost:
    """What it costs to train what a description says; an example is an image, a point or a sequence."""

    def __init__(self, description: Description):
        with torch.device("meta"):
            self.model = description.build()
        self.config, self.shape = description.config, description.shape
        self.parameters = sum(p.numel() for p in self.model.parameters())

    @cached_property
    def forward(self) -> int:
        """FLOPs of the network for one example."""
        net, x, t, cond = self._example(torch.float32)
        with torch.no_grad(), WithoutNorms(), FlopCounterMode(display=False) as counter:
            net(x, t, **cond)
        return counter.get_total_flops()

    @property
    def training(self) -> int:
        """FLOPs of training on one example: forward, twice as much backward, and forward again to recompute."""
        return self.forward * (4 if getattr(self.config.network, "checkpoint", False) else 3)

    def memory(self, precision: Precision) -> dict[str, int]:
        """Bytes that training holds whatever its batch is, by part."""
        n, averages = self.parameters, len(self.config.training.ema)
        parts = {"weights": 4 * n, "gradients": 4 * n, "Adam's moments": 8 * n, "averaged weights": 4 * n * averages}
        return parts | ({"weights in 16 bits": 2 * n} if precision == "bf16" else {})

    def activations(self, precision: Precision) -> int:
        """Bytes that the network keeps of one example for the backward pass."""
        net, x, t, cond = self._example(torch.bfloat16 if precision == "bf16" else torch.float32)
        kept: dict[int, torch.UntypedStorage] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()  # several tensors may be views of one
            kept[storage._cdata] = storage  # held, so that no other storage gets its address
            return tensor

        with FusedKernels(), saved_tensors_hooks(pack, lambda tensor: tensor):
            net(x, t, **cond)
        for own in [*net.parameters(), *net.buffers()]:
            kept.pop(own.untyped_storage()._cdata, None)
        return sum(storage.nbytes() for storage in kept.values())

    def micro_batch(self, assumed: Assumed) -> int:
        """How many examples fit into the GPU's memory at a time; 0 where there is no room for one."""
        room = USABLE * GPUS[assumed.gpu].memory - sum(self.memory(assumed.precision).values())
        return max(0, int(room // self.activations(assumed.precision)))

    def per_second(self, assumed: Assumed) -> float:
        """Examples a second on one GPU."""
        return assumed.rate / self.training

    def hours(self, assumed: Assumed) -> float:
        """GPU-hours to the end of training."""
        return self.config.training.images / self.per_second(assumed) / 3600

    def _example(self, dtype: torch.dtype) -> tuple[nn.Module, Tensor, Tensor, dict[str, Tensor]]:
        """The network in this precision, and what it is given with one example."""
        data, network = self.config.data, self.config.network
        channels, *sides = self.shape
        cond = {}
        if data.labels and not isinstance(network, ClassifierConfig):
            cond["labels"] = torch.empty(1, dtype=torch.long, device="meta")
        if data.low_res > 1:
            cond["low_res"] = torch.empty(1, channels, *(side // data.low_res for side in sides), device="meta")
        if data.augment:
            cond["augment"] = torch.empty(1, network.augment, device="meta")
        x, t = (torch.empty(1, *dims, dtype=dtype, device="meta") for dims in (self.shape, ()))
        return self.model.net.to(dtype).train(), x, t, cond


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has held so far: of tensors on its GPU, or of any kind (0 on Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class WithoutNorms(TorchFunctionMode):
    """Leave normalisations out: they are not counted, and are half of the time that it takes to count."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if function is F.group_norm else function(*args, **(kwargs or {}))


class FusedKernels(TorchFunctionMode):
    """Attention and dropout as a GPU computes them: no attention weights are kept, and masks are of one byte.

    On ``meta`` torch would take both apart, and keep every attention weight, and masks as large as the features.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_efficient_attention(*args, None, True)[0]
        if function is F.dropout and kwargs["p"]:
            return torch.native_dropout(*args, kwargs["p"], kwargs["training"])[0]
        return function(*args, **kwargs)
