"""Shared by the memory tasks: lids in a row, and an arm that waits at home until a lamp or a lid allows it to move."""

import numpy as np
from jaxtyping import Bool, Float

from robopolicy.arrays import like, namespace
from robopolicy.sim.tasks._moves import Intent, choose
from robopolicy.sim.tasks.base import TABLE_X, TABLE_Y, State, Task
from robopolicy.types import Array

LIDS = 3
"""Lids in a row; in `mocap_pos` they come first, and then the lamp."""
LID_HALF_M = 0.032
LAMP_M = (0.69, 0.0, 0.02)
"""Where the lamp appears when the arm may move [m]."""
HOME_M = (0.45, 0.0, 0.22)
"""Where the fingertips wait [m]."""
STILL_M = 0.06
"""How far from home the fingertips may stray before the arm may move [m]."""
TOUCH_M = 0.06
"""Fingertips this near to the middle of a lid's top touch it, if no other is nearer [m]: more than half the gap, so that
coming down on the row always touches one."""
GAP_M = 0.105
"""Distance between the centers of neighbors in the row [m]."""
TURN_RAD = 0.2
"""Largest turn of the row away from left-to-right [rad]."""
TOP = np.array([0.0, 0.0, LID_HALF_M])
"""From a lid's center to the middle of its top [m]."""


class LidTask(Task):
    """A task with lids, whose arm must wait for `wait_steps`."""

    needs_gripper = False
    wait_steps: int
    """Control steps before the arm may move."""

    def may_move(self, state: State) -> Bool[Array, " worlds"]:
        """Whether the arm may move."""
        return state.step >= self.wait_steps

    def moved_early(self, state: State) -> Bool[Array, " worlds"]:
        """The arm has left home, and may not move yet."""
        offset = state.ee_position - like(state.ee_position, np.array(HOME_M))
        return ((offset * offset).sum(-1) > STILL_M**2) & ~self.may_move(state)

    def touched(self, state: State) -> Bool[Array, "worlds lids"]:
        """True for the lid of the row whose top the fingertips touch."""
        offset = state.mocap_pos[:, :LIDS] + like(state.mocap_pos, TOP) - state.ee_position[:, None]
        squares = (offset * offset).sum(-1)
        return (squares == namespace(squares).amin(squares, -1)[:, None]) & (squares < TOUCH_M**2)

    def observed_lids(self, state: State) -> dict[str, Float[Array, "worlds 6"]]:
        """Position of each lid of the row, and relative to the fingertips [m]."""
        rows = state.from_hand(state.mocap_pos[:, :LIDS])
        return {f"lid_{lid}": rows[:, lid] for lid in range(LIDS)}

    def light_lamp(self, mocap_pos: Float[Array, "worlds nmocap 3"], lit: Bool[Array, " worlds"]) -> None:
        """Put the lamp in sight in the worlds where it is lit."""
        lamp = like(mocap_pos, np.array(LAMP_M))
        mocap_pos[:, LIDS] = namespace(mocap_pos).where(lit[:, None], lamp, mocap_pos[:, LIDS])

    def once_allowed(self, state: State, goal: Float[Array, "worlds 3"]) -> Intent:
        """Wait at home with closed fingers, and go to `goal` once the arm may move."""
        home = goal * 0.0 + like(goal, np.array(HOME_M))
        return choose(self.may_move(state), goal, home), state.step >= 0


def row_on_table(rng: np.random.Generator) -> Float[np.ndarray, "3 2"]:
    """Three points in a row, evenly spaced from right to left, somewhere on the table and turned a little [m]."""
    turn = rng.uniform(-TURN_RAD, TURN_RAD)
    step = GAP_M * np.array([np.sin(turn), np.cos(turn)])
    low, high = np.array([TABLE_X, TABLE_Y]).T
    middle = rng.uniform(low + abs(step), high - abs(step))
    return middle + np.arange(-1, 2)[:, None] * step
