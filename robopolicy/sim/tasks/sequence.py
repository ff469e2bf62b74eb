"""A memory task: the lamp stands over the lids one after another; touch them in the order shown."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from robopolicy.arrays import like, namespace, row
from robopolicy.components import Options, option, register
from robopolicy.sim.scene import Scene
from robopolicy.sim.tasks._cubes import with_arm_near_home
from robopolicy.sim.tasks._lids import LID_HALF_M, LIDS, TOP, LidTask, row_on_table
from robopolicy.sim.tasks._moves import Intent, above
from robopolicy.sim.tasks.base import Setup, State
from robopolicy.types import Array

CLEARANCE_M = 0.05
"""How much higher than usual the expert travels, so that it passes over a lid without a touch [m]."""
LAMP_ABOVE_M = np.array([0.0, 0.0, LID_HALF_M + 0.025])
"""From the center of a lid to that of the lamp over it [m]."""


@dataclass(frozen=True)
class SequenceOptions(Options):
    """Options of the task `sequence`."""

    length: int = option(3, ">= 1")
    """Lids to touch, one after another; the same one never twice in a row."""
    show_steps: int = option(4, ">= 1")
    """Control steps for which the lamp is over each lid; a step without it follows."""
    delay_steps: int = option(4, ">= 0")
    """Control steps from the end of the demonstration until the arm may move."""


@register("task", "sequence", SequenceOptions)
class Sequence(LidTask):
    """Touch three lids in the order in which the lamp stood over them; move only once the lamp is lit at the back.

    A goal is (the lid to touch, the lid touched before, then the whole order). Lids are numbered from right to left.
    """

    parts = ("lids",)

    def __init__(self, options: SequenceOptions = SequenceOptions()) -> None:
        super().__init__(options)
        self.shown_steps = options.length * (options.show_steps + 1)
        self.wait_steps = self.shown_steps + options.delay_steps
        self.max_episode_steps = self.wait_steps + 60 * options.length

    def sample(self, scene: Scene, rng: np.random.Generator) -> Setup:
        """A row of three lids, and an order in which to touch them."""
        order = [int(rng.integers(LIDS))]
        while len(order) < self.options.length:
            order.append((order[-1] + int(rng.integers(1, LIDS))) % LIDS)
        mocap_pos = scene.home_mocap.copy()
        mocap_pos[:LIDS, :2] = row_on_table(rng)
        goals = np.array([[lid, before, *order] for lid, before in zip(order, [order[0], *order], strict=False)])
        instructions = ("touch the lids in the order shown",) * len(goals)
        return Setup(instructions, goals, with_arm_near_home(scene, rng), mocap_pos)

    def arrange(self, state: State, scene: Scene) -> Float[Array, "worlds nmocap 3"]:
        """The lamp over the lid of the present part of the demonstration, away in between, lit once the arm may move."""
        xp, mocap_pos, span = namespace(state.mocap_pos), state.mocap_pos * 1.0, self.options.show_steps + 1
        place = (state.step // span).clip(0, self.options.length - 1)
        over = mocap_pos[state.worlds, state.goal[state.worlds, 2 + place]] + like(mocap_pos, LAMP_ABOVE_M)
        shown = (state.step < self.shown_steps) & (state.step % span < self.options.show_steps)
        mocap_pos[:, LIDS] = xp.where(shown[:, None], over, like(mocap_pos, scene.home_mocap[LIDS]))
        self.light_lamp(mocap_pos, self.may_move(state))
        return mocap_pos

    def reached(self, state: State) -> Bool[Array, " worlds"]:
        """The fingertips touch the lid whose turn it is."""
        return self.touched(state)[state.worlds, state.goal[:, 0]]

    def failed(self, state: State) -> Bool[Array, " worlds"]:
        """A lid was touched out of turn, or the arm moved too early; the lid touched last may be left."""
        lids = like(state.goal, np.arange(LIDS))
        wrong = self.touched(state) & (lids != state.goal[:, :1]) & (lids != state.goal[:, 1:2])
        return wrong.any(-1) | self.moved_early(state)

    def target(self, state: State) -> Float[Array, "worlds 3"]:
        """Middle of the lid to touch [m]."""
        return state.mocap_pos[state.worlds, state.goal[:, 0]]

    def observe(self, state: State, scene: Scene) -> dict[str, Float[Array, "worlds _"]]:
        """The lids, and the lamp: where it is while it is shown (zeros otherwise), and whether the arm may move."""
        lamp = state.mocap_pos[:, LIDS] * (state.mocap_pos[:, LIDS, :1] > 0)
        return self.observed_lids(state) | {"lamp": row(lamp), "go": row(self.may_move(state)[:, None])}

    def intent(self, state: State) -> Intent:
        """Wait at home until the lamp is lit, then come down on the lid whose turn it is with closed fingers."""
        spot = self.target(state) + like(state.mocap_pos, np.add(TOP, [0.0, 0.0, CLEARANCE_M]))
        return self.once_allowed(state, above(state, spot, resting_m=-LID_HALF_M - CLEARANCE_M))
