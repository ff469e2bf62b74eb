"""Motion primitives of the scripted experts, batched: from the current state to the next position of the fingertips."""

from typing import TypeAlias

from jaxtyping import Bool, Float

from robopolicy.arrays import namespace
from robopolicy.sim.tasks._cubes import RELEASED_M, is_other
from robopolicy.sim.tasks.base import State
from robopolicy.types import Array

Intent: TypeAlias = tuple[Float[Array, "worlds 3"], Bool[Array, " worlds"]]
"""Next position of the fingertips [m], and whether the gripper should be closed."""
GRASP_M = 0.016
"""Largest offset of the fingertips from a cube's center, along each axis, at which closing them grasps it [m]."""
BLOCKED_M = (0.032, 0.062)
"""Range of the finger distance while a cube is held [m]; below the first, nothing is held."""
HOVER_M = 0.07
"""Minimum height of the fingertips above a cube's center while they are not yet over it [m]."""
CARRY_M = 0.07
"""Minimum height above its spot at which a cube is carried [m]."""
CLEAR_M = 0.05
"""Height of the fingertips above the highest other object's center while they travel [m]."""
CARRY_CLEAR_M = 0.07
"""Height of the fingertips above the highest other object's center while they carry a cube [m]."""
SET_DOWN_M = 0.012
"""Height above its spot at which a cube is released [m]."""
SET_OVER_M = 0.04
"""Height above its spot at which a cube approaches from the side [m]; it descends within this horizontal distance."""
RETREAT_M = 0.15
"""Height to which the empty gripper rises after the release [m]."""
LIFTED_M = 0.1
"""Height to which a cube is raised [m]."""


def put_at(state: State, spot: Float[Array, "worlds 3"], tolerance_m: float) -> Intent:
    """Grasp the cube that the instruction names, carry it over the others, center it at `spot` [m], release it and rise."""
    xp, cube = namespace(spot), state.chosen(0)
    held = holding(state, cube)
    offset = spot - cube
    sideways = (offset[:, 0] ** 2 + offset[:, 1] ** 2) ** 0.5
    there = (sideways < tolerance_m) & (abs(offset[:, 2]) < SET_DOWN_M)
    travel = xp.maximum(spot[:, 2] + CARRY_M, highest_other(state) + CARRY_CLEAR_M)
    height = spot[:, 2] + (travel - spot[:, 2]) * xp.clip((sideways - 0.008) / 0.04, 0.0, 1.0)
    goal = rising_first(state, state.ee_position + offset, height - cube[:, 2])
    goal = choose(held, goal, approach(state, cube))
    released = choose(state.opening > RELEASED_M, at_height(state, RETREAT_M), state.ee_position)
    return choose(there, released, goal), (held | around(state, cube)) & ~there


def at_height(state: State, height_m: float) -> Float[Array, "worlds 3"]:
    """The point straight above or below the fingertips at this height [m]."""
    goal = state.ee_position * 1.0
    goal[:, 2] = height_m
    return goal


def above(state: State, spot: Float[Array, "worlds 3"], resting_m: float = 0.0) -> Float[Array, "worlds 3"]:
    """Next position on a path down to `resting_m` above `spot` [m]: the better the horizontal alignment, the lower."""
    xp, offset = namespace(spot), spot[:, :2] - state.ee_position[:, :2]
    side = xp.clip(((offset * offset).sum(-1) ** 0.5 - 0.012) / 0.03, 0.0, 1.0)
    low = spot[:, 2] + resting_m
    travel = xp.maximum(spot[:, 2] + HOVER_M, highest_other(state) + CLEAR_M)
    return rising_first(state, spot, low + (travel - low) * side - state.ee_position[:, 2])


def approach(state: State, spot: Float[Array, "worlds 3"]) -> Float[Array, "worlds 3"]:
    """Like `above`, but straight up first if the fingers are still closed and would press on the object at `spot`."""
    height = state.ee_position[:, 2] - spot[:, 2]
    pressed = (state.opening < RELEASED_M) & (height > GRASP_M) & (height < HOVER_M)
    return choose(pressed, at_height(state, LIFTED_M), above(state, spot))


def rising_first(
    state: State, goal: Float[Array, "worlds 3"], rise_m: Float[Array, " worlds"]
) -> Float[Array, "worlds 3"]:
    """Move sideways to `goal` and vertically by `rise_m`; no sideways motion while far below."""
    share = namespace(goal).clip(1.0 - (rise_m - 0.02) / 0.04, 0.0, 1.0)[:, None]
    next_goal = state.ee_position + share * (goal - state.ee_position)
    next_goal[:, 2] = state.ee_position[:, 2] + rise_m
    return next_goal


def highest_other(state: State) -> Float[Array, " worlds"]:
    """Height of the highest center among the free objects that the instruction does not name [m]; 0 if there are none."""
    if state.objects.shape[1] == 0:
        return state.opening * 0.0
    xp = namespace(state.opening)
    return xp.amax(xp.where(is_other(state), state.positions[..., 2], 0.0), -1)


def around(state: State, cube: Float[Array, "worlds 3"]) -> Bool[Array, " worlds"]:
    """Whether the open fingers are on both sides of a cube, so that closing them grasps it."""
    offset = abs(state.ee_position - cube)
    near = (offset < GRASP_M).all(-1)
    return near & (state.opening > BLOCKED_M[0])


def holding(state: State, cube: Float[Array, "worlds 3"]) -> Bool[Array, " worlds"]:
    """Whether the fingers are closed on a cube."""
    near = (abs(state.ee_position - cube) < 0.03).all(-1)
    return near & (state.opening > BLOCKED_M[0]) & (state.opening < BLOCKED_M[1])


def nearness(offset: Float[Array, "worlds 3"], scale_m: float) -> Float[Array, " worlds"]:
    """1 at no distance, 1/e at `scale_m`."""
    return namespace(offset).exp(-((offset * offset).sum(-1) ** 0.5) / scale_m)


def displacement_from_above(offset: Float[Array, "worlds 3"]) -> Float[Array, "worlds 3"]:
    """Displacement from a cube to its spot [m], plus the height from which it must descend while it is off to the side."""
    sideways = (offset[:, 0] ** 2 + offset[:, 1] ** 2) ** 0.5
    displacement = offset * 1.0
    displacement[:, 2] += SET_OVER_M * namespace(offset).clip(sideways / SET_OVER_M, 0.0, 1.0)
    return displacement


def choose(
    condition: Bool[Array, " worlds"], this: Float[Array, "worlds 3"], other: Float[Array, "worlds 3"]
) -> Float[Array, "worlds 3"]:
    """For each world one of two points (N, 3)."""
    return namespace(this).where(condition[:, None], this, other)
