"""gym-aloha's cube transfer without rendering, and its scripted expert: `--env aloha:TransferCube`.

Actions are 14 absolute joint targets at 50 Hz: six joints [rad] and a gripper (0 closed, 1 open), twice. Observed are `qpos`,
`qvel` and the cube's pose. gym-aloha's own environment gives images only; its map is `gym_aloha.yaml`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from dm_control import mujoco
from dm_control.rl import control
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
    """A task of gym-aloha that renders no camera."""

    def get_observation(self: Any, physics: Any) -> dict[str, np.ndarray]:
        """Joint positions, velocities and the pose of the cube."""
        return {
            "qpos": self.get_qpos(physics),
            "qvel": self.get_qvel(physics),
            "env_state": self.get_env_state(physics),
        }


class JointTask(Unrendered, TransferCubeTask):
    """Commanded by joint targets, as a policy does."""


class HandTask(Unrendered, TransferCubeEndEffectorTask):
    """Commanded by hand poses, for the expert's plan."""


class TransferCube:
    """The cube, placed by each seed, behind gymnasium's `reset` and `step`; no camera is rendered.

    Args:
        max_episode_steps: length of the plan.
    """

    dt = DT

    def __init__(self, max_episode_steps: int = 400) -> None:
        self._env = environment("bimanual_viperx_transfer_cube.xml", JointTask())
        self._steps = max_episode_steps
        self._hands: Any = None

    def reset(self, seed: int) -> tuple[dict[str, np.ndarray], dict]:
        """Place the cube by this seed alone."""
        self._cube = BOX_POSE[0] = sample_box_pose(seed)
        return self._env.reset().observation, {}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict]:
        """14 absolute joint targets at 50 Hz; success is the cube in the left gripper, off the table."""
        step = self._env.step(action)
        return step.observation, step.reward, False, False, {"is_success": step.reward == HOLDS_IN_LEFT}

    def plan(self) -> np.ndarray:
        """Joint targets (steps, 14) of the expert for the cube's place."""
        self._hands = self._hands or environment("bimanual_viperx_end_effector_transfer_cube.xml", HandTask())
        return plan_joints(self._hands, self._cube, self._steps)


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
