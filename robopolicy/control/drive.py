"""Commands for one robot on a fixed grid: the motion of joints, grippers and base, and braking to rest whatever happens."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
from jaxtyping import Float

from robopolicy.control.robot import REST_COMMANDS, Robot, RobotError
from robopolicy.control.smoothing import BaseRamp, JointSmoother
from robopolicy.control.statistics import LoopStatistics
from robopolicy.control.timing import Clock, FixedGrid
from robopolicy.types import Command

HOMING_SHARE = 0.1
"""Share of the robot's velocity, acceleration and jerk used on the way to the home pose."""


class RobotDrive:
    """Sends a robot a command at every tick, within its limits.

    Args:
        robot: what is driven.
        control_dt: time between two targets [s].
        clock: the time.
        deadline_s: longest time without a command after which the motion is given up [s].
        dry_run: compute commands and send none.
    """

    def __init__(self, robot: Robot, control_dt: float, clock: Clock, deadline_s: float, dry_run: bool = False) -> None:
        self.robot, self.clock, self._deadline_s, self._dry_run = robot, clock, deadline_s, dry_run
        self.statistics = LoopStatistics(control_dt, robot.command_dt)
        self.smoother = JointSmoother(robot.profile, robot.command_dt, control_dt)
        self.smoother.start(robot.qpos())
        self._base = BaseRamp(robot.profile, robot.command_dt)
        # NaN: until an action says otherwise, grippers stay as they are.
        self._opening_m = np.full(robot.profile.grippers, np.nan)

    def go_home(self, home_rad: Float[np.ndarray, " joints"] | None = None) -> None:
        """Move the joints slowly to the profile's home pose, or another."""
        profile = self.robot.profile
        home = np.asarray(profile.home_rad if home_rad is None else home_rad, np.float64)
        grid = FixedGrid(self.clock, self.robot.command_dt)
        with self.smoother.limited_to(HOMING_SHARE):
            if self.smoother.aim(home, np.zeros_like(home)) == "kept":
                raise ValueError(
                    f"{profile.name}: the way home would break a limit; first move the robot nearer with its own controls"
                )
            with self._braked_at_last(grid):
                self._follow_to_rest(grid)

    def _advance(self, grid: FixedGrid) -> float:
        """Send the next tick's command; returns how long the loop was blocked [s] if that exceeds the deadline, otherwise 0.

        After such a gap the planned position would be a leap, so the robot's measured position is sent instead.
        """
        passed = grid.wait()
        blocked_s = (passed - 1) * grid.period_s
        if blocked_s > self._deadline_s:
            self.smoother.start(self.robot.qpos())
        position, velocity = self.smoother.step(passed), self._base.step(passed)
        self.statistics.overruns += passed - 1
        self.statistics.commands += 1
        self.statistics.command_deviation_s.append(self.clock.now() - grid.t_s)
        if not self._dry_run:
            self.robot.command(Command(position, self._opening_m, grid.t_s, velocity))
        return blocked_s if blocked_s > self._deadline_s else 0.0

    def _brake(self) -> None:
        """Brake joints and base to rest as fast as the limits allow."""
        self.smoother.brake()
        self._base.brake()

    def _follow_to_rest(self, grid: FixedGrid) -> None:
        """Send a motion to its end, then repeat the last command, by which the robot recognizes rest."""
        while not (self.smoother.at_rest and self._base.at_rest):
            self._advance(grid)
        self._rested_s = grid.t_s
        for _ in range(REST_COMMANDS):
            self._advance(grid)

    @contextmanager
    def _braked_at_last(self, grid: FixedGrid) -> Iterator[None]:
        """On any exception in the context except RobotError, Ctrl-C included: brake to rest, then stop the robot for good."""
        try:
            yield
        except RobotError:
            raise
        except BaseException:
            try:
                with suppress(RobotError):
                    self._brake()
                    self._follow_to_rest(grid)
            finally:
                self.robot.stop()
            raise
