"""Reads and writes ROS messages in rosbridge's JSON, for the robot `rosbridge`."""

import base64
import io
import math
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from robopolicy.arrays import Float, UInt8
from robopolicy.control.kinematics import matrix_to_quaternion, rotation_vector, tool_pose
from robopolicy.control.profile import RobotProfile

if TYPE_CHECKING:
    from robopolicy.control.robots._bridge import Bridge
    from robopolicy.control.robots.rosbridge import ArmTopics, GripperTopics

GRIPPER_STEP_M = 0.005
GRIPPER_DT = 0.1
"""A gripper is commanded when its opening differs from the last command by this much [m], or at all after this time [s]:
actions are goals, which controllers don't accept at the rate of joint commands."""
GOAL_S = 1.0
"""Time after which a goal that has not ended is replaced [s]."""
KINDS = {
    "joint_trajectory": "trajectory_msgs/JointTrajectory",
    "joint_group_position": "std_msgs/Float64MultiArray",
    "joint_group_velocity": "std_msgs/Float64MultiArray",
    "pose": "geometry_msgs/PoseStamped",
    "twist": "geometry_msgs/TwistStamped",
}
"""Type of command -> its message."""
CHANNELS = {"rgb8": (0, 1, 2), "bgr8": (2, 1, 0), "rgba8": (0, 1, 2), "bgra8": (2, 1, 0), "mono8": (0, 0, 0)}
"""Encoding of sensor_msgs/Image -> where red, green and blue are in a pixel."""
WIDTHS = {"rgba8": 4, "bgra8": 4, "mono8": 1}
"""Bytes of a pixel, where not 3."""


class ArmPublisher:
    """Publishes the commands of one arm."""

    def __init__(self, bridge: "Bridge", profile: RobotProfile, topics: "ArmTopics", command_dt: float) -> None:
        if topics.command in ("pose", "twist") and profile.arm is None:
            raise ValueError(
                f"command {topics.command!r} needs the kinematics of {profile.name}; add them to its profile"
            )
        self._profile, self._topics, self._command_dt = profile, topics, command_dt
        self._topic = bridge.publisher(topics.command_topic, KINDS[topics.command])
        self._before: np.ndarray | None = None

    def send(self, position: Float[np.ndarray, " joints"]) -> None:
        """Command joint positions [rad], in the arm's own type of message."""
        before = position if self._before is None else self._before
        self._before = position
        self._topic.publish(plain(self._message(position, before)))

    def hold(self, position: Float[np.ndarray, " joints"]) -> None:
        """Command rest at joint positions [rad]."""
        self._before = None
        self.send(position)

    def _message(self, position: np.ndarray, before: np.ndarray) -> dict[str, Any]:
        kind, names = self._topics.command, self._profile.joint_names
        if kind == "joint_trajectory":
            return joint_trajectory(names, position, self._command_dt)
        if kind == "joint_group_position":
            return float_array(position)
        if kind == "joint_group_velocity":
            return float_array((position - before) / self._command_dt)
        assert self._profile.arm is not None
        where, rotation = tool_pose(self._profile.arm, np.asarray(position, np.float64))
        header = {"stamp": _time(0.0), "frame_id": self._topics.frame_id}
        if kind == "pose":
            w, x, y, z = matrix_to_quaternion(rotation).tolist()
            pose = {"position": _xyz(where), "orientation": {"x": x, "y": y, "z": z, "w": w}}
            return {"header": header, "pose": pose}
        start, turned = tool_pose(self._profile.arm, np.asarray(before, np.float64))
        linear, angular = (where - start) / self._command_dt, rotation_vector(rotation @ turned.T) / self._command_dt
        return {"header": header, "twist": {"linear": _xyz(linear), "angular": _xyz(angular)}}


class GripperPublisher:
    """Commands one gripper, no more often than a gripper's controller takes goals.

    An action has at most one goal at a time; the newest opening follows when it has ended, or after `GOAL_S`.
    """

    def __init__(self, bridge: "Bridge", topics: "GripperTopics") -> None:
        import roslibpy

        self._topics, self._sent_m, self._sent_s = topics, math.nan, -math.inf
        self._target_m, self._pursuing, self._lock = math.nan, False, threading.Lock()
        if topics.topic is not None:
            kind = "std_msgs/Float64" if topics.message == "float64" else "control_msgs/GripperCommand"
            self._topic = bridge.publisher(topics.topic, kind)
        elif hasattr(roslibpy, "ActionClient"):
            self._action = roslibpy.ActionClient(bridge.ros, topics.action, "control_msgs/action/GripperCommand")
        else:
            raise ImportError(
                f"gripper actions need roslibpy >= 2.0, found {roslibpy.__version__}; use a topic, or upgrade"
            )

    def send(self, opening_m: float) -> None:
        """Command an opening [m], unless it is about the one commanded last."""
        with self._lock:
            self._target_m = opening_m
            self._forward()

    def _forward(self) -> None:
        now_s, changed_m = time.monotonic(), abs(self._target_m - self._sent_m)
        since_s = now_s - self._sent_s
        if changed_m == 0 or (changed_m < GRIPPER_STEP_M and since_s < GRIPPER_DT):
            return
        if self._pursuing and since_s < GOAL_S:
            return
        self._sent_m, self._sent_s = self._target_m, now_s
        position = float(self._topics.scale * self._target_m)
        goal = {"position": position, "max_effort": float(self._topics.max_effort)}
        if self._topics.topic is None:
            self._pursuing = True
            self._action.send_goal(plain({"command": goal}), self._ended, lambda feedback: None, self._ended)
        else:
            self._topic.publish(plain({"data": position} if self._topics.message == "float64" else goal))

    def _ended(self, result: Any) -> None:
        """A goal has ended. A gripper that holds an object never reaches its goal; that is not a failure."""
        with self._lock:
            self._pursuing = False
            self._forward()


def plain(message: dict[str, Any]) -> Any:
    """A message of roslibpy."""
    import roslibpy

    return roslibpy.Message(message)


def joint_trajectory(
    joint_names: Sequence[str], position: Float[np.ndarray, " joints"], due_s: float
) -> dict[str, Any]:
    """trajectory_msgs/JointTrajectory of one point [rad], due `due_s` after it is received."""
    point = {"positions": [float(angle) for angle in position], "time_from_start": _time(due_s)}
    header = {"stamp": _time(0.0), "frame_id": ""}  # zero: start on arrival
    return {"header": header, "joint_names": list(joint_names), "points": [point]}


def _time(seconds: float) -> dict[str, int]:
    """A time or duration under the field names of ROS 2 and of ROS 1.

    Each server ignores the other version's names. A ROS 1 server takes a duration without its own names as zero.
    """
    sec, nanosec = divmod(round(1e9 * seconds), 10**9)
    return {"sec": sec, "nanosec": nanosec, "secs": sec, "nsecs": nanosec}


def float_array(values: Float[np.ndarray, " n"]) -> dict[str, Any]:
    """std_msgs/Float64MultiArray."""
    return {"layout": {"dim": [], "data_offset": 0}, "data": [float(value) for value in values]}


def base_twist(velocity: Float[np.ndarray, " base"]) -> dict[str, Any]:
    """geometry_msgs/Twist of (forward, turn) or (forward, left, turn) [m/s, rad/s]."""
    if len(velocity) not in (2, 3):
        raise ValueError(f"a base of {len(velocity)} directions has no Twist; expected 2 (forward, turn) or 3")
    forward, *left, turn = (float(value) for value in velocity)
    return {
        "linear": {"x": forward, "y": left[0] if left else 0.0, "z": 0.0},
        "angular": {"x": 0.0, "y": 0.0, "z": turn},
    }


def image(message: Mapping[str, Any]) -> UInt8[np.ndarray, "height width 3"]:
    """The pixels of a sensor_msgs/Image, RGB."""
    encoding = message["encoding"]
    if encoding not in CHANNELS:
        raise ValueError(f"images come as {encoding!r}; expected one of {', '.join(CHANNELS)}")
    height, width, step = message["height"], message["width"], message["step"]
    bytes_each = WIDTHS.get(encoding, 3)
    data = np.frombuffer(base64.b64decode(message["data"]), np.uint8)
    if data.size != height * step or step < bytes_each * width:
        raise ValueError(f"an image of {height} rows of {step} bytes holds {data.size} bytes")
    pixels = data.reshape(height, step)[:, : bytes_each * width].reshape(height, width, bytes_each)
    return np.ascontiguousarray(pixels[..., CHANNELS[encoding]])


def compressed_image(message: Mapping[str, Any]) -> UInt8[np.ndarray, "height width 3"]:
    """The pixels of a sensor_msgs/CompressedImage in JPEG or PNG, RGB."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise ImportError("compressed images need pillow; pip install pillow") from None
    try:
        picture = Image.open(io.BytesIO(base64.b64decode(message["data"])), formats=("PNG", "JPEG"))
        return np.asarray(picture.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(
            f"a compressed image ({message.get('format')!r}) is not a complete JPEG or PNG: {error}"
        ) from None


def _xyz(vector: np.ndarray) -> dict[str, float]:
    x, y, z = (float(value) for value in vector)
    return {"x": x, "y": y, "z": z}
