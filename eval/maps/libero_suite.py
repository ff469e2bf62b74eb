"""A LIBERO suite as one environment: the seed chooses the task and its stored start state.

It runs in an environment with LIBERO installed. Step limits are those with which the suites are commonly reported.
"""

import os
from typing import Any

import numpy as np

MAX_EPISODE_STEPS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520}


class Suite:
    """The tasks of one suite in turn; each task's environment is made once.

    Args:
        name: of the suite.
        resolution: of both cameras [pixels].
    """

    def __init__(self, name: str, resolution: int = 128) -> None:
        from libero.libero import benchmark

        known = benchmark.get_benchmark_dict()
        if name not in known:
            raise TypeError(f"no LIBERO suite {name!r}; there are {', '.join(known)}")
        self._suite, self._resolution = known[name](), resolution
        self._max_episode_steps = MAX_EPISODE_STEPS.get(name, 400)
        self._task: int | None = None
        self.action_spec = np.full(7, -1.0), np.ones(7)
        self._load(0)

    def reset(self, seed: int) -> tuple[dict, dict]:
        """Task `seed` mod their number, from its start state `seed` div their number, modulo the stored ones."""
        count = self._suite.get_num_tasks()
        self._load(seed % count)
        self._env.reset()
        return self._env.set_init_state(self._starts[seed // count % len(self._starts)]), {}

    def step(self, action: Any) -> tuple[dict, float, bool, bool, dict]:
        """LIBERO's `done` means that the task is solved."""
        obs, reward, done, info = self._env.step(list(action))
        return obs, float(reward), bool(done), False, {**info, "success": bool(done)}

    def close(self) -> None:
        """Release the task's environment."""
        self._env.close()

    def _load(self, number: int) -> None:
        from libero.libero import get_libero_path
        from libero.libero.envs import OffScreenRenderEnv

        if number == self._task:
            return
        if self._task is not None:
            self._env.close()
        task = self._suite.get_task(number)
        file = os.path.join(get_libero_path("bddl_files"), task.problem_folder, task.bddl_file)
        self._env = OffScreenRenderEnv(
            bddl_file_name=file, camera_heights=self._resolution, camera_widths=self._resolution
        )
        self._env.seed(0)
        self._starts = self._suite.get_task_init_states(number)
        self.instruction, self._task = task.language, number
