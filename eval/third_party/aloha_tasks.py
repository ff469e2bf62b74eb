"""gym-aloha's cube transfer: scripted demos, and rollouts against a policy server.

    python aloha_tasks.py collect --task transfer_cube --episodes 50 --out cube.hdf5
    python aloha_tasks.py rollout --task transfer_cube --episodes 50 --seed 10000 --replan-every 20 [--json FILE]

Actions are 14 absolute joint targets at 50 Hz: six joints [rad] and a gripper (0 closed, 1 open), twice. Observed are
`qpos`, `qvel` and the cube's pose; with `--task transfer_cube_pixels` the camera `top` (120 x 160) instead of the pose, which
needs OpenGL (MUJOCO_GL=egl where there is no screen).
"""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
from dm_control import mujoco
from dm_control.rl import control
from drive import Obs, main
from gym_aloha.constants import ASSETS_DIR, DT, normalize_puppet_gripper_position
from gym_aloha.tasks.sim import BOX_POSE, TransferCubeTask
from gym_aloha.tasks.sim_end_effector import TransferCubeEndEffectorTask
from gym_aloha.utils import sample_box_pose

MEET = (0.0, 0.5, 0.25)
"""Where the hands meet [m]."""
LEFT_START, RIGHT_START = (-0.31718881, 0.5, 0.29525084), (0.31718881, 0.49999888, 0.29525084)
"""Where gym-aloha puts them at first [m]."""
GRASP_M = -0.03
"""How far below the spot where the cube is dropped the fingers close [m]."""
HOLDS_IN_LEFT = 4
"""The reward of a cube in the left gripper and off the table."""


class Unrendered:
    """A task of gym-aloha that draws no picture unless it is asked for one."""

    def get_observation(self: Any, physics: Any) -> dict[str, np.ndarray]:
        """What the joints and the cube say."""
        return {
            "qpos": self.get_qpos(physics),
            "qvel": self.get_qvel(physics),
            "env_state": self.get_env_state(physics),
        }


class JointTask(Unrendered, TransferCubeTask):
    """Commanded by joint targets: what a policy drives."""


class HandTask(Unrendered, TransferCubeEndEffectorTask):
    """Commanded by hand poses: where the expert plans."""


class AlohaTask:
    """The cube, placed anew for each seed; see `drive.Simulator`."""

    max_episode_steps = 400
    steps_after_success = 40

    def __init__(self, task: str) -> None:
        """Args: `transfer_cube` or `transfer_cube_pixels`."""
        if task not in ("transfer_cube", "transfer_cube_pixels"):
            raise SystemExit(f"no task {task!r}. There are: transfer_cube, transfer_cube_pixels")
        self._pixels = task.endswith("_pixels")
        self._env = environment("bimanual_viperx_transfer_cube.xml", JointTask())
        self._hands: Any = None
        self.env_args = {"env_name": f"gym_aloha/{task}", "type": 2, "env_kwargs": {}}

    def reset(self, seed: int) -> Obs:
        """Place the cube by this seed alone."""
        self._cube, self._plan, self._tick = sample_box_pose(seed), None, 0
        BOX_POSE[0] = self._cube
        return self._seen(self._env.reset().observation)

    def step(self, action: np.ndarray) -> tuple[Obs, bool]:
        """See `drive.Simulator`."""
        self._tick += 1
        step = self._env.step(action)
        return self._seen(step.observation), step.reward == HOLDS_IN_LEFT

    def expert(self) -> np.ndarray:
        """The joint positions that the hands had, at this tick, where they followed the plan."""
        if self._plan is None:
            self._hands = self._hands or environment("bimanual_viperx_end_effector_transfer_cube.xml", HandTask())
            self._plan = plan_joints(self._hands, self._cube, self.max_episode_steps)
        return self._plan[self._tick]

    def _seen(self, obs: dict[str, np.ndarray]) -> Obs:
        if not self._pixels:
            return obs
        picture = self._env.physics.render(height=120, width=160, camera_id="top")
        return {"qpos": obs["qpos"], "qvel": obs["qvel"], "top": picture}


def environment(model: str, task: Any) -> Any:
    """One of gym-aloha's scenes at 50 Hz."""
    physics = mujoco.Physics.from_xml_path(str(ASSETS_DIR / model))
    return control.Environment(
        physics, task, float("inf"), control_timestep=DT, n_sub_steps=None, flat_observation=False
    )


def plan_joints(hands: Any, cube: np.ndarray, steps: int) -> np.ndarray:
    """Joint targets (steps, 14): what the joints do while the hands, moved as free bodies, pass the cube."""
    np.random.seed(0)
    hands.reset()
    physics = hands.physics
    with physics.reset_context():
        hands.task.initialize_robots(physics)
        start = physics.named.model.jnt_qposadr["red_box_joint"]
        physics.data.qpos[start : start + 7] = cube
    lefts, rights = waypoints(cube[:3])
    rows = []
    for tick in range(steps):
        rows.append(hands.task.get_qpos(physics))
        grips = physics.data.ctrl[[0, 2]]
        rows[-1][[6, 13]] = normalize_puppet_gripper_position(grips)
        hands.step(np.concatenate([pose_at(lefts, tick), pose_at(rights, tick)]))
    return np.stack(rows)


def waypoints(cube: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Left and right: rows of tick, position [m], quaternion and gripper; the right hand picks, the left takes over."""
    level, rolled, pitched = np.array([1.0, 0, 0, 0]), turn("x", 90), turn("y", -60)
    left = [
        (0, LEFT_START, (0, 0, 0), level, 0),
        (100, MEET, (-0.1, 0, -0.02), rolled, 1),
        (260, MEET, (0.02, 0, -0.02), rolled, 1),
        (310, MEET, (0.02, 0, -0.02), rolled, 0),
        (360, MEET, (-0.1, 0, -0.02), rolled, 0),
        (400, MEET, (-0.1, 0, -0.02), rolled, 0),
    ]
    right = [
        (0, RIGHT_START, (0, 0, 0), level, 0),
        (90, cube, (0, 0, 0.08), pitched, 1),
        (130, cube, (0, 0, GRASP_M), pitched, 1),
        (170, cube, (0, 0, GRASP_M), pitched, 0),
        (200, MEET, (0.05, 0, 0), pitched, 0),
        (220, MEET, (0, 0, 0), pitched, 0),
        (310, MEET, (0, 0, 0), pitched, 1),
        (360, MEET, (0.1, 0, 0), pitched, 1),
        (400, MEET, (0.1, 0, 0), pitched, 1),
    ]
    return table(left), table(right)


def table(rows: Sequence[tuple[Any, ...]]) -> np.ndarray:
    """Tick, place and offset from it [m], quaternion, gripper -> rows of tick, position, quaternion, gripper."""
    return np.array([[tick, *np.add(near, offset), *turned, grip] for tick, near, offset, turned, grip in rows])


def turn(axis: str, degrees: float) -> np.ndarray:
    """A rotation about one axis as a quaternion, w first."""
    half = np.radians(degrees) / 2
    return np.array([np.cos(half), *(np.sin(half) * (name == axis) for name in "xyz")])


def pose_at(rows: np.ndarray, tick: int) -> np.ndarray:
    """Position, quaternion and gripper between two waypoints, in a straight line."""
    return np.array([np.interp(tick, rows[:, 0], column) for column in rows[:, 1:].T])


def from_options(options: argparse.Namespace) -> AlohaTask:
    """The task of the command line."""
    return AlohaTask(options.task)


if __name__ == "__main__":
    main(from_options, __doc__)
