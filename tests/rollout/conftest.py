"""A policy that walks to the goal, with the memory, normalization and chunks of a trained one."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robopolicy.types import ActionSpec, ArraySpec, PolicySpec, Prediction

sys.path.append(str(Path(__file__).parent))


class Counter:
    """The state of `WalkingPolicy`: frames seen by each episode."""

    def __init__(self, frames: np.ndarray) -> None:
        self.frames = frames

    def reset(self, done: Any) -> "Counter":
        """Zero where an episode begins."""
        return Counter(np.where(np.asarray(done), 0, self.frames))


class WalkingPolicy:
    """Moves the point `state` (place, goal) towards its goal in chunks of two actions; remembers how many frames it saw."""

    chunk = 2

    def __init__(self, obs: Mapping[str, ArraySpec], action: ActionSpec | None = None, text: Any = None) -> None:
        self.obs, self.text = dict(obs), text
        self.action_spec = action or ActionSpec(arm=1, gripper=0)
        self.spec = PolicySpec(
            self.obs, self.action_spec, chunk=2, window=1, instruction=text is not None, execution={"replan_every": 1}
        )
        self.seen: list[tuple[np.ndarray, Any]] = []
        self.last: dict[str, np.ndarray] = {}

    def initial_state(self, batch: int | Sequence[int] = ()) -> Counter:
        """No frame seen."""
        return Counter(np.zeros(batch, int))

    def act(self, observation: Any, state: Counter) -> tuple[torch.Tensor, Counter]:
        """As `predict`."""
        prediction, state = self.predict(observation, state)
        return prediction.actions, state

    def predict(self, observation: Any, state: Counter) -> tuple[Prediction, Counter]:
        """Twice the distance to the goal, at most 1."""
        self.last = {key: np.asarray(value) for key, value in observation.obs.items()}
        state = Counter(state.frames + 1)
        self.seen.append((state.frames.copy(), observation.instruction))
        rows = self.last["state"]
        ahead = np.clip(2 * (rows[..., 1] - rows[..., 0]), -1, 1)
        actions = np.repeat(
            np.stack([ahead, np.zeros_like(ahead)], axis=-1)[..., None], self.action_spec.width, axis=-1
        )
        return Prediction(torch.as_tensor(actions, dtype=torch.float32)), state


@pytest.fixture
def walker() -> type[WalkingPolicy]:
    """The class `WalkingPolicy`."""
    return WalkingPolicy


@pytest.fixture
def policy() -> WalkingPolicy:
    """A walker that sees `state`."""
    return WalkingPolicy({"state": ArraySpec((2,))})
