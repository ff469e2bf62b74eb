"""Stand-ins for simulators that can't be installed here, with the spaces, the names and the step signature of the real ones.

LIBERO 0.1: `OffScreenRenderEnv` (Gym before 0.26), 10 tasks and 50 stored start states a suite. CALVIN: `PlayTableSimEnv`,
five subtasks a sequence. SimplerEnv: a gymnasium environment with nested dicts.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from robopolicy.types import ActionSpec, ArraySpec, PolicySpec, Prediction

MAPS = Path(__file__).parents[2] / "eval" / "maps"


class Frames:
    """Frames seen by each episode, the state of `SeeingPolicy`."""

    def __init__(self, count: np.ndarray) -> None:
        self.count = count

    def reset(self, done: Any) -> "Frames":
        """Set the count to 0 where an episode begins."""
        return Frames(np.where(np.asarray(done), 0, self.count))


class SeeingPolicy:
    """Always gives the same action row, and keeps what it sees."""

    chunk = 1

    def __init__(self, obs: Mapping[str, ArraySpec], row: Sequence[float]) -> None:
        self.obs, self.row, self.text = dict(obs), np.array(row, np.float32), "a text model"
        self.action_spec = ActionSpec(arm=len(row), gripper=0)
        self.spec = PolicySpec(
            self.obs, self.action_spec, chunk=1, window=1, instruction=True, execution={"replan_every": 1}
        )
        self.seen: list[dict[str, Any]] = []

    def initial_state(self, batch: int | Sequence[int] = ()) -> Frames:
        """No frame seen."""
        return Frames(np.zeros(batch, int))

    def act(self, observation: Any, state: Frames) -> tuple[np.ndarray, Frames]:
        """As `predict`."""
        prediction, state = self.predict(observation, state)
        return prediction.actions, state

    def predict(self, observation: Any, state: Frames) -> tuple[Prediction, Frames]:
        """The row, for every entry of the batch."""
        state = Frames(state.count + 1)
        self.seen.append({**observation.obs, "instruction": observation.instruction, "frames": state.count})
        return Prediction(np.broadcast_to(self.row, (*state.count.shape, 1, len(self.row))).copy()), state


@pytest.fixture
def seeing() -> type[SeeingPolicy]:
    """The class `SeeingPolicy`."""
    return SeeingPolicy


@pytest.fixture
def stand_in() -> Iterator[Any]:
    """`stand_in(name, **contents)`: a module of that name, gone after the test."""
    made: list[str] = []

    def module(name: str, **contents: Any) -> ModuleType:
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            path = ".".join(parts[:end])
            if path not in sys.modules:
                sys.modules[path] = ModuleType(path)
                made.append(path)
                if end > 1:
                    setattr(sys.modules[".".join(parts[: end - 1])], parts[end - 1], sys.modules[path])
        vars(sys.modules[name]).update(contents)
        return sys.modules[name]

    before = list(sys.path)
    yield module
    sys.path[:] = before
    for name in [*made, "libero_suite", "calvin_chain"]:
        sys.modules.pop(name, None)
