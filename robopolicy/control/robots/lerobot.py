"""Robots of LeRobot through our loop and limits: anything with its `Robot` class's connect, get_observation, send_action."""

import logging
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from robopolicy.components import ConfigError, expect, register
from robopolicy.control.profile import read_profile
from robopolicy.control.robot import RobotError
from robopolicy.control.robots.base import RobotContext, proprioception
from robopolicy.types import Command, Observation

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LerobotOptions:
    """Options of `lerobot`."""

    type: str = "so101_follower"
    """Type of the robot, as LeRobot registers it."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Fields of its LeRobot config, such as {port: /dev/ttyACM0, id: my_arm}."""
    profile: str = "so101"
    """Limits and kinematics: a shipped profile's name, or a YAML file; its joints are LeRobot's `<joint>.pos`."""
    unit: Literal["degrees", "radians", "normalized"] = "degrees"
    """Unit of the joints in LeRobot's values; normalized: -100 .. 100 over the profile's range."""
    gripper_range: tuple[float, float] = (0.0, 100.0)
    """LeRobot's values of the closed and the open gripper."""
    command_dt: float = 0.02
    """Time between two commands [s]; at least the longest time that bus and cameras take."""
    timeout_s: float = 0.5
    """Longest silence of the robot [s]."""

    def __post_init__(self) -> None:
        expect(self, "robot", "> 0", "command_dt", "timeout_s")
        if self.gripper_range[0] == self.gripper_range[1]:
            raise ConfigError(f"--robot.gripper_range is {self.gripper_range}; expected two different values")


class LerobotRobot:
    """A LeRobot robot, called from one thread only, since its motors share a bus.

    Every `command_dt` the thread sends the newest command and reads an observation. If one of these calls fails, the next
    `command` or `observe` raises the cause.

    Args:
        robot: LeRobot's `Robot`, of which `is_connected`, `action_features`, `connect`, `get_observation`, `send_action` and
            `disconnect` are used; connected here if it isn't.
        options: names and units; `type` and `config` are not used.
        context: of the run; None: the defaults.
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
            robot.connect(calibrate=False)  # calibration is interactive: run lerobot-calibrate before
        low, high = (np.asarray(limit) for limit in (self.profile.position_lower_rad, self.profile.position_upper_rad))
        self._unit_rad: Any = {"degrees": np.pi / 180, "radians": 1.0, "normalized": (high - low) / 200}[options.unit]
        self._zero_rad: Any = (low + high) / 2 if options.unit == "normalized" else 0.0
        self._changed = threading.Condition()
        self._seen: tuple[float, dict[str, np.ndarray]] | None = None
        self._command: Command | None = None
        self._lost: str | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._drive, name="lerobot", daemon=True)
        self._thread.start()
        self._qpos = np.asarray(self.observe().obs["qpos"], np.float64)

    def observe(self) -> Observation:
        """The first observation that was read after this call."""
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
        """Joint positions read last [rad]."""
        return self._qpos

    def command(self, command: Command) -> None:
        """Hand one command to the thread."""
        if self._stopped:
            raise RobotError("the robot was stopped; it takes no further command")
        if self._lost or (self._seen is not None and time.monotonic() - self._seen[0] > self._options.timeout_s):
            raise RobotError(self._lost or f"nothing from the robot for {self._options.timeout_s:g} s")
        self._command = command

    def stop(self) -> None:
        """Hold the last commanded position, and accept no further command."""
        self._stopped = True

    def close(self) -> None:
        """End the thread and the connection."""
        self.stop()
        self._thread.join(timeout=2.0)
        self._robot.disconnect()

    def _drive(self) -> None:
        next_s, sent = time.monotonic(), None
        try:
            while not self._stopped:
                command = self._command
                if command is not None and command is not sent:
                    self._robot.send_action(self._action(command))
                    sent = command
                began_s = time.monotonic()
                obs = self._observation(self._robot.get_observation())
                with self._changed:
                    self._qpos = np.asarray(obs["qpos"], np.float64)
                    self._seen = began_s, obs
                    self._changed.notify_all()
                next_s = max(next_s + self.command_dt, time.monotonic() - self.command_dt)
                time.sleep(max(next_s - time.monotonic(), 0.0))
        except Exception as error:  # whatever a bus or a camera may raise
            logger.error("LeRobot's robot failed", exc_info=error)
            with self._changed:
                self._lost = f"LeRobot's robot failed: {type(error).__name__}: {' '.join(str(error).split())}"
                self._changed.notify_all()

    def _action(self, command: Command) -> dict[str, float]:
        """Goal positions in LeRobot's names and units; a gripper that was never commanded is left out."""
        values = (np.asarray(command.joint_position_rad, np.float64) - self._zero_rad) / self._unit_rad
        action = dict(zip(self._joints, values.tolist(), strict=True))
        closed, opened = self._options.gripper_range
        openings_m = np.broadcast_to(command.gripper_opening_m, self.profile.grippers)
        for name, opening_m, most in zip(self._grippers, openings_m, self.profile.openings_m, strict=True):
            if math.isfinite(opening_m):
                action[name] = float(closed + (opened - closed) * opening_m / most)
        return action

    def _observation(self, values: Mapping[str, Any]) -> dict[str, np.ndarray]:
        qpos = self._zero_rad + self._unit_rad * np.array([float(values[name]) for name in self._joints])
        closed, opened = self._options.gripper_range
        shares = np.array([(float(values[name]) - closed) / (opened - closed) for name in self._grippers])
        images = {name: np.asarray(value) for name, value in values.items() if np.ndim(value) == 3}
        return proprioception(self.profile, qpos, shares * self.profile.openings_m) | images


@register("robot", "lerobot", LerobotOptions)
def make_lerobot(options: LerobotOptions, context: RobotContext) -> LerobotRobot:
    """A robot of LeRobot, in an environment where LeRobot is installed."""
    try:
        import draccus
        from lerobot.robots import RobotConfig, make_robot_from_config
    except ImportError as error:
        raise ConfigError(f"--robot lerobot needs LeRobot in this environment; pip install lerobot ({error})") from None
    try:
        config = draccus.decode(RobotConfig, {"type": options.type, **options.config})
    except Exception as error:  # draccus has several of its own
        raise ConfigError(
            f"robot.config does not fit LeRobot's {options.type!r}: {' '.join(str(error).split())}"
        ) from None
    return LerobotRobot(make_robot_from_config(config), options, context)
