"""Limits joint targets to what a robot's profile allows; batched over any leading axes, for NumPy arrays and torch tensors.

`targets` computes the targets that an action asks for; this module limits them. The simulator's worlds and the real-time loop
use both with the same robot profile. How the joints move to a limited target is up to `smoothing` (in the
loop: velocity, acceleration, jerk) and `motion` (in the worlds: velocity, acceleration).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import reduce
from operator import or_
from typing import Any

import numpy as np

from robopolicy.arrays import Float, like, namespace
from robopolicy.control.kinematics import (
    pose_and_jacobian,
    tool_position,
)
from robopolicy.control.profile import RobotProfile
from robopolicy.control.targets import Targets, either, side_by_side
from robopolicy.types import ActionSpec, Array

DEGREES_RAD = 3.2
"""Distance of a first target [rad], about half a turn, above which the error message suspects actions in degrees."""
SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)
"""Fractions of a displacement that are tried, largest first, until the tool stays in the workspace and the links stay apart."""
UNCHANGED = 1e-9
"""Changes up to this [rad, m, or share of a displacement] are not counted as limited."""


def limit_targets(
    profile: RobotProfile,
    targets: Targets,
    qpos: Float[Array, "*B joints"],
    opening_m: Float[Array, "*B grippers"],
    control_dt: float,
    commanded: Float[Array, "*B joints"] | None = None,
) -> Targets:
    """The targets, limited to the profile's limits.

    NaN or infinity in the action or a joint target holds joints and grippers; an opening of NaN holds that gripper only. The
    displacement from the measured joints is shortened to `joint_step_rad`, and to `step_m` and `step_rad` of the tool; the
    displacement from the commanded positions is shortened to the velocity limits of joints and tool. Targets stay inside
    the soft joint limits and the workspace box, and links stay `collision_margin_m` apart. A robot that is already outside
    may stay or return, but not move further out. The result is always finite, for finite `qpos`, `opening_m` and `commanded`.

    Args:
        profile: the limits.
        targets: what an action asks for.
        qpos: measured joint positions [rad].
        opening_m: openings to keep where the targets give none [m].
        control_dt: time to reach the targets [s].
        commanded: joint positions commanded last [rad]; None: the measured ones.
    """
    if profile.arms:
        return _limited_by_arm(profile, targets, qpos, opening_m, control_dt, commanded)
    xp = namespace(qpos)
    commanded = qpos if commanded is None else commanded
    desired, limited = targets.joint_position_rad, dict(targets.limited)
    finite = xp.isfinite(desired).all(-1) & ~limited["non_finite"]
    desired = xp.where(finite[..., None], desired, qpos)
    limited["non_finite"] = ~finite
    jacobian = None if profile.arm is None else pose_and_jacobian(profile.arm, qpos)[2]
    steps = {"joint_step": profile.joint_step_rad, "step_m": profile.step_m, "step_rad": profile.step_rad}
    desired, shortened = _shortened(qpos, desired, jacobian, steps)
    limited |= shortened
    speeds = {
        "joint_velocity": np.multiply(profile.velocity_rad_s, control_dt),
        "tool_speed": (profile.speed_m_s or math.inf) * control_dt,
        "tool_rotation_speed": (profile.rotation_speed_rad_s or math.inf) * control_dt,
    }
    desired, shortened = _shortened(commanded, desired, jacobian, speeds)
    limited |= shortened
    lower, upper = (like(qpos, limit) for limit in profile.soft_limits_rad)
    allowed = xp.maximum(xp.minimum(desired, xp.maximum(upper, qpos)), xp.minimum(lower, qpos))
    limited["joint_position"] = (abs(allowed - desired) > UNCHANGED).any(-1)
    if profile.workspace_lower_m is not None:
        arm: Any = profile.arm
        allowed, limited["workspace"] = _until_within(
            qpos, allowed, lambda joints: outside_workspace(profile, tool_position(arm, joints))
        )
    allowed, moved = _apart(profile, qpos, allowed)
    limited |= moved
    within, limited["gripper"] = _limited_opening(
        profile, xp.where(finite[..., None], targets.gripper_opening_m, xp.nan), opening_m
    )
    return Targets(allowed, within, limited)


def _limited_opening(profile: RobotProfile, asked: Array, opening_m: Array) -> tuple[Array, Array]:
    """The openings asked for, clipped to the gripper's range, or `opening_m` where missing; and where one was clipped."""
    xp = namespace(asked)
    opening = xp.where(xp.isfinite(asked), asked, opening_m)
    within = opening.clip(0.0, profile.opening_m)
    return within, (abs(within - opening) > UNCHANGED).any(-1)


def wrong_position(
    profile: RobotProfile, qpos: Float[np.ndarray, " joints"], commanded: Float[np.ndarray, " joints"]
) -> str | None:
    """Why a robot with the joint positions `qpos` [rad] must be stopped; None if it follows its commands."""
    if not np.isfinite(qpos).all():
        return "the robot reports joint positions that are not finite"
    behind_rad = np.abs(qpos - commanded)
    if behind_rad.max() <= profile.following_rad:
        return None
    joint = profile.joint_names[int(behind_rad.argmax())]
    return f"{joint} is {behind_rad.max():.2f} rad from where it was sent: blocked, or not moving?"


def wrong_first_target(
    profile: RobotProfile, targets: Targets, qpos: Float[np.ndarray, " joints"], allowed_rad: float | None
) -> str | None:
    """Why an absolute first target is too far away; None if it is within `allowed_rad` (default: `first_jump_rad`)."""
    jump_rad = np.abs(targets.joint_position_rad - qpos).max()
    allowed_rad = profile.first_jump_rad if allowed_rad is None else allowed_rad
    if not jump_rad > allowed_rad:
        return None
    unit = "; are the actions in degrees?" if jump_rad > DEGREES_RAD else ""
    return f"the first target is {jump_rad:.2f} rad away, at most {allowed_rad:g} rad allowed{unit}"


def base_target(
    profile: RobotProfile, spec: ActionSpec, action: Float[np.ndarray, " width"]
) -> tuple[Float[np.ndarray, " base"], bool]:
    """Base velocities [m/s, rad/s] of an action, clipped to the profile's limits, and whether a limit changed them.

    Zero where the action has no base columns or is not finite.

    Raises:
        ValueError: the action's number of base columns differs from the robot's.
    """
    most = np.asarray(profile.base_velocity)
    if not spec.base:
        return np.zeros_like(most), False
    if len(spec.base) != len(most):
        raise ValueError(
            f"the actions command a base in {len(spec.base)} directions (columns {', '.join(map(str, spec.base))}), robot "
            f"{profile.name} has {len(most) or 'no base: `base_velocity` of its profile is empty'}"
        )
    desired = np.asarray(action, np.float64)[list(spec.base)]
    if not np.isfinite(desired).all():
        return np.zeros_like(most), True
    within = desired.clip(-most, most)
    return within, bool((np.abs(within - desired) > UNCHANGED).any())


def _limited_by_arm(
    profile: RobotProfile, targets: Targets, qpos: Array, opening_m: Array, control_dt: float, commanded: Array | None
) -> Targets:
    """Limit each arm by its own profile; a target that is not finite for one arm holds all arms."""
    found = []
    for _, arm, joints, gripper in profile.parts:
        asked = Targets(
            targets.joint_position_rad[..., joints], targets.gripper_opening_m[..., gripper], targets.limited
        )
        before = None if commanded is None else commanded[..., joints]
        found.append(limit_targets(arm, asked, qpos[..., joints], opening_m[..., gripper], control_dt, before))
    both = side_by_side(found)
    allowed, moved = _apart(profile, qpos, both.joint_position_rad)
    return replace(both, joint_position_rad=allowed, limited=either(both.limited, moved))


def outside_workspace(profile: RobotProfile, position: Float[Array, "*B 3"]) -> Float[Array, "*B"]:
    """Largest distance of a point in the base frame beyond a side of the workspace box [m]; negative inside."""
    xp = namespace(position)
    lower, upper = (like(position, np.asarray(each)) for each in (profile.workspace_lower_m, profile.workspace_upper_m))
    return xp.amax(xp.maximum(lower - position, position - upper), -1)


def _shortened(
    start: Array, target: Array, jacobian: Array | None, limits: Mapping[str, float | np.ndarray]
) -> tuple[Array, dict[str, Array]]:
    """The target moved towards `start` until the displacement is within three limits, and where each limit shortened it.

    The limits are, in this order, those of the displacement of the joints [rad], the translation of the tool [m] and its
    rotation [rad]; the tool's motion is linearized with `jacobian`. The joint limit comes first, so that the tool's motion
    does not overflow for an outlier.
    """
    xp = namespace(start)
    displacement, limited = target - start, {}
    for place, (name, limit) in enumerate(limits.items()):
        if place == 0:
            excess = xp.amax(abs(displacement) / (like(start, limit) if isinstance(limit, np.ndarray) else limit), -1)
        elif jacobian is None:
            break
        else:
            part = (jacobian[..., 3 * place - 3 : 3 * place, :] @ displacement[..., None])[..., 0]
            excess = xp.sqrt((part * part).sum(-1)) / limit
        limited[name] = excess > 1 + UNCHANGED
        displacement = displacement / excess.clip(1.0)[..., None]
    shortened = reduce(or_, limited.values())
    return xp.where(shortened[..., None], start + displacement, target), limited


def _until_within(qpos: Array, target: Array, excess: Callable[[Array], Array]) -> tuple[Array, Array]:
    """The joints moved from `qpos` towards `target` (*B, joints) by the largest fraction in `SHARES` at which `excess` <= 0.

    If `excess` is positive at `qpos` already, it must not grow. Also returns (*B) True where the fraction is below 1.
    """
    xp = namespace(qpos)
    shares = SHARES
    if xp is np and (excess(target) <= 0).all():
        return target, np.zeros(target.shape[:-1], bool)  # the usual case; on a GPU, this check would wait
    ways = xp.stack([target, *(qpos + share * (target - qpos) for share in shares[1:])])
    outside = excess(ways)
    fits = outside <= outside[-1].clip(0.0) + 1e-9
    chosen = ways[-1]
    for place in range(len(shares) - 2, -1, -1):
        chosen = xp.where(fits[place][..., None], ways[place], chosen)
    return chosen, ~fits[0]


def _apart(profile: RobotProfile, qpos: Array, target: Array) -> tuple[Array, dict[str, Array]]:
    """The target moved back until links are `collision_margin_m` apart, and where it was moved; unchanged without a margin."""
    margin, distances = profile.collision_margin_m, profile.link_distances
    if margin is None or distances is None or not distances.pairs:
        return target, {}
    xp = namespace(qpos)
    target, moved = _until_within(qpos, target, lambda joints: margin - xp.amin(distances(joints), -1))
    return target, {"self_collision": moved}
