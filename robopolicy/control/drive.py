"""Sends one robot commands on a fixed time grid: motion of joints, grippers and base, and braking to rest after any error."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np

from robopolicy.arrays import Float
from robopolicy.control.robot import REST_COMMANDS, DriverError, Robot, RobotError, driven
from robopolicy.control.smoothing import BaseRamp, JointSmoother
from robopolicy.control.statistics import LoopStatistics
from robopolicy.control.timing import Clock, FixedGrid
from robopolicy.types import Command

HOMING_SHARE = 0.1
"""Fraction of the velocity, acceleration and jerk limits used on the way to the home pose."""


class RobotDrive:
    """Sends a robot one command at every tick (every `command_dt`), within its limits.

    Args:
        robot: the robot that receives the commands.
        control_dt: time between two targets [s].
        clock: source of time.
        deadline_s: longest gap between two commands [s]; after a longer one the planned motion is abandoned.
        dry_run: compute the commands but do not send them.
    """

    def __init__(self, robot: Robot, control_dt: float, clock: Clock, deadline_s: float, dry_run: bool = False) -> None:
        self.robot, self.clock, self._deadline_s, self._dry_run = robot, clock, deadline_s, dry_run
        self.statistics = LoopStatistics(control_dt, robot.command_dt)
        self.smoother = JointSmoother(robot.profile, robot.command_dt, control_dt)
        self.smoother.start(driven(robot, "qpos"))
        self._base = BaseRamp(robot.profile, robot.command_dt)
        # NaN: a gripper stays as it is until the first action that sets its opening.
        self._opening_m = np.full(robot.profile.grippers, np.nan)

    def go_home(self, home_rad: Float[np.ndarray, " joints"] | None = None) -> None:
        """Move the joints slowly to `home_rad` (default: the profile's home pose) and wait until they are at rest.

        Raises:
            ValueError: no motion to the home pose stays within the limits.
        """
        profile = self.robot.profile
        home = np.asarray(profile.home_rad if home_rad is None else home_rad, np.float64)
        with self.smoother.limited_to(HOMING_SHARE):
            if self.smoother.aim(home, np.zeros_like(home)) == "kept":
                raise ValueError(
                    f"{profile.name}: the motion home would break a limit; first move the robot nearer with its own controls"
                )
            grid = FixedGrid(self.clock, self.robot.command_dt)  # starts after planning, which takes several ticks
            with self._braked_at_last(grid):
                self._follow_to_rest(grid)

    def _advance(self, grid: FixedGrid) -> float:
        """Send the next tick's command; returns how long the loop was blocked [s] if that exceeds the deadline, otherwise 0.

        After such a gap the robot would have to jump to the planned position, so its measured position is sent instead.
        """
        passed = grid.wait()  # ticks since the last command; 1 when on time
        blocked_s = (passed - 1) * grid.period_s
        if blocked_s > self._deadline_s:
            self.smoother.start(driven(self.robot, "qpos"))
        position, velocity = self.smoother.step(passed), self._base.step(passed)
        self.statistics.overruns += passed - 1
        self.statistics.commands += 1
        self.statistics.command_delay_s.append(self.clock.now() - grid.t_s)
        if not self._dry_run:
            driven(self.robot, "command", Command(position, self._opening_m, grid.t_s, velocity))
        return blocked_s if blocked_s > self._deadline_s else 0.0

    def _brake(self) -> None:
        """Brake joints and base to rest as fast as the limits allow."""
        self.smoother.brake()
        self._base.brake()

    def _follow_to_rest(self, grid: FixedGrid) -> None:
        """Send the rest of the motion's commands, then repeat the last one: it marks the end of the motion for the robot."""
        while not (self.smoother.at_rest and self._base.at_rest):
            self._advance(grid)
        self._rested_s = grid.t_s
        for _ in range(REST_COMMANDS):
            self._advance(grid)

    @contextmanager
    def _braked_at_last(self, grid: FixedGrid) -> Iterator[None]:
        """On any exception except RobotError, including Ctrl-C: brake to rest, then stop the robot permanently."""
        try:
            yield
        except RobotError:  # the robot accepts no further commands, so it cannot be braked
            raise
        except BaseException:
            try:
                with suppress(RobotError, DriverError):
                    self._brake()
                    self._follow_to_rest(grid)
            finally:
                self.robot.stop()
            raise
