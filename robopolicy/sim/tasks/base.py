"""The contract of a task: the start of an episode, the instruction, and the success condition."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from robopolicy.arrays import row
from robopolicy.sim.scene import Scene
from robopolicy.types import Array

TABLE_X = (0.35, 0.65)
TABLE_Y = (-0.2, 0.2)
"""Objects are placed with their centers in this area of the table [m]: 30 x 40 cm."""

FALLEN_M = -0.05
"""An object below this height fell off the table [m]."""


@dataclass(frozen=True)
class Setup:
    """The start of one episode, drawn from its seed alone."""

    instructions: tuple[str, ...]
    """The instruction: one sentence, or several in a row for a chain."""
    goals: Int[np.ndarray, "stages parts"]
    """The goal as numbers defined by the task, such as (cube, plate)."""
    qpos: Float[np.ndarray, " nq"]
    mocap_pos: Float[np.ndarray, "nmocap 3"]


@dataclass(frozen=True)
class Hand:
    """The hand of one arm in all N worlds."""

    position: Float[Array, "worlds 3"]
    """Point between the fingertips [m]."""
    rotation: Float[Array, "worlds 3 3"]
    opening: Float[Array, " worlds"]
    """Distance between the fingers [m]."""


@dataclass(frozen=True)
class HandIntent:
    """Where the expert's hand goes next, in all N worlds."""

    position: Float[Array, "worlds 3"]
    """Point between the fingertips [m]."""
    rotation: Float[Array, "worlds 3 3"]
    closed: Bool[Array, " worlds"]


@dataclass(frozen=True)
class State:
    """The current state of all N worlds, as tasks and experts see it. Arrays are NumPy or torch."""

    worlds: Int[Array, " worlds"]
    """0 .. N-1, to pick one object per world: `positions[worlds, goal]`."""
    qpos: Float[Array, "worlds nq"]
    qvel: Float[Array, "worlds nv"]
    mocap_pos: Float[Array, "worlds nmocap 3"]
    objects: Float[Array, "worlds objects 7"]
    """Pose of each free object: position [m], quaternion w x y z."""
    object_speed: Float[Array, "worlds objects"]
    """Linear speed of each free object [m/s]."""
    ee_position: Float[Array, "worlds 3"]
    """Point between the fingertips [m]."""
    ee_rotation: Float[Array, "worlds 3 3"]
    opening: Float[Array, " worlds"]
    """Distance between the fingers [m]."""
    goal: Int[Array, "worlds parts"]
    """The current goal."""
    step: Int[Array, " worlds"]
    """Control steps since the episode began."""
    hands: tuple[Hand, ...] = ()
    """Every hand of the robot; `ee_position`, `ee_rotation` and `opening` are the first one's."""

    @property
    def positions(self) -> Float[Array, "worlds objects 3"]:
        """Positions of the free objects [m]."""
        return self.objects[..., :3]

    def from_hand(self, points: Float[Array, "worlds points 3"]) -> Float[Array, "worlds points 6"]:
        """Positions, and relative to the fingertips [m]."""
        return row(points, points - self.ee_position[:, None])

    def chosen(self, part: int) -> Float[Array, "worlds 3"]:
        """Position of the free object that column `part` of the goal names [m]."""
        return self.positions[self.worlds, self.goal[:, part]]


class Task:
    """Base class of tasks. All checks are batched over worlds.

    A task is registered (`@register("task", "lift", LiftOptions)`) in a file named after its kind; it is built from its
    options alone.
    """

    name: str
    """Its registered kind, set by `make_task`."""
    parts: tuple[str, ...]
    """The scene besides the robot: names of files in `sim/assets`, or MJCF texts."""
    robot: str = "panda"
    """Robot of the scene: one of `robopolicy.sim.scene.ROBOTS`."""
    max_episode_steps: int
    needs_gripper: bool = True
    """Whether the gripper must move to solve it."""
    hold_steps: int = 1
    """Control steps in a row for which `reached` must hold."""
    instructions_in_a_row: int = 0
    """Number of instructions in a chain's episode; results then give the share that solves 1, 2, ... of them; 0: no chain."""

    def __init__(self, options: Any = None) -> None:
        self.options = options

    def sample(self, scene: Scene, rng: np.random.Generator) -> Setup:
        """Draw the start of one episode."""
        raise NotImplementedError

    def reached(self, state: State) -> Bool[Array, " worlds"]:
        """Whether the goal's condition holds now."""
        raise NotImplementedError

    def failed(self, state: State) -> Bool[Array, " worlds"]:
        """Whether the episode can no longer succeed; here, whether an object fell off the table."""
        return (state.positions[..., 2] < FALLEN_M).any(-1)

    def held(self, state: State) -> Bool[Array, " worlds"] | None:
        """Whether the arm is held where it is, so that actions do not move it; None: never."""
        return None

    def arrange(self, state: State, scene: Scene) -> Float[Array, "worlds nmocap 3"] | None:
        """Current positions of the mocap bodies [m]; None if they stay where the episode began."""
        return None

    def target(self, state: State) -> Float[Array, "worlds 3"]:
        """Position of the named object [m]: privileged, for loss terms only."""
        return state.chosen(0)

    def spot(self, state: State) -> Float[Array, "worlds 3"]:
        """Where the named object should be brought, or the fingertips themselves [m]: privileged, like `target`."""
        return self.target(state)

    def intent(self, state: State) -> tuple[Float[Array, "worlds 3"], Bool[Array, " worlds"]]:
        """The next position of the scripted expert's fingertips [m], and whether it closes the gripper."""
        raise NotImplementedError

    def progress(self, state: State) -> Float[Array, " worlds"] | None:
        """How near the goal is, 0 .. 1, for learning by reinforcement (`improve --reward progress`); None: not defined."""
        return None

    def intents(self, state: State) -> tuple[HandIntent, ...]:
        """For a robot of several arms: where the scripted expert's hands go next, and whether they close."""
        raise NotImplementedError

    def required_hold(self, state: State) -> Int[Array, " worlds"] | int:
        """Control steps in a row for which `reached` must hold."""
        return self.hold_steps

    def observe(self, state: State, scene: Scene) -> dict[str, Float[Array, "worlds _"]]:
        """Low-dimensional keys: per free object position [m], quaternion, and position relative to the gripper [m]."""
        relative = state.positions - state.ee_position[:, None]
        return {name: row(state.objects[:, place], relative[:, place]) for place, name in enumerate(scene.objects)}


def place_apart(
    rng: np.random.Generator, count: int, gap_m: float, taken: Sequence[Float[np.ndarray, " 2"]] = ()
) -> Float[np.ndarray, "count 2"]:
    """Points on the table at least `gap_m` from each other and from those `taken`, each uniform by rejection [m]."""
    low, high = np.array([TABLE_X, TABLE_Y]).T
    points = list(taken)
    tries = 0
    while len(points) < len(taken) + count:
        point = rng.uniform(low, high)
        if all(np.hypot(*(point - other)) >= gap_m for other in points):
            points.append(point)
        tries += 1
        if tries % 100 == 0:  # no room is left: begin again
            points = list(taken)
    return np.array(points[len(taken) :])
