"""Time-optimal trajectories within a robot's velocity, acceleration and jerk limits, by Ruckig (Berscheid and Kröger, 2021)."""

from typing import TYPE_CHECKING

import numpy as np

from robopolicy.arrays import Float
from robopolicy.control.profile import RobotProfile

if TYPE_CHECKING:
    from ruckig import Trajectory


class TrajectoryPlanner:
    """Plans trajectories of the joints from a state: position [rad], velocity [rad/s] and acceleration [rad/s2], (3, joints).

    Args:
        profile: the robot's limits.
        period_s: time between two samples of a trajectory [s].
        share: share of the velocity, acceleration and jerk limits to use.

    Raises:
        ImportError: ruckig is not installed; the message names the extra.
    """

    def __init__(self, profile: RobotProfile, period_s: float, share: float = 1.0) -> None:
        try:
            import ruckig
        except ImportError:
            raise ImportError(
                "jerk-limited motion needs ruckig; pip install ruckig (in robopolicy's extra robot)"
            ) from None
        self.velocity, self.acceleration, self.jerk = (
            share * np.asarray(limit)
            for limit in (profile.velocity_rad_s, profile.acceleration_rad_s2, profile.jerk_rad_s3)
        )
        self._module, self._ruckig = ruckig, ruckig.Ruckig(profile.joints, period_s)
        self._input = ruckig.InputParameter(profile.joints)
        self._input.max_velocity = self.velocity.tolist()
        self._input.max_acceleration = self.acceleration.tolist()
        self._input.max_jerk = self.jerk.tolist()

    def to_rest(self, state: Float[np.ndarray, "3 joints"]) -> "Trajectory | None":
        """The fastest trajectory to rest, each joint separately; None if Ruckig finds none."""
        put = self._input
        put.control_interface = self._module.ControlInterface.Velocity
        put.synchronization = self._module.Synchronization.No
        put.target_velocity = put.target_acceleration = [0.0] * state.shape[1]
        put.minimum_duration = None
        return self._calculated(state)

    def to_state(
        self,
        state: Float[np.ndarray, "3 joints"],
        target: Float[np.ndarray, "3 joints"],
        duration_s: float,
        synchronized: bool = True,
    ) -> "Trajectory | None":
        """The fastest trajectory to a target state that takes at least `duration_s`; None if Ruckig finds none.

        Args:
            state: where it starts.
            target: position, velocity and acceleration at its end.
            duration_s: least duration [s].
            synchronized: whether all joints arrive at the same time.
        """
        put, synchronization = self._input, self._module.Synchronization
        put.control_interface = self._module.ControlInterface.Position
        put.synchronization = synchronization.Time if synchronized else synchronization.No
        put.target_position, put.target_velocity, put.target_acceleration = target.tolist()
        put.minimum_duration = duration_s
        return self._calculated(state)

    def _calculated(self, state: np.ndarray) -> "Trajectory | None":
        put = self._input
        put.current_position = state[0].tolist()
        put.current_velocity = state[1].clip(-self.velocity, self.velocity).tolist()
        put.current_acceleration = state[2].clip(-self.acceleration, self.acceleration).tolist()
        trajectory = self._module.Trajectory(state.shape[1])
        try:
            result = self._ruckig.calculate(put, trajectory)
        except self._module.RuckigError:
            return None
        return trajectory if result in (self._module.Result.Working, self._module.Result.Finished) else None


ROUNDING = 1e-8
"""Relative excess over a limit that counts as rounding: a motion planned at the limits must pass unchanged."""
TARGET_SHARE = 0.95
"""Share of the velocity and acceleration limits at which a moving target is approached."""


class JointTracker:
    """Moves to a commanded position if the limits allow it, otherwise approaches it as fast as they allow.

    Each call tries three motions in turn: to the commanded position itself, along a time-optimal trajectory (Ruckig)
    towards it, and braking. It takes the first one from whose end the arm can stop within its position limits. The last
    call ended in such a state, so braking is always possible.

    Args:
        profile: the robot's limits.
        period_s: usual time between two calls [s].
        qpos: joint positions at rest [rad].
    """

    def __init__(self, profile: RobotProfile, period_s: float, qpos: Float[np.ndarray, " joints"]) -> None:
        self.profile, self.period_s = profile, period_s
        self._planner = TrajectoryPlanner(profile, period_s)
        self._velocity, self._acceleration = self._planner.velocity, self._planner.acceleration
        self._lower, self._upper = np.asarray(profile.position_lower_rad), np.asarray(profile.position_upper_rad)
        rest = np.array(qpos, np.float64)
        self._times_s = np.array([-2.0, -1.0, 0.0]) * period_s
        self._positions = np.stack([rest, rest, rest])
        self._state = np.stack([rest, 0 * rest, 0 * rest])
        self.deviated = 0
        """Calls that did not reach the commanded position."""

    @property
    def position(self) -> Float[np.ndarray, " joints"]:
        """The last position [rad]."""
        return self._positions[-1]

    @property
    def at_rest(self) -> bool:
        """Whether the joints have come to a stop."""
        return not self._state[1:].any()

    def follow(
        self,
        target: Float[np.ndarray, " joints"],
        velocity: Float[np.ndarray, " joints"],
        acceleration: Float[np.ndarray, " joints"],
        passed_s: float,
    ) -> Float[np.ndarray, " joints"]:
        """The position [rad] `passed_s` after the last one.

        Args:
            target: position commanded for this time [rad].
            velocity: velocity of the commanded motion [rad/s].
            acceleration: acceleration of the commanded motion [rad/s2].
            passed_s: time since the last call [s].
        """
        state = self._reached(target, passed_s)
        if state is None or not self._can_stop(state):
            self.deviated += 1
            state = self._approached(target, velocity, acceleration, passed_s)
        if state is None or not self._can_stop(state):
            state = self._braked(passed_s)
        return self._moved(state, passed_s)

    def brake(self, passed_s: float) -> Float[np.ndarray, " joints"]:
        """The position [rad] `passed_s` after the last one, on the way to rest."""
        return self._moved(self._braked(passed_s), passed_s)

    def _reached(self, target: np.ndarray, passed_s: float) -> np.ndarray | None:
        """The state (3, joints) at the target after `passed_s`; None if that breaks a limit."""
        times_s = np.append(self._times_s, self._times_s[-1] + passed_s)
        rates = np.concatenate([self._positions, target[None]])
        last = []
        for order, limit in enumerate((self._velocity, self._acceleration, self._planner.jerk), start=1):
            spans_s = (times_s[order:] - times_s[:-order]) / order
            rates = np.diff(rates, axis=0) / spans_s[:, None]
            if (np.abs(rates[-1]) > limit * (1 + ROUNDING)).any():
                return None
            last.append(rates[-1])
        # The parabola through the last three positions: a motion that continues from its end with bounded jerk keeps the
        # divided differences across the seam within the same bound.
        return np.stack([target, last[0] + last[1] * passed_s / 2, last[1]])

    def _approached(
        self, target: np.ndarray, velocity: np.ndarray, acceleration: np.ndarray, passed_s: float
    ) -> np.ndarray | None:
        """The state after `passed_s` on the fastest trajectory to the moving target or its position; None without one."""
        position = target.clip(self._lower, self._upper)
        most_rad_s, most_rad_s2 = TARGET_SHARE * self._velocity, TARGET_SHARE * self._acceleration
        moving = (velocity.clip(-most_rad_s, most_rad_s), acceleration.clip(-most_rad_s2, most_rad_s2))
        for heading, turning in (moving, (moving[0], 0 * velocity), (0 * velocity, 0 * velocity)):
            aim = np.stack([position, heading, turning])
            trajectory = self._planner.to_state(self._state, aim, passed_s, synchronized=False)
            if trajectory is not None:
                return np.array(trajectory.at_time(min(passed_s, trajectory.duration)))
        return None

    def _braked(self, passed_s: float) -> np.ndarray:
        """The state after `passed_s` of the fastest braking."""
        if self.at_rest:
            return self._state
        trajectory = self._planner.to_rest(self._state)
        if trajectory is None:  # never observed; the joints would stay where they are
            return self._state * [[1], [0], [0]]
        state = np.array(trajectory.at_time(min(passed_s, trajectory.duration)))
        return state * [[1], [0], [0]] if passed_s >= trajectory.duration else state

    def _can_stop(self, state: np.ndarray) -> bool:
        """Whether the fastest braking from a state stays within the limits of velocity and position."""
        position, velocity, acceleration = state
        peak = velocity + acceleration * np.abs(acceleration) / (2 * self._planner.jerk)
        if (np.abs(peak) > self._velocity * (1 + ROUNDING)).any():
            return False
        near = np.minimum(position - self._lower, self._upper - position)
        speed = np.maximum(np.abs(velocity), np.abs(peak))
        # Braking takes at most the time to the largest deceleration and back; far from the ends no trajectory is needed.
        braking_s = speed / self._acceleration + 2 * self._acceleration / self._planner.jerk
        if (near > speed * braking_s).all():
            return True
        trajectory = self._planner.to_rest(state)
        if trajectory is None:
            return False
        places = np.stack([trajectory.at_time(share * trajectory.duration)[0] for share in (0.25, 0.5, 0.75, 1.0)])
        return bool((places >= self._lower).all() and (places <= self._upper).all())

    def _moved(self, state: np.ndarray, passed_s: float) -> np.ndarray:
        self._state = state
        state[0] = state[0].clip(self._lower, self._upper)  # Ruckig may end 1e-15 rad beyond a limit
        self._times_s = np.append(self._times_s[1:], self._times_s[-1] + passed_s) - self._times_s[-1] - passed_s
        self._positions = np.concatenate([self._positions[1:], state[:1]])
        return self.position
