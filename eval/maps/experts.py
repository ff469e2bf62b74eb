"""Scripted experts of third-party environments: called with the environment's arrays, they give an action in its units."""

from collections.abc import Mapping
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray]

GAIN = 10.0
"""Of the proportional Fetch expert [1/m]; far from its target it asks for more than the environment's bound of 1."""


class MetaWorldExpert:
    """Meta-World's own policy of a task: a hand velocity and a gripper effort, proportional, not clipped.

    Args:
        name: such as `push-v3`.
        env: not used.
    """

    def __init__(self, name: str, env: Any) -> None:
        from metaworld.policies import ENV_POLICY_MAP

        self._policy = ENV_POLICY_MAP[name]()

    def __call__(self, arrays: Arrays) -> np.ndarray:
        """The action (4,)."""
        return self._policy.get_action(arrays["observation"])


class FetchExpert:
    """FetchReach, FetchPush and FetchPickAndPlace: from the present observation alone.

    Args:
        name: such as `FetchPush-v4`.
        env: not used.
    """

    def __init__(self, name: str, env: Any) -> None:
        self._act = self._reach if "Reach" in name else self._push if "Push" in name else self._pick

    def __call__(self, arrays: Arrays) -> np.ndarray:
        """The action (4,): hand displacement and gripper."""
        return self._act(arrays["observation"], arrays["desired_goal"])

    def _reach(self, state: np.ndarray, goal: np.ndarray) -> np.ndarray:
        return np.append(GAIN * (goal - state[:3]), 0.0)

    def _pick(self, state: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Above the object, down, grasp, to the goal."""
        way, opening = state[6:9], state[9] + state[10]
        above = way + np.array([0.0, 0.0, 0.06])
        if np.linalg.norm(way[:2]) > 0.015 and np.linalg.norm(way) > 0.03:
            return np.append(GAIN * above, 1.0)
        if np.linalg.norm(way) > 0.02:
            return np.append(GAIN * way, 1.0)
        if opening > 0.055:
            return np.append(GAIN * way, -1.0)
        return np.append(GAIN * (goal - state[3:6]), -1.0)

    def _push(self, state: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Behind the object as seen from the goal, down, then straight towards the goal."""
        hand, box = state[:3], state[3:6]
        ahead = (goal - box)[:2]
        distance = float(np.linalg.norm(ahead))
        direction = ahead / max(distance, 1e-6)
        behind = np.append(box[:2] - 0.08 * direction, box[2])
        lateral = (hand - box)[:2] - direction * float((hand - box)[:2] @ direction)
        in_line = np.linalg.norm(lateral) < 0.01 and float((hand - box)[:2] @ direction) < -0.03
        if in_line and hand[2] < box[2] + 0.02:
            step = np.append(min(distance, 0.06) * direction - 2.0 * lateral, box[2] - hand[2])
            return np.append(GAIN * step * (distance > 0.01), -1.0)
        if np.linalg.norm((hand - behind)[:2]) > 0.01:
            clear = hand[2] > box[2] + 0.05
            way = behind - hand if clear else np.zeros(3)
            return np.append(GAIN * np.append(way[:2], box[2] + 0.08 - hand[2]), -1.0)
        return np.append(GAIN * (behind - hand), -1.0)


class AlohaExpert:
    """gym-aloha's cube transfer: the joint positions that the hands had, at each tick, where they followed the plan.

    Args:
        name: not used.
        env: as `aloha.transfer_cube` makes it.
    """

    def __init__(self, name: str, env: Any) -> None:
        self._env = env

    def reset(self, seed: int) -> None:
        """Plan for the cube's place of this episode."""
        self._plan, self._tick = self._env.plan(), 0

    def __call__(self, arrays: Arrays) -> np.ndarray:
        """The action (14,): absolute joint targets [rad] and grippers."""
        self._tick += 1
        return self._plan[self._tick - 1]


EXPERTS = {"metaworld": MetaWorldExpert, "gymnasium_robotics": FetchExpert, "aloha": AlohaExpert}
"""By the module of `--env`."""
