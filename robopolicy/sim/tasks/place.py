"""Put the named cube on the named plate."""

import numpy as np
from jaxtyping import Bool, Float

from robopolicy.components import register
from robopolicy.sim.scene import Scene
from robopolicy.sim.tasks._cubes import (
    COLORS,
    HALF_M,
    PLATE_TOP_M,
    PLATES,
    observed_plates,
    placed_plates_and_cubes,
    rests_at,
)
from robopolicy.sim.tasks._moves import Intent, displacement_from_above, holding, nearness, put_at
from robopolicy.sim.tasks.base import Setup, State, Task
from robopolicy.types import Array


@register("task", "place")
class Place(Task):
    """Put the named cube on the named plate, within 3 cm of its center, and let go."""

    parts = ("cubes", "plates")
    max_episode_steps = 250
    hold_steps = 3
    tolerance_m = 0.03
    aim_m = 0.024
    """Distance from the spot at which the expert releases the cube [m]."""

    def sample(self, scene: Scene, rng: np.random.Generator) -> Setup:
        """Three cubes and two plates, none on another."""
        cube, plate = int(rng.integers(len(COLORS))), int(rng.integers(len(PLATES)))
        instruction = f"put the {COLORS[cube]} cube on the {PLATES[plate]} plate"
        return Setup((instruction,), np.array([[cube, plate]]), *placed_plates_and_cubes(scene, rng))

    def spot(self, state: State) -> Float[Array, "worlds 3"]:
        """Where the center of the named cube should come to rest [m]."""
        spot = state.mocap_pos[state.worlds, state.goal[:, 1]] * 1.0
        spot[:, 2] = PLATE_TOP_M + HALF_M
        return spot

    def reached(self, state: State) -> Bool[Array, " worlds"]:
        """The named cube rests at its spot, and the gripper is open."""
        return rests_at(state, self.spot(state), self.tolerance_m)

    def progress(self, state: State) -> Float[Array, " worlds"]:
        """A quarter each for the fingertips at the named cube, holding it, the cube near its spot, and at rest there.

        The distance to the spot includes the height that the cube must still rise by: a cube on the table beside the cube
        that it should be put on is not near.
        """
        cube, spot = state.chosen(0), self.spot(state)
        there = rests_at(state, spot, self.tolerance_m)
        held = holding(state, cube) | there
        at_hand, at_spot = nearness(state.ee_position - cube, 0.1), nearness(displacement_from_above(spot - cube), 0.1)
        return ((at_hand + held * 1.0) * ~there + 2.0 * there + at_spot + there * 1.0) / 4

    def observe(self, state: State, scene: Scene) -> dict[str, Float[Array, "worlds _"]]:
        """Cubes as in every task; per plate its position and its position relative to the gripper [m]."""
        return super().observe(state, scene) | observed_plates(state)

    def intent(self, state: State) -> Intent:
        """Carry the named cube to its spot."""
        return put_at(state, self.spot(state), self.aim_m)
