"""From an action to joint targets within limits: batched over any leading axes, NumPy arrays or torch tensors alike.

`joint_targets` says what an action asks for, `limit_targets` what of it is allowed. Velocity, acceleration and jerk are
the business of `smoothing`, which runs in the loop only.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from jaxtyping import Float

from robopolicy.control.kinematics import damped_least_squares, pose_and_jacobian
from robopolicy.control.profile import RobotProfile
from robopolicy.types import ActionSpec, Array

POSITION_SCALE_M = 0.05
ROTATION_SCALE_RAD = 0.5
"""What an end-effector action of 1 asks for in one control step, as robosuite's OSC_POSE."""
POSTURE_GAIN = 0.1
"""Share of the way back to the home posture, made each step in the arm's null space, as in our simulator."""
WORKSPACE_SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)
"""Shares of a displacement that are tried until the tool stays in its box."""


@dataclass(frozen=True)
class Targets:
    """Where the joints and the gripper shall be at the end of a control step, and what limited them."""

    joint_position_rad: Float[Array, "*B joints"]
    gripper_opening_m: Float[Array, "*B"]
    """nan leaves the gripper as it is."""
    limited: Mapping[str, Array]
    """Kind of limit -> bool (*B), True where it changed something."""


def joint_targets(
    profile: RobotProfile,
    spec: ActionSpec,
    action: Float[Array, "*B width"],
    qpos: Float[Array, "*B joints"],
    control_dt: float,
) -> Targets:
    """What an action in the demos' units asks of a robot whose joints are at `qpos` [rad]; not yet limited as joints.

    Understood are end-effector deltas (robosuite's OSC_POSE: x y z in units of 0.05 m, rotation vector of 0.5 rad, base
    frame, relative to the present pose; clipped to [-1, 1] and to the profile's step), joint positions (absolute or
    delta) and joint velocities. The gripper is the first binary column, else the first continuous one in [-1, 1], -1
    open; without one it is left as it is.

    Raises:
        ValueError: the action spec doesn't say what the arm columns are, or they don't fit this robot.
    """
    xp = _namespace(qpos)
    action = action.astype(qpos.dtype) if xp is np else action.to(qpos)
    finite = xp.isfinite(action).all(-1)
    action = xp.where(finite[..., None], action, 0.0)
    arm, _ = spec.split(action)
    keep = [place for place, column in enumerate(spec.arm_columns) if column not in spec.continuous_gripper]
    arm = arm[..., keep]
    opening = profile.opening_m * (1 - _closed(spec, action))
    refused = {"non_finite": ~finite}
    if (spec.space, spec.kind, len(keep)) == ("ee", "delta", 6) and profile.arm is not None:
        displacement, limited = _ee_displacement(profile, arm, qpos)
        return Targets(qpos + displacement, opening, limited | refused)
    if len(keep) == profile.joints and spec.space == "joint_position" and spec.kind in ("absolute", "delta"):
        return Targets(arm if spec.kind == "absolute" else qpos + arm, opening, refused)
    if len(keep) == profile.joints and spec.space == "joint_velocity":
        return Targets(qpos + arm * control_dt, opening, refused)
    raise ValueError(
        f"can't turn {len(keep)} arm columns of space {spec.space!r} and kind {spec.kind!r} into targets for {profile.name} "
        f"with {profile.joints} joints; expected ee delta (6), joint_position or joint_velocity ({profile.joints}). "
        f"The demos' action_spec says what their columns are"
    )


def limit_targets(
    profile: RobotProfile, targets: Targets, qpos: Float[Array, "*B joints"], opening_m: Float[Array, "*B"]
) -> Targets:
    """The targets brought within the profile's limits, given where the joints [rad] and the fingers [m] are.

    NaN or infinity anywhere keeps all where it is, a gripper opening of nan just the gripper; a displacement beyond
    `joint_step_rad` is shortened; targets stay inside the soft joint limits and the workspace box. A robot found outside
    may stay or come back, never leave further. The result is always finite, for finite `qpos` and `opening_m`.
    """
    xp = _namespace(qpos)
    wanted, opening = targets.joint_position_rad, targets.gripper_opening_m
    finite = xp.isfinite(wanted).all(-1) & ~targets.limited["non_finite"]
    step = xp.where(finite[..., None], wanted, qpos) - qpos
    largest = xp.amax(xp.abs(step), -1)
    share = profile.joint_step_rad / largest.clip(profile.joint_step_rad)
    stepped = qpos + step * share[..., None]
    lower, upper = (_like(limit, qpos) for limit in profile.soft_limits_rad)
    allowed = xp.maximum(xp.minimum(stepped, xp.maximum(upper, qpos)), xp.minimum(lower, qpos))
    limited = {
        **targets.limited,
        "non_finite": ~finite,
        "joint_step": share < 1,
        "joint_position": (allowed != stepped).any(-1),
    }
    if profile.workspace_lower_m is not None:
        allowed, limited["workspace"] = _within_workspace(profile, qpos, allowed)
    opening = xp.where(finite & xp.isfinite(opening), opening, opening_m).clip(0.0, profile.opening_m)
    return Targets(allowed, opening, limited)


def outside_workspace(profile: RobotProfile, position: Float[Array, "*B 3"]) -> Float[Array, "*B"]:
    """How far a point in the base frame [m] is outside the workspace box at its worst side [m]; negative inside."""
    xp = _namespace(position)
    lower, upper = _like(profile.workspace_lower_m, position), _like(profile.workspace_upper_m, position)
    return xp.amax(xp.maximum(lower - position, position - upper), -1)


def _within_workspace(profile: RobotProfile, qpos: Array, target: Array) -> tuple[Array, Array]:
    """The largest tried share of the way to `target` (*B, joints) that keeps the tool in the box, and where it isn't 1."""
    xp = _namespace(qpos)
    ways = xp.stack([qpos + share * (target - qpos) for share in WORKSPACE_SHARES])
    position, _, _ = pose_and_jacobian(profile.arm, ways)  # type: ignore[arg-type]
    outside = outside_workspace(profile, position)
    fits = outside <= outside[-1].clip(0.0) + 1e-9
    chosen = ways[-1]
    for place in range(len(WORKSPACE_SHARES) - 2, -1, -1):
        chosen = xp.where(fits[place][..., None], ways[place], chosen)
    return chosen, ~fits[0]


def _ee_displacement(profile: RobotProfile, action: Array, qpos: Array) -> tuple[Array, dict[str, Array]]:
    """Joint displacement (*B, joints) [rad] of an OSC_POSE action (*B, 6), and what limited the action."""
    xp = _namespace(qpos)
    clipped = action.clip(-1.0, 1.0)
    parts, limited = [], {"action": (clipped != action).any(-1)}
    for name, columns, scale, most in (
        ("step_m", slice(0, 3), POSITION_SCALE_M, profile.step_m),
        ("step_rad", slice(3, 6), ROTATION_SCALE_RAD, profile.step_rad),
    ):
        part = clipped[..., columns] * scale
        size = xp.sqrt((part * part).sum(-1))[..., None]
        parts.append(part * (most / size.clip(most)))
        limited[name] = (size > most)[..., 0]
    _, _, jacobian = pose_and_jacobian(profile.arm, qpos)  # type: ignore[arg-type]
    posture = POSTURE_GAIN * (_like(profile.home_rad, qpos) - qpos)
    return damped_least_squares(jacobian, xp.concatenate(parts, -1), posture=posture), limited


def _closed(spec: ActionSpec, action: Array) -> Array:
    """How closed the gripper is asked to be (*B): 0 open, 1 closed, nan where the action has no gripper."""
    if spec.gripper_columns:
        low, high = spec.gripper_values[0]
        return (action[..., spec.gripper_columns[0]] - low) / (high - low)
    if spec.continuous_gripper:
        return (action[..., spec.continuous_gripper[0]] + 1) / 2
    return math.nan * action[..., 0]


def _namespace(array: Array) -> ModuleType:
    return np if isinstance(array, np.ndarray) else torch


def _like(values: object, array: Array) -> Array:
    if isinstance(array, np.ndarray):
        return np.asarray(values, array.dtype)
    return torch.as_tensor(np.asarray(values), dtype=array.dtype, device=array.device)
