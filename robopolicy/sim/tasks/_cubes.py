"""Parts shared by the tasks with three colored 4 cm cubes."""

import numpy as np
from jaxtyping import Bool, Float

from robopolicy.arrays import like
from robopolicy.sim.scene import Scene
from robopolicy.sim.tasks.base import State, place_apart
from robopolicy.types import Array

COLORS = ("red", "green", "blue")
PLATES = ("yellow", "purple")
HALF_M = 0.02
"""Half a cube's side [m]."""
SUNK_M = 6.1e-5
"""How far a cube at rest sinks into the table; if it began any higher, it would first fall, and in single precision it might
not touch the table yet [m]."""
PLATE_TOP_M = 0.006
"""Height of a plate's upper side above the table [m]."""
RELEASED_M = 0.065
"""Distance between the fingers above which they don't hold a cube [m]."""
REST_M_S = 0.05
"""A cube slower than this is at rest [m/s]."""
GAP_M = 0.1
"""Least distance between the centers of two cubes at the start: room for an open finger [m]."""
PLATE_GAP_M = 0.12
"""Least distance between the centers of plates, and of a plate and a cube, at the start [m]."""
YAW_RAD = 0.3
"""Largest turn of a cube about the vertical at the start [rad]."""
JOINT_NOISE_RAD = 0.02
"""Largest offset of each arm joint from home at the start [rad]."""


def with_arm_near_home(scene: Scene, rng: np.random.Generator) -> Float[np.ndarray, " nq"]:
    """`qpos` of the scene's start with a random offset of every arm joint."""
    noise = rng.uniform(-JOINT_NOISE_RAD, JOINT_NOISE_RAD, len(scene.robot.joints))
    return scene.with_joints_moved(scene.home_qpos, noise)


def placed_cubes(
    scene: Scene, rng: np.random.Generator, points: Float[np.ndarray, "cubes 2"]
) -> Float[np.ndarray, " nq"]:
    """`qpos` with the arm near home and the cubes at rest at `points` [m], each turned a little."""
    qpos = with_arm_near_home(scene, rng)
    poses = qpos[scene.object_slice].reshape(-1, 7)
    half_yaw = rng.uniform(-YAW_RAD, YAW_RAD, len(poses)) / 2
    poses[:, :2] = points
    poses[:, 2] = HALF_M - SUNK_M
    poses[:, 3:] = 0.0
    poses[:, 3] = np.cos(half_yaw)
    poses[:, 6] = np.sin(half_yaw)
    return qpos


def height_above_table(state: State) -> Float[Array, "worlds objects"]:
    """Height of each cube above its rest on the table [m]."""
    return state.positions[..., 2] - HALF_M


def is_other(state: State) -> Bool[Array, "worlds objects"]:
    """True for the objects that are not the named one."""
    return state.goal[:, :1] != like(state.goal, np.arange(state.objects.shape[1]))


def placed_plates_and_cubes(
    scene: Scene, rng: np.random.Generator
) -> tuple[Float[np.ndarray, " nq"], Float[np.ndarray, "nmocap 3"]]:
    """`qpos` with cubes and `mocap_pos` with plates on the table, with room for an open hand around each [m]."""
    points = place_apart(rng, len(PLATES) + len(COLORS), PLATE_GAP_M)
    mocap_pos = scene.home_mocap.copy()
    mocap_pos[: len(PLATES), :2] = points[: len(PLATES)]
    return placed_cubes(scene, rng, points[len(PLATES) :]), mocap_pos


def rests_at(state: State, spot: Float[Array, "worlds 3"], tolerance_m: float) -> Bool[Array, " worlds"]:
    """The named cube is within the tolerance of `spot` sideways and 1 cm in height, at rest, and released."""
    offset = state.chosen(0) - spot
    sideways = (offset[:, 0] ** 2 + offset[:, 1] ** 2) ** 0.5
    there = (sideways < tolerance_m) & (abs(offset[:, 2]) < 0.01)
    speed = state.object_speed[state.worlds, state.goal[:, 0]]
    return there & (speed < REST_M_S) & (state.opening > RELEASED_M)


def observed_plates(state: State) -> dict[str, Float[Array, "worlds 6"]]:
    """Each plate's position and its position relative to the gripper [m]."""
    rows = state.from_hand(state.mocap_pos[:, : len(PLATES)])
    return {f"plate_{color}": rows[:, place] for place, color in enumerate(PLATES)}
