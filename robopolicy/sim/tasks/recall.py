"""A task of memory: three cubes in a row are shown, then hidden under identical lids; touch the lid of the named one."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from robopolicy.components import expect, register
from robopolicy.control.arrays import like, namespace, row
from robopolicy.sim.scene import Scene
from robopolicy.sim.tasks._cubes import COLORS, placed_cubes
from robopolicy.sim.tasks._lids import LID_HALF_M, LIDS, TOP, LidTask, row_on_table
from robopolicy.sim.tasks._moves import Intent, above
from robopolicy.sim.tasks.base import Setup, State
from robopolicy.types import Array

BEHIND_M = 0.09
"""How far behind its cube a lid stands during the cue [m]."""
_FLAT, _BEHIND = np.array([1.0, 1.0, 0.0]), np.array([BEHIND_M, 0.0, 0.0])


@dataclass(frozen=True)
class RecallOptions:
    """Options of the task `recall`."""

    cue_steps: int = 3
    """Control steps for which the cubes are visible."""
    delay_steps: int = 4
    """Control steps from when the lids cover the cubes until the lamp is lit."""

    def __post_init__(self) -> None:
        expect(self, "task", ">= 1", "cue_steps")
        expect(self, "task", ">= 0", "delay_steps")


@register("task", "recall", RecallOptions)
class Recall(LidTask):
    """Touch the lid over the named cube, which was visible before the lids came; move only once the lamp is lit.

    Three cubes in a row are visible for `cue_steps`, each with a lid behind it. Then the lids cover them, and for
    `delay_steps` more the arm must stay within 6 cm of home. No later observation shows which lid is the right one: without
    memory one in three episodes succeeds at best. Lids are numbered from right to left.
    """

    parts = ("cubes", "lids")

    def __init__(self, options: RecallOptions = RecallOptions()) -> None:
        super().__init__(options)
        self.cue_steps, self.wait_steps = options.cue_steps, options.cue_steps + options.delay_steps
        self.max_episode_steps = self.wait_steps + 60

    def sample(self, scene: Scene, rng: np.random.Generator) -> Setup:
        """A row of three cubes in random order; the goal holds the named cube, and then each cube's lid."""
        cube = int(rng.integers(len(COLORS)))
        points = row_on_table(rng)
        lid_of_cube = rng.permutation(LIDS)
        qpos = placed_cubes(scene, rng, points[lid_of_cube])
        instruction = f"touch the lid over the {COLORS[cube]} cube"
        return Setup((instruction,), np.array([[cube, *lid_of_cube]]), qpos, scene.home_mocap)

    def arrange(self, state: State, scene: Scene) -> Float[Array, "worlds nmocap 3"]:
        """Lids behind the cubes, over them once the cue is over; the lamp in sight once the arm may move [m]."""
        xp, mocap_pos = namespace(state.mocap_pos), state.mocap_pos * 0.0 + like(state.mocap_pos, scene.home_mocap)
        hidden = (state.step >= self.cue_steps)[:, None]
        for cube in range(LIDS):
            lid = state.goal[:, 1 + cube]
            spot = state.objects[:, cube, :3] * like(mocap_pos, _FLAT) + like(mocap_pos, TOP)
            mocap_pos[state.worlds, lid] = xp.where(hidden, spot, spot + like(mocap_pos, _BEHIND))
        self.light_lamp(mocap_pos, self.may_move(state))
        return mocap_pos

    def right_lid(self, state: State) -> Int[Array, " worlds"]:
        """Index of the lid over the named cube."""
        return state.goal[state.worlds, 1 + state.goal[:, 0]]

    def reached(self, state: State) -> Bool[Array, " worlds"]:
        """The fingertips touch the right lid."""
        return self.touched(state)[state.worlds, self.right_lid(state)]

    def failed(self, state: State) -> Bool[Array, " worlds"]:
        """The fingertips touched a wrong lid, or the arm moved too early."""
        wrong = self.touched(state) & (like(state.goal, np.arange(LIDS)) != self.right_lid(state)[:, None])
        return wrong.any(-1) | self.moved_early(state) | super().failed(state)

    def observe(self, state: State, scene: Scene) -> dict[str, Float[Array, "worlds _"]]:
        """Cubes while they are visible (zeros otherwise), the lids, and whether the lamp is lit."""
        visible = (state.step < self.cue_steps)[:, None]
        cubes = {name: seen * visible for name, seen in super().observe(state, scene).items()}
        return cubes | self.observed_lids(state) | {"lamp": row(self.may_move(state)[:, None])}

    def intent(self, state: State) -> Intent:
        """Wait at home until the lamp is lit, then come down on the right lid with closed fingers.

        It aims below the lid's top, so that a policy that imitates the mean over the three lids touches one of them too.
        """
        lid = state.mocap_pos[state.worlds, self.right_lid(state)]
        return self.once_allowed(state, above(state, lid + like(lid, TOP), resting_m=-LID_HALF_M))
