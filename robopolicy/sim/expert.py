"""The scripted experts' actions, batched, as a function of the worlds' current state alone.

An expert keeps no memory, so that it can label any state that a policy reached (DAgger) and recovers from a disturbance
(DART). Each task says where its expert goes next (`Task.intent`); here that becomes an action within the robot's limits.
"""

import numpy as np
from jaxtyping import Bool, Float

from robopolicy.control.arrays import like, namespace, row
from robopolicy.control.kinematics import rotation_vector
from robopolicy.control.limits import POSITION_SCALE_M, ROTATION_SCALE_RAD, joint_targets
from robopolicy.sim.tasks import State
from robopolicy.sim.worlds import ACTIONS, Worlds
from robopolicy.types import Array

OPEN, CLOSED = -1.0, 1.0
STEP_M = 0.05
STEP_RAD = 0.08
"""Largest displacement of the tool that an expert asks for in one step [m], [rad]; well within the robot's limits."""
VELOCITY_SHARE = 0.8
"""Share of the joints' velocity limits that an expert asks for, so that the robot's limits change none of its actions."""
APPROACH_GAIN = 0.8
"""Share of the way to its goal that an expert asks for in one step, so that the arm can come to rest there."""


def expert_actions(worlds: Worlds) -> Float[Array, "worlds 7"]:
    """The scripted expert's action (N, 7) for the current state of every world."""
    state = worlds.state
    goal, closed = worlds.task.intent(state)
    return within_limits(worlds, towards(state, goal, closed))


def within_limits(worlds: Worlds, action: Float[Array, "worlds 7"]) -> Float[Array, "worlds 7"]:
    """The action (N, 7), its displacement shortened to stay within the robot's limits, with a margin."""
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
    """The vector, shortened to at most this length."""
    length = (vector * vector).sum(-1)[:, None] ** 0.5
    return vector * (longest / length.clip(longest))
