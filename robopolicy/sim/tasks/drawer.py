"""An articulated object: a cabinet with two drawers, of which the named one is to be opened."""

import numpy as np
from jaxtyping import Bool, Float

from robopolicy.arrays import like, row
from robopolicy.components import register
from robopolicy.sim.scene import Scene
from robopolicy.sim.tasks._cubes import with_arm_near_home
from robopolicy.sim.tasks._moves import Intent, approach, choose
from robopolicy.sim.tasks.base import Setup, State, Task
from robopolicy.types import Array

DRAWERS = ("red", "blue")
HANDLE_OFFSET_M = ((0.0, -0.09, 0.045), (0.0, 0.09, 0.045))
"""Middle of each handle, relative to the cabinet, while the drawer is shut [m]."""
CABINET_X = (0.44, 0.74)
CABINET_Y = (-0.11, 0.11)
"""Range of the cabinet's position, chosen so that handles lie within 30 x 40 cm [m]."""

GRIPPED_HANDLE_M = (0.006, 0.03)
"""Range of the distance between fingers that are closed on a drawer's handle [m]."""
PULL_M = 0.04
"""How far ahead of the handle the expert aims while pulling [m]."""


@register("task", "drawer")
class Drawer(Task):
    """Pull the named drawer open by 10 cm; opening the other by 5 cm is a failure."""

    parts = ("drawers",)
    max_episode_steps = 150
    open_m = 0.1
    wrong_m = 0.05

    def sample(self, scene: Scene, rng: np.random.Generator) -> Setup:
        """Both drawers shut, the cabinet anywhere on the table."""
        drawer = int(rng.integers(len(DRAWERS)))
        mocap_pos = scene.home_mocap.copy()
        mocap_pos[0, :2] = rng.uniform(CABINET_X[0], CABINET_X[1]), rng.uniform(CABINET_Y[0], CABINET_Y[1])
        qpos = with_arm_near_home(scene, rng)
        return Setup((f"open the {DRAWERS[drawer]} drawer",), np.array([[drawer]]), qpos, mocap_pos)

    def reached(self, state: State) -> Bool[Array, " worlds"]:
        """The named drawer is open."""
        return slides(state)[state.worlds, state.goal[:, 0]] > self.open_m

    def failed(self, state: State) -> Bool[Array, " worlds"]:
        """The other drawer is open."""
        return slides(state)[state.worlds, 1 - state.goal[:, 0]] > self.wrong_m

    def target(self, state: State) -> Float[Array, "worlds 3"]:
        """Middle of the named drawer's handle [m]."""
        return handles(state)[state.worlds, state.goal[:, 0]]

    def observe(self, state: State, scene: Scene) -> dict[str, Float[Array, "worlds _"]]:
        """For each drawer: its handle [m], how far it is open [m], its handle relative to the gripper [m]."""
        handle = handles(state)
        rows = row(handle, slides(state)[..., None], handle - state.ee_position[:, None])
        return {f"drawer_{color}": rows[:, place] for place, color in enumerate(DRAWERS)}

    def intent(self, state: State) -> Intent:
        """Come down over the named handle, close the fingers on it, and pull it towards the arm."""
        handle = self.target(state)
        offset = abs(state.ee_position - handle)
        near = (offset[:, 0] < 0.015) & (offset[:, 1] < 0.02) & (offset[:, 2] < 0.016)
        gripped = near & (state.opening < GRIPPED_HANDLE_M[1]) & (state.opening > GRIPPED_HANDLE_M[0])
        pulled = handle - like(handle, np.array([PULL_M, 0.0, 0.0]))
        return choose(gripped, pulled, approach(state, handle)), near & (state.opening > GRIPPED_HANDLE_M[0])


def slides(state: State) -> Float[Array, "worlds drawers"]:
    """How far each drawer is open [m]."""
    return state.qpos[:, -len(DRAWERS) :]


def handles(state: State) -> Float[Array, "worlds drawers 3"]:
    """Middle of each drawer's handle [m]."""
    middle = state.mocap_pos[:, :1] + like(state.mocap_pos, np.array(HANDLE_OFFSET_M))
    middle[..., 0] -= slides(state)
    return middle
