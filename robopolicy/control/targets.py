"""Converts actions to joint targets; batched over any leading axes, for NumPy arrays and torch tensors.

The simulator's worlds and the real-time loop call `joint_targets` with the same robot profile; `limits` then limits the
targets.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from robopolicy.arrays import Bool, Float, cast, like, namespace
from robopolicy.control.kinematics import (
    Arm,
    damped_least_squares,
    pose_and_jacobian,
    quaternion_to_matrix,
    rotation_from_vector,
    rotation_vector,
)
from robopolicy.control.profile import RobotProfile
from robopolicy.types import ActionSpec, Array

POSITION_SCALE_M = 0.05
ROTATION_SCALE_RAD = 0.5
"""Displacement in one control step for an end-effector action of 1, as in robosuite's OSC_POSE."""
_SCALE = np.array([POSITION_SCALE_M] * 3 + [ROTATION_SCALE_RAD] * 3)
POSTURE_GAIN = 0.1
"""Fraction of the displacement to the home posture that each step adds in the arm's null space."""
POSE_ITERATIONS = 10
POSE_STEP_M = 0.1
POSE_STEP_RAD = 0.4
"""An absolute pose is approached by this many steps of damped least squares, each at most this long [m], [rad]."""
POSE_DAMPING = 0.02
"""Damping of these steps: smaller than for deltas, since each step corrects the error of the last one."""
ROUNDING = 1e-6
"""Excess of an action over [-1, 1] that is not counted as limited: rounding in single precision."""


@dataclass(frozen=True)
class Targets:
    """Joint positions and gripper openings at the end of a control step, and what limited them."""

    joint_position_rad: Float[Array, "*B joints"]
    gripper_opening_m: Float[Array, "*B grippers"]
    """nan leaves a gripper as it is."""
    limited: Mapping[str, Array]
    """Kind of limit -> bool (*B), True where it changed something."""

    @property
    def intervened(self) -> Bool[Array, "*B"]:
        """Where any limit changed something."""
        return namespace(self.joint_position_rad).stack(list(self.limited.values())).any(0)


def joint_targets(
    profile: RobotProfile,
    spec: ActionSpec,
    action: Float[Array, "*B width"],
    qpos: Float[Array, "*B joints"],
    control_dt: float,
) -> Targets:
    """Targets of an action (demos' units) for a robot whose joints are at `qpos` [rad], before `limit_targets`.

    Supported are joint positions (absolute or delta), joint velocities, and, for each arm with kinematics, the pose of
    its tool in the base frame: deltas (robosuite's OSC_POSE: x y z in units of 0.05 m, rotation vector of 0.5 rad, relative to
    the current pose, clipped to [-1, 1]) or absolute (x y z [m], then a rotation vector [rad] or a quaternion w x y z).
    The profile's `gripper_opens` says which of a gripper's two values opens it. Grippers without a column keep their
    opening; `base_target` handles base columns.

    Raises:
        ValueError: the action spec doesn't say what the arm columns are, or they don't fit this robot.
    """
    if spec.arms and (profile.arms or len(spec.arms) > 1):
        return _joint_targets_by_arm(profile, spec, action, qpos, control_dt)
    xp = namespace(qpos)
    action = cast(action, qpos)
    finite = xp.isfinite(action).all(-1)
    action = xp.where(finite[..., None], action, 0.0)
    keep = list(spec.joint_columns)
    arm = action[..., keep] if keep != list(range(len(keep))) else action[..., : len(keep)]
    opening = _openings(profile, spec, action)
    limited = {"non_finite": ~finite}
    if (spec.space, spec.kind) == ("ee", "absolute") and len(keep) in (6, 7) and profile.arm is not None:
        return Targets(_joints_at_pose(profile.arm, arm, qpos), opening, limited)
    if (spec.space, spec.kind, len(keep)) == ("ee", "delta", 6) and profile.arm is not None:
        clipped = arm.clip(-1.0, 1.0)
        limited["action"] = (abs(clipped - arm) > ROUNDING).any(-1)
        return Targets(qpos + _ee_displacement(profile, clipped, qpos), opening, limited)
    if len(keep) == profile.joints and spec.space == "joint_position" and spec.kind in ("absolute", "delta"):
        return Targets(arm if spec.kind == "absolute" else qpos + arm, opening, limited)
    if len(keep) == profile.joints and spec.space == "joint_velocity":
        return Targets(qpos + arm * control_dt, opening, limited)
    if spec.space == "ee" and profile.arms:
        raise ValueError(
            f"the actions move an end effector without saying whose; robot {profile.name} has the arms "
            f"{', '.join(profile.arms)}: name their columns in the action_spec's `arms`"
        )
    if spec.space == "ee" and profile.arm is None:
        raise ValueError(
            f"the actions move the end effector, and the profile of {profile.name} has no `kinematics`; add them to the "
            "profile, or train on joint actions"
        )
    raise ValueError(
        f"can't turn {len(keep)} arm columns of space {spec.space!r} and kind {spec.kind!r} into targets for {profile.name} "
        f"with {profile.joints} joints; expected ee delta (6), ee absolute (6 or 7), joint_position or joint_velocity "
        f"({profile.joints}). The demos' action_spec says what their columns are"
    )


def _joint_targets_by_arm(
    profile: RobotProfile, spec: ActionSpec, action: Array, qpos: Array, control_dt: float
) -> Targets:
    """The targets of a robot with several arms, each from its own action columns."""
    named = tuple(profile.arms) or (profile.name,)
    if set(spec.arms) != set(named):
        raise ValueError(
            f"the actions move the arms {', '.join(spec.arms)}; robot {profile.name} has {', '.join(named)}: use the same names"
        )
    found = []
    for name, arm, joints, _ in profile.parts:
        columns = sorted(spec.arms[name])
        first, last = columns[0], columns[-1] + 1
        part = action[..., first:last] if len(columns) == last - first else action[..., columns]
        try:
            found.append(joint_targets(arm, spec.arm_specs[name], part, qpos[..., joints], control_dt))
        except ValueError as error:
            raise ValueError(f"arm {name}: {error}") from None
    return side_by_side(found)


def _ee_displacement(profile: RobotProfile, action: Array, qpos: Array) -> Array:
    """Joint displacement (*B, joints) [rad] of an OSC_POSE action (*B, 6) in [-1, 1]."""
    _, _, jacobian = pose_and_jacobian(profile.arm, qpos)  # type: ignore[arg-type]
    posture = POSTURE_GAIN * (like(qpos, np.asarray(profile.home_rad)) - qpos)
    return damped_least_squares(jacobian, action * like(action, _SCALE), posture=posture)


def _joints_at_pose(arm: Arm, pose: Array, qpos: Array) -> Array:
    """Joint positions (*B, joints) [rad] near `qpos` whose tool is at `pose` (*B, 6 or 7), as far as the steps converge."""
    xp = namespace(qpos)
    turned = pose[..., 3:]
    rotation = rotation_from_vector(turned) if turned.shape[-1] == 3 else quaternion_to_matrix(turned)
    for _ in range(POSE_ITERATIONS):
        position, found, jacobian = pose_and_jacobian(arm, qpos)
        way, turn = pose[..., :3] - position, rotation_vector(rotation @ found.mT)
        parts = []
        for part, longest in ((way, POSE_STEP_M), (turn, POSE_STEP_RAD)):
            length = xp.sqrt((part * part).sum(-1))[..., None]
            parts.append(part * (longest / length.clip(longest)))
        qpos = qpos + damped_least_squares(jacobian, xp.concatenate(parts, -1), POSE_DAMPING)
    return qpos


def _openings(profile: RobotProfile, spec: ActionSpec, action: Array) -> Array:
    """Openings (*B, grippers) that an action asks for [m]; nan where it has no gripper column."""
    xp, ends = namespace(action), spec.gripper_ends
    if not ends:
        return math.nan * xp.zeros_like(action[..., :1]) + 0.0 * like(action, profile.openings_m)
    if len(ends) != profile.grippers:
        columns = ", ".join(str(column) for column, _, _ in ends)
        has = {0: "none", 1: "one"}.get(profile.grippers, str(profile.grippers))
        raise ValueError(
            f"the actions command {len(ends)} grippers (columns {columns}), robot {profile.name} has {has}"
        )
    opened = []
    for end, most in zip(ends, profile.openings_m.tolist(), strict=True):
        opened.append(most * _open_share(profile, end, action))
    return xp.stack(opened, -1)


def _open_share(profile: RobotProfile, end: tuple[int, float, float], action: Array) -> Array:
    """Commanded gripper opening, 0 (closed) .. 1 (open), from its column and that column's two values."""
    column, first, second = end
    at_first = (second - action[..., column]) / (second - first)
    return at_first if profile.gripper_opens == "first" else 1 - at_first


def action_at(
    profile: RobotProfile,
    spec: ActionSpec,
    qpos: Float[np.ndarray, " joints"],
    opening_m: Float[np.ndarray, " grippers"],
) -> Float[np.ndarray, " width"]:
    """The absolute joint action that holds the robot where it is: joints [rad] and grippers in the demos' columns.

    ALOHA records the robot's state in this form. Columns of a base are 0.
    """
    row = np.zeros(spec.width)
    for column, value in spec.constant.items():
        row[column] = value
    if spec.arms and profile.arms:
        for name, arm, joints, gripper in profile.parts:
            columns = sorted(spec.arms[name])
            row[columns] = action_at(arm, spec.arm_specs[name], qpos[joints], opening_m[gripper])
        return row
    row[list(spec.joint_columns)] = qpos
    for (column, first, second), opening, most in zip(spec.gripper_ends, opening_m, profile.openings_m, strict=False):
        share = opening / most
        share = share if profile.gripper_opens == "first" else 1 - share
        row[column] = second + share * (first - second)
    return row


def closed_share(profile: RobotProfile, spec: ActionSpec, action: Float[Array, "*B width"]) -> Float[Array, "*B"]:
    """Commanded closure of the first gripper: 0 open, 1 closed, NaN if the action has no gripper column."""
    if not spec.gripper_ends:
        return math.nan * action[..., 0]
    return 1 - _open_share(profile, spec.gripper_ends[0], action)


def gripper_value(profile: RobotProfile, spec: ActionSpec, closed: float) -> float:
    """The inverse of `closed_share`: the value of the first gripper's column; a binary one takes the nearer of its two."""
    at_second = closed if profile.gripper_opens == "first" else 1 - closed
    column, first, second = spec.gripper_ends[0]
    if column in spec.gripper_columns:
        return second if at_second > 0.5 else first
    return first + min(max(at_second, 0.0), 1.0) * (second - first)


def side_by_side(parts: Sequence[Targets]) -> Targets:
    """The targets of several arms, concatenated to those of one robot."""
    xp, limited = namespace(parts[0].joint_position_rad), {}
    for part in parts:
        limited = either(limited, part.limited)
    return Targets(
        xp.concatenate([part.joint_position_rad for part in parts], -1),
        xp.concatenate([part.gripper_opening_m for part in parts], -1),
        limited,
    )


def either(one: Mapping[str, Array], other: Mapping[str, Array]) -> dict[str, Array]:
    """The kinds of limits of both mappings, True where either is True."""
    return {**one, **{kind: one[kind] | flag if kind in one else flag for kind, flag in other.items()}}
