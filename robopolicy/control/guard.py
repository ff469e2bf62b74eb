"""Safety on the robot's side: plays back commands by their time stamps, within the limits, and brakes when none arrive."""

import math
from collections import deque

import numpy as np

from robopolicy.arrays import Float
from robopolicy.control.profile import RobotProfile
from robopolicy.control.robot import RobotError
from robopolicy.control.trajectories import JointTracker

SLOWING = 0.001
"""Fraction by which playback slows down while the newest command is less than `delay_s` / 2 ahead; more would jerk the arm."""
LEAP_RAD = 0.02
"""Largest distance of the first command from the robot's position [rad]; not 0, as measured and commanded positions differ."""
SPEED_SHARE = 1.05
"""Largest velocity between two consecutive commands, as a share of the limits; beyond it the guard stops the robot."""
AHEAD_S = 1.0
"""Largest lead of a command's stamp over the playback time [s]; beyond it the guard stops the robot."""
CHECK_DT = 0.01
"""Minimum time between two checks of the distances between links [s]; each check takes up to 1 ms."""
BRAKING_SAMPLES = 9
"""Number of postures on the way to rest at which the distances between links are checked."""
TOUCHING_SHARE = 0.25
"""Links count as touching when they are nearer than this share of `collision_margin_m`, since only samples are checked."""
MAX_WAITING = 10_000
"""Maximum number of commands that may wait for playback; beyond it the guard stops the robot."""


class CommandGuard:
    """Checks the commands that arrive for one robot, and turns them into joint positions within its limits.

    Commands are played back at their time stamps plus a short delay, with linear interpolation between them, so that commands
    that arrive in bursts still move the joints evenly. A gap is bridged at constant velocity. Playback goes through a
    `JointTracker`, which keeps it within the limits of position, velocity, acceleration and jerk, whatever is sent and
    whenever it arrives. Each connection gets a new guard.

    The guard brakes, and accepts no further commands, after a gap longer than `deadline_s`, or after a command that is not
    finite, has a wrong time stamp, is beyond a joint's limits, requires too high a velocity, starts a motion too far from the
    robot's position, brings links nearer to each other than the profile's `collision_margin_m`, or moves them towards each
    other so fast that they would touch before the arm is at rest.

    Args:
        profile: the robot's limits.
        period_s: time between two calls of `position` [s].
        qpos: measured joint positions [rad].
        deadline_s: longest gap during a motion [s]; at rest, a gap may be of any length.
        delay_s: delay from a command's arrival to its playback [s]; None: four periods.
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
        """Why commands are no longer accepted; None while they are."""
        self.tracker = JointTracker(profile, period_s, qpos)
        self._desired = self.tracker.position
        self._velocity = np.zeros_like(self._desired)
        self._asked_s: float | None = None  # time of the last call of `position`
        self._waiting: deque[tuple[float, np.ndarray]] = deque()
        self._behind_s: float | None = None  # now - the stamp being played; None if no command is
        self._checked_s, self._clearance_m = -math.inf, float(profile.clearance_m(self._desired))  # at the last check

    @property
    def at_rest(self) -> bool:
        """Whether a stopped robot has come to rest."""
        return self.stopped is not None and self.tracker.at_rest

    def receive(self, position_rad: Float[np.ndarray, " joints"], stamp_s: float, now_s: float) -> None:
        """Accept a command [rad] for the time `stamp_s` on the sender's clock [s].

        Raises:
            RobotError: the command is refused; `stopped` says why.
        """
        position_rad = np.asarray(position_rad, np.float64)
        if self.stopped is None and (wrong := self._wrong(position_rad, stamp_s, now_s)) is not None:
            self.stop(wrong)
        if self.stopped is not None:
            raise RobotError(f"the robot stopped itself: {self.stopped}")
        behind_s = now_s - stamp_s + self.delay_s
        if self._behind_s is None or (behind_s < self._behind_s and self._resting):
            self._behind_s = behind_s  # only the first commands were late: play the motion with less delay
        self._waiting.append(
            (stamp_s, position_rad.clip(self.profile.position_lower_rad, self.profile.position_upper_rad))
        )

    def stop(self, reason: str) -> None:
        """Brake to rest as fast as the limits allow, and accept no more commands."""
        self.stopped = self.stopped or reason

    def position(self, t_s: float) -> Float[np.ndarray, " joints"]:
        """Joint positions to command at t_s [rad]. Must be called every `period_s`; after a late call, playback catches up."""
        passed_s = self.period_s if self._asked_s is None else max(t_s - self._asked_s, self.period_s / 2)
        self._asked_s = t_s
        desired = self._desired if self._behind_s is None or self.stopped else self._play(t_s, self._behind_s)
        if self.stopped is not None:
            return self.tracker.brake(passed_s)
        velocity = (desired - self._desired) / passed_s
        acceleration = (velocity - self._velocity) / passed_s
        self._desired, self._velocity = desired, velocity
        return self.tracker.follow(desired, velocity, acceleration, passed_s)

    @property
    def _resting(self) -> bool:
        """Whether all waiting commands keep the robot where it is."""
        return not any((position != self._desired).any() for _, position in self._waiting)

    def _play(self, t_s: float, behind_s: float) -> np.ndarray:
        """The commanded position [rad] at the playback time `t_s - behind_s`, interpolated between waiting commands."""
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
            return self._desired if playing_s < from_s else start
        share = (playing_s - from_s) / (to_s - from_s)
        return (1 - share) * start + share * end

    def _bridge(self, gap_s: float, newest: np.ndarray) -> np.ndarray:
        """Extrapolate the last two commands; after a motion that has ended, stay at rest."""
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
        """Why a command must be refused; None if it is valid."""
        profile = self.profile
        if position_rad.shape != (profile.joints,) or not np.isfinite(position_rad).all() or not np.isfinite(stamp_s):
            return f"a command must be {profile.joints} finite joint positions and a finite stamp"
        beyond = np.maximum(profile.position_lower_rad - position_rad, position_rad - profile.position_upper_rad)
        if beyond.max() > 1e-6:
            return f"a command for {profile.joint_names[int(beyond.argmax())]} is beyond its limits"
        if not self._waiting:
            leap = np.abs(position_rad - self._desired).max()
            return (
                f"the first command is {leap:.2f} rad away, at most {LEAP_RAD} rad allowed" if leap > LEAP_RAD else None
            )
        before_s, before = self._waiting[-1]
        if stamp_s <= before_s:
            return "stamps of commands must increase"
        # Measured from the playback time if that is later: when `position` is called late, old commands are still waiting.
        playing_s = now_s - (self._behind_s or 0.0)
        if stamp_s - max(playing_s, self._waiting[0][0]) > AHEAD_S + self.delay_s:
            return f"commands are stamped more than {AHEAD_S:g} s ahead of the one being played"
        if len(self._waiting) > MAX_WAITING:
            return f"more than {MAX_WAITING} commands wait to be played"
        share = np.abs(position_rad - before) / (stamp_s - before_s) / profile.velocity_rad_s
        if share.max() > SPEED_SHARE:
            return f"commands for {profile.joint_names[int(share.argmax())]} ask for {share.max():.1f} times its velocity limit"
        return self._too_near(position_rad, (position_rad - before) / (stamp_s - before_s), stamp_s)

    def _too_near(self, position: np.ndarray, velocity: np.ndarray, stamp_s: float) -> str | None:
        """Why a command brings links too near to each other; None if not, or if they were too near before and get no nearer."""
        if stamp_s - self._checked_s < CHECK_DT:
            return None
        acceleration, jerk = np.asarray(self.profile.acceleration_rad_s2), np.asarray(self.profile.jerk_rad_s3)
        stops_s = np.abs(velocity) / acceleration
        times_s = np.minimum(stops_s.max() * np.linspace(0.0, 1.0, BRAKING_SAMPLES)[:, None], stops_s)
        delay_s = CHECK_DT + acceleration / jerk / 2  # until the next check, and until the joints brake at their limit
        braking = position + velocity * (delay_s + times_s) - np.sign(velocity) * acceleration * times_s**2 / 2
        clearance_m = float(self.profile.clearance_m(position))
        touching = bool((self.profile.clearance_m(braking, TOUCHING_SHARE) < 0).any())
        before_m, self._clearance_m, self._checked_s = self._clearance_m, clearance_m, stamp_s
        leaving = before_m < 0 and clearance_m >= before_m - 1e-6
        if leaving or (clearance_m >= 0 and not touching):
            return None
        if touching:
            return "a command brings links together faster than they can brake"
        return f"a command brings links {-clearance_m:.3f} m nearer than the collision margin"
