"""Tasks with three coloured 4 cm cubes: reach, lift, place or stack the named one."""

import numpy as np
from jaxtyping import Bool, Float, Int

from robopolicy.control.arrays import like, row
from robopolicy.sim.scene import ARM_JOINTS, Scene
from robopolicy.sim.tasks.base import Setup, State, Task, place_apart
from robopolicy.types import Array

COLORS = ("red", "green", "blue")
PLATES = ("yellow", "purple")
HALF_M = 0.02
"""Half a cube's side [m]."""
SUNK_M = 6.1e-5
"""How far a cube at rest sinks into the table; begun any higher it would fall first, and in single precision it might
not touch the table yet [m]."""
PLATE_TOP_M = 0.006
"""Height of a plate's upper side above the table [m]."""
RELEASED_M = 0.065
"""Distance between the fingers from which on they hold no cube [m]."""
REST_M_S = 0.05
"""A cube slower than this is at rest [m/s]."""
GAP_M = 0.1
"""Least distance between the centres of two cubes at the start: room for an open finger [m]."""
PLATE_GAP_M = 0.12
"""Least distance between the centres of plates, and of a plate and a cube, at the start [m]."""
YAW_RAD = 0.3
"""Largest turn of a cube about the vertical at the start [rad]."""
JOINT_NOISE_RAD = 0.02
"""Largest deviation of each arm joint from home at the start [rad]."""


def with_arm_near_home(scene: Scene, rng: np.random.Generator) -> Float[np.ndarray, " nq"]:
    """`qpos` of the scene's start with every arm joint a little off."""
    qpos = scene.home_qpos.copy()
    qpos[:ARM_JOINTS] += rng.uniform(-JOINT_NOISE_RAD, JOINT_NOISE_RAD, ARM_JOINTS)
    return qpos


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
    """How far each cube is above where it rests on the table [m]."""
    return state.positions[..., 2] - HALF_M


def is_other(state: State) -> Bool[Array, "worlds objects"]:
    """True for the objects that are not the named one."""
    return state.goal[:, :1] != like(state.goal, np.arange(state.objects.shape[1]))


class Reach(Task):
    """Touch the named cube of three; touching another is a failure."""

    name = "reach"
    parts = ("cubes",)
    max_episode_steps = 100
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
        """The fingertips touch another cube, or one fell off the table."""
        touched = self.distance(state) < self.touch_m
        return (touched & is_other(state)).any(-1) | super().failed(state)


class Lift(Reach):
    """Raise the named cube of three by 5 cm and hold it for 10 steps; lifting another is a failure."""

    name = "lift"
    max_episode_steps = 150
    hold_steps = 10
    template = "lift the {} cube"
    raise_m = 0.05

    def reached(self, state: State) -> Bool[Array, " worlds"]:
        """The named cube is raised."""
        return state.chosen(0)[:, 2] >= HALF_M + self.raise_m

    def failed(self, state: State) -> Bool[Array, " worlds"]:
        """Another cube is raised, or one fell off the table."""
        raised = height_above_table(state) >= self.raise_m
        return (raised & is_other(state)).any(-1) | Task.failed(self, state)


class Place(Task):
    """Put the named cube on the named plate, within 3 cm of its centre, and let go."""

    name = "place"
    parts = ("cubes", "plates")
    max_episode_steps = 250
    hold_steps = 3
    tolerance_m = 0.03

    def sample(self, scene: Scene, rng: np.random.Generator) -> Setup:
        """Three cubes and two plates, none on another."""
        cube, plate = int(rng.integers(len(COLORS))), int(rng.integers(len(PLATES)))
        plates, cubes = placed_plates_and_cubes(rng)
        mocap_pos = scene.home_mocap.copy()
        mocap_pos[: len(PLATES), :2] = plates
        instruction = f"put the {COLORS[cube]} cube on the {PLATES[plate]} plate"
        return Setup((instruction,), np.array([[cube, plate]]), placed_cubes(scene, rng, cubes), mocap_pos)

    def spot(self, state: State) -> Float[Array, "worlds 3"]:
        """Where the centre of the named cube should come to rest [m]."""
        return plate_spot(state, state.goal[:, 1])

    def reached(self, state: State) -> Bool[Array, " worlds"]:
        """The named cube rests at its spot, and the gripper is open."""
        return rests_at(state, self.spot(state), self.tolerance_m)

    def observe(self, state: State, scene: Scene) -> dict[str, Float[Array, "worlds _"]]:
        """Cubes as in every task; per plate its position and its position relative to the gripper [m]."""
        return super().observe(state, scene) | observed_plates(state)


class Stack(Place):
    """Put the named cube on the named other cube, let go, and it stays."""

    name = "stack"
    parts = ("cubes",)
    hold_steps = 5
    tolerance_m = 0.025

    def sample(self, scene: Scene, rng: np.random.Generator) -> Setup:
        """Three cubes; two different ones are named."""
        cube, base = (int(each) for each in rng.permutation(len(COLORS))[:2])
        qpos = placed_cubes(scene, rng, place_apart(rng, 3, PLATE_GAP_M))
        instruction = f"stack the {COLORS[cube]} cube on the {COLORS[base]} cube"
        return Setup((instruction,), np.array([[cube, base]]), qpos, scene.home_mocap)

    def spot(self, state: State) -> Float[Array, "worlds 3"]:
        """Right on top of the named other cube [m]."""
        return stack_spot(state, state.goal[:, 1])

    def observe(self, state: State, scene: Scene) -> dict[str, Float[Array, "worlds _"]]:
        """Cubes as in every task."""
        return Task.observe(self, state, scene)


def placed_plates_and_cubes(
    rng: np.random.Generator,
) -> tuple[Float[np.ndarray, "plates 2"], Float[np.ndarray, "cubes 2"]]:
    """Points for the plates and the cubes, with room for an open hand around each [m]."""
    points = place_apart(rng, len(PLATES) + len(COLORS), PLATE_GAP_M)
    return points[: len(PLATES)], points[len(PLATES) :]


def plate_spot(state: State, plate: Int[Array, " worlds"]) -> Float[Array, "worlds 3"]:
    """Where the centre of a cube lies that is on the middle of a plate [m]."""
    spot = state.mocap_pos[state.worlds, plate] * 1.0
    spot[:, 2] = PLATE_TOP_M + HALF_M
    return spot


def stack_spot(state: State, base: Int[Array, " worlds"]) -> Float[Array, "worlds 3"]:
    """Where the centre of a cube lies that is right on top of another [m]."""
    spot = state.positions[state.worlds, base] * 1.0
    spot[:, 2] += 2 * HALF_M
    return spot


def rests_at(state: State, spot: Float[Array, "worlds 3"], tolerance_m: float) -> Bool[Array, " worlds"]:
    """The named cube is within the tolerance of `spot` sideways and 1 cm in height, at rest, and let go."""
    offset = state.chosen(0) - spot
    sideways = (offset[:, 0] ** 2 + offset[:, 1] ** 2) ** 0.5
    there = (sideways < tolerance_m) & (abs(offset[:, 2]) < 0.01)
    speed = state.object_speed[state.worlds, state.goal[:, 0]]
    return there & (speed < REST_M_S) & (state.opening > RELEASED_M)


def observed_plates(state: State) -> dict[str, Float[Array, "worlds 6"]]:
    """Per plate its position and its position relative to the gripper [m]."""
    plates = state.mocap_pos[:, : len(PLATES)]
    rows = row(plates, plates - state.ee_position[:, None])
    return {f"plate_{color}": rows[:, place] for place, color in enumerate(PLATES)}
