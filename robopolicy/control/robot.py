"""Protocols that the control loop uses: the robot, an operator who may take over, and a recorder."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from robopolicy.arrays import Float
from robopolicy.control.profile import RobotProfile
from robopolicy.types import Command, Observation, PrintableError, one_line

REST_COMMANDS = 3
"""Number of times that the last command of a motion is sent, so that a robot's watchdog can tell its end from a lost
connection."""


class RobotError(PrintableError, ConnectionError):
    """The robot can't be reached, or refuses commands because it was stopped or has stopped itself."""


class DriverError(PrintableError, OSError):
    """A robot's driver raised an exception other than RobotError; the message names the robot, the method and the cause."""


def driven(robot: "Robot", method: Literal["observe", "qpos", "command"], *arguments: Any) -> Any:
    """Call a method of the robot; returns its result.

    Raises:
        RobotError: the robot is lost, or refuses.
        DriverError: its driver raised anything else.
    """
    try:
        return getattr(robot, method)(*arguments)
    except RobotError:
        raise
    except Exception as error:
        driver, name = type(robot), getattr(robot.profile, "name", "?")
        raise DriverError(
            f"robot {name}: its driver {driver.__module__}.{driver.__qualname__} failed in {method}(): "
            f"{type(error).__name__}: {one_line(error)}"
        ) from error


@runtime_checkable
class Robot(Protocol):
    """One or more arms, with grippers and a mobile base if there are any.

    `observe` is called from the policy's thread, everything else from the control thread.
    """

    profile: RobotProfile
    control_dt: float
    """Configured time between two actions [s]."""
    command_dt: float
    """Configured time between two commands [s]."""

    def observe(self) -> Observation:
        """The current observation, stamped on the loop's clock; may block (cameras).

        Raises:
            RobotError: the robot is lost.
        """
        ...

    def qpos(self) -> Float[np.ndarray, " joints"]:
        """The most recently measured joint positions [rad]; never waits."""
        ...

    def command(self, command: Command) -> None:
        """Send one command; never waits. A gripper opening of NaN leaves the gripper as it is.

        Raises:
            RobotError: after `stop`, or when the robot is lost or has stopped itself.
        """
        ...

    def stop(self) -> None:
        """Stop permanently: the robot holds its position and accepts no further command. May be called twice."""
        ...


def commands_per_step(robot: Robot, control_dt: float) -> int:
    """Number of commands to a robot in one control step of the policy.

    Raises:
        ValueError: the robot is configured for another control rate, or its command rate is not an integer multiple of it.
    """
    name, nominal_hz = robot.profile.name, 1 / control_dt
    if abs(robot.control_dt - control_dt) > 1e-6:
        raise ValueError(
            f"robot {name} is set up for {1 / robot.control_dt:g} actions/s, the policy was trained for {nominal_hz:g}; "
            f"set the robot to {nominal_hz:g} Hz, or train at its rate"
        )
    count = round(control_dt / robot.command_dt)
    if count < 1 or abs(count * robot.command_dt - control_dt) > 1e-6:
        raise ValueError(
            f"robot {name}: control_dt {control_dt} s is not a whole multiple of command_dt {robot.command_dt} s; "
            f"use a command_dt such as {control_dt / max(1, count):g} s"
        )
    return count


@dataclass(frozen=True)
class StepRecord:
    """What happened in one control step."""

    t_s: float
    """Its time on the loop's clock [s]."""
    observation: Observation | None
    """The observation of this step's own chunk; None if that chunk had not arrived when the step acted."""
    action: np.ndarray | None
    """(width,) in the demos' units; None if the robot held its position."""
    command: Command
    """The resulting joint and gripper targets."""
    limited: tuple[str, ...]
    """Kinds of limits that changed the command."""
    policy_action: np.ndarray | None = None
    """(width,) the policy's action, whether executed or not; None if it had none."""
    intervention: bool = False
    """Whether `action` is the operator's."""


@runtime_checkable
class Operator(Protocol):
    """A person who may take over control of the robot and hand it back. Called from the control thread."""

    def act(
        self, t_s: float, qpos: Float[np.ndarray, " joints"], policy_action: np.ndarray | None
    ) -> np.ndarray | None:
        """The action (width,) for a control step, in the policy's units and columns; None: the policy acts. Never waits.

        Args:
            t_s: time of the step on the loop's clock [s].
            qpos: the most recently measured joint positions [rad].
            policy_action: (width,) what the policy would do; None where it has no action.

        Raises:
            Exception: of any kind, such as a device that was unplugged; the robot is stopped, and the message is the reason.
        """
        ...

    def close(self) -> None:
        """Release the device."""
        ...


@runtime_checkable
class Recorder(Protocol):
    """Records what happened. Called from the control thread, so `record` must not block."""

    def record(self, step: StepRecord) -> None:
        """Record one control step."""
        ...

    def close(self) -> None:
        """Write what remains."""
        ...
