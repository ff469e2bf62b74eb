"""LeRobot robots, driven by the control loop of this package and within its limits.

Any object with the methods `connect`, `get_observation` and `send_action` of LeRobot's `Robot` class can be used.
"""

import logging
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from robopolicy.arrays import Float
from robopolicy.components import ConfigError, Options, option, register
from robopolicy.control.profile import read_profile
from robopolicy.control.robot import RobotError
from robopolicy.control.robots.base import RobotContext, proprioception
from robopolicy.types import Command, Observation

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LerobotOptions(Options):
    """Options of `lerobot`."""

    type: str = "so101_follower"
    """Robot type: the name under which LeRobot registers it."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the robot's LeRobot config, such as {port: /dev/ttyACM0, id: my_arm}."""
    profile: str = "so101"
    """Limits and kinematics: the name of a shipped profile, or a YAML file. Joint `<joint>` is LeRobot's key `<joint>.pos`."""
    unit: Literal["degrees", "radians", "normalized"] = "degrees"
    """Unit of LeRobot's joint positions; normalized: -100 .. 100 from the lower to the upper limit in the profile."""
    gripper_range: tuple[float, float] = (0.0, 100.0)
    """LeRobot's values for the closed and for the fully open gripper."""
    command_dt: float = option(0.02, "> 0")
    """Time between two commands [s]; not shorter than the slowest read of the motor bus and the cameras."""
    timeout_s: float = option(0.5, "> 0")
    """Longest time without a new observation before `command` and `observe` raise [s]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gripper_range[0] == self.gripper_range[1]:
            raise ConfigError(f"--robot.gripper_range is {self.gripper_range}; expected two different values")


class LerobotRobot:
    """A LeRobot robot. A single background thread calls it, since its motors share one bus.

    Every `command_dt` the thread sends the newest command and reads an observation. If one of these calls fails, the next
    `command` or `observe` raises a `RobotError` that contains the error.

    Args:
        robot: an instance of LeRobot's `Robot`. Its `is_connected`, `action_features`, `connect`, `get_observation`,
            `send_action` and `disconnect` are used. It is connected here unless it is already.
        options: profile, units and times; `type` and `config` are not used.
        context: settings of the run, such as `control_dt`; None: the defaults.

    Raises:
        ConfigError: the robot lacks a joint or gripper of the profile.
        RobotError: the first observation does not arrive within `timeout_s`.
    """

    def __init__(self, robot: Any, options: LerobotOptions, context: RobotContext | None = None) -> None:
        self.profile, self._options, self._robot = read_profile(options.profile), options, robot
        self.control_dt, self.command_dt = (context or RobotContext()).control_dt, options.command_dt
        self._joints = [f"{name}.pos" for name in self.profile.joint_names]
        self._grippers = [
            f"{name}_gripper.pos" if name else "gripper.pos" for name, arm, _, _ in self.profile.parts if arm.grippers
        ]
        expected = [*self._joints, *self._grippers]
        if missing := [name for name in expected if name not in robot.action_features]:
            raise ConfigError(
                f"LeRobot's robot has no {missing[0]!r}, which profile {self.profile.name} names; it has: "
                f"{', '.join(robot.action_features)}"
            )
        if not robot.is_connected:
            robot.connect(calibrate=False)  # calibration asks questions on the terminal: run lerobot-calibrate first
        low, high = (np.asarray(limit) for limit in (self.profile.position_lower_rad, self.profile.position_upper_rad))
        self._unit_rad: Any = {"degrees": np.pi / 180, "radians": 1.0, "normalized": (high - low) / 200}[options.unit]
        self._zero_rad: Any = (low + high) / 2 if options.unit == "normalized" else 0.0
        self._changed = threading.Condition()
        self._seen: tuple[float, dict[str, np.ndarray]] | None = None  # start of the newest read [s], its observation
        self._command: Command | None = None
        self._lost: str | None = None  # why the robot can't be used any more
        self._stopped = False
        self._thread = threading.Thread(target=self._drive, name="lerobot", daemon=True)
        self._thread.start()
        self._qpos = np.asarray(self.observe().obs["qpos"], np.float64)

    def observe(self) -> Observation:
        """Wait for an observation whose read began after this call.

        Raises:
            RobotError: the robot failed, or no observation arrived within `timeout_s`.
        """
        asked_s = time.monotonic()
        with self._changed:
            self._changed.wait_for(
                lambda: self._lost or (self._seen and self._seen[0] >= asked_s), self._options.timeout_s
            )
            if self._lost or self._seen is None or self._seen[0] < asked_s:
                raise RobotError(self._lost or f"no observation from the robot within {self._options.timeout_s:g} s")
            stamp_s, obs = self._seen
        return Observation(obs, None, stamp_s)

    def qpos(self) -> Float[np.ndarray, " joints"]:
        """Newest measured joint positions [rad]."""
        return self._qpos

    def command(self, command: Command) -> None:
        """Pass a command to the thread; it replaces an earlier command that was not sent yet.

        Raises:
            RobotError: the robot failed or was stopped, or sent no observation for `timeout_s`.
        """
        if self._stopped:
            raise RobotError("the robot was stopped; it accepts no further commands")
        if self._lost or (self._seen is not None and time.monotonic() - self._seen[0] > self._options.timeout_s):
            raise RobotError(self._lost or f"nothing from the robot for {self._options.timeout_s:g} s")
        self._command = command

    def stop(self) -> None:
        """Accept no further command; the motors hold the last commanded position by themselves."""
        self._stopped = True

    def close(self) -> None:
        """Stop the thread and disconnect from the robot."""
        self.stop()
        self._thread.join(timeout=2.0)
        self._robot.disconnect()

    def _drive(self) -> None:
        """The thread: send the newest command once, read an observation, and sleep until the next period."""
        next_s, sent = time.monotonic(), None
        try:
            while not self._stopped:
                command = self._command
                if command is not None and command is not sent:
                    self._robot.send_action(self._action(command))
                    sent = command
                began_s = time.monotonic()  # before the read, so that the age is never underestimated
                obs = self._observation(self._robot.get_observation())
                with self._changed:
                    self._qpos = np.asarray(obs["qpos"], np.float64)
                    self._seen = began_s, obs
                    self._changed.notify_all()
                # A fixed grid of times. After a slow read it is at most one period behind: no burst of commands follows.
                next_s = max(next_s + self.command_dt, time.monotonic() - self.command_dt)
                time.sleep(max(next_s - time.monotonic(), 0.0))
        except Exception as error:  # drivers of buses and cameras raise exceptions of any type
            logger.error("LeRobot's robot failed", exc_info=error)
            with self._changed:
                self._lost = f"LeRobot's robot failed: {type(error).__name__}: {' '.join(str(error).split())}"
                self._changed.notify_all()

    def _action(self, command: Command) -> dict[str, float]:
        """Goal positions under LeRobot's names, in its units. A gripper whose opening is NaN (unchanged) is left out."""
        values = (np.asarray(command.joint_position_rad, np.float64) - self._zero_rad) / self._unit_rad
        action = dict(zip(self._joints, values.tolist(), strict=True))
        closed, opened = self._options.gripper_range
        openings_m = np.broadcast_to(command.gripper_opening_m, self.profile.grippers)
        for name, opening_m, widest_m in zip(self._grippers, openings_m, self.profile.openings_m, strict=True):
            if math.isfinite(opening_m):
                action[name] = float(closed + (opened - closed) * opening_m / widest_m)
        return action

    def _observation(self, values: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """LeRobot's observation under our keys [rad, m]; every array with three axes is an image (height, width, 3)."""
        qpos = self._zero_rad + self._unit_rad * np.array([float(values[name]) for name in self._joints])
        closed, opened = self._options.gripper_range
        fractions = np.array([(float(values[name]) - closed) / (opened - closed) for name in self._grippers])
        images = {name: np.asarray(value) for name, value in values.items() if np.ndim(value) == 3}
        return proprioception(self.profile, qpos, fractions * self.profile.openings_m) | images


@register("robot", "lerobot", LerobotOptions)
def make_lerobot(options: LerobotOptions, context: RobotContext) -> LerobotRobot:
    """A LeRobot robot; needs LeRobot in the same Python environment."""
    try:
        import draccus
        from lerobot.robots import RobotConfig, make_robot_from_config
    except ImportError as error:
        raise ConfigError(f"--robot lerobot needs LeRobot in this environment; pip install lerobot ({error})") from None
    try:  # draccus is the config library of LeRobot: it builds the config class that is registered as `type`
        config = draccus.decode(RobotConfig, {"type": options.type, **options.config})
    except Exception as error:  # draccus raises several exception types
        raise ConfigError(
            f"robot.config does not fit LeRobot's {options.type!r}: {' '.join(str(error).split())}"
        ) from None
    return LerobotRobot(make_robot_from_config(config), options, context)
