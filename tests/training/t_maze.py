"""A T-maze as a gymnasium environment: a cue in the first frame says which way to turn at the corridor's end."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box

CORRIDOR = 5
"""Steps between the cue and the turn."""


class TMaze(gymnasium.Env):
    """Observation (cue, place): the cue is -1 or 1 in the first frame and 0 afterwards; the last action's sign is the turn."""

    observation_space = Box(-1, 1, (2,), np.float32)
    action_space = Box(-1, 1, (1,), np.float32)
    dt = 0.1

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        """The cue is drawn by the seed."""
        super().reset(seed=seed)
        self.cue, self.place = float(self.np_random.choice([-1, 1])), 0
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Walk on; the turn ends the episode."""
        self.place += 1
        ended = self.place > CORRIDOR
        right = ended and float(action[0]) * self.cue > 0
        return self.observe(), float(right), ended, False, {"is_success": right}

    def observe(self) -> np.ndarray:
        """The present frame."""
        return np.array([self.cue if self.place == 0 else 0.0, self.place / CORRIDOR], np.float32)
