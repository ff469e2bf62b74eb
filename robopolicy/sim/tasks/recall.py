"""The memory task `recall`: three cubes are shown, then hidden under identical lids; touch the lid over the named cube."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from robopolicy.arrays import like, namespace, row
from robopolicy.components import Options, option, register
from robopolicy.sim.scene import Scene
from robopolicy.sim.tasks._cubes import COLORS, placed_cubes
from robopolicy.sim.tasks._lids import LID_HALF_M, LIDS, TOP, LidTask, row_on_table
from robopolicy.sim.tasks._moves import Intent, above
from robopolicy.sim.tasks.base import Setup, State
from robopolicy.types import Array

BEHIND_M = 0.09
"""Distance of a lid behind its cube while the cubes are visible [m]."""
# Factors that drop the height of a position, and the offset of a lid from its cube [m].
_FLAT, _BEHIND = np.array([1.0, 1.0, 0.0]), np.array([BEHIND_M, 0.0, 0.0])


@dataclass(frozen=True)
class RecallOptions(Options):
    """Options of the task `recall`."""

    cue_steps: int = option(3, ">= 1")
    """Control steps for which the cubes are visible."""
    delay_steps: int = option(4, ">= 0")
    """Control steps between covering the cubes and lighting the lamp, which allows the arm to move."""
    arm_held: bool = False
    """Hold the arm at home until the lamp is lit. A policy trained by reinforcement otherwise learns to lean towards the right
    lid while it waits, so that the arm's position replaces a memory."""


@register("task", "recall", RecallOptions)
class Recall(LidTask):
    """Touch the lid over the named cube, which is visible only at the start; move only once the lamp is lit.

    Three cubes in a row are visible for `cue_steps` control steps, each with a lid behind it. Then the lids cover them.
    The arm must stay within 6 cm of home until `delay_steps` later. After the cubes are covered, no observation shows which
    lid is right, so without memory the expected success rate is at most one in three. Lids are numbered from right to left.
    """

    parts = ("cubes", "lids")

    def __init__(self, options: RecallOptions = RecallOptions()) -> None:
        super().__init__(options)
        self.cue_steps, self.wait_steps = options.cue_steps, options.cue_steps + options.delay_steps
        self.max_episode_steps = self.wait_steps + 60

    def sample(self, scene: Scene, rng: np.random.Generator) -> Setup:
        """A row of three cubes in random order; the goal is the index of the named cube, then the lid index of each cube."""
        cube = int(rng.integers(len(COLORS)))
        points = row_on_table(rng)
        lid_of_cube = rng.permutation(LIDS)
        qpos = placed_cubes(scene, rng, points[lid_of_cube])
        instruction = f"touch the lid over the {COLORS[cube]} cube"
        return Setup((instruction,), np.array([[cube, *lid_of_cube]]), qpos, scene.home_mocap)

    def arrange(self, state: State, scene: Scene) -> Float[Array, "worlds nmocap 3"]:
        """Mocap positions [m]: lids behind the cubes, later over them; the lamp appears once the arm may move."""
        # `* 0.0 +` gives every world its own copy of the home positions, on the state's device.
        xp, mocap_pos = namespace(state.mocap_pos), state.mocap_pos * 0.0 + like(state.mocap_pos, scene.home_mocap)
        hidden = (state.step >= self.cue_steps)[:, None]
        for cube in range(LIDS):
            lid = state.goal[:, 1 + cube]
            spot = state.objects[:, cube, :3] * like(mocap_pos, _FLAT) + like(mocap_pos, TOP)
            mocap_pos[state.worlds, lid] = xp.where(hidden, spot, spot + like(mocap_pos, _BEHIND))
        self.light_lamp(mocap_pos, self.may_move(state))
        return mocap_pos

    def held(self, state: State) -> Bool[Array, " worlds"] | None:
        """Until the lamp is lit, with the option `arm_held`."""
        return ~self.may_move(state) if self.options.arm_held else None

    def right_lid(self, state: State) -> Int[Array, " worlds"]:
        """Index of the lid over the named cube."""
        return state.goal[state.worlds, 1 + state.goal[:, 0]]

    def reached(self, state: State) -> Bool[Array, " worlds"]:
        """The fingertips touch the right lid."""
        return self.touched(state)[state.worlds, self.right_lid(state)]

    def failed(self, state: State) -> Bool[Array, " worlds"]:
        """The fingertips touch a wrong lid, or the arm moves before the lamp is lit."""
        wrong = self.touched(state) & (like(state.goal, np.arange(LIDS)) != self.right_lid(state)[:, None])
        return wrong.any(-1) | self.moved_early(state) | super().failed(state)

    def observe(self, state: State, scene: Scene) -> dict[str, Float[Array, "worlds _"]]:
        """Cubes while they are visible (zeros otherwise), the lids, and whether the lamp is lit."""
        visible = (state.step < self.cue_steps)[:, None]
        cubes = {name: seen * visible for name, seen in super().observe(state, scene).items()}
        return cubes | self.observed_lids(state) | {"lamp": row(self.may_move(state)[:, None])}

    def intent(self, state: State) -> Intent:
        """Wait at home until the lamp is lit, then touch the right lid from above with closed fingers.

        It aims below the lid's top, so that a policy without memory, which predicts the mean over the three lids, still touches
        one of them and succeeds in one of three episodes.
        """
        lid = state.mocap_pos[state.worlds, self.right_lid(state)]
        return self.once_allowed(state, above(state, lid + like(lid, TOP), resting_m=-LID_HALF_M))
