"""From an action to joint targets within limits: batched over any leading axes, NumPy arrays or torch tensors alike.

`joint_targets` computes what an action asks for, `limit_targets` how much of it is allowed. The simulator's worlds and the
real-time loop call both with the same robot profile. How the joints move to a limited target is up to `smoothing` (in the
loop: velocity, acceleration, jerk) and `motion` (in the worlds: velocity, acceleration).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from robopolicy.control.arrays import like, namespace
from robopolicy.control.kinematics import (
    Arm,
    damped_least_squares,
    pose_and_jacobian,
    quaternion_to_matrix,
    rotation_from_vector,
    rotation_vector,
    tool_position,
)
from robopolicy.control.profile import RobotProfile
from robopolicy.types import ActionSpec, Array

POSITION_SCALE_M = 0.05
ROTATION_SCALE_RAD = 0.5
"""What an end-effector action of 1 asks for in one control step, as robosuite's OSC_POSE."""
POSTURE_GAIN = 0.1
"""Share of the way back to the home posture that each step makes in the arm's null space."""
SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)
"""Shares of a displacement that are tried until the tool stays in its box and the links apart."""
UNCHANGED = 1e-9
"""Changes up to this [rad, m, or share of a displacement] don't count as interventions."""

POSE_ITERATIONS = 10
POSE_STEP_M = 0.1
POSE_STEP_RAD = 0.4
"""An absolute pose is approached by this many steps of damped least squares, each at most this long [m], [rad]."""
POSE_DAMPING = 0.02
"""Damping of these steps: smaller than for deltas, since each step corrects the error of the last one."""
ROUNDING = 1e-6
"""Excess of an action over [-1, 1] that is not counted as an intervention: rounding in single precision."""


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
    """What an action in the demos' units asks of a robot whose joints are at `qpos` [rad], before `limit_targets`.

    Supported are joint positions (absolute or delta), joint velocities, and of each arm with kinematics the pose of its
    tool in the base frame: deltas (robosuite's OSC_POSE: x y z in units of 0.05 m, rotation vector of 0.5 rad, relative to
    the present pose, clipped to [-1, 1]) or absolute (x y z [m], then a rotation vector [rad] or a quaternion w x y z).
    The profile's `gripper_opens` says which of a gripper's two values opens it. Grippers without a column keep their
    opening; `base_target` handles base columns.

    Raises:
        ValueError: the action spec doesn't say what the arm columns are, or they don't fit this robot.
    """
    if spec.arms and (profile.arms or len(spec.arms) > 1):
        return _joint_targets_by_arm(profile, spec, action, qpos, control_dt)
    xp = namespace(qpos)
    action = action.astype(qpos.dtype) if xp is np else action.to(qpos)
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


def limit_targets(
    profile: RobotProfile,
    targets: Targets,
    qpos: Float[Array, "*B joints"],
    opening_m: Float[Array, "*B grippers"],
    control_dt: float,
    commanded: Float[Array, "*B joints"] | None = None,
) -> Targets:
    """The targets brought within the profile's limits.

    With NaN or infinity in any target, joints and grippers hold; a gripper opening of NaN holds that gripper only. The
    displacement from the measured joints is shortened to `joint_step_rad`, and to `step_m` and `step_rad` of the tool; the
    displacement from the commanded positions is shortened to the velocity limits of joints and tool. Targets stay inside
    the soft joint limits and the workspace box, links `collision_margin_m` apart; a robot found outside may stay or come back,
    but move no further out. The
    result is always finite, for finite `qpos`, `opening_m` and `commanded`.

    Args:
        profile: the limits.
        targets: what an action asks for.
        qpos: measured joint positions [rad].
        opening_m: openings to keep where the targets give none [m].
        control_dt: time to reach the targets [s].
        commanded: joint positions commanded for now [rad]; None: the measured ones.
    """
    if profile.arms:
        return _limited_by_arm(profile, targets, qpos, opening_m, control_dt, commanded)
    xp = namespace(qpos)
    commanded = qpos if commanded is None else commanded
    wanted, limited = targets.joint_position_rad, dict(targets.limited)
    finite = xp.isfinite(wanted).all(-1) & ~limited["non_finite"]
    wanted = xp.where(finite[..., None], wanted, qpos)
    limited["non_finite"] = ~finite
    jacobian = None if profile.arm is None else pose_and_jacobian(profile.arm, qpos)[2]
    steps = {"joint_step": profile.joint_step_rad, "step_m": profile.step_m, "step_rad": profile.step_rad}
    wanted, shortened = _shortened(qpos, wanted, jacobian, steps)
    limited |= shortened
    speeds = {
        "joint_velocity": np.multiply(profile.velocity_rad_s, control_dt),
        "tool_speed": (profile.speed_m_s or math.inf) * control_dt,
        "tool_rotation_speed": (profile.rotation_speed_rad_s or math.inf) * control_dt,
    }
    wanted, shortened = _shortened(commanded, wanted, jacobian, speeds)
    limited |= shortened
    lower, upper = (like(qpos, limit) for limit in profile.soft_limits_rad)
    allowed = xp.maximum(xp.minimum(wanted, xp.maximum(upper, qpos)), xp.minimum(lower, qpos))
    limited["joint_position"] = (abs(allowed - wanted) > UNCHANGED).any(-1)
    if profile.workspace_lower_m is not None:
        arm: Any = profile.arm
        allowed, limited["workspace"] = _until_within(
            qpos, allowed, lambda joints: outside_workspace(profile, tool_position(arm, joints))
        )
    allowed, moved = _apart(profile, qpos, allowed)
    limited |= moved
    asked = targets.gripper_opening_m
    opening = xp.where(finite[..., None] & xp.isfinite(asked), asked, opening_m)
    within = opening.clip(0.0, profile.opening_m)
    limited["gripper"] = (abs(within - opening) > UNCHANGED).any(-1)
    return Targets(allowed, within, limited)


def base_target(
    profile: RobotProfile, spec: ActionSpec, action: Float[np.ndarray, " width"]
) -> tuple[Float[np.ndarray, " base"], bool]:
    """Velocities of the base [m/s, rad/s] that an action asks for, within the profile's, and whether these changed them.

    Zero where the action has no base columns or is not finite.

    Raises:
        ValueError: the action has another number of base columns than the robot.
    """
    most = np.asarray(profile.base_velocity)
    if not spec.base:
        return np.zeros_like(most), False
    if len(spec.base) != len(most):
        raise ValueError(
            f"the actions command a base in {len(spec.base)} directions (columns {', '.join(map(str, spec.base))}), robot "
            f"{profile.name} has {len(most) or 'no base: `base_velocity` of its profile is empty'}"
        )
    wanted = np.asarray(action, np.float64)[list(spec.base)]
    if not np.isfinite(wanted).all():
        return np.zeros_like(most), True
    within = wanted.clip(-most, most)
    return within, bool((np.abs(within - wanted) > UNCHANGED).any())


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


def _joint_targets_by_arm(
    profile: RobotProfile, spec: ActionSpec, action: Array, qpos: Array, control_dt: float
) -> Targets:
    """Each arm's columns for that arm."""
    named = tuple(profile.arms) or (profile.name,)
    if set(spec.arms) != set(named):
        raise ValueError(
            f"the actions move the arms {', '.join(spec.arms)}; robot {profile.name} has {', '.join(named)}: name them alike"
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
    return _side_by_side(found)


def _limited_by_arm(
    profile: RobotProfile, targets: Targets, qpos: Array, opening_m: Array, control_dt: float, commanded: Array | None
) -> Targets:
    """Each arm within its own limits; what is not finite for one holds all of them."""
    found = []
    for _, arm, joints, gripper in profile.parts:
        asked = Targets(
            targets.joint_position_rad[..., joints], targets.gripper_opening_m[..., gripper], targets.limited
        )
        before = None if commanded is None else commanded[..., joints]
        found.append(limit_targets(arm, asked, qpos[..., joints], opening_m[..., gripper], control_dt, before))
    both = _side_by_side(found)
    allowed, moved = _apart(profile, qpos, both.joint_position_rad)
    return replace(both, joint_position_rad=allowed, limited=_either(both.limited, moved))


def _side_by_side(parts: Sequence[Targets]) -> Targets:
    xp, limited = namespace(parts[0].joint_position_rad), {}
    for part in parts:
        limited = _either(limited, part.limited)
    return Targets(
        xp.concatenate([part.joint_position_rad for part in parts], -1),
        xp.concatenate([part.gripper_opening_m for part in parts], -1),
        limited,
    )


def _either(one: Mapping[str, Array], other: Mapping[str, Array]) -> dict[str, Array]:
    """Kinds of limits of both, True where either is."""
    return {**one, **{kind: one[kind] | flag if kind in one else flag for kind, flag in other.items()}}


def outside_workspace(profile: RobotProfile, position: Float[Array, "*B 3"]) -> Float[Array, "*B"]:
    """Largest distance of a point in the base frame beyond a side of the workspace box [m]; negative inside."""
    xp = namespace(position)
    lower, upper = (like(position, np.asarray(each)) for each in (profile.workspace_lower_m, profile.workspace_upper_m))
    return xp.amax(xp.maximum(lower - position, position - upper), -1)


def _shortened(
    start: Array, target: Array, jacobian: Array | None, limits: Mapping[str, float | np.ndarray]
) -> tuple[Array, dict[str, Array]]:
    """The target moved towards `start` until the displacement keeps to three limits, and where each shortened it.

    The limits are those of the joints' displacement [rad], and of the tool's [m] and [rad]; the tool's are linearized. The
    joints' comes first, so that no outlier overflows in the tool's.
    """
    xp = namespace(start)
    displacement, limited = target - start, {}
    for place, (name, limit) in enumerate(limits.items()):
        if place == 0:
            size = abs(displacement)
        elif jacobian is None:
            break
        else:
            part = (jacobian[..., 3 * place - 3 : 3 * place, :] @ displacement[..., None])[..., 0]
            size = xp.sqrt((part * part).sum(-1))[..., None]
        excess = xp.amax(size / (like(size, limit) if isinstance(limit, np.ndarray) else limit), -1)
        limited[name] = excess > 1 + UNCHANGED
        displacement = displacement / excess.clip(1.0)[..., None]
    shortened = xp.stack(list(limited.values())).any(0)
    return xp.where(shortened[..., None], start + displacement, target), limited


def _until_within(qpos: Array, target: Array, excess: Callable[[Array], Array]) -> tuple[Array, Array]:
    """The largest tried share of the way to `target` (*B, joints) where `excess` is at most 0, and where it isn't 1.

    Where it is more at `qpos` already, it may not grow.
    """
    xp = namespace(qpos)
    shares = SHARES
    if xp is np and (excess(target) <= 0).all():
        return target, np.zeros(target.shape[:-1], bool)  # the usual case; a device can't ask which one it is
    ways = xp.stack([target, *(qpos + share * (target - qpos) for share in shares[1:])])
    outside = excess(ways)
    fits = outside <= outside[-1].clip(0.0) + 1e-9
    chosen = ways[-1]
    for place in range(len(shares) - 2, -1, -1):
        chosen = xp.where(fits[place][..., None], ways[place], chosen)
    return chosen, ~fits[0]


def _apart(profile: RobotProfile, qpos: Array, target: Array) -> tuple[Array, dict[str, Array]]:
    """The target moved back until the links keep `collision_margin_m`, and where it was; unchanged without that limit."""
    margin, distances = profile.collision_margin_m, profile.link_distances
    if margin is None or distances is None or not distances.pairs:
        return target, {}
    xp = namespace(qpos)
    target, moved = _until_within(qpos, target, lambda joints: margin - xp.amin(distances(joints), -1))
    return target, {"self_collision": moved}


def _ee_displacement(profile: RobotProfile, action: Array, qpos: Array) -> Array:
    """Joint displacement (*B, joints) [rad] of an OSC_POSE action (*B, 6) in [-1, 1]."""
    _, _, jacobian = pose_and_jacobian(profile.arm, qpos)  # type: ignore[arg-type]
    posture = POSTURE_GAIN * (like(qpos, np.asarray(profile.home_rad)) - qpos)
    return damped_least_squares(jacobian, action * like(action, _SCALE), posture=posture)


def closed_share(profile: RobotProfile, spec: ActionSpec, action: Float[Array, "*B width"]) -> Float[Array, "*B"]:
    """How closed an action wants the first gripper: 0 open, 1 closed, nan where the action has no gripper."""
    if not spec.gripper_ends:
        return math.nan * action[..., 0]
    column, first, second = spec.gripper_ends[0]
    at_second = (action[..., column] - first) / (second - first)
    return at_second if profile.gripper_opens == "first" else 1 - at_second


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
    for (column, first, second), most in zip(ends, profile.openings_m.tolist(), strict=True):
        at_second = (action[..., column] - first) / (second - first)
        opened.append(most * (1 - (at_second if profile.gripper_opens == "first" else 1 - at_second)))
    return xp.stack(opened, -1)


def gripper_value(profile: RobotProfile, spec: ActionSpec, closed: float) -> float:
    """The inverse of `closed_share`: the value of the first gripper's column; a binary one takes the nearer of its two."""
    at_second = closed if profile.gripper_opens == "first" else 1 - closed
    column, first, second = spec.gripper_ends[0]
    if column in spec.gripper_columns:
        return second if at_second > 0.5 else first
    return first + min(max(at_second, 0.0), 1.0) * (second - first)


_SCALE = np.array([POSITION_SCALE_M] * 3 + [ROTATION_SCALE_RAD] * 3)
