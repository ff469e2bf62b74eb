"""Joint targets at the policy's rate -> joint positions at the robot's rate, with bounded velocity, acceleration and jerk.

Ruckig computes the trajectories. Ruckig 0.19 ignores `max_position`, and its `position_extrema` leave out the overshoot of a
trajectory that starts by braking (both covered by tests). So every trajectory is sampled and checked here, until it comes
to rest, before it is followed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from robopolicy.arrays import Float
from robopolicy.control.kinematics import pose_and_jacobian
from robopolicy.control.limits import outside_workspace
from robopolicy.control.motion import PASSING_SHARE
from robopolicy.control.profile import RobotProfile
from robopolicy.control.trajectories import TrajectoryPlanner

if TYPE_CHECKING:
    from ruckig import Trajectory

SAMPLE_DT = 0.01
"""Spacing of the samples at which a trajectory is checked [s]."""
TOOL_SPEED_SHARE = 0.95
"""Share of the tool speed limits allowed at a sample; within 5 ms of one, the speed can grow at about 13 m/s2 (25 rad/s2)."""
POSITION_SLACK_RAD = 2.5e-4
WORKSPACE_SLACK_M = 5e-4
"""Largest overshoot of a trajectory between two samples: acceleration * SAMPLE_DT^2 / 8."""
TARGET_VELOCITY_SHARE = 0.9
"""Largest velocity at a target, as a share of the velocity limits."""
STRETCHES = (2.0, 4.0, 8.0)
"""Durations tried if faster motions would break a limit [control steps]."""


class JointSmoother:
    """Follows targets along motions that always end at rest within the limits.

    Each target starts a new trajectory from the current state, which reaches it after one control step (or as soon as
    the limits allow) and then brakes. If that breaks a limit of position, workspace or tool speed, slower ones are tried;
    if those also break one, the current motion continues to its end.

    Args:
        profile: the robot's limits.
        command_dt: time between two commands [s].
        control_dt: time between two targets [s].
    """

    def __init__(self, profile: RobotProfile, command_dt: float, control_dt: float) -> None:
        self.profile, self.command_dt, self.control_dt = profile, command_dt, control_dt
        self._planner = TrajectoryPlanner(profile, command_dt)
        self._lower, self._upper = np.asarray(profile.position_lower_rad), np.asarray(profile.position_upper_rad)
        self.start(np.asarray(profile.home_rad))

    def start(self, qpos: Float[np.ndarray, " joints"]) -> None:
        """Start at rest at `qpos` [rad].

        Raises:
            ValueError: a joint is outside its limits.
        """
        wrong = (qpos < self._lower) | (qpos > self._upper) | ~np.isfinite(qpos)
        if wrong.any():
            joint = int(np.argmax(wrong))
            raise ValueError(
                f"{self.profile.joint_names[joint]} is at {qpos[joint]:.4f} rad, outside its limits "
                f"{self._lower[joint]} .. {self._upper[joint]} rad; move it inside with the robot's own controls first"
            )
        self._rest = np.array(qpos, np.float64)
        self._motion: _Motion | None = None
        self._ticks = 0
        self._target = self._rest

    @contextmanager
    def limited_to(self, share: float) -> Iterator[None]:
        """Use only a share of the velocity, acceleration and jerk limits within the context; for motions that begin at rest."""
        fast, self._planner = self._planner, TrajectoryPlanner(self.profile, self.command_dt, share)
        try:
            yield
        finally:
            self._planner = fast

    @property
    def state(self) -> Float[np.ndarray, "3 joints"]:
        """Commanded position [rad], velocity [rad/s] and acceleration [rad/s2] at the current tick."""
        if self._motion is None:
            return np.stack([self._rest, np.zeros_like(self._rest), np.zeros_like(self._rest)])
        return self._motion.at(self._ticks * self.command_dt)

    @property
    def at_rest(self) -> bool:
        """Whether the commanded motion has ended."""
        return self._motion is None

    def step(self, ticks: int = 1) -> Float[np.ndarray, " joints"]:
        """Advance by `ticks` commands; returns the commanded position [rad]."""
        self._ticks += ticks
        if self._motion is not None and self._ticks * self.command_dt >= self._motion.duration_s:
            self._rest, self._motion = self._motion.at(self._motion.duration_s)[0], None
        return self.state[0]

    def aim(
        self,
        target: Float[np.ndarray, " joints"],
        velocity_rad_s: Float[np.ndarray, " joints"] | None = None,
        between: Callable[[], object] = lambda: None,
    ) -> str | None:
        """Plan a motion from the current state to `target` [rad], which lies within the position limits.

        The target is passed at the velocity `velocity_rad_s`, reduced so that one control step suffices to brake
        (`PASSING_SHARE`). Without `velocity_rad_s` it is passed at the velocity from the last target to this one if one control
        step suffices to reach it; otherwise the motion ends there. `between` is called before each slower motion that is
        tried, and may call `step`; the next motion is planned from the state after it.

        Returns:
            None if the target is reached one control step from now. Otherwise the cause: `motion` (velocity, acceleration
            or jerk: it is reached later), `tool` (tool speed or workspace: it is reached later), `kept` (no motion to it
            stays within the limits: the current motion continues).
        """
        fastest = TARGET_VELOCITY_SHARE * self._planner.velocity
        if velocity_rad_s is None:
            velocity = (target - self._target) / self.control_dt
        else:
            velocity, fastest = (
                velocity_rad_s,
                fastest.clip(max=PASSING_SHARE * self._planner.acceleration * self.control_dt),
            )
        velocity = velocity.clip(-fastest, fastest)
        self._target = np.array(target, np.float64)
        in_time_s = 1.5 * self.control_dt
        passing = self._planned(target, velocity, self.control_dt)
        if passing is not None and passing.aimed_s <= in_time_s:
            if self._allowed(passing):
                self._follow(passing)
                return None
            passing = None
        stopping = self._planned(target, 0 * velocity, self.control_dt)
        late = [motion for motion in (stopping, passing) if motion is not None]
        if velocity_rad_s is not None:
            late.sort(key=lambda motion: motion.aimed_s)
        # Checking a motion takes ten times as long as planning it, so the checks end at the first that is allowed.
        if (chosen := next(filter(self._allowed, late), None)) is not None:
            self._follow(chosen)
            return None if chosen.aimed_s <= in_time_s else "motion"
        for stretch in STRETCHES:
            between()
            motion = self._planned(target, 0 * velocity, stretch * self.control_dt)
            if motion is not None and self._allowed(motion):
                self._follow(motion)
                return "tool"
        return "kept"

    def brake(self) -> None:
        """Brake to rest as fast as the limits allow."""
        motion = _Motion(None, self._planner.to_rest(self.state), self.command_dt)
        if self._allowed(motion):
            self._follow(motion)
        self._target = self.state[0]

    def _follow(self, motion: "_Motion") -> None:
        self._motion, self._ticks = motion, 0

    def _planned(self, target: np.ndarray, velocity: np.ndarray, duration_s: float) -> "_Motion | None":
        """The motion to a target state and from there to rest, not checked yet; None if Ruckig finds none."""
        aimed = self._planner.to_state(self.state, np.stack([target, velocity, 0 * velocity]), duration_s)
        if aimed is None:
            return None
        ticks = int(np.ceil(aimed.duration / self.command_dt - 1e-9))
        reached = np.array(aimed.at_time(ticks * self.command_dt))
        braking = self._planner.to_rest(reached) if velocity.any() else None
        return _Motion(aimed, braking, self.command_dt)

    def _allowed(self, motion: "_Motion") -> bool:
        """Whether a motion stays within the limits of joint position, workspace and tool speed until it is at rest."""
        samples = np.arange(0.0, motion.duration_s + SAMPLE_DT, SAMPLE_DT)
        states = np.array([motion.rows_at(sample) for sample in samples.tolist()])
        positions, velocities = states[:, 0], states[:, 1]
        beyond = np.maximum(self._lower - positions, positions - self._upper)
        if (beyond > np.maximum(beyond[0], -POSITION_SLACK_RAD)).any():
            return False
        return all(
            _tool_allowed(arm, positions[:, joints], velocities[:, joints]) for _, arm, joints, _ in self.profile.parts
        )


class BaseRamp:
    """Velocities of a mobile base, which approach their targets within the profile's acceleration limits."""

    def __init__(self, profile: RobotProfile, command_dt: float) -> None:
        self._most = np.asarray(profile.base_velocity, np.float64)
        self._change = np.asarray(profile.base_acceleration, np.float64) * command_dt
        self.target = np.zeros_like(self._most)
        """Target velocities [m/s, rad/s]; zero brings the base to rest."""
        self.velocity = np.zeros_like(self._most)
        """Velocities commanded last [m/s, rad/s]."""

    def step(self, ticks: int = 1) -> Float[np.ndarray, " base"]:
        """The velocities `ticks` commands later [m/s, rad/s]."""
        change = (self.target.clip(-self._most, self._most) - self.velocity).clip(
            -ticks * self._change, ticks * self._change
        )
        self.velocity = self.velocity + change
        return self.velocity

    def brake(self) -> None:
        """Set the target velocities to zero."""
        self.target = np.zeros_like(self._most)

    @property
    def at_rest(self) -> bool:
        """Whether velocities and target are zero."""
        return not (self.velocity.any() or self.target.any())


def _tool_allowed(profile: RobotProfile, positions: np.ndarray, velocities: np.ndarray) -> bool:
    """Whether sampled states (samples, joints) of one arm keep its tool in the workspace and within its speed limits."""
    if profile.arm is None:
        return True
    tool, _, jacobian = pose_and_jacobian(profile.arm, positions)
    if profile.workspace_lower_m is not None:
        outside = outside_workspace(profile, tool)
        if (outside > max(outside[0], -WORKSPACE_SLACK_M) + 1e-9).any():
            return False
    twist = (jacobian @ velocities[..., None])[..., 0]
    return all(
        limit is None or (np.linalg.norm(part, axis=-1) <= TOOL_SPEED_SHARE * limit).all()
        for limit, part in ((profile.speed_m_s, twist[:, :3]), (profile.rotation_speed_rad_s, twist[:, 3:]))
    )


class _Motion:
    """A trajectory to a target, then one to rest, which begins at a command tick."""

    def __init__(self, aimed: "Trajectory | None", braking: "Trajectory | None", command_dt: float) -> None:
        self.aimed, self.braking = aimed, braking
        self.aimed_s = aimed.duration if aimed is not None else 0.0
        ticks = int(np.ceil(self.aimed_s / command_dt - 1e-9))
        self.brakes_s = self.aimed_s if braking is None else ticks * command_dt
        self.duration_s = self.brakes_s + (0.0 if braking is None else braking.duration)

    def at(self, time_s: float) -> np.ndarray:
        """Position, velocity and acceleration (3, joints); at rest after the end."""
        return np.array(self.rows_at(time_s))

    def rows_at(self, time_s: float) -> Sequence[list[float]]:
        """The rows of `at`, for callers that make one array of many."""
        time_s = min(time_s, self.duration_s)
        if self.braking is None or time_s < self.brakes_s:
            assert self.aimed is not None
            return self.aimed.at_time(time_s)
        return self.braking.at_time(time_s - self.brakes_s)
