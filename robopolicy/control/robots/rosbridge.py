"""A ROS 2 arm through rosbridge's JSON: JointState in, JointTrajectory out; needs no ROS on this machine."""

import base64
import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from robopolicy.components import expect, register
from robopolicy.control.profile import read_profile
from robopolicy.control.robot import RobotError
from robopolicy.control.robots.base import RobotContext, host_and_port, proprioception
from robopolicy.types import Command, Observation


@dataclass(frozen=True)
class RosbridgeOptions:
    """Options of `rosbridge`."""

    address: str = "127.0.0.1:9090"
    """HOST:PORT of the rosbridge server."""
    profile: str = "panda"
    """Limits and kinematics: a shipped profile's name, or a YAML file; its `joint_names` are those of the JointState."""
    command_dt: float = 0.01
    """Time between two commands [s]; JSON carries about 100 of them a second."""
    joint_topic: str = "/joint_states"
    """Source of sensor_msgs/JointState."""
    command_topic: str = "/joint_trajectory_controller/joint_trajectory"
    """Destination of trajectory_msgs/JointTrajectory."""
    finger_joints: tuple[str, ...] = ()
    """Joints of the JointState whose sum is the gripper's opening [m]; none: the opening commanded last."""
    gripper_topic: str | None = None
    """Destination of the opening [m] as std_msgs/Float64; null: no gripper is commanded."""
    cameras: Mapping[str, str] = field(default_factory=dict)
    """Observation key -> topic of sensor_msgs/Image (rgb8 or bgr8)."""
    timeout_s: float = 0.25
    """Longest silence of the joints or a camera [s]."""

    def __post_init__(self) -> None:
        expect(self, "robot", "> 0", "command_dt", "timeout_s")


@register("robot", "rosbridge", RosbridgeOptions)
class RosbridgeRobot:
    """A ROS 2 arm with a joint trajectory controller, through rosbridge.

    Args:
        options: where it is, and its topics.
        context: of the run; None: the defaults.
    """

    def __init__(self, options: RosbridgeOptions, context: RobotContext | None = None) -> None:
        try:
            import roslibpy
        except ImportError:
            raise ImportError("a robot behind rosbridge needs roslibpy; pip install 'robopolicy[robot]'") from None
        host, port = host_and_port(options.address, "--robot rosbridge://")
        self.profile, self.control_dt = read_profile(options.profile), (context or RobotContext()).control_dt
        self.command_dt, self.timeout_s = options.command_dt, options.timeout_s
        self._fingers = options.finger_joints
        self._received: dict[str, tuple[float, Any]] = {}
        self._changed = threading.Condition()
        self._sent_m = math.nan  # opening commanded last [m]
        self._measured_m = math.nan if self._fingers else self.profile.opening_m  # nan: not received yet
        self._stopped = False
        self._lost: str | None = None
        self._ros = roslibpy.Ros(host=host, port=port)
        try:
            self._ros.run(timeout=5)
        except Exception as error:  # roslibpy raises its own
            raise RobotError(f"no rosbridge at {host}:{port}: {error}") from None
        self._commands = roslibpy.Topic(self._ros, options.command_topic, "trajectory_msgs/JointTrajectory")
        gripper = options.gripper_topic
        self._gripper = roslibpy.Topic(self._ros, gripper, "std_msgs/Float64") if gripper else None
        self._cameras = dict(options.cameras)
        self._listen(roslibpy.Topic(self._ros, options.joint_topic, "sensor_msgs/JointState"), "joints", self._joints)
        for key, topic in self._cameras.items():
            self._listen(roslibpy.Topic(self._ros, topic, "sensor_msgs/Image"), key, image)
        try:
            self._wait_for("joints", after_s=0.0, timeout_s=5.0)
            with self._changed:
                if not self._changed.wait_for(lambda: not math.isnan(self._measured_m), 5.0):
                    raise RobotError(f"{options.joint_topic} never reports {', '.join(self._fingers)}")
        except RobotError:
            self._ros.close()
            raise

    def observe(self) -> Observation:
        """The newest of each sensor; the stamp is that of the oldest among them."""
        joints_s, qpos = self._wait_for("joints", time.monotonic() - self.timeout_s)
        obs = proprioception(self.profile, qpos, self._measured_m)
        stamps = [joints_s]
        for key in self._cameras:
            seen_s, obs[key] = self._wait_for(key, time.monotonic() - self.timeout_s)
            stamps.append(seen_s)
        return Observation(obs, None, min(stamps))

    def qpos(self) -> Float[np.ndarray, " joints"]:
        """Joint positions received last [rad]."""
        return self._received["joints"][1]

    def command(self, command: Command) -> None:
        """Send a trajectory of one point, due one command period from now."""
        if self._stopped:
            raise RobotError("the robot was stopped; it takes no further command")
        silent_s = time.monotonic() - self._received["joints"][0]
        if self._lost or silent_s > self.timeout_s or not self._ros.is_connected:
            raise RobotError(self._lost or f"no joint state for {silent_s:.2f} s")
        self._commands.publish(self._message(command.joint_position_rad[None]))
        opening_m = command.gripper_opening_m
        if math.isfinite(opening_m) and opening_m != self._sent_m:
            self._sent_m = opening_m
            if not self._fingers:
                self._measured_m = opening_m
            if self._gripper is not None:
                self._gripper.publish(self._plain({"data": float(opening_m)}))

    def stop(self) -> None:
        """Command the present position, and disconnect."""
        if not self._stopped:
            self._stopped = True
            if self._ros.is_connected:
                self._commands.publish(self._message(self.qpos()[None]))
            self._ros.close()

    def _message(self, positions: Float[np.ndarray, "points joints"]) -> Any:
        return self._plain(joint_trajectory(self.profile.joint_names, positions, 1 / self.command_dt))

    def _plain(self, message: dict[str, Any]) -> Any:
        import roslibpy

        return roslibpy.Message(message)

    def _listen(self, topic: Any, key: str, decode: Any) -> None:
        """Keep the newest decoded message of a topic, with the time of its arrival."""

        def receive(message: Mapping[str, Any]) -> None:
            try:
                value = decode(message)
            except (KeyError, ValueError, TypeError) as error:
                self._lost = f"{topic.name}: {error}"
                value = None
            with self._changed:
                if value is not None:
                    self._received[key] = (time.monotonic(), value)
                self._changed.notify_all()

        topic.subscribe(receive)

    def _wait_for(self, key: str, after_s: float, timeout_s: float | None = None) -> tuple[float, Any]:
        """The newest value of a topic and when it came, once it is newer than `after_s`."""
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        with self._changed:
            arrived = self._changed.wait_for(
                lambda: self._lost is not None or self._received.get(key, (-1.0, None))[0] >= after_s, limit_s
            )
        if self._lost or not arrived or key not in self._received:
            raise RobotError(self._lost or f"no message of {key} for {limit_s:g} s")
        return self._received[key]

    def _joints(self, message: Mapping[str, Any]) -> np.ndarray | None:
        """Joint positions in the profile's order [rad]; None if the message holds other joints only."""
        positions = dict(zip(message["name"], message["position"], strict=True))
        if self._fingers and set(self._fingers) <= set(positions):
            self._measured_m = float(sum(positions[name] for name in self._fingers))
        if not set(self.profile.joint_names) & set(positions):
            return None  # a gripper, or another arm, may publish on the same topic
        if missing := [name for name in self.profile.joint_names if name not in positions]:
            raise ValueError(f"JointState lacks {missing[0]!r}; it has: {', '.join(positions)}")
        return np.array([positions[name] for name in self.profile.joint_names], np.float64)


def joint_trajectory(
    joint_names: Sequence[str], positions: Float[np.ndarray, "points joints"], rate_hz: float
) -> dict[str, Any]:
    """trajectory_msgs/JointTrajectory: point i [rad] is due (i + 1) / rate_hz after it is received."""
    points = []
    for place, position in enumerate(positions):
        sec, nanosec = divmod(round(1e9 * (place + 1) / rate_hz), 10**9)
        due = {"sec": sec, "nanosec": nanosec}
        points.append({"positions": [float(angle) for angle in position], "time_from_start": due})
    stamp = {"stamp": {"sec": 0, "nanosec": 0}, "frame_id": ""}  # zero: start on arrival
    return {"header": stamp, "joint_names": list(joint_names), "points": points}


def image(message: Mapping[str, Any]) -> np.ndarray:
    """The pixels (height, width, 3) uint8 RGB of a sensor_msgs/Image as rosbridge sends it, in base64."""
    if message["encoding"] not in ("rgb8", "bgr8"):
        raise ValueError(f"images come as {message['encoding']!r}; expected rgb8 or bgr8")
    rows = np.frombuffer(base64.b64decode(message["data"]), np.uint8).reshape(message["height"], message["step"])
    pixels = rows[:, : 3 * message["width"]].reshape(message["height"], message["width"], 3)
    return pixels if message["encoding"] == "rgb8" else np.ascontiguousarray(pixels[..., ::-1])
