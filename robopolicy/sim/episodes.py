"""Starts of episodes, drawn on the host from their seeds and copied to the worlds' device.

An episode is determined by its seed alone, whatever runs it: the CPU draws it when a world is free, a device receives a
table of many, of which each world takes the next row.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Float, Int

from robopolicy.control.arrays import namespace
from robopolicy.sim.randomization import Randomization
from robopolicy.sim.scene import Scene
from robopolicy.sim.tasks import Task
from robopolicy.types import Array


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
        return self._map(lambda rows: _tensor(rows, device))

    def put(self, rows: Array, other: "Episodes") -> None:
        """Write the episodes of `other` over the rows `rows`."""
        for mine, theirs in zip(self._arrays(), other._arrays(), strict=True):
            mine[rows] = theirs

    def _arrays(self) -> list[Array]:
        own = [getattr(self, field.name) for field in fields(self) if field.name != "fields"]
        return own + list(self.fields.values())

    def _map(self, change: Callable[[Array], Array]) -> "Episodes":
        own = {field.name: change(getattr(self, field.name)) for field in fields(self) if field.name != "fields"}
        return replace(self, **own, fields={name: change(rows) for name, rows in self.fields.items()})


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


def _tensor(rows: np.ndarray, device: torch.device) -> torch.Tensor:
    host = torch.from_numpy(rows)
    tensor = host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)
    return tensor.float() if tensor.is_floating_point() else tensor
