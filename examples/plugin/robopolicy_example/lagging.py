"""The robot `lagging`: an arm in memory that follows its commands with a delay, for rehearsals without hardware."""

from dataclasses import dataclass
from math import exp

import numpy as np
from jaxtyping import Float

from robopolicy.components import Options, option, register
from robopolicy.control.profile import read_profile
from robopolicy.control.robot import RobotError
from robopolicy.control.robots.base import RobotContext, proprioception
from robopolicy.control.timing import SystemClock
from robopolicy.types import Command, Observation


@dataclass(frozen=True)
class LaggingOptions(Options):
    """Options of the robot `lagging`."""

    profile: str = "panda"
    """Limits and kinematics: a shipped profile's name, or a YAML file."""
    lag_s: float = option(0.03, "> 0")
    """Time in which the joints come 63 % of the way to the command [s]."""
    command_dt: float = option(0.01, "> 0")
    """Time between two commands [s]."""


@register("robot", "lagging", LaggingOptions)
class LaggingRobot:
    """Joints approach the newest command exponentially; see `robopolicy.control.robot.Robot`."""

    def __init__(self, options: LaggingOptions, context: RobotContext) -> None:
        self.profile = read_profile(options.profile)
        self.control_dt, self.command_dt = context.control_dt, options.command_dt
        self._lag_s, self._clock = options.lag_s, SystemClock()
        self._goal = self._start = np.asarray(self.profile.home_rad, np.float64)
        self._opening_m, self._since_s, self._stopped = self.profile.openings_m / 2, self._clock.now(), False

    def observe(self) -> Observation:
        """Joint positions, gripper opening and tool pose, stamped now."""
        return Observation(proprioception(self.profile, self.qpos(), self._opening_m), None, self._clock.now())

    def qpos(self) -> Float[np.ndarray, " joints"]:
        """Joint positions [rad]."""
        remaining = exp(-(self._clock.now() - self._since_s) / self._lag_s)
        return self._goal + remaining * (self._start - self._goal)

    def command(self, command: Command) -> None:
        """Approach these joint positions; the gripper opens at once."""
        if self._stopped:
            raise RobotError("the robot was stopped; it accepts no further commands")
        self._start, self._since_s = self.qpos(), self._clock.now()
        self._goal = np.array(command.joint_position_rad, np.float64)
        wanted_m = command.gripper_opening_m
        self._opening_m = np.where(np.isfinite(wanted_m), wanted_m, self._opening_m)

    def stop(self) -> None:
        """Hold the position, and accept no further commands."""
        self._goal = self._start = self.qpos()
        self._stopped = True
