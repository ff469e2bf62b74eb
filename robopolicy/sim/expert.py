"""Scripted demonstrators, batched: the right action from the present state of every world, and nothing else.

An expert keeps no memory, so it can label any state that a policy got itself into (DAgger) and finds back after a
disturbance (DART): a missed grasp, a dropped cube, a wrong height.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float

from robopolicy.control.arrays import like, namespace, row
from robopolicy.control.kinematics import rotation_vector
from robopolicy.control.limits import POSITION_SCALE_M, ROTATION_SCALE_RAD, joint_targets
from robopolicy.sim.tasks import State, Task
from robopolicy.sim.tasks.chain import LINKS, of_link
from robopolicy.sim.tasks.cubes import RELEASED_M, is_other, plate_spot, stack_spot
from robopolicy.sim.tasks.recall import HOME_M, LID_HALF_M, Recall
from robopolicy.sim.worlds import ACTIONS, Worlds
from robopolicy.types import Array

Intent: TypeAlias = tuple[Float[Array, "worlds 3"], Bool[Array, " worlds"]]
"""Where the fingertips should go next [m], and whether the gripper should be closed."""
OPEN, CLOSED = -1.0, 1.0
STEP_M = 0.05
STEP_RAD = 0.08
"""Largest displacement of the tool that an expert asks for in one step [m], [rad]; well within the robot's limits."""
VELOCITY_SHARE = 0.8
"""Share of the joints' velocity limits that an expert asks for, so that the robot's limits change none of its actions."""
APPROACH_GAIN = 0.8
"""Share of the way to its goal that an expert asks for in one step, so that the arm can come to rest there."""
GRASP_M = 0.016
"""Offset of the fingertips from a cube's centre, along each axis, at which closing them grasps it [m]."""
BLOCKED_M = (0.032, 0.062)
"""Distances between fingers that a cube keeps from closing [m]; less than the first means there is none."""
HOVER_M = 0.07
"""Least height of the fingertips above a cube's centre while they are not yet over it [m]."""
CARRY_M = 0.07
"""Least height above its spot at which a cube is carried [m]."""
CLEAR_M = 0.05
"""Height of the fingertips above the highest other object's centre while they travel [m]."""
CARRY_CLEAR_M = 0.07
"""The same while they carry a cube [m]."""
SET_DOWN_M = 0.012
"""Height above its spot at which a cube is let go [m]."""
RETREAT_M = 0.15
"""Height to which the empty hand rises in the end [m]."""
GRIPPED_HANDLE_M = (0.006, 0.03)
"""Distances between fingers that a drawer's handle keeps from closing [m]."""
PULL_M = 0.04
"""How far ahead of the handle its puller aims [m]."""
LIFTED_M = 0.1
"""Height to which a cube is raised [m]."""


def expert_actions(worlds: Worlds) -> Float[Array, "worlds 7"]:
    """The scripted expert's action (N, 7) for the present state of every world."""
    state = worlds.state
    goal, closed = EXPERTS[worlds.task.name](worlds.task, state)
    return within_limits(worlds, towards(state, goal, closed))


def within_limits(worlds: Worlds, action: Float[Array, "worlds 7"]) -> Float[Array, "worlds 7"]:
    """The action (N, 7) with its displacement shortened to what the robot's limits leave unchanged, with some margin."""
    shift = _bounded(action[:, :3], STEP_M / POSITION_SCALE_M)
    turn = _bounded(action[:, 3:6], STEP_RAD / ROTATION_SCALE_RAD)
    profile, control_dt = worlds.profile, worlds.scene.control_dt
    qpos = worlds.state.qpos[:, : profile.joints]
    asked = joint_targets(profile, ACTIONS, row(shift, turn, action[:, 6:]), qpos, control_dt).joint_position_rad - qpos
    reach = like(qpos, np.multiply(profile.velocity_rad_s, VELOCITY_SHARE * control_dt))
    excess = namespace(qpos).amax(abs(asked) / reach, -1)[:, None].clip(1.0)
    return row(shift / excess, turn / excess, action[:, 6:])


def towards(state: State, goal: Float[Array, "worlds 3"], closed: Bool[Array, " worlds"]) -> Float[Array, "worlds 7"]:
    """Action that moves the fingertips towards `goal` [m], keeps the hand pointing down, and sets the gripper."""
    shift = APPROACH_GAIN * (goal - state.ee_position) / POSITION_SCALE_M
    turn = rotation_vector(state.ee_rotation.mT) / ROTATION_SCALE_RAD
    return row(shift, turn, OPEN + (CLOSED - OPEN) * closed[:, None])


def _bounded(vector: Float[Array, "worlds 3"], longest: float) -> Float[Array, "worlds 3"]:
    """The vector, shortened to this length where it is longer."""
    length = (vector * vector).sum(-1)[:, None] ** 0.5
    return vector * (longest / length.clip(longest))


def reach(task: Task, state: State) -> Intent:
    """Come down over the named cube with open fingers."""
    return above(state, state.chosen(0), resting_m=0.02), state.step < 0


def lift(task: Task, state: State) -> Intent:
    """Grasp the named cube and raise it straight up."""
    cube = state.chosen(0)
    held = holding(state, cube)
    goal = _choose(held, at_height(state, LIFTED_M), approach(state, cube))
    return goal, held | around(state, cube)


def place(task: Task, state: State) -> Intent:
    """Carry the named cube to the named plate."""
    return put_at(state, plate_spot(state, state.goal[:, 1]), tolerance_m=0.024)


def stack(task: Task, state: State) -> Intent:
    """Carry the named cube onto the named other cube."""
    return put_at(state, stack_spot(state, state.goal[:, 1]), tolerance_m=0.015)


def put_at(state: State, spot: Float[Array, "worlds 3"], tolerance_m: float) -> Intent:
    """Grasp the named cube, carry it over the others, set its centre down at `spot` [m], let go and rise."""
    xp, cube = namespace(spot), state.chosen(0)
    held = holding(state, cube)
    offset = spot - cube
    sideways = (offset[:, 0] ** 2 + offset[:, 1] ** 2) ** 0.5
    there = (sideways < tolerance_m) & (abs(offset[:, 2]) < SET_DOWN_M)
    travel = xp.maximum(spot[:, 2] + CARRY_M, highest_other(state) + CARRY_CLEAR_M)
    height = spot[:, 2] + (travel - spot[:, 2]) * xp.clip((sideways - 0.008) / 0.04, 0.0, 1.0)
    goal = rising_first(state, state.ee_position + offset, height - cube[:, 2])
    goal = _choose(held, goal, approach(state, cube))
    released = _choose(state.opening > RELEASED_M, at_height(state, RETREAT_M), state.ee_position)
    return _choose(there, released, goal), (held | around(state, cube)) & ~there


def at_height(state: State, height_m: float) -> Float[Array, "worlds 3"]:
    """The point straight above or below the fingertips at this height [m]."""
    goal = state.ee_position * 1.0
    goal[:, 2] = height_m
    return goal


def above(state: State, spot: Float[Array, "worlds 3"], resting_m: float = 0.0) -> Float[Array, "worlds 3"]:
    """Where to go next to come down over `spot` [m]: high while off to the side, lower the better the alignment."""
    xp, offset = namespace(spot), spot[:, :2] - state.ee_position[:, :2]
    side = xp.clip(((offset * offset).sum(-1) ** 0.5 - 0.012) / 0.03, 0.0, 1.0)
    low = spot[:, 2] + resting_m
    travel = xp.maximum(spot[:, 2] + HOVER_M, highest_other(state) + CLEAR_M)
    return rising_first(state, spot, low + (travel - low) * side - state.ee_position[:, 2])


def approach(state: State, spot: Float[Array, "worlds 3"]) -> Float[Array, "worlds 3"]:
    """Like `above`, but straight up first where fingers that are not open yet would be pressed on top of the spot."""
    height = state.ee_position[:, 2] - spot[:, 2]
    pressed = (state.opening < RELEASED_M) & (height > GRASP_M) & (height < HOVER_M)
    return _choose(pressed, at_height(state, LIFTED_M), above(state, spot))


def rising_first(
    state: State, goal: Float[Array, "worlds 3"], rise_m: Float[Array, " worlds"]
) -> Float[Array, "worlds 3"]:
    """Over to `goal` sideways and up or down by `rise_m`; no sideways motion while there is far to rise."""
    share = namespace(goal).clip(1.0 - (rise_m - 0.02) / 0.04, 0.0, 1.0)[:, None]
    next_goal = state.ee_position + share * (goal - state.ee_position)
    next_goal[:, 2] = state.ee_position[:, 2] + rise_m
    return next_goal


def highest_other(state: State) -> Float[Array, " worlds"]:
    """Height of the highest centre among the free objects that are not the named one [m]; 0 without any."""
    if state.objects.shape[1] == 0:
        return state.opening * 0.0
    xp = namespace(state.opening)
    return xp.amax(xp.where(is_other(state), state.positions[..., 2], 0.0), -1)


def around(state: State, cube: Float[Array, "worlds 3"]) -> Bool[Array, " worlds"]:
    """The open fingers are on both sides of a cube: time to close."""
    offset = abs(state.ee_position - cube)
    near = (offset < GRASP_M).all(-1)
    return near & (state.opening > BLOCKED_M[0])


def holding(state: State, cube: Float[Array, "worlds 3"]) -> Bool[Array, " worlds"]:
    """The fingers are closed on a cube."""
    near = (abs(state.ee_position - cube) < 0.03).all(-1)
    return near & (state.opening > BLOCKED_M[0]) & (state.opening < BLOCKED_M[1])


def drawer(task: Task, state: State) -> Intent:
    """Come down over the named handle, close the fingers on it, and pull it towards the arm."""
    handle = task.target(state)
    offset = abs(state.ee_position - handle)
    near = (offset[:, 0] < 0.015) & (offset[:, 1] < 0.02) & (offset[:, 2] < 0.016)
    gripped = near & (state.opening < GRIPPED_HANDLE_M[1]) & (state.opening > GRIPPED_HANDLE_M[0])
    pulled = handle - like(handle, np.array([PULL_M, 0.0, 0.0]))
    return _choose(gripped, pulled, approach(state, handle)), near & (state.opening > GRIPPED_HANDLE_M[0])


def recall(task: Task, state: State) -> Intent:
    """Wait at home until the lamp is lit, then come down on the right lid with closed fingers; it knows which.

    It aims below the lid's top, so that whoever does the mean of what it does over the three lids touches one of them.
    """
    assert isinstance(task, Recall)
    lid = state.mocap_pos[state.worlds, task.right_lid(state)]
    lid = lid + like(lid, np.array([0.0, 0.0, LID_HALF_M]))
    goal = above(state, lid, resting_m=-LID_HALF_M)
    return _choose(task.may_move(state), goal, goal * 0.0 + like(goal, np.array(HOME_M))), state.step >= 0


def chain(task: Task, state: State) -> Intent:
    """Do as the expert of the present instruction."""
    intents = [EXPERTS[link.name](link, of_link(state, kind)) for kind, link in enumerate(LINKS)]
    goals, closed = zip(*intents, strict=True)
    xp, kind = namespace(state.opening), state.goal[:, 0]
    return xp.stack(goals)[kind, state.worlds], xp.stack(closed)[kind, state.worlds]


def _choose(
    condition: Bool[Array, " worlds"], this: Float[Array, "worlds 3"], other: Float[Array, "worlds 3"]
) -> Float[Array, "worlds 3"]:
    return namespace(this).where(condition[:, None], this, other)


EXPERTS: dict[str, Callable[[Task, State], Intent]] = {
    "reach": reach,
    "lift": lift,
    "place": place,
    "stack": stack,
    "drawer": drawer,
    "recall": recall,
    "recall_long": recall,
    "chain": chain,
}
