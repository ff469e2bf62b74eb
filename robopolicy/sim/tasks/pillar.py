"""A task with two solutions: reach a lid behind a pillar, past it on the left or on the right."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from robopolicy.arrays import like, namespace
from robopolicy.components import register
from robopolicy.sim.scene import Scene
from robopolicy.sim.tasks._moves import Intent, choose
from robopolicy.sim.tasks.base import Setup, State, Task
from robopolicy.types import Array

LID, PILLAR = 0, 1
"""Places of the bodies in `mocap_pos`."""
SIDES = {"left": 1, "right": -1}
"""Sign of y on each side, seen from the robot's base."""
PILLAR_M = (0.53, 0.0, 0.2)
LID_M = (0.64, 0.0, 0.032)
"""Centers before each is shifted at random [m]."""
SHIFT_M = 0.01
"""Largest shift along x and y [m]."""
LID_TOP_M = 0.032
"""Height of the lid's top above its center [m]."""
WAYPOINT_M = (0.02, 0.11)
"""Where the expert passes the pillar: beyond its axis, and beside it [m]."""
PASSING_HEIGHT_M = 0.14
"""Height of the fingertips as they pass [m]."""
DECIDED_M = 0.03
"""Distance of the fingertips from the middle at which the expert stays on the side where they are [m]."""


@dataclass(frozen=True)
class PillarOptions:
    """Options of the task `pillar`."""

    style: Literal["mixed", "left", "right"] = "mixed"
    """Side on which the expert passes the pillar; mixed: either side at random in each episode."""


@register("task", "pillar", PillarOptions)
class Pillar(Task):
    """Touch the lid behind the pillar for 20 steps without touching the pillar.

    Demonstrations pass the pillar on either side, and no observation shows which one: the mean of both goes through the pillar.
    """

    needs_gripper = False
    parts = ("pillar",)
    max_episode_steps = 100
    hold_steps = 20
    touch_m = 0.05
    """Fingertips this near to the middle of the lid's top touch it [m]."""
    clear_m = 0.04
    """Fingertips this near to the pillar's axis touch the pillar, at any height [m]."""

    def sample(self, scene: Scene, rng: np.random.Generator) -> Setup:
        """Lid and pillar, each shifted a little; the goal is the expert's side, +1 (left) or -1 (right)."""
        mocap_pos = np.array([LID_M, PILLAR_M])
        mocap_pos[:, :2] += rng.uniform(-SHIFT_M, SHIFT_M, (2, 2))
        side = int(rng.choice([1, -1]))
        side = SIDES.get(self.options.style, side)
        return Setup(("touch the lid behind the pillar",), np.array([[side]]), scene.home_qpos, mocap_pos)

    def reached(self, state: State) -> Bool[Array, " worlds"]:
        """The fingertips touch the lid."""
        offset = self.lid_top(state) - state.ee_position
        return (offset * offset).sum(-1) < self.touch_m**2

    def failed(self, state: State) -> Bool[Array, " worlds"]:
        """The fingertips touch the pillar."""
        offset = state.mocap_pos[:, PILLAR, :2] - state.ee_position[:, :2]
        return (offset * offset).sum(-1) < self.clear_m**2

    def target(self, state: State) -> Float[Array, "worlds 3"]:
        """Position of the lid [m]."""
        return state.mocap_pos[:, LID]

    def lid_top(self, state: State) -> Float[Array, "worlds 3"]:
        """The middle of the lid's top [m]."""
        return state.mocap_pos[:, LID] + like(state.mocap_pos, np.array([0.0, 0.0, LID_TOP_M]))

    def observe(self, state: State, scene: Scene) -> dict[str, Float[Array, "worlds _"]]:
        """Position of lid and pillar, and relative to the fingertips [m]."""
        rows = state.from_hand(state.mocap_pos[:, [LID, PILLAR]])
        return {"lid": rows[:, 0], "pillar": rows[:, 1]}

    def intent(self, state: State) -> Intent:
        """Past the pillar on the chosen side, or where the fingertips already are, and then to the lid, fingers closed."""
        xp, pillar = namespace(state.ee_position), state.mocap_pos[:, PILLAR]
        aside = state.ee_position[:, 1] - pillar[:, 1]
        side = xp.where(abs(aside) > DECIDED_M, xp.sign(aside), state.goal[:, 0] * 1.0)
        waypoint = pillar * 1.0
        waypoint[:, 0] += WAYPOINT_M[0]
        waypoint[:, 1] += side * WAYPOINT_M[1]
        waypoint[:, 2] = PASSING_HEIGHT_M
        passed = state.ee_position[:, 0] > pillar[:, 0] + 0.5 * WAYPOINT_M[0]
        return choose(passed, self.lid_top(state), waypoint), state.step >= 0
