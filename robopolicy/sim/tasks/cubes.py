"""Tasks with three coloured 4 cm cubes: reach and lift the named one."""

import numpy as np
from jaxtyping import Bool, Float

from robopolicy.sim.scene import ARM_JOINTS, Scene
from robopolicy.sim.tasks.base import Setup, State, Task, place_apart
from robopolicy.types import Array

COLORS = ("red", "green", "blue")
HALF_M = 0.02
"""Half a cube's side [m]."""
GAP_M = 0.1
"""Least distance between the centres of two cubes at the start: room for an open finger [m]."""
YAW_RAD = 0.3
"""Largest turn of a cube about the vertical at the start [rad]."""
JOINT_NOISE_RAD = 0.02
"""Largest deviation of each arm joint from home at the start [rad]."""


def placed_cubes(
    scene: Scene, rng: np.random.Generator, points: Float[np.ndarray, "cubes 2"]
) -> Float[np.ndarray, " nq"]:
    """`qpos` with the arm near home and the cubes at rest at `points` [m], each turned a little."""
    qpos = scene.home_qpos.copy()
    qpos[:ARM_JOINTS] += rng.uniform(-JOINT_NOISE_RAD, JOINT_NOISE_RAD, ARM_JOINTS)
    poses = qpos[scene.object_slice].reshape(-1, 7)
    half_yaw = rng.uniform(-YAW_RAD, YAW_RAD, len(poses)) / 2
    poses[:, :2] = points
    poses[:, 2] = HALF_M
    poses[:, 3:] = 0.0
    poses[:, 3] = np.cos(half_yaw)
    poses[:, 6] = np.sin(half_yaw)
    return qpos


def height_above_table(state: State) -> Float[Array, "worlds objects"]:
    """How far each cube is above where it rests on the table [m]."""
    return state.positions[..., 2] - HALF_M


def is_other(state: State) -> Bool[Array, "worlds objects"]:
    """True for the objects that are not the named one."""
    return state.goal[:, :1] != np.arange(state.objects.shape[1])


class Reach(Task):
    """Touch the named cube of three; touching another is a failure."""

    name = "reach"
    parts = ("cubes",)
    max_episode_steps = 60
    template = "touch the {} cube"
    touch_m = 0.03
    """Fingertips this near to a cube's centre touch it [m]."""

    def sample(self, scene: Scene, rng: np.random.Generator) -> Setup:
        """Three cubes apart from each other, one of them named."""
        cube = int(rng.integers(3))
        qpos = placed_cubes(scene, rng, place_apart(rng, 3, GAP_M))
        return Setup((self.template.format(COLORS[cube]),), np.array([[cube]]), qpos, scene.home_mocap)

    def distance(self, state: State) -> Float[Array, "worlds objects"]:
        """From the fingertips to each cube's centre [m]."""
        offset = state.positions - state.ee_position[:, None]
        return (offset * offset).sum(-1) ** 0.5

    def reached(self, state: State) -> Bool[Array, " worlds"]:
        """The fingertips touch the named cube."""
        return self.distance(state)[state.worlds, state.goal[:, 0]] < self.touch_m

    def failed(self, state: State) -> Bool[Array, " worlds"]:
        """The fingertips touch another cube."""
        return ((self.distance(state) < self.touch_m) & is_other(state)).any(-1)


class Lift(Reach):
    """Raise the named cube of three by 5 cm and hold it for 10 steps; lifting another is a failure."""

    name = "lift"
    max_episode_steps = 100
    hold_steps = 10
    template = "lift the {} cube"
    raise_m = 0.05

    def reached(self, state: State) -> Bool[Array, " worlds"]:
        """The named cube is raised."""
        return state.chosen(0)[:, 2] >= HALF_M + self.raise_m

    def failed(self, state: State) -> Bool[Array, " worlds"]:
        """Another cube is raised."""
        return ((height_above_table(state) >= self.raise_m) & is_other(state)).any(-1)
