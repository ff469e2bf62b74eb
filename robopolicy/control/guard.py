"""The robot's own side of safety: play commands as they were meant, within the limits, and come to rest when they cease."""

from collections import deque

import numpy as np
from jaxtyping import Float

from robopolicy.control.profile import RobotProfile
from robopolicy.control.robot import RobotError
from robopolicy.control.tracking import JointTracker

SLOWING = 0.001
"""Share by which the playback is slowed down while commands come later than they used to; more would jerk the arm."""
LEAP_RAD = 0.02
"""How far from where the robot rests its first command may be [rad]: measured and commanded positions differ a little."""
SPEED_SHARE = 1.05
"""Share of the velocity limits that two commands in a row may ask for; more ends the commands."""
AHEAD_S = 1.0
"""How far a command's stamp may lie ahead of the time being played [s]; more ends the commands."""
MAX_WAITING = 10_000
"""Commands that may wait while nobody asks for a position; more ends the commands."""


class CommandGuard:
    """Stands between the commands that arrive and the joints of one robot.

    Commands are played by their stamps, a little later than they come, and interpolated between two of them: so those
    that arrive in bursts move the joints as evenly as they were sent. A gap is bridged at constant velocity. What is played
    reaches the joints through a `JointTracker`, so that it stays within the limits of position, velocity, acceleration and
    jerk whatever is sent and whenever it comes. A gap longer than `deadline_s`, a command that is not finite or beyond a
    joint's limit, one too far from the one before, or a leap from where the robot stands ends the commands for good. A new
    connection is a new guard.

    Args:
        profile: the robot's limits.
        period_s: time between two calls of `position` [s].
        qpos: where the joints are [rad].
        deadline_s: longest gap in the middle of a motion [s]; a robot at rest is in no hurry.
        delay_s: how much later than they first come commands are played [s]; None: four periods.
    """

    def __init__(
        self,
        profile: RobotProfile,
        period_s: float,
        qpos: Float[np.ndarray, " joints"],
        deadline_s: float = 0.05,
        delay_s: float | None = None,
    ) -> None:
        self.profile, self.period_s, self.deadline_s = profile, period_s, deadline_s
        self.delay_s = 4 * period_s if delay_s is None else delay_s
        self.bridged = 0
        """Calls of `position` that had to bridge a gap."""
        self.stopped: str | None = None
        """Why commands are no longer taken."""
        self.tracker = JointTracker(profile, period_s, qpos)
        self._wanted = self.tracker.position
        self._velocity = np.zeros_like(self._wanted)
        self._asked_s: float | None = None  # time of the last call of `position`
        self._waiting: deque[tuple[float, np.ndarray]] = deque()
        self._behind_s: float | None = None  # now - the stamp being played; None if nothing is

    @property
    def at_rest(self) -> bool:
        """Whether a stopped robot has come to rest."""
        return self.stopped is not None and self.tracker.at_rest

    def receive(self, position_rad: Float[np.ndarray, " joints"], stamp_s: float, now_s: float) -> None:
        """Take a command [rad], meant for stamp_s on the sender's clock [s].

        Raises:
            RobotError: it is refused; `stopped` says why.
        """
        position_rad = np.asarray(position_rad, np.float64)
        if self.stopped is None and (wrong := self._wrong(position_rad, stamp_s, now_s)) is not None:
            self.stop(wrong)
        if self.stopped is not None:
            raise RobotError(f"the robot stopped itself: {self.stopped}")
        behind_s = now_s - stamp_s + self.delay_s
        if self._behind_s is None or (behind_s < self._behind_s and self._resting):
            self._behind_s = behind_s  # the first commands may have been held up; the motion need not be
        self._waiting.append(
            (stamp_s, position_rad.clip(self.profile.position_lower_rad, self.profile.position_upper_rad))
        )

    def stop(self, reason: str) -> None:
        """Come to rest as fast as the limits allow, and take no more commands."""
        self.stopped = self.stopped or reason

    def position(self, t_s: float) -> Float[np.ndarray, " joints"]:
        """Where the joints shall be at t_s [rad]; to be asked every `period_s`, and if that fails, later."""
        passed_s = self.period_s if self._asked_s is None else max(t_s - self._asked_s, self.period_s / 2)
        self._asked_s = t_s
        wanted = self._wanted if self._behind_s is None or self.stopped else self._play(t_s, self._behind_s)
        if self.stopped is not None:
            return self.tracker.brake(passed_s)
        velocity = (wanted - self._wanted) / passed_s
        acceleration = (velocity - self._velocity) / passed_s
        self._wanted, self._velocity = wanted, velocity
        return self.tracker.follow(wanted, velocity, acceleration, passed_s)

    @property
    def _resting(self) -> bool:
        """Whether no command that waits moves the robot."""
        return not any((position != self._wanted).any() for _, position in self._waiting)

    def _play(self, t_s: float, behind_s: float) -> np.ndarray:
        waiting, playing_s = self._waiting, t_s - behind_s
        while len(waiting) > 2 and waiting[1][0] <= playing_s:
            waiting.popleft()
        newest_s, newest = waiting[-1]
        if newest_s - playing_s < self.delay_s / 2:
            self._behind_s = behind_s + SLOWING * self.period_s
        if playing_s >= newest_s:
            return self._bridge(playing_s - newest_s, newest)
        (from_s, start), (to_s, end) = waiting[0], waiting[1] if len(waiting) > 1 else waiting[0]
        if playing_s <= from_s:
            return self._wanted if playing_s < from_s else start
        share = (playing_s - from_s) / (to_s - from_s)
        return (1 - share) * start + share * end

    def _bridge(self, gap_s: float, newest: np.ndarray) -> np.ndarray:
        """Continue as in the last two commands; a motion that had ended may rest as long as it likes."""
        if len(self._waiting) < 2 or not (newest - self._waiting[-2][1]).any():
            self._waiting.clear()
            self._behind_s = None
            return newest
        (from_s, start), (to_s, _) = self._waiting[-2], self._waiting[-1]
        self.bridged += 1
        if gap_s > self.deadline_s:
            self.stop(f"no command for {self.deadline_s:g} s")
        return newest + (newest - start) * (gap_s / (to_s - from_s))

    def _wrong(self, position_rad: np.ndarray, stamp_s: float, now_s: float) -> str | None:
        profile = self.profile
        if position_rad.shape != (profile.joints,) or not np.isfinite(position_rad).all() or not np.isfinite(stamp_s):
            return f"a command must be {profile.joints} finite joint positions and a finite stamp"
        beyond = np.maximum(profile.position_lower_rad - position_rad, position_rad - profile.position_upper_rad)
        if beyond.max() > 1e-6:
            return f"a command for {profile.joint_names[int(beyond.argmax())]} is beyond its limits"
        if not self._waiting:
            leap = np.abs(position_rad - self._wanted).max()
            return (
                f"the first command is {leap:.2f} rad away, at most {LEAP_RAD} rad allowed" if leap > LEAP_RAD else None
            )
        before_s, before = self._waiting[-1]
        if stamp_s <= before_s:
            return "stamps of commands must increase"
        # By the time, not by the oldest command that waits: that one is old, too, where `position` was asked late.
        playing_s = now_s - (self._behind_s or 0.0)
        if stamp_s - max(playing_s, self._waiting[0][0]) > AHEAD_S + self.delay_s:
            return f"commands are stamped more than {AHEAD_S:g} s ahead of the one being played"
        if len(self._waiting) > MAX_WAITING:
            return f"more than {MAX_WAITING} commands wait to be played"
        share = np.abs(position_rad - before) / (stamp_s - before_s) / profile.velocity_rad_s
        if share.max() > SPEED_SHARE:
            return f"commands for {profile.joint_names[int(share.argmax())]} ask for {share.max():.1f} times its velocity limit"
        return None
