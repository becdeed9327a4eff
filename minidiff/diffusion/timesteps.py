"""Which step each training example is trained at, and how much it then counts."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


class UniformTimes:
    """t uniform on 0 … T − 1, every weight 1 (DDPM Alg. 1)."""

    def __init__(self, T: int):
        self.T = T

    def draw(self, n: int, generator: torch.Generator) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
        """n steps and the weights that the losses of these examples get; on the generator's device."""
        t = torch.randint(self.T, (n,), generator=generator, device=generator.device)
        return t, torch.ones(n, device=generator.device)

    def update(self, t: Int[Tensor, " n"], loss: Float[Tensor, " n"]) -> None:
        """Uniform times learn nothing from the losses."""

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing to save."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Nothing to load."""
