"""Starts of episodes, drawn on the host from their seeds and copied to the worlds' device.

An episode is determined by its seed alone, whatever runs it: the CPU draws it when a world is free, a device receives a
table of many, of which each world takes the next row.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robopolicy.arrays import namespace
from robopolicy.sim.randomization import Randomization
from robopolicy.sim.scene import Scene
from robopolicy.sim.tasks import Task
from robopolicy.types import Array

ROUNDS = 4
"""Episodes drawn in advance per world. A step uses at most one per world; the host learns of it a step or two later."""


@dataclass(frozen=True)
class Episodes:
    """Starts of E episodes, one row each."""

    seed: Int[Array, " episodes"]
    qpos: Float[Array, "episodes nq"]
    mocap_pos: Float[Array, "episodes nmocap 3"]
    goals: Int[Array, "episodes stages parts"]
    """The request of each stage, as numbers."""
    sentence: Int[Array, "episodes stages"]
    """The instruction of each stage, as an index into the sentences given to `draw`."""
    delay: Int[Array, " episodes"]
    """Delay of the actions [control steps]."""
    fields: Mapping[str, Float[Array, "episodes ..."]]
    """Fields of the MuJoCo model that differ from episode to episode, by MuJoCo's name."""

    def __len__(self) -> int:
        return len(self.seed)

    def on(self, device: torch.device) -> "Episodes":
        """The same as tensors on a device, floats in single precision."""
        own = {each.name: _tensor(getattr(self, each.name), device) for each in fields(self) if each.name != "fields"}
        return replace(self, **own, fields={name: _tensor(rows, device) for name, rows in self.fields.items()})

    def put(self, rows: Array, other: "Episodes") -> None:
        """Write the episodes of `other` over the rows `rows`."""
        mine, theirs = ({**vars(episodes), **episodes.fields} for episodes in (self, other))
        for name in mine.keys() - {"fields"}:
            mine[name][rows] = theirs[name]


class Sentences:
    """All instructions of the episodes, numbered."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._numbers: dict[str, int] = {}

    def number(self, sentence: str) -> int:
        """The number of an instruction; a new one is added."""
        if sentence not in self._numbers:
            self._numbers[sentence] = len(self.texts)
            self.texts.append(sentence)
        return self._numbers[sentence]


def draw(
    task: Task, scene: Scene, seeds: Sequence[int], sentences: Sentences, randomization: Randomization
) -> Episodes:
    """One episode per seed, drawn from that seed alone; NumPy arrays."""
    stream = crc32(task.name.encode())  # from the name alone, so that a new task does not change the seeds of others
    setups = [task.sample(scene, np.random.default_rng([seed, stream])) for seed in seeds]
    changes = [randomization.draw(scene, seed) for seed in seeds]
    return Episodes(
        seed=np.array(seeds, np.int64),
        qpos=np.stack([change.start(scene, setup.qpos) for change, setup in zip(changes, setups, strict=True)]),
        mocap_pos=np.stack([setup.mocap_pos for setup in setups]),
        goals=np.stack([setup.goals for setup in setups]).astype(np.int64),
        sentence=np.array([[sentences.number(each) for each in setup.instructions] for setup in setups]),
        delay=np.array([change.delay_steps for change in changes], np.int64),
        fields={name: np.stack([change.fields[name] for change in changes]) for name in changes[0].fields},
    )


def turns(mask: Array, taken: Array | int) -> Array:
    """Number of the next episode of each world in `mask` (N,): counted in order of the worlds, after the first `taken`."""
    return namespace(mask).cumsum(mask, 0) - 1 + taken


def _tensor(rows: np.ndarray, device: torch.device) -> Tensor:
    host = torch.from_numpy(rows)
    tensor = host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)
    return tensor.float() if tensor.is_floating_point() else tensor


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
        missing = int(self._seen[0]) + self._size - self._drawn
        if missing > 0:  # replace the episodes that the host knows to be used
            used = (torch.arange(missing, device=self._taken.device) + self._drawn) % self._size
            self.episodes.put(used, self._draw(self._seeds(missing)))
            self._drawn += missing
        rows = turns(mask, self._taken) % self._size
        self._taken += mask.sum()
        if self._seen_tensor is not self._taken:
            self._seen_tensor.copy_(self._taken, non_blocking=True)
        return rows

    def _seeds(self, count: int) -> list[int]:
        return self._rng.integers(2**31, size=count).tolist()


class Instructions(Sequence[Any]):
    """The instruction of each world; read from the device on access.

    Args:
        ids: (N,) places in `texts`.
        texts: All sentences.
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
