"""robosuite tasks as a demo file describes them: rollouts against a policy server.

    python robosuite_tasks.py rollout --task lift.hdf5 --episodes 50 --seed 10000 [--replan-every R] [--json FILE]

The environment and its controller are made from the file's own `env_args`, and its observations are those that the file has.
"""

import argparse
import json
from pathlib import Path

import h5py
import numpy as np
import robosuite
from drive import Obs, main

EXTRA_NAMES = {"object": "object-state"}
"""What robomimic's files call otherwise than robosuite."""


class RobosuiteTask:
    """One task; see `drive.Simulator`."""

    max_episode_steps = 300
    steps_after_success = 10

    def __init__(self, path: str) -> None:
        """Args: a demo file in robomimic's layout."""
        with h5py.File(path) as file:
            self.env_args = json.loads(file["data"].attrs["env_args"])
            self._keys = tuple(file["data"][next(iter(file["data"]))]["obs"])
        self._env = robosuite.make(**{**self.env_args["env_kwargs"], "hard_reset": False, "seed": 0})

    def reset(self, seed: int) -> Obs:
        """Place everything by this seed alone: every generator that the environment keeps is set to it."""
        generator = np.random.default_rng(seed)
        for owner in (self._env, self._env.placement_initializer, *self._env.robots):
            owner.rng = generator
        return self._seen(self._env.reset())

    def step(self, action: np.ndarray) -> tuple[Obs, bool]:
        """See `drive.Simulator`."""
        obs, _, _, _ = self._env.step(action)
        return self._seen(obs), bool(self._env._check_success())

    def expert(self) -> np.ndarray:
        """There is none: take the demos of the file."""
        raise SystemExit("robosuite has no scripted experts; train on a file of demos")

    def _seen(self, obs: Obs) -> Obs:
        seen = {key: np.asarray(obs[EXTRA_NAMES.get(key, key)]) for key in self._keys}
        return {key: value[::-1].copy() if value.ndim == 3 else value for key, value in seen.items()}


def from_options(options: argparse.Namespace) -> RobosuiteTask:
    """The task of the command line."""
    if not Path(options.task).is_file():
        raise SystemExit(f"{options.task}: no such demo file; a robosuite task is described by one")
    return RobosuiteTask(options.task)


if __name__ == "__main__":
    main(from_options, __doc__)
