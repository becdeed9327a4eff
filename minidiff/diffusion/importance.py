"""Times drawn where the losses are large, so that the bound is estimated with less noise."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minidiff.processes import gathered


class ImportanceTimes:
    """t drawn with p_t ∝ √E[L_t²], and weights 1/(T p_t) that leave the mean loss as it is (IDDPM 18).

    E[L_t²] is the mean over the last losses at t. Until every step has a full history all are equally likely.

    Args:
        T: number of steps.
        history: how many losses are kept for each.
        uniform: share of the draws that is uniform all the same, so that no weight exceeds 1/uniform.

    ``update`` takes unweighted losses, later ones counting as newer. Where several processes train, each gives as many
    and all keep those of all, by rank, so that they draw by one law. The tensors follow the draws to their device,
    which is never waited for. Raises ValueError for an argument that makes no law of t.
    """

    def __init__(self, T: int, history: int = 10, uniform: float = 0.001):
        if min(T, history) < 1 or not 0 < uniform <= 1:
            raise ValueError(f"T={T}, history={history}, uniform={uniform}: T and history ≥ 1, uniform in (0, 1].")
        self.T, self.history, self.uniform = T, history, uniform
        self.losses = torch.zeros(T, history, dtype=torch.float64)  # each row a ring
        self.seen = torch.zeros(T, dtype=torch.int64)  # losses met so far

    @property
    def probabilities(self) -> Float[Tensor, "T"]:
        """p_t, the chance of each step to be drawn next."""
        size = (self.losses**2).mean(1).sqrt()
        p = (1 - self.uniform) * size / size.sum() + self.uniform / self.T
        return torch.where(self.seen.min() < self.history, 1 / self.T, p)

    def draw(self, n: int, generator: torch.Generator) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
        """n steps and the weights that the losses of these examples get; on the generator's device."""
        self._to(generator.device)
        p = self.probabilities
        t = torch.multinomial(p, n, replacement=True, generator=generator)
        return t, (1 / (self.T * p[t])).to(torch.get_default_dtype())

    def update(self, t: Int[Tensor, " n"], loss: Float[Tensor, " n"]) -> None:
        """Put each loss in the place of the oldest one at its step."""
        self._to(t.device)
        t, loss = gathered(t), gathered(loss)
        t, order = t.sort(stable=True)
        place = torch.arange(len(t), device=t.device)
        first, end = torch.searchsorted(t, t), torch.searchsorted(t, t, right=True)
        # Of losses that fall on one place of a ring all write the last one's value: no order of writing can matter.
        last = place + (end - 1 - place) // self.history * self.history
        self.losses[t, (self.seen[t] + place - first) % self.history] = loss[order][last].double()
        self.seen.index_add_(0, t, torch.ones_like(t))

    def state_dict(self) -> dict[str, Tensor]:
        """The losses and their numbers."""
        return {"losses": self.losses.clone(), "seen": self.seen.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from there. Raises ValueError where the history is of another chain."""
        if state["losses"].shape != self.losses.shape or state["seen"].shape != self.seen.shape:
            theirs, ours = tuple(state["losses"].shape), tuple(self.losses.shape)
            raise ValueError(f"times: a history of (steps, losses) {theirs} does not fit one of {ours}.")
        self.losses, self.seen = state["losses"].clone(), state["seen"].clone()

    def _to(self, device: torch.device) -> None:
        self.losses, self.seen = self.losses.to(device), self.seen.to(device)
