"""CALVIN's long-horizon evaluation as one environment: five instructions in a row, 360 steps each.

It runs in an environment with CALVIN installed; `CALVIN_DATASET` is the folder of the split, such as task_D_D/validation, and
`CALVIN_ROOT` the repository, whose `calvin_models/conf` has the success conditions and the instructions.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

STEPS_PER_INSTRUCTION = 360
SEQUENCES = 1000


class Chain:
    """One sequence per seed, from the benchmark's own list; an instruction that takes too long ends the episode."""

    def __init__(self) -> None:
        import hydra
        from calvin_agent.evaluation.multistep_sequences import get_sequences
        from calvin_env.envs.play_table_env import get_env
        from omegaconf import OmegaConf

        conf = Path(os.environ["CALVIN_ROOT"], "calvin_models", "conf")
        self._oracle = hydra.utils.instantiate(
            OmegaConf.load(conf / "callbacks/rollout/tasks/new_playtable_tasks.yaml")
        )
        self._texts = OmegaConf.load(conf / "annotations/new_playtable_validation.yaml")
        self._env = get_env(os.environ["CALVIN_DATASET"], show_gui=False)
        self._sequences = get_sequences(SEQUENCES)
        self.action_spec = np.full(7, -1.0), np.ones(7)

    def reset(self, seed: int) -> tuple[dict, dict]:
        """Sequence `seed`, modulo their number."""
        from calvin_agent.evaluation.utils import get_env_state_for_initial_condition

        start, self._subtasks = self._sequences[seed % len(self._sequences)]
        robot_obs, scene_obs = get_env_state_for_initial_condition(start)
        self._env.reset(robot_obs=robot_obs, scene_obs=scene_obs)
        self._solved = 0
        self._begin()
        return self._env.get_obs(), self._info()

    def step(self, action: Any) -> tuple[dict, float, bool, bool, dict]:
        """One step; a solved instruction is followed by the next."""
        obs, _, _, info = self._env.step(action)
        self._steps += 1
        solved = bool(self._oracle.get_task_info_for_set(self._start, info, {self._subtasks[self._solved]}))
        out_of_time = not solved and self._steps >= STEPS_PER_INSTRUCTION
        if solved:
            self._solved += 1
            if self._solved < len(self._subtasks):
                self._begin()
        return obs, float(solved), self._solved == len(self._subtasks), out_of_time, self._info()

    def _begin(self) -> None:
        self._start, self._steps = self._env.get_info(), 0

    def _info(self) -> dict[str, Any]:
        subtask = self._subtasks[min(self._solved, len(self._subtasks) - 1)]
        return {"solved": self._solved, "instruction": self._texts[subtask][0]}
