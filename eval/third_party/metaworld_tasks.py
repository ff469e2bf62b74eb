"""Meta-World (v3) tasks: scripted demos, and rollouts against a policy server.

    python metaworld_tasks.py collect --task push-v3 --episodes 20 --out push.hdf5
    python metaworld_tasks.py rollout --task push-v3 --episodes 50 --seed 10000 [--replan-every R] [--json FILE]

Actions are a hand velocity and a gripper effort. The experts' are proportional and unclipped, so they reach far beyond [-1, 1].
An observation is one vector of 39: hand and opening, up to two objects, the same of the frame before, and the goal;
where a task has one object, columns are dead.
"""

import argparse
import warnings
from typing import Any

import numpy as np
from drive import Obs, main
from metaworld import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE
from metaworld.policies import ENV_POLICY_MAP


class MetaWorldTask:
    """One task, goals and objects placed anew for each seed; see `drive.Simulator`."""

    max_episode_steps = 300
    steps_after_success = 10

    def __init__(self, task: str) -> None:
        """Args: the task's name, such as `push-v3`."""
        if task not in ENV_POLICY_MAP:
            raise SystemExit(f"no Meta-World task {task!r}. There are: {', '.join(ENV_POLICY_MAP)}")
        self._expert = ENV_POLICY_MAP[task]()
        self._make: Any = ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[f"{task}-goal-observable"]
        self._env = self._make(seed=0)
        self.env_args = {"env_name": f"MetaWorld/{task}", "type": 2, "env_kwargs": {}}
        warnings.filterwarnings("ignore", message="Constant.s. may be too high")

    def reset(self, seed: int) -> Obs:
        """Place hand, object and goal by this seed alone."""
        self._env.seed(seed)
        self._env.seeded_rand_vec, self._env._freeze_rand_vec = True, False
        self._obs, _ = self._env.reset()
        self._env.max_path_length = self.max_episode_steps + 1
        return {"state": self._obs}

    def step(self, action: np.ndarray) -> tuple[Obs, bool]:
        """See `drive.Simulator`; the environment clips."""
        self._obs, _, _, _, info = self._env.step(np.asarray(action, dtype=np.float32))
        return {"state": self._obs}, bool(info["success"])

    def expert(self) -> np.ndarray:
        """See `drive.Simulator`."""
        return self._expert.get_action(self._obs)


def from_options(options: argparse.Namespace) -> MetaWorldTask:
    """The task of the command line."""
    return MetaWorldTask(options.task)


if __name__ == "__main__":
    main(from_options, __doc__)
