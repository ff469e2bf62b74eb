"""A memory task: a cube is covered by one of three lids, which then change places; touch the lid over it."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from robopolicy.arrays import like, namespace, row
from robopolicy.components import option, register
from robopolicy.sim.scene import Scene
from robopolicy.sim.tasks._cubes import HALF_M, with_arm_near_home
from robopolicy.sim.tasks._lids import GAP_M, LID_HALF_M, LIDS, row_on_table
from robopolicy.sim.tasks.base import Setup, State
from robopolicy.sim.tasks.recall import BEHIND_M, Recall, RecallOptions
from robopolicy.types import Array

CUBE = LIDS + 1
"""Place of the cube in `mocap_pos`, behind the lids and the lamp."""
ASIDE_M = 0.075
"""Distance from the row at which a lid passes the others, in front of it or behind it [m]."""
CUBE_XML = """<mujoco><worldbody><body name="hidden_cube" mocap="true" pos="-0.6 0.6 0.02">
<geom type="box" size="0.02 0.02 0.02" group="1" contype="0" conaffinity="0" rgba="0.8 0.1 0.1 1"/>
</body></worldbody></mujoco>"""


@dataclass(frozen=True)
class SwapOptions(RecallOptions):
    """Options of the task `swap`."""

    swaps: int = option(2, ">= 0")
    """Times that two lids change places."""
    swap_steps: int = option(6, ">= 1")
    """Control steps of one change."""
    delay_steps: int = 4
    """Control steps from the last change until the lamp is lit."""


@register("task", "swap", SwapOptions)
class Swap(Recall):
    """Touch the lid over the cube, which moves with its lid; move only once the lamp is lit.

    The cube is visible for `cue_steps` in front of its lid. Then each lid covers its place in the row, and pairs of lids change
    places, one lid passing in front of the row and the other behind it. Without memory one in three episodes succeeds at
    best. A goal is (the cube's lid, middle of the row [mm], turn of the row [mrad], the place that stays in each change);
    lids are numbered by their first places, from right to left.
    """

    parts = ("lids", CUBE_XML)

    def __init__(self, options: SwapOptions = SwapOptions()) -> None:
        super().__init__(options)
        self.swaps, self.swap_steps = options.swaps, options.swap_steps
        self.wait_steps += options.swaps * options.swap_steps
        self.max_episode_steps = self.wait_steps + 60

    def sample(self, scene: Scene, rng: np.random.Generator) -> Setup:
        """A row of lids, one of them with the cube, and the changes to come."""
        points = row_on_table(rng)
        along = points[2] - points[0]
        place = [*np.rint(1e3 * points[1]), np.rint(1e3 * np.arctan2(along[0], along[1]))]
        goal = [rng.integers(LIDS), *place, *rng.integers(LIDS, size=self.swaps)]
        goals = np.array([goal], dtype=np.int64)
        return Setup(("touch the lid over the cube",), goals, with_arm_near_home(scene, rng), scene.home_mocap)

    def arrange(self, state: State, scene: Scene) -> Float[Array, "worlds nmocap 3"]:
        """Lids behind their places during the cue, then in the row and on their ways; the cube where its lid is [m]."""
        mocap_pos = state.mocap_pos * 0.0 + like(state.mocap_pos, scene.home_mocap)
        cue = (state.step < self.cue_steps)[:, None]
        lids = self.row_points(state)
        mocap_pos[:, CUBE, :2] = lids[state.worlds, self.right_lid(state)]
        mocap_pos[:, CUBE, 2] = HALF_M
        mocap_pos[:, :LIDS, :2] = lids
        mocap_pos[:, :LIDS, 0] += BEHIND_M * cue
        mocap_pos[:, :LIDS, 2] = LID_HALF_M
        self.light_lamp(mocap_pos, self.may_move(state))
        return mocap_pos

    def row_points(self, state: State) -> Float[Array, "worlds lids 2"]:
        """Where each lid is in the row, or on its way to another place in it [m]."""
        xp, goal = namespace(state.mocap_pos), state.goal
        place = goal[:, :1] * 0 + like(goal, np.arange(LIDS))
        along, aside = place * 1.0, place * 0.0
        for number in range(self.swaps):
            progress = (state.step - self.cue_steps - number * self.swap_steps) / self.swap_steps
            angle = np.pi * progress.clip(0.0, 1.0)[:, None]
            stays = goal[:, 4 + number, None]
            other = xp.where(place == stays, place, LIDS - stays - place)
            half = (place - other) / 2
            begun = (progress > 0)[:, None]
            along = xp.where(begun, (place + other) / 2 + half * xp.cos(angle), along)
            aside = xp.where(begun, ASIDE_M * xp.sign(half) * xp.sin(angle), aside)
            place = other
        turn = 1e-3 * goal[:, 3, None]
        along = (along - 1) * GAP_M
        x = 1e-3 * goal[:, 1, None] + along * xp.sin(turn) + aside * xp.cos(turn)
        y = 1e-3 * goal[:, 2, None] + along * xp.cos(turn) - aside * xp.sin(turn)
        return xp.stack((x, y), -1)

    def right_lid(self, state: State) -> Int[Array, " worlds"]:
        """Index of the lid over the cube."""
        return state.goal[:, 0]

    def target(self, state: State) -> Float[Array, "worlds 3"]:
        """Middle of the lid over the cube [m]."""
        return state.mocap_pos[state.worlds, self.right_lid(state)]

    def observe(self, state: State, scene: Scene) -> dict[str, Float[Array, "worlds _"]]:
        """The cube while it is visible (zeros otherwise), the lids, and whether the lamp is lit."""
        cube, visible = state.mocap_pos[:, CUBE], (state.step < self.cue_steps)[:, None]
        return super().observe(state, scene) | {"cube": row(cube * visible, (cube - state.ee_position) * visible)}
