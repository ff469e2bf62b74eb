"""One world of a task as a plain gymnasium environment."""

from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium
import numpy as np
from jaxtyping import Float

from robopolicy.sim.env import RobotVectorEnv


class RobotEnv(gymnasium.Env):
    """One world of a task, for `gymnasium.make`; the options are the fields of `EnvOptions`.

    With `render_mode="rgb_array"`, `render()` returns the `front` camera's image. On the CPU an environment can be pickled and
    copied; a copy continues from the same state with the same results.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(self, task: str, **options: Any) -> None:
        self.worlds = RobotVectorEnv(task, 1, **options)
        self.render_mode = self.worlds.render_mode
        self.action_space = self.worlds.single_action_space
        self.observation_space = self.worlds.single_observation_space
        self._image: np.ndarray | None = None

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start a new episode, which the seed determines."""
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(2**31)) if seed is None else seed
        obs, info = self.worlds.reset(seed=[drawn])
        return self._first(obs), self._first(info)

    def step(
        self, action: Float[np.ndarray, " width"]
    ) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """One control step."""
        obs, reward, terminated, truncated, info = self.worlds.step(np.asarray(action)[None])
        return self._first(obs), float(reward[0]), bool(terminated[0]), bool(truncated[0]), self._first(info)

    def render(self) -> np.ndarray | None:
        """The latest image (size, size, 3) of the `front` camera, uint8."""
        return self._image if self.render_mode == "rgb_array" else None

    def _first(self, values: Mapping[str, Any]) -> dict[str, Any]:
        first = {key: value[0] for key, value in values.items()}
        # Python's own numbers, since gymnasium's wrappers do not accept numpy.bool.
        first = {key: value.item() if isinstance(value, np.generic) else value for key, value in first.items()}
        self._image = first.get("front", self._image)
        return first
