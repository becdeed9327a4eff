"""Which class is behind a noisy image: the objective of the classifier that guides a diffusion (ADM §4)."""

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn import functional as F

from .gaussian import Data, GaussianDiffusion, Net, PerExample, Steps, call_network


class NoisyClassifier(nn.Module):
    """Cross-entropy of a network's logits at x_t, where the noise is that of ``process``.

    The average over x_0 makes the best network answer p(y | x_t) = E[p(y | x_0) | x_t]. Guidance takes its gradient, so
    its process must be the one of the diffusion that is guided.
    """

    def __init__(self, process: GaussianDiffusion):
        super().__init__()
        self.process, self.T = process, process.T

    def draw_noise(self, x0: Data, generator: torch.Generator) -> Data:
        """As the process has it."""
        return self.process.draw_noise(x0, generator)

    def loss(self, net: Net, x0: Data, t: Steps, noise: Data, labels: Int[Tensor, " batch"]) -> dict[str, PerExample]:
        """``loss`` in nats, and ``correct``: 1 where the likeliest class is the right one."""
        logits = call_network(net, self.process.q_sample(x0, t, noise), self.process.fed[t], {})
        loss = F.cross_entropy(logits, labels, reduction="none")
        return {"loss": loss, "correct": (logits.argmax(1) == labels).to(loss.dtype)}
