"""Fetch tasks of gymnasium-robotics: scripted demos, and rollouts against a policy server.

    python fetch_tasks.py collect --task FetchPickAndPlace-v4 --episodes 20 --out pick.hdf5
    python fetch_tasks.py rollout --task FetchPickAndPlace-v4 --episodes 50 --seed 10000 [--replan-every R] [--json FILE]

Actions are a hand displacement and a continuous gripper; observations are three vectors, the goal one of them.
"""

import argparse
from typing import Any

import gymnasium
import gymnasium_robotics
import numpy as np
from drive import Obs, main

GAIN = 10.0
"""Of the proportional expert [1/m]; far from its target it asks for more than the simulator's bound of 1."""

gymnasium.register_envs(gymnasium_robotics)


class FetchTask:
    """FetchReach or FetchPickAndPlace; see `drive.Simulator`."""

    max_episode_steps = 100
    steps_after_success = 5

    def __init__(self, task: str) -> None:
        """Args: gymnasium's name of the task."""
        self._env = gymnasium.make(task, max_episode_steps=self.max_episode_steps + 1)
        self._reach = task.startswith("FetchReach")
        self.env_args = {"env_name": task, "type": 2, "env_kwargs": {}}

    def reset(self, seed: int) -> Obs:
        """See `drive.Simulator`."""
        self._obs, _ = self._env.reset(seed=seed)
        return self._obs

    def step(self, action: np.ndarray) -> tuple[Obs, bool]:
        """See `drive.Simulator`; the environment clips."""
        self._obs, _, _, _, info = self._env.step(np.asarray(action, dtype=np.float32))
        return self._obs, bool(info["is_success"])

    def expert(self) -> np.ndarray:
        """Above the object, down, grasp, to the goal: told by the present observation alone."""
        state: Any = self._obs["observation"]
        hand, goal = state[:3], self._obs["desired_goal"]
        if self._reach:
            return np.append(GAIN * (goal - hand), 0.0)
        way, opening = state[6:9], state[9] + state[10]
        above = way + np.array([0.0, 0.0, 0.06])
        if np.linalg.norm(way[:2]) > 0.015 and np.linalg.norm(way) > 0.03:
            return np.append(GAIN * above, 1.0)
        if np.linalg.norm(way) > 0.02:
            return np.append(GAIN * way, 1.0)
        if opening > 0.055:
            return np.append(GAIN * way, -1.0)
        return np.append(GAIN * (goal - state[3:6]), -1.0)


def from_options(options: argparse.Namespace) -> FetchTask:
    """The task of the command line."""
    return FetchTask(options.task)


if __name__ == "__main__":
    main(from_options, __doc__)
