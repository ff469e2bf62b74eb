"""Episodes drawn in advance, so that worlds on a device are reset without the host."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from robopolicy.sim.episodes import Episodes, turns

ROUNDS = 4
"""Episodes drawn in advance per world. A step uses at most one per world; the host learns of it a step or two later."""


class EpisodePool:
    """A ring of episodes on a device; used ones are replaced by new ones.

    Args:
        draw: Seeds -> their episodes, on the device.
        rng: Where seeds come from.
        num_worlds: N.
    """

    def __init__(self, draw: Callable[[Sequence[int]], Episodes], rng: np.random.Generator, num_worlds: int) -> None:
        self._draw, self._rng, self._size = draw, rng, ROUNDS * num_worlds
        self.episodes = draw(self._seeds(self._size))
        device = self.episodes.qpos.device
        self._drawn = self._size
        self._taken = torch.zeros(1, dtype=torch.int64, device=device)
        seen = self._taken if device.type == "cpu" else torch.zeros(1, dtype=torch.int64, pin_memory=True)
        self._seen_tensor, self._seen = seen, seen.numpy()

    def take(self, mask: Bool[Tensor, " worlds"]) -> Int[Tensor, " worlds"]:
        """The row of `episodes` for each world of `mask`; rows stay valid until the next call."""
        self._refill()
        rows = turns(mask, self._taken) % self._size
        self._taken += mask.sum()
        if self._seen_tensor is not self._taken:
            self._seen_tensor.copy_(self._taken, non_blocking=True)
        return rows

    def _refill(self) -> None:
        """Replace the episodes that the host knows to be used."""
        wanted = int(self._seen[0]) + self._size - self._drawn
        if wanted > 0:
            rows = (torch.arange(wanted, device=self._taken.device) + self._drawn) % self._size
            self.episodes.put(rows, self._draw(self._seeds(wanted)))
            self._drawn += wanted

    def _seeds(self, count: int) -> list[int]:
        return self._rng.integers(2**31, size=count).tolist()


class Instructions(Sequence[Any]):
    """The instruction of each world; read from the device on access.

    Args:
        ids: (N,) places in `texts`.
        texts: Every sentence there is.
    """

    def __init__(self, ids: Int[Tensor, " worlds"], texts: Sequence[str]) -> None:
        self.ids, self._texts = ids, texts

    def __getitem__(self, place: Any) -> Any:
        """The sentence of one world, or of some."""
        if isinstance(place, slice):
            return [self._texts[number] for number in self.ids[place].tolist()]
        return self._texts[int(self.ids[place])]

    def __len__(self) -> int:
        return len(self.ids)
