"""Follows commanded joint positions from an untrusted source within the robot's limits.

`CommandGuard` uses it, so that the joints of a robot behind a network stay within the limits of position, velocity,
acceleration and jerk. These are measured as divided differences of the positions over their own times.
"""

import numpy as np
from jaxtyping import Float

from robopolicy.control.profile import RobotProfile
from robopolicy.control.trajectories import TrajectoryPlanner

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
