"""Small environments with the faces of others' simulators: flat, dict, nested, image, old Gym, crashing and hanging.

Each is a point that must reach a goal on a line; `--env point_envs:NAME` finds them, in any interpreter with gymnasium.
"""

import os
import time
from typing import Any, ClassVar

import gymnasium
import mujoco
import numpy as np
from gymnasium.spaces import Box, Dict


class Point(gymnasium.Env):
    """A flat observation (place, goal); success is in `info`, and in the reward."""

    metadata: ClassVar = {"render_modes": ["rgb_array"]}
    observation_space: Any = Box(-10, 10, (2,))
    action_space = Box(-1, 1, (1,), np.float32)
    dt = 0.1

    def __init__(self, render_mode: str | None = None, gain: float = 0.5) -> None:
        self.render_mode, self.gain = render_mode, gain
        self.actions: list[np.ndarray] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        """The goal is drawn by the seed."""
        super().reset(seed=seed)
        self.place, self.goal, self.seed = 0.0, float(self.np_random.uniform(0.5, 1.5)), seed
        self.actions = []
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        """The point moves by `gain` times the action."""
        self.actions.append(np.array(action))
        self.place += self.gain * float(action[0])
        near = abs(self.place - self.goal) < 0.2
        return self.observe(), float(near), False, False, {"is_success": near, "task": {"done": near}, "solved": 2}

    def observe(self) -> Any:
        """Where the point is and should be."""
        return np.array([self.place, self.goal], np.float32)

    def render(self) -> np.ndarray:
        """An image whose brightness is the place."""
        return np.full((8, 8, 3), int(np.clip(100 + 50 * self.place, 0, 255)), np.uint8)


class StalePoint(Point):
    """Like Meta-World: a reset moves the goal's site without a forward pass; the image's brightness is the site's place."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        self.model = mujoco.MjModel.from_xml_string(
            "<mujoco><worldbody><site name='goal' pos='0.1 0.1 0.1'/></worldbody></mujoco>"
        )
        self.data = mujoco.MjData(self.model)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        """The site is where the goal is, but for the state's derived quantities."""
        result = super().reset(seed=seed)
        self.model.site_pos[0, 0] = self.goal
        return result

    def render(self) -> np.ndarray:
        """An image of the site's place."""
        return np.full((8, 8, 3), int(100 * self.data.site_xpos[0, 0]), np.uint8)


class GoalPoint(Point):
    """Goal-conditioned, as Fetch."""

    observation_space = Dict({name: Box(-10, 10, (1,)) for name in ("observation", "achieved_goal", "desired_goal")})

    def observe(self) -> dict[str, np.ndarray]:
        """Three vectors."""
        place, goal = (np.array([value], np.float64) for value in (self.place, self.goal))
        return {"observation": place, "achieved_goal": place, "desired_goal": goal}


class NestedPoint(Point):
    """Nested dicts with a camera, colors first and upside down, and an instruction."""

    observation_space = Dict({})

    def observe(self) -> dict[str, Any]:
        """An image in `images/front`, numbers in `agent/state`."""
        image = np.zeros((3, 4, 4), np.uint8)
        image[:, 3, 0] = 200  # at the bottom left of the array: the top left, once flipped
        return {"agent": {"state": super().observe()}, "images": {"front": image}}

    def get_instruction(self) -> str:
        """As SimplerEnv says it."""
        return "go to the goal"


class OldPoint:
    """Gym before 0.21: `seed()`, `reset()` gives the observation alone, `step` four values; no time limit, no bounds."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)

    def seed(self, seed: int) -> None:
        """The generator of the next reset."""
        self.generator = np.random.default_rng(seed)

    def reset(self) -> dict[str, np.ndarray]:
        """The goal is drawn by the generator."""
        self.place, self.goal = 0.0, float(self.generator.uniform(0.5, 1.5))
        return {"state": np.array([self.place, self.goal])}

    def set_init_state(self, state: np.ndarray) -> dict[str, np.ndarray]:
        """A stored start state."""
        self.place, self.goal = map(float, state)
        return {"state": np.array([self.place, self.goal])}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, dict]:
        """The point moves by half the action."""
        self.place += 0.5 * float(action[0])
        done = abs(self.place - self.goal) < 0.2
        return {"state": np.array([self.place, self.goal])}, 0.0, done, {}

    def _check_success(self) -> bool:
        return abs(self.place - self.goal) < 0.2


class BrokenPoint(Point):
    """Fails on some seeds: 1 raises, 2 hangs, 3 gives NaN, 4 ends the process, 5 raises in its reset."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        """Seed 5 has no start."""
        if seed == 5:
            raise RuntimeError("no collision-free start")
        return super().reset(seed=seed, options=options)

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        """In its second step, the seed's fault."""
        result = super().step(action)
        if len(self.actions) < 2:
            return result
        if self.seed == 1:
            raise RuntimeError("the solver diverged")
        if self.seed == 2:
            time.sleep(600)
        if self.seed == 4:
            os._exit(9)
        return (result[0] * np.nan, *result[1:]) if self.seed == 3 else result


class Discrete(Point):
    """Not an action of real numbers."""

    action_space: Any = gymnasium.spaces.Discrete(3)


gymnasium.register("PointInTime-v0", entry_point="point_envs:Point", max_episode_steps=20)
