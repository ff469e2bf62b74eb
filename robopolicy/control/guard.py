"""The robot's own side of safety: follow commands while they come, come to rest within the limits when they don't."""

from collections import deque

import numpy as np
from jaxtyping import Float

from robopolicy.control.profile import RobotProfile
from robopolicy.control.robot import RobotError
from robopolicy.control.smoothing import JointSmoother


class CommandGuard:
    """Stands between the commands that arrive and the joints of one robot.

    Silence longer than `deadline_s` in the middle of a motion, a command that is not finite, beyond a joint's limit, or
    a leap from where the robot has been standing: each ends the commands for good. A new connection is a new guard.

    Args:
        profile: the robot's limits.
        period_s: time between two calls of `position` [s].
        qpos: where the joints are [rad].
        deadline_s: longest silence between two commands [s]; a robot at rest is in no hurry.
    """

    def __init__(
        self, profile: RobotProfile, period_s: float, qpos: Float[np.ndarray, " joints"], deadline_s: float = 0.1
    ) -> None:
        self.profile, self.period_s, self.deadline_s = profile, period_s, deadline_s
        self._smoother = JointSmoother(profile, period_s, period_s)
        self._received: deque[tuple[float, np.ndarray]] = deque([(0.0, np.asarray(qpos, np.float64))], maxlen=3)
        self._heard_s: float | None = None
        self.stopped: str | None = None
        """Why commands are no longer taken."""

    def receive(self, position_rad: Float[np.ndarray, " joints"], stamp_s: float, now_s: float) -> None:
        """Take a command [rad], meant for stamp_s on the sender's clock [s].

        Raises:
            RobotError: it is refused; `stopped` says why.
        """
        if self.stopped is None:
            position_rad = np.asarray(position_rad, np.float64)
            if (wrong := self._wrong(position_rad)) is not None:
                self.stop(wrong)
            else:
                self._received.append((stamp_s, position_rad))
                self._heard_s = now_s
        if self.stopped is not None:
            raise RobotError(f"the robot stopped itself: {self.stopped}")

    def stop(self, reason: str) -> None:
        """Come to rest from the motion of the last commands, and take no more."""
        if self.stopped is None:
            self.stopped = reason
            self._smoother.brake_from(self._motion())

    def position(self, now_s: float) -> Float[np.ndarray, " joints"]:
        """Where the joints shall be now [rad]; to be asked every `period_s`."""
        if self.stopped is None and self._heard_s is not None and now_s - self._heard_s > self.deadline_s:
            if np.ptp([position for _, position in self._received], axis=0).max() > 0:
                self.stop(f"no command for {self.deadline_s:g} s")
            self._heard_s = None
        return self._received[-1][1] if self.stopped is None else self._smoother.step()

    def _wrong(self, position_rad: np.ndarray) -> str | None:
        profile = self.profile
        if position_rad.shape != (profile.joints,) or not np.isfinite(position_rad).all():
            return f"a command must be {profile.joints} finite joint positions"
        beyond = np.maximum(profile.position_lower_rad - position_rad, position_rad - profile.position_upper_rad)
        if beyond.max() > 1e-6:
            return f"a command for {profile.joint_names[int(beyond.argmax())]} is beyond its limits"
        leap = np.abs(position_rad - self._received[-1][1]).max()
        if self._heard_s is None and leap > profile.first_jump_rad:
            return f"the first command is {leap:.2f} rad away, at most {profile.first_jump_rad} rad allowed"
        return None

    def _motion(self) -> Float[np.ndarray, "3 joints"]:
        """Position, velocity and acceleration of the last commands, by divided differences."""
        position = self._received[-1][1]
        rest = np.stack([position, 0 * position, 0 * position])
        if len(self._received) < 3:
            return rest
        (t0, p0), (t1, p1), (t2, p2) = self._received
        if not t0 < t1 < t2:
            return rest
        before, after = (p1 - p0) / (t1 - t0), (p2 - p1) / (t2 - t1)
        return np.stack([p2, after, 2 * (after - before) / (t2 - t0)])
