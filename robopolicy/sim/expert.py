"""The scripted experts' actions, batched, as a function of the worlds' current state alone.

An expert keeps no memory, so that it can label any state that a policy reached (DAgger) and recovers from a disturbance
(DART). Each task says where its expert goes next (`Task.intent`); here that becomes an action within the robot's limits.
"""

import numpy as np
from jaxtyping import Bool, Float

from robopolicy.control.arrays import like, namespace, row
from robopolicy.control.kinematics import damped_least_squares, pose_and_jacobian, rotation_vector
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


HAND_STEP_M = 0.007
HAND_STEP_RAD = 0.035
"""The same for each hand of the two-arm robot, whose control step is 0.02 s [m], [rad]."""
JOINT_STEP_RAD = 0.025
"""Largest displacement of a joint that its expert asks for in one step [rad]."""
HAND_DAMPING = 0.03
"""Damping of the least squares by which it moves its hands."""


def expert_actions(worlds: Worlds) -> Float[Array, "worlds width"]:
    """The scripted expert's action (N, width) for the present state of every world."""
    state = worlds.state
    if worlds.actions.kind == "absolute":
        return _joint_actions(worlds)
    goal, closed = worlds.task.intent(state)
    return within_limits(worlds, towards(state, goal, closed))


def within_limits(worlds: Worlds, action: Float[Array, "worlds width"]) -> Float[Array, "worlds width"]:
    """The action (N, width) with its displacement shortened to what the robot's limits leave unchanged, with some margin."""
    if worlds.actions.kind == "absolute":
        joints = list(worlds.actions.joint_columns)
        lower, upper = worlds.profile.soft_limits_rad
        near = worlds.commanded - JOINT_STEP_RAD, worlds.commanded + JOINT_STEP_RAD
        action[:, joints] = action[:, joints].clip(*near).clip(lower, upper)
        return action
    shift = _bounded(action[:, :3], STEP_M / POSITION_SCALE_M)
    turn = _bounded(action[:, 3:6], STEP_RAD / ROTATION_SCALE_RAD)
    profile, control_dt = worlds.profile, worlds.scene.control_dt
    qpos = worlds.state.qpos[:, : profile.joints]
    asked = joint_targets(profile, ACTIONS, row(shift, turn, action[:, 6:]), qpos, control_dt).joint_position_rad - qpos
    reach = like(qpos, np.multiply(profile.velocity_rad_s, VELOCITY_SHARE * control_dt))
    excess = namespace(qpos).amax(abs(asked) / reach, -1)[:, None].clip(1.0)
    return row(shift / excess, turn / excess, action[:, 6:])


def _joint_actions(worlds: Worlds) -> Float[Array, "worlds width"]:
    """Absolute joint targets that move every hand towards the task's intent, from where the joints are commanded to be."""
    action = np.zeros((len(worlds.commanded), worlds.actions.width), np.float32)
    for (name, arm, joints, _), intent in zip(worlds.profile.parts, worlds.task.intents(worlds.state), strict=True):
        spec, columns = worlds.actions.arm_specs[name], np.array(sorted(worlds.actions.arms[name]))
        assert arm.arm is not None
        commanded = worlds.commanded[:, joints]
        position, rotation, jacobian = pose_and_jacobian(arm.arm, commanded)
        shift = _bounded(APPROACH_GAIN * (intent.position - position), HAND_STEP_M)
        turn = _bounded(rotation_vector(intent.rotation @ rotation.mT), HAND_STEP_RAD)
        step = damped_least_squares(jacobian, np.concatenate([shift, turn], -1), HAND_DAMPING)
        step = step * (JOINT_STEP_RAD / abs(step).max(-1)[:, None].clip(JOINT_STEP_RAD))
        lower, upper = arm.soft_limits_rad
        action[:, columns[list(spec.joint_columns)]] = (commanded + step).clip(lower, upper)
        column, opened, shut = spec.gripper_ends[0]
        action[:, columns[column]] = np.where(intent.closed, shut, opened)
    return action


def towards(state: State, goal: Float[Array, "worlds 3"], closed: Bool[Array, " worlds"]) -> Float[Array, "worlds 7"]:
    """Action that moves the fingertips towards `goal` [m], keeps the hand pointing down, and sets the gripper."""
    shift = APPROACH_GAIN * (goal - state.ee_position) / POSITION_SCALE_M
    turn = rotation_vector(state.ee_rotation.mT) / ROTATION_SCALE_RAD
    return row(shift, turn, OPEN + (CLOSED - OPEN) * closed[:, None])


def _bounded(vector: Float[Array, "worlds 3"], longest: float) -> Float[Array, "worlds 3"]:
    """The vector, shortened to at most this length."""
    length = (vector * vector).sum(-1)[:, None] ** 0.5
    return vector * (longest / length.clip(longest))
