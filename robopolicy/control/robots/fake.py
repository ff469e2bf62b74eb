"""A simulated robot that reaches every commanded position instantly and records the commands; for tests and dry runs."""

from dataclasses import dataclass

import numpy as np

from robopolicy.arrays import Float
from robopolicy.components import register
from robopolicy.control.profile import RobotProfile, read_profile
from robopolicy.control.robot import RobotError
from robopolicy.control.robots.base import RobotContext, proprioception
from robopolicy.control.timing import Clock, SystemClock
from robopolicy.types import Command, Observation


@dataclass(frozen=True)
class FakeOptions:
    """Options of the robot `fake`."""

    profile: str = "panda"
    """Robot profile (limits and kinematics): the name of a built-in profile, or a YAML file."""
    command_dt: float = 0.01
    """Time between two commands [s]."""
    opening_m: float | None = None
    """Initial opening of every gripper [m]; null: fully open."""


class FakeRobot:
    """Reaches every commanded position instantly and records the commands in `commands`.

    Args:
        profile: its limits and kinematics.
        control_dt: time between two actions [s].
        command_dt: time between two commands [s].
        clock: source of the observations' time stamps.
        opening_m: initial opening of every gripper [m]; None: fully open.
    """

    def __init__(
        self,
        profile: RobotProfile,
        control_dt: float = 0.05,
        command_dt: float = 0.01,
        clock: Clock | None = None,
        opening_m: float | None = None,
    ) -> None:
        self.profile, self.control_dt, self.command_dt = profile, control_dt, command_dt
        self.clock = clock or SystemClock()
        self.commands: list[Command] = []
        self.instruction: str | None = None
        self.lost: str | None = None
        """If set, `observe` and `command` raise RobotError with this text, as if the connection were lost."""
        self._qpos = np.asarray(profile.home_rad, np.float64)
        self._opening_m = profile.openings_m if opening_m is None else np.full(profile.grippers, opening_m)
        self._stopped = False

    def observe(self) -> Observation:
        """Proprioception: the last commanded joint positions and gripper openings."""
        self._refuse_if_lost()
        obs = proprioception(self.profile, self._qpos, self._opening_m)
        return Observation(obs, self.instruction, self.clock.now())

    def qpos(self) -> Float[np.ndarray, " joints"]:
        """The last commanded joint positions [rad]."""
        return self._qpos

    def command(self, command: Command) -> None:
        """Move to the commanded position instantly; a gripper opening of NaN leaves the gripper as it is."""
        self._refuse_if_lost()
        if self._stopped:
            raise RobotError("the robot was stopped; it accepts no further commands")
        self.commands.append(command)
        self._qpos = command.joint_position_rad
        opening_m = command.gripper_opening_m
        self._opening_m = np.where(np.isfinite(opening_m), opening_m, self._opening_m)

    def stop(self) -> None:
        """Refuse all further commands."""
        self._stopped = True

    def _refuse_if_lost(self) -> None:
        if self.lost:
            raise RobotError(self.lost)


@register("robot", "fake", FakeOptions)
def make_fake(options: FakeOptions, context: RobotContext) -> FakeRobot:
    """A simulated robot for tests and dry runs without hardware."""
    profile = read_profile(options.profile)
    return FakeRobot(profile, context.control_dt, options.command_dt, opening_m=options.opening_m)
